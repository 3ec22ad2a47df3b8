"""The policy at work: holds the file, decides for requests, learns from answers and watches the engines' load."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from typing import TYPE_CHECKING, Any

from lychee_server.errors import GatewayError, InvalidRequest
from lychee_server.policy.decide import Conditions, Decision, Question, Route, decide, depends_on_length, plain
from lychee_server.policy.file import PolicyError, load_policy
from lychee_server.policy.lengths import Length, PromptLengths
from lychee_server.policy.pressure import EngineLoad, PressureGauge, Signals, parse_loads
from lychee_server.policy.recall import Audit, RecallKeeper
from lychee_server.policy.schema import RecallHold
from lychee_server.sse import parse_object

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lychee_server.body import Completion
    from lychee_server.curve import SpeedCurve
    from lychee_server.health import EngineInfo
    from lychee_server.metrics import GatewayMetrics
    from lychee_server.policy.lengths import PromptText
    from lychee_server.policy.schema import Policy
    from lychee_server.pool import Engine, EnginePool
    from lychee_server.schemas import EngineSummary, LycheeRequest
    from lychee_server.upstream import Upstream

log = logging.getLogger(__name__)

_TOKENIZE_SECONDS = 2.0
_TOKENIZED_AT_ONCE = 8  # it takes the engine's HTTP process some milliseconds; of a flood the rest is estimated
_TOKENIZED_BYTES = 256 * 2**10  # nothing has been charged for it yet: of a longer prompt the estimate must do
_TOKENIZED = ("model", "messages", "prompt", "tools", "tool_choice", "reasoning_effort", "chat_template_kwargs")
_IDLE_SECONDS = 1.0
_LOADS = "/v1/loads?include=core"


class BudgetPolicy:
    """All that decides on budgets. Everything is called on the event loop.

    Attributes:
        policy: the file's content; None without a file.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        engines: EnginePool,
        metrics: GatewayMetrics,
        waiting: Callable[[], int],
        curve: SpeedCurve | None,
        timeout: float,
    ) -> None:
        """Read the file.

        Args:
            path: of the policy file; None: without one, requests run as the head plan says.
            engines: those that the requests go to.
            metrics: the gateway's.
            waiting: how many requests wait in the gateway's queue.
            curve: the engine's speed curve.
            timeout: of one look at an engine's load, in seconds.

        Raises:
            PolicyError: the file cannot be used.
        """
        self._path = path
        self._engines = engines
        self._metrics = metrics
        self._waiting = waiting
        self._curve = curve
        self._timeout = timeout
        self._lengths = PromptLengths()
        self._gauge = PressureGauge()
        self._tokenizing = 0
        self._mute: set[str] = set()  # engines that do not tell their load
        self.policy: Policy | None = self._load() if path is not None else None
        metrics.policy_loaded([rule.name for rule in self.policy.rules] if self.policy else [])
        self._keeper = RecallKeeper(self.policy.recall if self.policy else RecallHold())

    def _load(self) -> Policy:
        assert self._path is not None
        policy = load_policy(self._path)
        if self._curve is None and any(outcome.target_itl_ms is not None for outcome in policy.outcomes()):
            raise PolicyError(f"{self._path}: target_itl_ms needs a speed curve; the setting curve_file is not set")
        return policy

    def reload(self) -> bool:
        """Read the file again; a bad one is refused, and what was in force stays. Returns whether it was taken."""
        if self._path is None:
            log.warning("there is no policy to reload: the setting policy_file is not set")
            return False
        try:
            policy = self._load()
        except PolicyError as error:
            self._metrics.policy_reloaded(taken=False)
            log.error("the policy was not reloaded; the old one stays", extra={"problem": str(error)})
            return False
        self.policy = policy
        self._keeper.reconfigure(policy.recall)
        self._metrics.policy_loaded([rule.name for rule in policy.rules])
        self._metrics.policy_reloaded(taken=True)
        log.info("the policy was reloaded", extra={"tiers": len(policy.tiers), "rules": len(policy.rules)})
        return True

    async def decide(
        self,
        body: dict[str, Any],
        asked: LycheeRequest,
        text: PromptText,
        *,
        route: Route,
        tier: str | None,
        engine: EngineInfo,
        prompt_tokens: int | None = None,
        dry: bool = False,
    ) -> tuple[Decision, Length]:
        """Decide the budget of a request.

        Args:
            body: the request's, parsed.
            asked: its field `lychee`, checked.
            text: what of it becomes the prompt.
            route: where it came in.
            tier: the caller's.
            engine: what is known of the engines.
            prompt_tokens: length of the prompt, if the caller knows it.
            dry: nothing that is held may move, and the engine is not asked.

        Raises:
            InvalidRequest: a time per token is asked for and there is no speed curve.
        """
        curve = self._curve_of(engine)
        if asked.target_itl_ms is not None and curve is None:
            message = "lychee.target_itl_ms needs a speed curve of this engine, and the gateway has none (curve_file)"
            raise InvalidRequest(message, param="lychee.target_itl_ms", code="no_speed_curve")
        model = _model_of(engine)
        length = self._lengths.estimate(model, text) if prompt_tokens is None else Length.exactly(prompt_tokens)
        if engine.sparsity is None:
            return plain(asked).beside(asked), length
        question = Question(
            asked=asked.budget_alone(),
            route=route,
            streaming=body.get("stream") is True,
            model=_text_or_none(body.get("model")),
            reasoning_effort=_text_or_none(body.get("reasoning_effort")),
            tier=tier,
            length=length,
        )
        if self._may_ask(text, dry) and depends_on_length(self.policy, question):
            question = question.at(await self._tokenized(body) or length)
        conditions = Conditions(
            policy=self.policy,
            defaults=engine.sparsity.defaults,
            context_window=engine.context_window,
            served=_served_by(engine),
            recalls=self._keeper,
            times=curve,
            batch=self._batch(),
            pressure=self._gauge.level,
            dry=dry,
        )
        return decide(question, conditions).beside(asked), question.length

    def _batch(self) -> int:
        """Return how many requests decode together on an engine, one more included; each one behind a router counts."""
        engines = self._engines.engines
        ready = sum(len(engine.replicas.direct()) for engine in engines if engine.monitor.ready)
        return math.ceil((1 + sum(engine.in_flight for engine in engines)) / max(1, ready))

    def _may_ask(self, text: PromptText, dry: bool) -> bool:
        """Whether an engine may be asked how long a prompt is."""
        return not dry and text.text_only and text.size <= _TOKENIZED_BYTES and self._tokenizing < _TOKENIZED_AT_ONCE

    def _curve_of(self, engine: EngineInfo) -> SpeedCurve | None:
        """Return the speed curve if it was measured on an engine like this one."""
        if self._curve is None or engine.sparsity is None or self._curve.differences(engine.sparsity):
            return None
        return self._curve

    async def _tokenized(self, body: dict[str, Any]) -> Length | None:
        """Ask an engine how long a prompt is; None where it does not say."""
        self._metrics.prompt_tokenized()
        self._tokenizing += 1
        try:
            asked = json.dumps({key: body[key] for key in _TOKENIZED if body.get(key) is not None}).encode()
            async with (
                asyncio.timeout(_TOKENIZE_SECONDS),
                self._engines.any().teller().open("/tokenize", asked, {}, _TOKENIZE_SECONDS) as answer,
            ):
                reply = parse_object(await answer.read()) if answer.status == 200 else None
        except (GatewayError, TimeoutError, RecursionError) as error:
            log.warning("a prompt could not be counted; its length is estimated", extra={"problem": str(error)})
            return None
        finally:
            self._tokenizing -= 1
        count = (reply or {}).get("count")
        counts = count if isinstance(count, list) else [count]
        return Length.exactly(max(counts)) if counts and all(type(each) is int for each in counts) else None

    def learn(self, engine: EngineInfo, completion: Completion, summary: EngineSummary | None, prompt: int) -> None:
        """Learn from a complete answer.

        Args:
            engine: what was known of the engines.
            completion: the request.
            summary: the engine's account of it.
            prompt: tokens of the prompt.
        """
        if completion.text is None or completion.choices != 1 or prompt <= 0:
            return  # of several prompts the answer tells one sum
        if summary is not None and summary.memory is not None:
            return  # of a document read block by block it tells what was read
        model = _model_of(engine)
        self._lengths.observe(model, completion.text, prompt)
        if summary is None or summary.recall is None or not isinstance(summary.budget, int) or summary.mode != "topk":
            return
        if summary.policy is None and summary.sparse_steps == summary.decode_steps > 0:
            audit = Audit(
                prompt_tokens=prompt,
                answer_tokens=summary.decode_steps,
                budget=summary.budget,
                recall=min(1.0, max(0.0, summary.recall)),
            )
            self._keeper.observe(_served_by(engine), audit)

    async def watch(self) -> None:
        """Look at the engines' load as long as the policy has a use for it, until cancelled."""
        while True:
            pressure = self.policy.pressure if self.policy else None
            try:
                engines = self._engines.engines if pressure else ()
                # all at once: one that does not answer must not keep the others' load from counting
                told = await asyncio.gather(*(self._loads(engine) for engine in engines))
                loads = [load for found in told for load in found]
                self._gauge.update(Signals.of(self._waiting(), loads), pressure, time.monotonic())
                self._metrics.policy_pressure(self._gauge.level)
            except Exception:  # broad: a watcher that died would leave the level where it was, for good
                log.exception("looking at the engines' load failed")
            await asyncio.sleep(pressure.interval if pressure else _IDLE_SECONDS)

    async def _loads(self, engine: Engine) -> list[EngineLoad]:
        """Return an engine's load; nothing for one that is away or does not tell, and for a replica likewise."""
        if not engine.monitor.ready:
            return []
        asked = await asyncio.gather(*(self._load_of(upstream) for upstream in engine.replicas.direct()))
        answers = [answer for answer in asked if answer is not None]
        if not answers:
            return []
        read = [parse_loads(body) if status == 200 else None for status, body in answers]
        loads = None if None in read else [load for found in read if found for load in found]
        if loads is not None:
            self._mute.discard(engine.name)
        elif engine.name not in self._mute:
            self._mute.add(engine.name)
            log.warning("an engine's load cannot be read: it does not press", extra={"engine": engine.name})
        return loads or []

    async def _load_of(self, upstream: Upstream) -> tuple[int, bytes] | None:
        try:
            return await upstream.get(_LOADS, self._timeout)
        except GatewayError:
            return None

    def state(self) -> dict[str, Any]:
        """Return the policy, and what has been learnt and is held now, for people to read."""
        signals = self._gauge.signals
        return {
            "policy": self.policy.model_dump(mode="json", exclude_none=True) if self.policy else None,
            "pressure": {"level": self._gauge.level, "queue": signals.queue, "kv_use": round(signals.kv_use, 4)},
            "prompt_lengths": self._lengths.state(),
            "recall": self._keeper.state(),
        }


def _model_of(engine: EngineInfo) -> str:
    return (engine.sparsity.model if engine.sparsity else None) or ""


def _served_by(engine: EngineInfo) -> str:
    """Name what recall depends on: with another head plan, nothing that was learnt holds."""
    if engine.sparsity is None:
        return ""
    plan = engine.sparsity.plan
    return f"{_model_of(engine)}, {plan.name}{f' {plan.sha256[:12]}' if plan.sha256 else ''}"


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None
