"""Runs an evaluation: makes its samples, asks every arm, keeps every record. Can be ended and gone on with."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from lychee_sgl.eval.ask import Asker, Gone, Refused, Reply
from lychee_sgl.eval.errors import EvalError
from lychee_sgl.eval.metrics import score, steps_right
from lychee_sgl.eval.store import Record, Store
from lychee_sgl.eval.tasks import fingerprints, make_samples
from lychee_sgl.eval.tokens import LocalTokens, ServerTokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_sgl.eval.config import Arm, Settings
    from lychee_sgl.eval.sample import Sample

PROBE: Final = "Say yes."
TRACE_LINES: Final = "lines"


class Progress(Protocol):
    """Hears how far a run is."""

    def stage(self, text: str, total: int | None = None) -> None:
        """A new stage begins."""
        ...

    def advance(self, record: Record | None = None) -> None:
        """One step of it is done."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which server, and how it is asked.

    Attributes:
        url: its address.
        tokenizer: address of an engine, or a folder with a `tokenizer.json`; None: the server itself.
        model: name of the model; None: the first that is served.
        key: API key.
        send_as: whether arms' `lychee` fields go under `lychee` or, for an engine, as `custom_params`.
        concurrency: samples at a time.
        retries: of a request.
        patience: answers in a row that find no server, after which the run stops.
    """

    url: str
    tokenizer: str | Path | None = None
    model: str | None = None
    key: str = "none"
    send_as: Literal["lychee", "custom_params"] = "lychee"
    concurrency: int = 1
    retries: int = 8
    patience: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        samples: of the run.
        records: there are now.
        asked: by this call.
        errors: records that are errors.
    """

    samples: int
    records: int
    asked: int
    errors: int


def run(settings: Settings, target: Target, folder: Path, progress: Progress, facts: dict[str, Any]) -> Outcome:
    """Run an evaluation, or go on with one.

    Args:
        settings: what is asked.
        target: of whom.
        folder: where run, samples and records are kept.
        progress: hears how far it is.
        facts: noted with the run, e.g. command and versions.

    Raises:
        EvalError: the folder holds another run, a task cannot be made, the server is gone, or it refuses an arm.
    """
    return asyncio.run(_run(settings, target, folder, progress, facts))


async def _run(settings: Settings, target: Target, folder: Path, progress: Progress, facts: dict[str, Any]) -> Outcome:
    asker = Asker(target.url, settings, key=target.key, retries=target.retries)
    store = Store(folder)
    try:
        progress.stage("asking the server what it is")
        model = target.model or await asker.model()
        server = await asker.facts()
        _check_plans(settings.arms, server)
        store.open(identity_of(settings, model, server), {**facts, "server": server, "url": target.url})
        samples = store.samples()
        if samples is None:
            with contextlib.closing(await _counter(asker, settings, target, model)) as tokens:
                samples = _make(settings, tokens, progress)
            store.keep_samples(samples)
        done = {key: record for key, record in store.records().items() if record.error is None}
        waiting = [
            (sample, arms)
            for sample in samples
            if (arms := [arm for arm in settings.arms if (sample.key, arm.name) not in done])
        ]
        # the first of every task and length, then the second: a run that is ended early says something of all of them
        waiting.sort(key=lambda each: each[0].number)
        if waiting:
            await _probe(asker, model, settings.arms, target)
        total = len(samples) * len(settings.arms)
        progress.stage("asking", total)
        for record in done.values():
            progress.advance(record)
        asked = await _Crew(asker, model, settings, target, store, progress).work(waiting)
        store.finish(samples, [arm.name for arm in settings.arms])
        records = store.records()
        errors = sum(record.error is not None for record in records.values())
        return Outcome(samples=len(samples), records=len(records), asked=asked, errors=errors)
    finally:
        store.close()
        await asker.close()


