"""Scores of a model in this process, on a tiny one with drawn weights."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lychee_sgl.memory.local_model import LocalModel
from tests.compressor.conftest import TEXT, drawn_model, folder, tokenizer  # noqa: F401 # fixtures

if TYPE_CHECKING:
    from pathlib import Path


def scores(model: LocalModel, tokens: list[int], first: int) -> tuple[list[float], int]:
    reply = asyncio.run(model.generate(tokens, max_tokens=1, score_from=first))
    assert (reply.prompt_tokens, reply.text) == (len(tokens), "")
    return list(reply.logprobs), reply.cached_tokens


def test_scores_are_those_of_one_pass_with_and_without_kept_kv(folder: Path, tokenizer: Any) -> None:  # noqa: F811
    model = LocalModel(folder, name="tiny")
    (text,) = model.encode(["\n\n".join(TEXT[:60])])
    block, one, other = text[:280], text[300:309], text[330:337]

    def by_hand(tokens: list[int], first: int) -> list[float]:
        with torch.inference_mode():
            said = drawn_model(tokenizer)(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
        return [float(said[at - 1, tokens[at]]) for at in range(first, len(tokens))]

    for tail, cached in ((one, 0), (other, 279), (one, 279)):
        found, shared = scores(model, block + tail, 280)
        assert found == pytest.approx(by_hand(block + tail, 280), abs=1e-4)
        assert shared == cached
    # a short prompt costs no other its KV
    assert scores(model, one, 1)[0] == pytest.approx(by_hand(one, 1), abs=1e-4)
    assert scores(model, block + one, 280)[1] == 279
    model.close()
    assert scores(model, block + one, 280)[1] == 0
    assert (model.name, model.window) == ("tiny", 512)


def test_it_only_scores(folder: Path) -> None:  # noqa: F811
    model = LocalModel(folder, name="tiny")
    assert model.render([{"role": "user", "content": "Why?"}]) == "<s>user\nWhy?<e>\n<s>assistant\n"
    with pytest.raises(ValueError, match="a local model only scores tokens"):
        asyncio.run(model.generate([1, 2], max_tokens=8))
    with pytest.raises(ValueError, match="model"):
        LocalModel(folder.parent / "nothing", name="x")
    with pytest.raises(ValueError, match="--local is 'tpu'; allowed here: cpu"):
        LocalModel(folder, name="x", device="tpu")
