"""Held-out needle tasks, answered under many plans and budgets at once."""
