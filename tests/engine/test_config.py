"""Settings from the environment, and the table that documents them."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from lychee_sgl.config import ConfigError, EngineConfig

DESIGN = Path(__file__).parents[2] / "DESIGN.md"


def test_the_design_documents_every_setting_as_it_is() -> None:
    rows = re.findall(r"^\| `(LYCHEE_[A-Z_]+)` \| (.*?) \| (.*?) \|$", DESIGN.read_text(), re.MULTILINE)
    documented = [(variable, default, meaning) for variable, default, meaning in rows]
    in_code = [(f.metadata["variable"], f.metadata["default"], f.metadata["meaning"]) for f in fields(EngineConfig)]
    assert documented == in_code


def test_defaults_differ_by_device() -> None:
    config = EngineConfig.from_env({})
    assert (config.heads, config.recall_every, config.prefill_threads) == (None, 32, None)
    assert str(config.resolved_dense_below("cuda")) in dict(_defaults())["LYCHEE_DENSE_BELOW"].split()
    assert str(config.resolved_dense_below("cpu")) in dict(_defaults())["LYCHEE_DENSE_BELOW"].split()


def _defaults() -> list[tuple[str, str]]:
    return [(f.metadata["variable"], f.metadata["default"]) for f in fields(EngineConfig)]


def test_what_is_set_is_taken_and_empty_is_not_set() -> None:
    config = EngineConfig.from_env({"LYCHEE_DENSE_BELOW": "0", "LYCHEE_RECALL_EVERY": " 7 ", "LYCHEE_HEADS": ""})
    assert (config.resolved_dense_below("cpu"), config.recall_every, config.heads) == (0, 7, None)


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("LYCHEE_DENSE_BELOW", "-1", "a whole number from 0"),
        ("LYCHEE_DENSE_BELOW", "1e3", "a whole number from 0"),
        ("LYCHEE_RECALL_EVERY", "often", "a whole number from 0"),
        ("LYCHEE_PREFILL_THREADS", "0", "a whole number from 1"),
        ("LYCHEE_DENSE_BELOW", str(2**31), "a whole number from 0"),
    ],
)
def test_refusals(variable: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable} is '{value}', allowed: {allowed}"):
        EngineConfig.from_env({variable: value})
