"""Stands in front of SGLang's chat handler: requests that want a long document read are read here (DESIGN.md 13)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lychee_sgl.backend.memory_blocks import files_of
from lychee_sgl.backend.memory_check import check_answer
from lychee_sgl.backend.memory_errors import AnswerRefused, ClientGone, told
from lychee_sgl.backend.memory_model import EngineModel
from lychee_sgl.backend.memory_room import Room
from lychee_sgl.backend.summary import INFO_KEY, combine
from lychee_sgl.memory import prompts
from lychee_sgl.memory.loop import BlockFailed, Progress, Reader, Reading
from lychee_sgl.memory.settings import MemoryRequest, ReadSettings, fit
from lychee_sgl.memory.split import Chat, Refused, take_apart

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

log = logging.getLogger(__name__)

DONE = "data: [DONE]\n\n"
HINT = (
    '; a longer document is read block by block with "lychee": {"memory": "text"} '
    '(at the engine itself: "custom_params": {"lychee_memory": "text"})'
)
_LOOK_SECONDS = 0.5
_OF_A_PROMPT = ("input_ids", "continue_final_message", "session_id")
"""Fields that mean the prompt as it is."""


async def around_chat(original: Callable[..., Any], serving: Any, request: Any, raw_request: Any) -> Any:
    """Stands around `OpenAIServingChat.handle_request`."""
    from lychee_sgl.backend.openai import Engine

    manager = serving.tokenizer_manager
    engine = Engine.of(manager)
    if engine is None:
        return await original(serving, request, raw_request)
    try:
        room = Room.of(manager, engine)
        asked = MemoryRequest.from_custom_params(request.custom_params, oracle=room.config.memory_oracle)
        answer, mode = None, await _mode(room, asked, manager, request)
        if mode != "off":
            ratio = room.ratio(asked, manager.server_args) if mode == "compressed" else None
            answer = _Answer(original, serving, request, raw_request, room, asked, _taken_apart(request), ratio)
            if not _is_worth_reading(answer, engine, asked):
                answer = None
        if answer is None:
            request.custom_params = MemoryRequest.strip(request.custom_params)
            return _hinted(await original(serving, request, raw_request), room)
        return await (answer.stream() if request.stream else answer.whole())
    except Refused as error:
        return serving.create_error_response(str(error), param=error.param)
    except ValueError as error:
        return serving.create_error_response(str(error))
    except Exception:  # broad: SGLang's own handler does not let one through either, and its callers rely on it
        log.exception("reading a document failed")
        return serving.create_error_response("reading failed", "InternalServerError", 500)


def _is_worth_reading(answer: _Answer, engine: Any, asked: MemoryRequest) -> bool:
    """Whether the answer would be given once the document is read; where nobody asked to read, SGLang says why not.

    Raises:
        ValueError: it would be refused.
    """
    try:
        answer.check(engine)
    except ValueError:
        if asked.mode is not None:
            raise
        return False
    return True


async def _mode(room: Room, asked: MemoryRequest, manager: Any, request: Any) -> str:
    """Says how a request is answered: `text`, `compressed` or `off`.

    Raises:
        Refused: it asks for what this engine does not do.
    """
    default, mode = room.config.memory, asked.mode
    if mode in ("text", "compressed") and default == "off":
        raise Refused(f"lychee_memory is {mode!r}, allowed: 'off' (LYCHEE_MEMORY is off)", "lychee_memory")
    if mode == "compressed" and room.blocks is None:
        allowed = "'text', 'off'; this engine has no compressor for its model"
        raise Refused(f"lychee_memory is 'compressed', allowed: {allowed}", "lychee_memory")
    if mode is not None or default != "auto":
        return mode or "off"
    try:
        chat = _taken_apart(request)
    except Refused:
        return "off"  # SGLang says what is wrong with it, if anything is
    text = "\n\n".join((*chat.system, chat.document, chat.question))
    room_left = manager.model_config.context_len - (request.max_completion_tokens or request.max_tokens or 1)
    if len(text.encode(errors="replace")) <= room_left // 2:  # a token is a byte at least; half is for the template
        return "off"
    ids = await asyncio.to_thread(lambda: manager.tokenizer([text], add_special_tokens=False)["input_ids"][0])
    return "text" if len(ids) > room_left - _TEMPLATE_TOKENS else "off"


_TEMPLATE_TOKENS = 64


def _taken_apart(request: Any) -> Chat:
    messages = [message.model_dump(exclude_none=True) for message in request.messages]
    for field in _OF_A_PROMPT:
        if getattr(request, field, None):
            raise Refused(f"{field} is given, allowed: not where a document is read block by block", field)
    if request.n not in (None, 1):
        raise Refused(f"n is {request.n}, allowed: 1 where a document is read block by block", "n")
    try:
        json.dumps(messages, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Refused(f"messages hold half a surrogate pair, which is no text: {error.reason}", "messages") from None
    return take_apart(messages)


def _hinted(answer: Any, room: Room) -> Any:
    """Adds to SGLang's refusal of a prompt beyond the window how it could be read."""
    if getattr(answer, "status_code", 200) != 400 or room.config.memory == "off":
        return answer
    body = json.loads(answer.body)
    message = str(body.get("message", ""))
    if "context length" not in message:
        return answer
    return type(answer)(content={**body, "message": message.rstrip(".") + HINT}, status_code=400)


