"""Prompt lengths before anybody has counted them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lychee_server.policy.lengths import Length, PromptLengths, PromptText, prompt_text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"prompt": "hello"}, PromptText(size=5)),
        ({"prompt": "é"}, PromptText(size=2)),
        ({"prompt": ["a", "abc", "ab"]}, PromptText(size=3)),
        ({"prompt": [1, 2, 3]}, PromptText(size=0, tokens=3)),
        ({"prompt": [[1, 2, 3], [1, 2, 3, 4]]}, PromptText(size=0, tokens=4)),
        ({"messages": [{"role": "user", "content": "hello"}]}, PromptText(size=5, overhead=5)),
        (
            {"messages": [{"content": "ab"}, {"content": [{"type": "text", "text": "abc"}]}]},
            PromptText(size=5, overhead=10),
        ),
        (
            {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:..."}}, {"text": "x"}]}]},
            PromptText(size=1, overhead=5, text_only=False),
        ),
        # As JSON: [{"function":{"name":"f"}}] with json's spaces is 29 characters.
        ({"messages": [{"content": "ab"}], "tools": [{"function": {"name": "f"}}]}, PromptText(size=31, overhead=5)),
        # What the engine will refuse counts as nothing.
        ({"messages": "hello"}, PromptText(size=0)),
        ({"messages": [1, None, {"content": None}]}, PromptText(size=0, overhead=5)),
        ({"prompt": {"a": 1}}, PromptText(size=0)),
        ({"prompt": []}, PromptText(size=0)),
        ({"prompt": "\ud800"}, PromptText(size=3)),
        ({}, PromptText(size=0)),
    ],
)
def test_what_becomes_the_prompt(body, text):
    assert prompt_text(body) == text


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.sampled_from(["", "ab", "\ud800"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "text", "tool_calls", "type"]), inner, max_size=3),
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["messages", "prompt", "tools"]), JSON))
def test_whatever_a_body_holds_it_has_a_length(body):
    length = PromptLengths().estimate("m", prompt_text(body))
    assert 1 <= length.low <= length.tokens <= length.high


def test_what_is_nested_too_deeply_is_left_to_those_who_refuse_it():
    tools: list[object] = []
    for _ in range(100_000):
        tools = [tools]
    assert prompt_text({"messages": [{"content": "ab"}], "tools": tools}) == PromptText(size=2, overhead=5)


def test_a_first_estimate_is_four_bytes_a_token_and_far_from_sure():
    length = PromptLengths().estimate("m", PromptText(size=40_000, overhead=5))
    # 2.5 relative errors of 35%, and 32 tokens.
    assert length == Length(tokens=10_005, low=10_005 - 8755 - 32 + 1 - 1, high=18_760 + 32)
    assert not length.exact


def test_tokens_are_counted():
    assert PromptLengths().estimate("m", PromptText(size=0, tokens=77)) == Length.exactly(77)


def test_answers_teach_the_ratio_and_how_far_it_is_off():
    lengths, chance = PromptLengths(), random.Random(0)
    inside = 0
    for number in range(400):
        size = chance.randint(4000, 40_000)
        tokens = round(size / (4.5 * chance.gauss(1, 0.04))) + 10
        text = PromptText(size=size, overhead=10)
        length = lengths.estimate("m", text)
        inside += length.low <= tokens <= length.high
        lengths.observe("m", text, tokens)
        if number >= 100:
            assert abs(length.tokens / (size / 4.5) - 1) < 0.02
    assert inside >= 396
    (state,) = lengths.state()
    assert state["bytes_per_token"] == pytest.approx(4.5, rel=0.02)
    assert 0.03 < state["relative_error"] < 0.06
    # Another model has another vocabulary.
    assert lengths.estimate("other", PromptText(size=4000)).tokens == 1000


@pytest.mark.parametrize(
    "text",
    [
        PromptText(size=0, tokens=9),
        PromptText(size=10, text_only=False),
        PromptText(size=0),
        PromptText(size=9, overhead=50),
    ],
)
def test_what_teaches_nothing(text):
    lengths = PromptLengths()
    lengths.observe("m", text, 50)
    assert lengths.state() == []


def test_models_are_forgotten_in_the_end():
    lengths = PromptLengths()
    for number in range(100):
        lengths.observe(f"m{number}", PromptText(size=100), 30)
    assert len(lengths.state()) == 64
