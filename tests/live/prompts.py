"""Prompts of token ids out of real text."""

from __future__ import annotations

import functools
import random
from pydoc_data.topics import topics

from lychee_sgl.models.embedded import ensure_unpacked


@functools.cache
def text_tokens() -> list[int]:
    """Tokens of Python's own reference, some hundred thousand."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ensure_unpacked(lambda _: None))
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return list(tokenizer(text, verbose=False)["input_ids"])


def passage(length: int, seed: int) -> list[int]:
    """Cuts `length` consecutive tokens out of the text."""
    tokens = text_tokens()
    start = random.Random(seed).randrange(len(tokens) - length)
    return tokens[start : start + length]
