"""From the row tables and the lengths of a decode batch to its decisions and its partition."""

from lychee_kernels.decode_plan.api import PlanRules, decide_rows, plan_decode

__all__ = ["PlanRules", "decide_rows", "plan_decode"]
