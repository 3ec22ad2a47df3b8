"""A needle in a long text, asked for at several budgets: what hybrid heads change, seen from outside over HTTP."""
