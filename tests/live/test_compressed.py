"""A document read compressed by a real engine; the compressor is an untrained one, which gives mean embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from client import Client

pytestmark = pytest.mark.engine

DOCUMENT = "\n\n".join(f"House {number} is empty, and nobody has the key to it." for number in range(40))


def ask(lychee: Client, question: str) -> dict[str, Any]:
    body = {
        "model": "SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": [{"type": "text", "text": text} for text in (DOCUMENT, question)]}],
        "max_tokens": 8,
        "temperature": 0,
        "custom_params": {"lychee_memory": "compressed", "lychee_chunk": 256, "lychee_ratio": 2},
    }
    answer = lychee.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_blocks_are_compressed_once_and_cached_under_their_own_key(lychee: Client) -> None:
    pytest.importorskip("peft")
    info = lychee.http.get("/lychee/info").json()["memory"]
    assert (info["modes"], info["ratio"], info["ratios"]) == (["text", "compressed"], 4, [2, 4])
    lychee.flush()
    first = ask(lychee, "Who has the key to house 7?")
    told = first["lychee"]["memory"]
    assert (told["mode"], told["ratio"], told["compressed_blocks"]) == ("compressed", 2, told["chunks"])
    assert told["chunks"] > 1
    second = ask(lychee, "Is house 9 empty?")
    again = second["lychee"]["memory"]
    assert again["compressed_blocks"] == 0
    # nearly all of each block is there: what is not are pages that a block shares with its question
    blocks = again["document_tokens"] // 2
    assert again["cached_tokens"] >= blocks - again["chunks"] * 2 * lychee.page_size
    lychee.flush()
    fresh = ask(lychee, "Is house 9 empty?")
    assert fresh["lychee"]["memory"]["banked_steps"] == 0
    assert fresh["choices"] == second["choices"]
    refused = lychee.http.post(
        "/v1/chat/completions",
        json={"model": "m", "messages": [{"role": "user", "content": "A text.\n\nWhy?"}],
              "custom_params": {"lychee_memory": "compressed", "lychee_ratio": 16}},
    )  # fmt: skip
    assert refused.status_code == 400
    assert "lychee_ratio is 16, allowed: 2, 4" in refused.text
