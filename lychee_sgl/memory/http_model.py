"""A running engine as the loop sees it, from outside: for measurements. What is served stands in the engine itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import httpx

from lychee_sgl.memory.model import ModelFailed, Reply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lychee_sgl.memory.model import Inlay


_SECONDS: Final = 600.0
_MARK: Final = "(here stands the message)"


class HttpModel:
    """The model behind an address of SGLang's own HTTP server, which `lychee-sgl engine` is."""

    def __init__(self, address: str) -> None:
        """Asks for the model's name and window.

        Raises:
            ModelFailed: there is no such engine.
        """
        self._http = httpx.Client(base_url=address, timeout=_SECONDS, trust_env=False)
        try:
            info = self._call("GET", "/lychee/info")
            if not {"model", "context_window"} <= info.keys():
                raise ModelFailed(f"{address} is no engine of lychee-sgl: its /lychee/info names no model")
        except ModelFailed:
            self.close()
            raise
        self.name, self.window = str(info["model"]), int(info["context_window"])
        self.identity = self.name
        self._templates: dict[tuple[str, ...], tuple[str, ...]] = {}

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenises with the engine's tokenizer.

        Raises:
            ModelFailed: the engine does not answer.
        """
        body = {"model": self.name, "prompt": list(texts), "add_special_tokens": False}
        tokens: list[list[int]] = self._call("POST", "/tokenize", body)["tokens"]
        return tokens

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Applies the chat template, as the engine does for a chat.

        The engine gives its tokens: what they spell around the messages is kept, and the messages stand there as they
        are, for not every tokeniser spells a text as it was.

        Raises:
            ModelFailed: the engine does not answer.
            ValueError: its template does not keep a message as it is.
        """
        roles = tuple(message["role"] for message in messages)
        if roles not in self._templates:
            marked = [{"role": role, "content": _MARK} for role in roles]
            body = {"model": self.name, "messages": marked, "chat_template_kwargs": {"enable_thinking": False}}
            back = {"tokens": self._call("POST", "/tokenize", body)["tokens"], "skip_special_tokens": False}
            around = str(self._call("POST", "/detokenize", {"model": self.name, **back})["text"]).split(_MARK)
            if len(around) != len(roles) + 1:
                raise ValueError("the model's chat template repeats or drops a message: it cannot read block by block")
            self._templates[roles] = tuple(around)
        first, *behind = self._templates[roles]
        return first + "".join(m["content"] + text for m, text in zip(messages, behind, strict=True))

    async def generate(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int,
        score_from: int | None = None,
        stop: str | None = None,
        inlay: Inlay | None = None,
    ) -> Reply:
        """Runs one greedy completion, of tokens alone.

        Raises:
            ModelFailed: the engine does not answer.
            ValueError: there are embeddings, which HTTP does not carry.
        """
        if inlay is not None:
            raise ValueError(f"inlay has {inlay.count} embeddings; allowed over HTTP: none")
        sampling: dict[str, Any] = {
            "temperature": 0,
            "max_new_tokens": max_tokens,
            **({"stop": [stop]} if stop else {}),
        }
        body: dict[str, Any] = {"input_ids": list(tokens), "sampling_params": sampling}
        if score_from is not None:
            # the engine counts from the token whose successor it scores
            body |= {"return_logprob": True, "logprob_start_len": max(0, score_from - 1)}
        answer = await asyncio.to_thread(self._call, "POST", "/generate", body)
        return Reply.of_sglang(answer, 0 if score_from is None else len(tokens) - score_from)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ModelFailed(f"{self._http.base_url}{path}: {error}") from error
        if answer.status_code != 200:
            raise ModelFailed(f"{path} gave {answer.status_code}: {answer.text:.300}")
        found = answer.json()
        if not isinstance(found, dict):
            raise ModelFailed(f"{path} gave no object: {answer.text:.300}")
        return found
