"""Asks the gateway one question at a time and notes when the answer's tokens come."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from lychee_sgl.demo.errors import DemoError

LOCAL_HOSTS: Final = ("127.0.0.1", "localhost", "::1")
PLAN_NAME: Final = re.compile(r'^lychee_plan_info{(?:.*,)?name="([^"]*)"', re.MULTILINE)
Budget = int | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer.

    Attributes:
        text: what the model said.
        prompt_tokens: length of the prompt, chat template included.
        completion_tokens: length of the answer.
        lychee: the answer's own account of its sparsity (DESIGN.md 4.3).
        first_token_seconds: from the request to the first token.
        per_token_seconds: mean time between the tokens after it; None for an answer of one token.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    lychee: Mapping[str, Any]
    first_token_seconds: float
    per_token_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is served: the model's name, its window in tokens, and the head plan (None where nothing says so)."""

    model: str
    window: int
    plan: str | None


class Gateway:
    """One gateway. Close it after use."""

    def __init__(self, url: str, *, timeout: float = 900.0) -> None:
        self.url = url.rstrip("/")
        # a proxy of the environment is not asked for this machine's own addresses
        local = httpx.URL(self.url).host in LOCAL_HOSTS
        self._http = httpx.Client(base_url=self.url, timeout=timeout, trust_env=not local)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def served(self) -> Served:
        """Find out what is served.

        Raises:
            DemoError: the gateway does not answer, or not as one does.
        """
        try:
            model = self._get("/v1/models").json()["data"][0]
            plan = PLAN_NAME.search(self._get("/metrics").text)
            return Served(
                model=str(model["id"]), window=int(model["max_model_len"]), plan=None if plan is None else plan[1]
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DemoError(f"{self.url}/v1/models does not name a model and its max_model_len") from error

    def count_tokens(self, model: str, text: str) -> int:
        """Length of a user message in tokens, chat template included, by asking for one token of an answer."""
        return self.ask(model, text, budget="dense", max_tokens=1).prompt_tokens

    def ask(self, model: str, text: str, *, budget: Budget, max_tokens: int, **extra: object) -> Reply:
        """Ask one question, greedily.

        Args:
            model: name of the model.
            text: the user's message.
            budget: tokens a sparse head may read, `"dense"`, or None to leave the field out.
            max_tokens: longest answer.
            extra: further fields of the body.

        Raises:
            DemoError: an error status, an error in the stream, or an answer without the object `lychee`.
        """
        body: dict[str, object] = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **extra,
        }
        if budget is not None:
            body["lychee"] = {"budget": budget}
        start = time.perf_counter()
        parts: list[str] = []
        moments: list[float] = []
        last: dict[str, Any] = {}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise DemoError(f"the server refused: {_reason(response)}")
                for chunk in _events(response):
                    for choice in chunk.get("choices") or []:
                        delta = choice.get("delta") or {}
                        if delta.get("content") or choice.get("finish_reason"):
                            moments.append(time.perf_counter() - start)
                        parts.append(delta.get("content") or "")
                    last = {**last, **{key: chunk[key] for key in ("usage", "lychee") if chunk.get(key)}}
        except httpx.HTTPError as error:
            raise DemoError(f"{self.url} is gone: {error}") from error
        return _reply("".join(parts).strip(), moments, last)

    def _get(self, path: str) -> httpx.Response:
        try:
            return self._http.get(path).raise_for_status()
        except httpx.HTTPError as error:
            raise DemoError(f"{self.url}{path}: {error}") from error


def _reply(text: str, moments: list[float], last: Mapping[str, Any]) -> Reply:
    if "lychee" not in last or "usage" not in last or not moments:
        raise DemoError("the answer says nothing of its sparsity: is the engine's attention backend lychee?")
    tokens = int(last["usage"]["completion_tokens"])
    return Reply(
        text=text,
        prompt_tokens=int(last["usage"]["prompt_tokens"]),
        completion_tokens=tokens,
        lychee=dict(last["lychee"]),
        first_token_seconds=moments[0],
        per_token_seconds=(moments[-1] - moments[0]) / (tokens - 1) if tokens > 1 else None,
    )


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: {"):
            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise DemoError(f"the answer broke off: {event['error'].get('message')}")
            yield event


def _reason(response: httpx.Response) -> str:
    try:
        return f"{response.status_code}, {response.json()['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code}, {response.text[:300]}"
