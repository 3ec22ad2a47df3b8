"""How many tokens a prompt is for the served model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import httpx

from lychee_sgl.demo.client import LOCAL_HOSTS
from lychee_sgl.eval.errors import EvalError

if TYPE_CHECKING:
    from pathlib import Path

    from lychee_sgl.eval.sample import Sample

TIMEOUT: Final = 120.0
TEMPLATE_ALLOWANCE: Final = 64
"""Tokens that are kept free for a chat template that nobody could measure."""


def conversation(prompt: str, prefix: str, *, how: str) -> list[dict[str, str]]:
    """Messages of a chat.

    Args:
        prompt: the user's message.
        prefix: the answer's beginning.
        how: `continue`: as a message of the assistant that the server continues; `user`: behind the prompt;
            `none`: left out.
    """
    if prefix and how == "continue":
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": prefix}]
    return [{"role": "user", "content": f"{prompt}{prefix}" if how == "user" else prompt}]


class ServerTokens:
    """Asks an SGLang server's `/tokenize`, chat template included."""

    def __init__(self, url: str, model: str, *, chat: bool, prefix: str) -> None:
        self._chat, self._prefix, self._model = chat, prefix, model
        self._url = url.rstrip("/").removesuffix("/v1")
        local = httpx.URL(self._url).host in LOCAL_HOSTS
        self._http = httpx.Client(base_url=self._url, timeout=TIMEOUT, trust_env=not local)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __call__(self, prompt: str, prefix: str) -> int:
        """Count.

        Raises:
            EvalError: there is no such server, or it does not tokenise.
        """
        if self._chat:
            messages = conversation(prompt, prefix, how=self._prefix)
            goes_on = messages[-1]["role"] == "assistant"
            asked: dict[str, Any] = {"messages": messages, "continue_final_message": goes_on}
        else:
            asked = {"prompt": prompt if self._prefix == "none" else f"{prompt}{prefix}"}
        try:
            reply = self._http.post("/tokenize", json={"model": self._model, **asked})
            count = reply.raise_for_status().json()["count"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EvalError(
                f"{self._url}/tokenize does not count tokens ({type(error).__name__}: {error}); --tokenizer takes the "
                "address of an SGLang engine, or a folder with the model's tokenizer.json"
            ) from error
        return int(count)


class LocalTokens:
    """Counts with a model's `tokenizer.json`.

    Attributes:
        template: tokens that are added for the chat template.
    """

    def __init__(self, path: Path, template: int = TEMPLATE_ALLOWANCE) -> None:
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise EvalError(f"--tokenizer is {path}; allowed: an engine's address, or a folder with a tokenizer.json")
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        self.template = template

    def close(self) -> None:
        """Nothing to close."""

    def __call__(self, prompt: str, prefix: str) -> int:
        """Count."""
        text = f"{prompt}{prefix}"
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids) + self.template


def shortened(sample: Sample, length: int, count: Any) -> Sample:
    """A sample cut in its middle, as LongBench does it, until prompt and answer fit into a length.

    Args:
        sample: with a prompt of any length.
        length: tokens of prompt, prefix and longest answer.
        count: counts tokens.

    Raises:
        EvalError: nothing is left.
    """
    from dataclasses import replace

    prompt, kept = sample.prompt, len(sample.prompt)
    while (found := count(prompt, sample.prefix) + sample.max_tokens) > length:
        kept = min(kept - 16, int(kept * (length - sample.max_tokens) / max(1, found - sample.max_tokens)))
        if kept < 64:
            raise EvalError(f"{sample.key}: nothing of it fits into a length of {length}")
        prompt = sample.prompt[: kept // 2] + sample.prompt[-(kept // 2) :]
    return replace(sample, prompt=prompt)