def identity_of(settings: Settings, model: str, server: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for a run to be gone on with: nothing of where the server is or how fast it is asked."""
    from lychee_sgl.eval.ruler import COMMIT

    wanted = settings.model_dump(mode="json")
    for task in wanted["tasks"]:
        task["file"] = task["file"] and task["file"].rpartition("/")[2]
    wanted["haystack"] = wanted["haystack"].rpartition("/")[2]
    plan = server.get("plan")
    return {
        "settings": wanted,
        "model": model,
        "plan": plan.get("sha256") if isinstance(plan, dict) else None,
        "material": fingerprints(settings),
        "ruler": COMMIT,
    }


def _check_plans(arms: Sequence[Arm], server: dict[str, Any]) -> None:
    """Refuse an arm that is of another head plan than the server's."""
    plan = server.get("plan")
    there = plan.get("name") if isinstance(plan, dict) else None
    for arm in arms:
        if arm.plan not in (None, there):
            has = "names no head plan" if there is None else f"has {there!r}"
            raise EvalError(
                f"arm {arm.name!r}: plan is {arm.plan!r}, and the server {has}; take arms that fit it by --arm, or an "
                "engine with this plan (LYCHEE_HEADS)"
            )


async def _counter(asker: Asker, settings: Settings, target: Target, model: str) -> ServerTokens | LocalTokens:
    """Who counts tokens. Beside a tokenizer of one's own, the server's count of a short prompt gives the template's."""
    asked = asker.url if target.tokenizer is None else target.tokenizer
    if isinstance(asked, str) and asked.startswith(("http://", "https://")):
        return ServerTokens(asked, model, chat=settings.api == "chat", prefix=settings.prefix)
    tokens = LocalTokens(Path(asked))
    reply = await asker.ask(model, PROBE, "", 1, settings.base.fields(target.send_as))
    if reply.prompt_tokens is not None:
        tokens.template = max(0, reply.prompt_tokens - (tokens(PROBE, "") - tokens.template))
    return tokens


def _make(settings: Settings, tokens: ServerTokens | LocalTokens, progress: Progress) -> list[Sample]:
    wanted = sum(len(task.lengths or settings.lengths) * (task.samples or settings.samples) for task in settings.tasks)
    progress.stage("making samples", wanted)
    samples = []
    for sample in make_samples(settings, tokens):
        samples.append(sample)
        progress.advance()
    return samples


async def _probe(asker: Asker, model: str, arms: Sequence[Arm], target: Target) -> None:
    """Ask every arm for one token, so that one that the server refuses is known at once and not after an hour."""
    for arm in arms:
        try:
            await asker.ask(model, PROBE, "", 1, arm.fields(target.send_as))
        except EvalError as error:
            raise EvalError(f"arm {arm.name!r}: the server refuses {arm.fields(target.send_as)}: {error}") from error


class _Crew:
    """Workers that take one sample at a time and ask all of its arms in a row."""

    def __init__(
        self, asker: Asker, model: str, settings: Settings, target: Target, store: Store, progress: Progress
    ) -> None:
        self._asker, self._model, self._settings = asker, model, settings
        self._target, self._store, self._progress = target, store, progress
        self._asked = 0
        self._gone = 0

    async def work(self, waiting: Sequence[tuple[Sample, Sequence[Arm]]]) -> int:
        """Ask everything that waits.

        Returns:
            How many answers and errors there were.

        Raises:
            EvalError: the server is gone; what was answered is kept.
        """
        queue = iter(waiting)

        async def worker() -> None:
            for sample, arms in queue:
                await self._one(sample, arms)

        tasks = [asyncio.create_task(worker()) for _ in range(min(self._target.concurrency, len(waiting)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self._asked

    async def _one(self, sample: Sample, arms: Sequence[Arm]) -> None:
        prefill: float | None = None
        warm_up = self._settings.warm_up
        for arm in arms:
            fields = arm.fields(self._target.send_as)
            try:
                if warm_up:  # until it has been answered once
                    warm = self._settings.base.fields(self._target.send_as)
                    prefill = (await self._asker.ask(self._model, sample.prompt, sample.prefix, 1, warm)).seconds
                    warm_up = False
                reply = await self._asker.ask(self._model, sample.prompt, sample.prefix, sample.max_tokens, fields)
            except Refused as error:
                self._keep(Record(sample=sample.key, arm=arm.name, error=str(error)))
            except Gone as error:
                self._gone += 1
                self._keep(Record(sample=sample.key, arm=arm.name, error=str(error)))
                if self._gone >= self._target.patience:
                    raise EvalError(f"{self._asker.url} is gone: {error}; the same command goes on") from error
            else:
                self._gone = 0
                self._keep(replace(judged(sample, arm.name, reply), prefill_seconds=prefill))

    def _keep(self, record: Record) -> None:
        self._store.add(record)
        self._asked += 1
        self._progress.advance(record)


def judged(sample: Sample, arm: str, reply: Reply) -> Record:
    """A reply's record, scored."""
    told = reply.lychee
    return Record(
        sample=sample.key,
        arm=arm,
        score=score(reply.text, sample),
        partial=steps_right(reply.text, sample) if TRACE_LINES in sample.options else None,
        reply=reply.text,
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.prompt_tokens,
        answer_tokens=reply.answer_tokens,
        first_token_seconds=reply.first_token_seconds,
        seconds=reply.seconds,
        attended_fraction=told.get("attended_fraction"),
        recall=told.get("recall"),
        context_tokens=told.get("context_tokens"),
        lychee=told,
    )
