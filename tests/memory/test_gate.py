"""Gates: what a file must be, what its numbers mean, what features see, and what a request may choose."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lychee_sgl.config import ConfigError, EngineConfig
from lychee_sgl.memory.gate import Classifier, GateError, Oracle, Threshold, Weight, foreign, load, shipped
from lychee_sgl.memory.gate_features import NAMES, OF_WORDS, Evidence, features
from lychee_sgl.memory.settings import MemoryRequest
from lychee_sgl.memory.split import Refused

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = (
    "Nothing happened on Monday.\n\nThe key of the Oslo office is kept by Anna Berg.\n\nIt rained all day in the "
    "valley.\n\nNobody heard of it again.\n"
)
WORDS = Classifier(
    weights=(
        Weight(name="named", mean=0.5, scale=0.5, weight=2.0),
        Weight(name="hop", mean=0.0, scale=0.5, weight=1.0),
    ),
    bias=-1.0,
    threshold=0.6,
    model=None,
)


def evidence(question: str, notes: str = "", **gain: Any) -> Evidence:
    return Evidence(question=question, notes=notes, block=BLOCK, **gain)


def test_a_verdict_by_hand() -> None:
    # named = 1: odds -1 + 2 * (1 - 0.5) / 0.5 = 1; named = 0: -1 - 2 = -3
    assert WORDS.probability({"named": 1.0, "hop": 0.0}) == pytest.approx(1 / (1 + math.exp(-1)))
    assert WORDS.probability({"named": 0.0, "hop": 0.0}) == pytest.approx(1 / (1 + math.exp(3)))
    # six scales away counts as far as sixty
    assert WORDS.probability({"named": 3.5, "hop": 0.0}) == WORDS.probability({"named": 30.5, "hop": 0.0})
    assert WORDS.accepts(evidence("Who keeps the key of the Oslo office?"))
    assert not WORDS.accepts(evidence("Who keeps the key of the Quito office?"))
    assert not WORDS.needs_gain


def test_features_of_words_by_hand() -> None:
    found = features(evidence("Who keeps the key of the Oslo office?"))
    assert tuple(found) == OF_WORDS
    assert (found["named"], found["hop"], found["noted"], found["bm25_notes"]) == (1.0, 0.0, 0.0, 0.0)
    # of the question's six words `the` stands in two of the four sentences, `key`, `of`, `oslo` and `office` in one or
    # two, and `who`, `keeps` in none: ln(1 + (4 - n + 0.5) / (n + 0.5))
    weight = {n: math.log1p((4 - n + 0.5) / (n + 0.5)) for n in range(3)}
    there = weight[2] + weight[1] + weight[2] + weight[1] + weight[1]  # the, key, of, oslo, office
    assert found["covered"] == pytest.approx(there / (there + 2 * weight[0]))
    lacking = features(evidence("Who keeps the key of the Quito office?"))
    assert lacking["named"] == 0.0
    assert lacking["bm25_question"] < found["bm25_question"]


def test_the_second_hop_is_seen_by_the_names_of_a_note() -> None:
    question = "Which number has the owner of the red lamp?"
    found = features(evidence(question, "The red lamp belongs to one Anna Berg.\nThe weather was fine in Rome."))
    assert (found["hop"], found["noted"]) == (1.0, 1.0)
    assert found["bm25_notes"] > 0
    other = features(evidence(question, "The red lamp belongs to one Paul Reyes."))
    assert other["hop"] == 0.0
    # no name in the question: the share of its words stands for them
    assert found["named"] == found["covered"]


def test_features_of_the_gain_by_hand() -> None:
    gained, alone = (0.5, 2.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.5), (-1.0, -9.0, -8.0, -2.0, -1.0, -1.0, -1.0, -1.0)
    found = features(evidence("Who is that?", gained=gained, alone=alone))
    assert tuple(found) == NAMES
    assert found["gain_mean"] == pytest.approx(3 / 8)
    assert found["gain_max"] == 2.0
    assert found["gain_top3"] == pytest.approx(3.5 / 3)
    assert found["gain_hard"] == pytest.approx(0.5)  # the two least likely: 2 and -1
    assert found["surprise"] == pytest.approx(3.0)


@pytest.mark.parametrize(("question", "block"), [("?", ""), ("", "\n\n"), ("?!", "... --- ...")])
def test_texts_without_words_have_features(question: str, block: str) -> None:
    found = features(Evidence(question=question, notes="", block=block))
    assert set(found.values()) == {0.0}


def test_a_gate_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    path.write_text(json.dumps(WORDS.to_dict()))
    assert load(str(path)) == WORDS
    assert load(" 1.5 ") == Threshold(1.5)
    remade = replace(WORDS, made={"date": "now"})
    assert remade.identity == WORDS.identity
    assert replace(WORDS, threshold=0.7).identity != WORDS.identity


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "x"}, "schema is 'x', allowed: 'lychee-sgl/memory-gate'"),
        ({"version": 2}, "version is 2, allowed: 1"),
        ({"features": []}, r"features is \[\], allowed: a list of at least one"),
        ({"threshold": 1.0}, "threshold is 1.0, allowed: a number between 0 and 1"),
        ({"bias": float("nan")}, "bias is nan, allowed: a number"),
        ({"bias": True}, "bias is True, allowed: a number"),
        ({"made": 3}, "made is 3, allowed: an object"),
        ({"model": 7}, "model is 7, allowed: a name, or null"),
        (
            {"features": [{"name": "luck", "mean": 0, "scale": 1, "weight": 1}]},
            r"features\[0\].name is 'luck', allowed",
        ),
        ({"features": [{"name": "hop", "mean": 0, "scale": 0, "weight": 1}]}, r"features\[0\].scale is 0.0, allowed"),
        ({"features": [{"name": "hop", "mean": 0, "scale": 1, "weight": 1}] * 2}, "allowed: each once"),
        ({"features": [{"name": "gain_mean", "mean": 0, "scale": 1, "weight": 1}]}, "model is None, allowed: a name"),
    ],
)
def test_a_file_that_is_no_gate_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(GateError, match=words):
        Classifier.from_dict({**WORDS.to_dict(), **change})


def test_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    path.write_text("{")
    assert EngineConfig.from_env({"LYCHEE_MEMORY_GATE": "1.2"}).memory_gate == Threshold(1.2)
    assert EngineConfig.from_env({}).memory_gate is None
    for value, words in (
        (str(path), "cannot be used"),
        ("nan", "no finite number"),
        ("nothing-like-it", "allowed: a number, a file, or a shipped gate"),
        (str(tmp_path), "cannot be used"),
    ):
        with pytest.raises(ConfigError, match=f"LYCHEE_MEMORY_GATE: .*{words}"):
            EngineConfig.from_env({"LYCHEE_MEMORY_GATE": value})


def test_every_shipped_gate_can_be_used() -> None:
    for name in shipped():
        gate = load(name)
        assert isinstance(gate, Classifier)
        assert {"command", "date", "seed"} <= {*gate.made}


def test_a_gate_of_another_model_is_doubted() -> None:
    gate = replace(WORDS, model="SmolLM2-135M-Instruct")
    assert foreign(gate, "/models/smollm2-135m-instruct-0123456789ab/", "default") is None
    assert foreign(WORDS, "anything") is None
    assert "made for SmolLM2-135M-Instruct, this model is Qwen3-8B" in str(foreign(gate, "org/Qwen3-8B", "Qwen3-8B"))


def test_an_oracle_accepts_what_holds_a_fact() -> None:
    gate = Oracle(("kept by Anna Berg.", "5551234"))
    assert gate.accepts(evidence("?"))
    assert not Oracle(("5551234",)).accepts(evidence("?"))


def test_only_a_measurement_chooses_the_gate() -> None:
    params = {"lychee_memory": "text", "lychee_gate": ["a fact"]}
    with pytest.raises(Refused, match=r"lychee_gate is .* only where LYCHEE_MEMORY_ORACLE is 1"):
        MemoryRequest.from_custom_params(params)
    asked = MemoryRequest.from_custom_params(params, oracle=True)
    assert asked.chosen_gate(Threshold(1.0)) == Oracle(("a fact",))
    assert MemoryRequest.strip(params) is None
    off = MemoryRequest.from_custom_params({**params, "lychee_gate": "off"}, oracle=True)
    assert off.chosen_gate(Threshold(1.0)) is None
    assert MemoryRequest(mode="text").chosen_gate(Threshold(1.0)) == Threshold(1.0)
    for value in ([], "on", [1], [""], {"a": 1}):
        with pytest.raises(Refused, match="allowed: 'off', or a list of texts"):
            MemoryRequest.from_custom_params({**params, "lychee_gate": value}, oracle=True)
    with pytest.raises(Refused, match="only with lychee_memory 'text'"):
        MemoryRequest.from_custom_params({"lychee_gate": "off"}, oracle=True)
