"""The head plans that ship with the package. Standard library only.

A shape alone does not tell models apart: every fine-tune of a model, and many strangers, share it, and whose heads
retrieve is learned, not built in. So a shipped plan is used only for a model that is *called* like the one it was
measured on: the last part of its name, path or `_name_or_path` equals the plan's model name, or that name followed by
suffixes that name the same weights in another storage format (`-GGUF`, `-bf16`, `.Q4_1.gguf`) or a cache's hash (`-`
and twelve hexadecimal digits, as in the folder of the embedded model). Any other model gets None, and its caller the
heuristic; a user who knows better names a plan file.
"""

import re
from pathlib import Path

from lychee_sgl.heads.plan import HeadPlan, ModelShape

PLANS = Path(__file__).parent / "plans"
MEASURED = ".measured.json"
"""What the name of a measurement that lies beside its plan ends with."""

_FORMAT = re.compile(
    r"([-_.](gguf|ggml|awq|gptq|bnb|mlx|fp8|fp16|fp32|f16|f32|bf16|int[48]|[348]bit|i?q\d\w*|[0-9a-f]{12}))*", re.ASCII
)


def shipped_plans() -> tuple[HeadPlan, ...]:
    """All plans of the package, in the order of their file names."""
    files = sorted(path for path in PLANS.glob("*.json") if not path.name.endswith(MEASURED))
    return tuple(HeadPlan.load(path) for path in files)


def find_plan(shape: ModelShape, *names: str) -> HeadPlan | None:
    """The shipped plan of a model, or None.

    Args:
        shape: the model's shape; its name is one of the names tried.
        names: other names the model goes by: the path it is served from, the repository, the served model name.
    """
    called = {_last_part(name) for name in (shape.name, *names)}
    for plan in shipped_plans():
        if plan.model.fits(shape) and any(_same_weights(plan.model.base_name, name) for name in called):
            return plan
    return None


def shipped_plan(model: str) -> HeadPlan | None:
    """The shipped plan that was measured on the model of this name, or None."""
    return next((plan for plan in shipped_plans() if plan.model.base_name == _last_part(model)), None)


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()


def _same_weights(planned: str, called: str) -> bool:
    return called.startswith(planned) and _FORMAT.fullmatch(called[len(planned) :]) is not None
