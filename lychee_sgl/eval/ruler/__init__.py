"""RULER's thirteen tasks, written anew to the definition at the commit that `COMMIT` names.

Wordings are the benchmark's own: they are what makes scores comparable. The README of `lychee_sgl/eval` lists what
differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lychee_sgl.eval.ruler.needles import needle_recipes
from lychee_sgl.eval.ruler.variables import variable_recipe
from lychee_sgl.eval.ruler.words import common_words_recipe, frequent_words_recipe

if TYPE_CHECKING:
    from lychee_sgl.eval.fit import Recipe
    from lychee_sgl.eval.text import Prose

COMMIT: Final = "c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a"
"""Of github.com/NVIDIA/RULER."""


def ruler_recipes(prose: Prose) -> tuple[Recipe, ...]:
    """All tasks but the two over a user's own file of questions, in RULER's order."""
    return (*needle_recipes(prose), variable_recipe(), common_words_recipe(), frequent_words_recipe())
