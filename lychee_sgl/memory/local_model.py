"""A model folder as the loop sees it, in this process, with transformers: gains for the training of a gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import DynamicCache

from lychee_sgl.heads.measure import load_model
from lychee_sgl.memory.model import Reply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lychee_sgl.memory.model import Inlay

_LEAST_KEPT: Final = 256
"""Shorter prompts are not worth the place of a block's KV."""


class LocalModel:
    """Scores prompts; it generates nothing. The KV of the last long prompt serves the next with the same beginning."""

    def __init__(self, folder: Path, *, name: str, device: str = "cpu") -> None:
        """Loads a model, in float32 on a CPU, else in bfloat16.

        Raises:
            ValueError: it is not a model folder, or there is no such device.
        """
        allowed = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        if device not in allowed:
            raise ValueError(f"--local is {device!r}; allowed here: {', '.join(allowed)}")
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        loaded = load_model(folder, name=name, device=device, dtype=dtype)
        self._model, self._tokenizer, self._device = loaded.model, loaded.tokenizer, device
        self.name = self.identity = name
        self.window = int(loaded.model.config.max_position_embeddings)
        self._kept: list[int] = []
        self._cache: Any = DynamicCache()

    def close(self) -> None:
        """Drops the KV."""
        self._kept, self._cache = [], DynamicCache()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenises, without special tokens."""
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Applies the model's chat template; models that could think first are asked not to."""
        kwargs = {"enable_thinking": False, "tokenize": False, "add_generation_prompt": True}
        text: str = self._tokenizer.apply_chat_template([dict(message) for message in messages], **kwargs)
        return text

    async def generate(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int,
        score_from: int | None = None,
        stop: str | None = None,
        inlay: Inlay | None = None,
    ) -> Reply:
        """Gives a prompt's log-probabilities.

        Raises:
            ValueError: anything is to be generated.
        """
        if max_tokens != 1 or score_from is None or stop is not None or inlay is not None:
            raise ValueError("a local model only scores tokens: allowed are max_tokens 1, a score_from, nothing else")
        first = max(0, score_from - 1)  # the token whose successor is the first that is scored
        shared = self._shared(tokens, first)
        if len(tokens) < _LEAST_KEPT:
            shared, cache = 0, DynamicCache()
        else:
            cache = self._cache if shared else DynamicCache()
            cache.crop(shared)
            self._kept, self._cache = list(tokens), cache
        with torch.inference_mode():
            ids = torch.tensor([tokens[shared:]], device=self._device)
            keep = len(tokens) - first
            logits = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits[0]
            said = logits.float().log_softmax(-1)[:-1]
            wanted = torch.tensor(tokens[first + 1 :], device=self._device)
            scored = said.gather(1, wanted[:, None])[:, 0].tolist()
        return Reply(
            text="", prompt_tokens=len(tokens), completion_tokens=0, cached_tokens=shared, logprobs=tuple(scored)
        )

    def _shared(self, tokens: Sequence[int], most: int) -> int:
        """How many of the kept tokens a prompt begins with."""
        number = 0
        for kept, token in zip(self._kept, tokens[:most], strict=False):
            if kept != token:
                break
            number += 1
        return number
