"""What the commands of `lychee-sgl heads` have in common: lines of output, `--share`, how a call is recorded."""

import shlex
import sys
from pathlib import Path

from rich.console import Console

from lychee_sgl.heads.plan import HeadPlan, ModelShape, PlanError
from lychee_sgl.heads.registry import find_plan


def say(line: str) -> None:
    """Print a line as it is."""
    Console(soft_wrap=True).print(line, markup=False, highlight=False)


def plan_for(shape: ModelShape, given: HeadPlan | None) -> HeadPlan:
    """The plan that was given, else the built-in one of the model.

    Raises:
        PlanError: it does not fit the model, or none is given and none built in.
    """
    plan = given or find_plan(shape, shape.name)
    if plan is None:
        raise PlanError(f"no plan is built in for {shape.name}; name one with --heads")
    plan.check_fits(shape)
    return plan


def share_of(told: str) -> tuple[int, int]:
    """What `--share` means: `2/4`, the second of four, as (1, 4).

    Raises:
        ValueError: it is something else.
    """
    place, _, of = told.partition("/")
    if not (place.isdecimal() and of.isdecimal() and 1 <= int(place) <= int(of)):
        raise ValueError(f"--share is {told!r}; allowed: I/N with I from 1 to N")
    return int(place) - 1, int(of)


def command_line(model: Path) -> str:
    """This call without what only this machine knows: where the program, the model and other files lie."""
    words = sys.argv[1:]
    if "--cache" in words:
        at = words.index("--cache")
        words = words[:at] + words[at + 2 :]
    words = [model.resolve().name if word == str(model) else word for word in words]
    words = [Path(word).name if Path(word).is_absolute() else word for word in words]
    program = Path(sys.argv[0]).name == "__main__.py"  # python -m lychee_sgl.heads, which takes no word `heads`
    return shlex.join(["lychee-sgl", *(["heads"] if program else []), *words])