class _Answer:
    """One request that is read block by block, and then answered by SGLang's own handler."""

    def __init__(
        self,
        original: Callable[..., Any],
        serving: Any,
        request: Any,
        raw_request: Any,
        room: Room,
        asked: MemoryRequest,
        chat: Chat,
        ratio: int | None,
    ) -> None:
        from lychee_sgl.backend.openai import summary_of

        manager = serving.tokenizer_manager
        self._original, self._serving, self._raw = original, serving, raw_request
        self._request, self._chat = request, chat
        chunk, notes = fit(asked, manager.model_config.context_len)
        gate = asked.chosen_gate(room.config.memory_gate)
        self._params = MemoryRequest.strip(request.custom_params)
        self._rid = request.rid if isinstance(request.rid, str) else uuid.uuid4().hex
        try:
            extra_key = serving._compute_extra_key(request)
        except TypeError as error:
            raise Refused(str(error), "cache_salt") from error
        self._settings = ReadSettings(
            chunk=chunk, working_memory=notes, ahead=room.ahead, gate=gate, ratio=ratio, salt=extra_key
        )
        lora = serving._resolve_lora_path(request.model, request.lora_path)
        self._model = EngineModel(
            manager,
            # a model may have been written anew into its folder since the bank has seen it
            identity={
                "files": files_of(Path(manager.server_args.model_path)),
                "plan": room.plan,
                "lora": lora,
                "extra_key": extra_key,
            },
            fields={"lora_path": lora, "extra_key": extra_key, "priority": request.priority},
            custom_params=self._params,
            template=request.chat_template_kwargs or {},
            summarise=lambda obj: summary_of(manager, obj),
            secret=room.secret,
        )
        self._reader = Reader(self._model, room.bank, self._settings, room.blocks)
        self._reading: Reading | None = None

    def check(self, engine: Any) -> None:
        """Looks at everything that is asked of the answer, before anything is read for it.

        Raises:
            ValueError: it would be refused.
        """
        final = self._final(prompts.answer(self._chat.question, ""))
        check_answer(self._serving, final, self._raw, engine=engine, settings=self._settings)

    async def whole(self) -> Any:
        """Reads, then gives the answer; an error is one of its own, the loop's failures with status 500."""
        from fastapi.responses import JSONResponse

        try:
            async with contextlib.aclosing(self._watched(self._read())) as events:
                async for _ in events:
                    pass
            answer = await self._original(self._serving, self._final(self._prompt), self._raw)
        except ClientGone:
            return self._gone()
        except BlockFailed as error:
            return self._serving.create_error_response(str(error), "BlockFailed", 500)
        if getattr(answer, "status_code", 200) != 200:
            return answer
        body = json.loads(answer.body) if hasattr(answer, "body") else answer.model_dump(mode="json")
        return JSONResponse(self._patched(body, last=True))

    async def stream(self) -> Any:
        """Reads and answers as a stream; what is wrong with the request is known before its status is sent."""
        from fastapi.responses import StreamingResponse

        events = self._watched(self._events())
        try:
            first = await anext(events)
        except ClientGone:
            return self._gone()

        async def all_events() -> AsyncIterator[str]:
            async with contextlib.aclosing(events):
                try:
                    yield first
                    async for event in events:
                        yield event
                except ClientGone:
                    return
                except (AnswerRefused, BlockFailed, ValueError) as error:
                    yield self._failed(*told(error))
                    yield DONE
                except Exception:  # broad: a stream has no other way to say that it broke
                    log.exception("reading a document failed")
                    yield self._failed("reading failed", "InternalServerError", 500)
                    yield DONE

        return StreamingResponse(all_events(), media_type="text/event-stream")

    def _failed(self, message: str, kind: str, status: int) -> str:
        return f"data: {self._serving.create_streaming_error_response(message, kind, status)}\n\n"

    def _gone(self) -> Any:
        return self._serving.create_error_response("the client is gone", "ClientGone", 499)

    async def _read(self) -> AsyncGenerator[Progress, None]:
        async with contextlib.aclosing(self._reader.read(self._chat.document, self._chat.question)) as events:
            async for event in events:
                if isinstance(event, Reading):
                    self._reading = event
                else:
                    yield event

    async def _events(self) -> AsyncGenerator[str, None]:
        created = int(time.time())
        async with contextlib.aclosing(self._read()) as reading:
            async for progress in reading:
                yield self._progress(progress, created)
        answer = await self._original(self._serving, self._final(self._prompt), self._raw)
        if not hasattr(answer, "body_iterator"):
            raise AnswerRefused(json.loads(answer.body), answer.status_code)
        try:
            async with contextlib.aclosing(answer.body_iterator) as events:
                async for event in events:
                    yield self._passed(event)
        finally:
            self._serving.tokenizer_manager.abort_request(self._rid)  # of one that has ended nothing is known

    async def _watched(self, events: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """Passes events on, until the client leaves: then what runs is ended."""
        leaving = asyncio.ensure_future(self._until_gone())
        try:
            while True:
                coming = asyncio.ensure_future(anext(events))
                try:
                    await asyncio.wait({coming, leaving}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not coming.done():
                        coming.cancel()
                        await asyncio.wait({coming})
                if coming.cancelled():
                    raise ClientGone
                try:
                    event = coming.result()
                except StopAsyncIteration:
                    return
                yield event
        finally:
            leaving.cancel()
            await events.aclose()

    async def _until_gone(self) -> None:
        while self._raw is None or not await self._raw.is_disconnected():
            await asyncio.sleep(_LOOK_SECONDS)

    @property
    def _prompt(self) -> str:
        assert self._reading is not None
        return self._reading.prompt

    def _final(self, prompt: str) -> Any:
        """The request for the answer: a prompt in place of the document, everything else as it was asked."""
        texts = [{"role": "system", "content": text} for text in self._chat.system]
        texts.append({"role": "user", "content": prompt})
        # no dump read again, which loses what has an alias (a schema); deep, for SGLang changes what it gets
        messages = type(self._request)(model=self._request.model, messages=texts).messages
        changes = {"messages": messages, "custom_params": self._params, "rid": self._rid}
        return self._request.model_copy(update=changes).model_copy(deep=True)

    def _progress(self, progress: Progress, created: int) -> str:
        told = {"phase": progress.phase, "chunk": progress.chunk, "chunks": progress.chunks, "kept": progress.kept}
        return _event(
            {
                "id": self._rid,
                "object": "chat.completion.chunk",
                "created": created,
                "model": self._request.model,
                "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}],
                INFO_KEY: {"memory": {**told, "says": progress.says}},
            }
        )

    def _passed(self, event: str) -> str:
        if '"usage":{' not in event and f'"{INFO_KEY}":' not in event:
            return event
        body = json.loads(event.removeprefix("data: "))
        return _event(self._patched(body, last=INFO_KEY in body))

    def _patched(self, body: dict[str, Any], *, last: bool) -> dict[str, Any]:
        """Makes usage and account those of the whole."""
        assert self._reading is not None
        report = self._reading.report
        usage = body.get("usage")
        if usage:
            usage["prompt_tokens"] += report.tokens_read
            usage["completion_tokens"] += report.tokens_written
            usage["total_tokens"] += report.tokens_read + report.tokens_written
            details = usage.get("prompt_tokens_details")
            if details and "cached_tokens" in details:
                details["cached_tokens"] += report.cached_tokens
        if last:
            settings = {"chunk": self._settings.chunk, "working_memory": self._settings.working_memory}
            compressed = self._settings.ratio is not None
            mode = {"mode": "compressed", "ratio": self._settings.ratio} if compressed else {"mode": "text"}
            told = {**mode, **settings, **asdict(report), "seconds": round(report.seconds, 3)}
            for key in ("tokens_written", *(() if compressed else ("compressed_blocks",))):
                del told[key]
            ours = body.get(INFO_KEY)
            body[INFO_KEY] = {**(combine([*self._model.summaries, ours]) if ours else {}), "memory": told}
        return body


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
