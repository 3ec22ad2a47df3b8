"""An ablation's four parts: gains, trainings, plans, answers. Each goes on with what is in the folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import torch

from lychee_sgl.heads.ablate.names import at_count
from lychee_sgl.heads.checks import canonical_json, write_text
from lychee_sgl.heads.evaluate.run import run_exam
from lychee_sgl.heads.evaluate.variants import Variant
from lychee_sgl.heads.gains import WEIGHTINGS
from lychee_sgl.heads.haystack import file_haystack, python_haystack
from lychee_sgl.heads.plan import HeadPlan, PlanDefaults
from lychee_sgl.heads.rivals import (
    chequered_plan,
    cover_plan,
    even_plan,
    layerwise_plan,
    random_plan,
    with_measured_sources,
)
from lychee_sgl.heads.shapes import read_shape
from lychee_sgl.heads.train.run import gains_on, load_for, load_gain, save_gain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lychee_sgl.heads.ablate.config import Ablation
    from lychee_sgl.heads.evaluate.store import Answers
    from lychee_sgl.heads.train.settings import TrainSettings


UNFINISHED = 75
"""Exit status when the time was up first (EX_TEMPFAIL): the same command goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where an ablation runs.

    Attributes:
        config: the file that says what is made and asked.
        ablation: what it says.
        model: model folder.
        model_name: what plans call the model.
        folder: everything that is made.
        until: `time.monotonic` at which to stop, or None.
        tell: told a line now and then.
        device: a torch device, or None for a GPU if there is one.
        at_once: rows of a batch of answers.
    """

    config: Path
    ablation: Ablation
    model: Path
    model_name: str | None
    folder: Path
    until: float | None
    tell: Callable[[str], None]
    device: str | None = None
    at_once: int = 128

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return self.until is not None and time.monotonic() >= self.until

    def gain_file(self, weighting: str) -> Path:
        """Where gains are kept."""
        return self.folder / f"{weighting}.gain.safetensors"

    def run(self) -> tuple[dict[str, HeadPlan], Answers | None, bool]:
        """Do what is left to do.

        Returns:
            The plans there are, the answers there are, and whether all is done.

        Raises:
            ValueError: a setting does not do, or a training failed; the message holds its last line.
        """
        (self.folder / "plans").mkdir(parents=True, exist_ok=True)
        self._check_folder()
        self.measure()
        if self.late or not self.train():
            return self.trained(), None, False
        plans = self.plans()
        self._check_answers(plans)
        if len(self._places()) == 1:
            return plans, *self.answer(plans)
        answers, done = self.answer(plans, late=True)  # what is there already: nobody has to be started for that
        if not done:
            self._share_answers()
            answers, done = self.answer(plans, late=True)
        return plans, answers, done

    def answer_share(self, share: tuple[int, int]) -> bool:
        """Ask one process's share of the questions; all plans must be there.

        Returns:
            Whether it is complete.
        """
        return self.answer(self.plans(), share=share)[1]

    def _check_folder(self) -> None:
        """Refuse a folder whose gains or trainings are of another ablation.

        Raises:
            ValueError: they are; the message names what differs.
        """
        plain, kept = self.ablation.train, self.folder / "asked.json"
        shape = read_shape(self.model, name=self.model_name)
        asked = {"model": str(shape), "data": self.ablation.data, "gain_samples": self.ablation.gain_samples,
                 "budget": plain.budget, "sinks": plain.sinks, "recent": plain.recent}  # fmt: skip
        told = {key: str(value) for key, value in asked.items()}
        if not kept.exists():
            write_text(kept, json.dumps(told, indent=1) + "\n")
        was = json.loads(kept.read_text(encoding="utf-8"))
        for key, value in told.items():
            if was.get(key) != value:
                raise ValueError(f"{self.folder} is of another ablation: {key} was {was.get(key)} and is {value}")
        for name, settings in self.ablation.trainings().items():
            record = self._plan_file(name).with_suffix(".training.json")
            if not self._plan_file(name).exists():
                continue
            had, wanted = json.loads(record.read_text(encoding="utf-8"))["settings"], settings.as_dict()
            for key in wanted:
                if had.get(key) != wanted[key]:
                    raise ValueError(
                        f"{self._plan_file(name)} was trained with {key} {had.get(key)!r}, not {wanted[key]!r}; "
                        "remove it, or name the run otherwise"
                    )

    def _check_answers(self, plans: dict[str, HeadPlan]) -> None:
        """Refuse answers that were given under other plans of these names; answers are kept by name.

        Raises:
            ValueError: they were; the message names the plan.
        """
        folder = self.folder / "answers"
        folder.mkdir(exist_ok=True)
        kept = folder / "plans.json"
        was = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        for name, plan in plans.items():
            told = plan.to_dict()
            decides = {key: told[key] for key in ("roles", "sources")} | {
                key: told["defaults"][key] for key in ("sinks", "recent")
            }
            digest = sha256(canonical_json(decides).encode()).hexdigest()
            if was.setdefault(name, digest) != digest:
                raise ValueError(f"{folder} holds answers under another plan called {name}; remove them, or rename it")
        write_text(kept, json.dumps(was, indent=1) + "\n")

    def measure(self) -> None:
        """Gains by every weighting, at the training's budget."""
        if all(self.gain_file(kind).exists() for kind in WEIGHTINGS):
            return
        started, plain = time.monotonic(), self.ablation.train
        loaded = load_for(self.model, name=self.model_name, device=self.device, dtype="float32")
        gains = gains_on(
            loaded, self.ablation.data.open(loaded), samples=self.ablation.gain_samples, budget=plain.budget,
            sinks=plain.sinks, recent=plain.recent, weightings=WEIGHTINGS,
        )  # fmt: skip
        for kind, gain in gains.items():
            save_gain(gain, self.gain_file(kind))
        self.tell(f"gains on {self.ablation.gain_samples} samples: {time.monotonic() - started:.0f} s")

    def train(self) -> bool:
        """All trainings, several at a time, each a process of its own; false when the time is up before the last.

        Raises:
            ValueError: one failed.
        """
        waiting = [
            (name, settings)
            for name, settings in self.ablation.trainings().items()
            if not self._plan_file(name).exists()
        ]
        running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        places = self._places()
        where: dict[str, dict[str, str]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < len(places) and not self.late:
                    name, settings = waiting.pop(0)
                    taken = [where[other] for other in running]
                    # never more trainings than places, so the GPU with the fewest has a place
                    where[name] = min(places, key=lambda place: (taken.count(place), places.index(place)))
                    running[name] = self._start(name, settings, where[name]), time.monotonic()
                if self.late:
                    return False
                self._collect(running)
        finally:
            for process, _ in running.values():
                process.kill()  # its state is on disk
                process.wait()
        return True

    def _collect(self, running: dict[str, tuple[subprocess.Popen[bytes], float]]) -> None:
        """Take the trainings that have ended; wait half a second for the first of the others."""
        for name, (process, started) in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            if process.returncode:
                last = _last_line(self._log_file(name))
                raise ValueError(f"training {name} ended with {process.returncode}: {last}")
            self.tell(f"trained {name}: {time.monotonic() - started:.0f} s")
        for process, _ in running.values():
            try:
                process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                break

    def _places(self) -> list[dict[str, str]]:
        """Where processes run: the environment of each that may run at one time, `workers` on every GPU."""
        if self.device is not None or torch.cuda.device_count() < 2:
            return [{}] * self.ablation.workers
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = shown.split(",") if shown else [str(index) for index in range(torch.cuda.device_count())]
        return [{"CUDA_VISIBLE_DEVICES": name} for _ in range(self.ablation.workers) for name in names]

    def _start(self, name: str, settings: TrainSettings, place: dict[str, str]) -> subprocess.Popen[bytes]:
        data = self.ablation.data
        words: list[object] = [
            sys.executable, "-m", "lychee_sgl.heads", "train", "--model", self.model, "--out", self._plan_file(name),
            "--name", name, "--retrieval-heads", settings.retrieval, "--budget", settings.budget,
            "--data", data.source, "--shortest", data.context[0], "--context", data.context[1],
            "--needles", data.needles, "--words", data.words, "--sources", settings.sources,
            "--objective", settings.objective, "--gate", settings.gate, "--chain", settings.chain,
            "--steps", settings.steps, "--draws", settings.draws, "--rate", settings.rate, "--ramp", settings.ramp,
            "--sinks", settings.sinks, "--recent", settings.recent, "--seed", settings.seed,
            "--gain", self.gain_file("effect"), "--resume",
        ]  # fmt: skip
        more = {"--haystack": data.haystack, "--model-name": self.model_name, "--device": self.device}
        for flag, value in more.items():
            words += [flag, value] if value is not None else []
        words += ["--recompute"] if settings.recompute else []
        with self._log_file(name).open("ab") as log:
            return subprocess.Popen(
                [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | place
            )

    def trained(self) -> dict[str, HeadPlan]:
        """Trained plans that are there, by name."""
        names = [name for name in self.ablation.trainings() if self._plan_file(name).exists()]
        return {name: HeadPlan.load(self._plan_file(name)) for name in names}

    def plans(self) -> dict[str, HeadPlan]:
        """All plans by name: trained ones, rivals, and those from files; made ones are written, too.

        Raises:
            ValueError: a plan does not fit the model.
        """
        shape = read_shape(self.model, name=self.model_name)
        ablation = self.ablation
        made = {name: self._rival(name, ablation.retrieval) for name in ablation.rivals}
        for name in ablation.curve_rivals:
            counts = [count for count in ablation.counts if count != ablation.retrieval or name not in made]
            made |= {at_count(name, count): self._rival(name, count) for count in counts}
        for name, plan in made.items():
            plan.save(self._plan_file(name))
        plans = self.trained() | made | {name: HeadPlan.load(path) for name, path in ablation.plans.items()}
        for plan in plans.values():
            plan.check_fits(shape)
        return plans

    def _rival(self, name: str, retrieval: int) -> HeadPlan:
        shape = read_shape(self.model, name=self.model_name)
        plain = self.ablation.train
        defaults = PlanDefaults(budget=plain.budget, sinks=plain.sinks, recent=plain.recent)
        base, _, _ = name.partition("-measured")
        if base.startswith("cover-"):
            kind = base.removeprefix("cover-")
            gain = load_gain(self.gain_file(kind))
            return cover_plan(shape, retrieval, gain, weighting=kind, defaults=defaults)
        match base:
            case "random":
                plan = random_plan(shape, retrieval, seed=plain.seed, defaults=defaults)
            case "even":
                plan = even_plan(shape, retrieval, defaults=defaults)
            case "layerwise":
                plan = layerwise_plan(shape, retrieval, defaults=defaults)
            case _:
                plan = chequered_plan(shape, defaults=defaults)
        return with_measured_sources(plan, load_gain(self.gain_file("effect"))) if name != base else plan

    def _share_answers(self) -> None:
        """Ask in several processes, until the last answer or the end of the time.

        Raises:
            ValueError: one failed.
        """
        places = self._places()
        count = len(places)
        words = [sys.executable, "-m", "lychee_sgl.heads", "ablate", "--config", self.config, "--model", self.model,
                 "--out", self.folder, "--rows", self.at_once]  # fmt: skip
        for flag, value in (("--model-name", self.model_name), ("--device", self.device)):
            words += [flag, value] if value is not None else []
        if self.until is not None:
            words += ["--minutes", max(0.0, self.until - time.monotonic()) / 60]
        children = []
        try:
            for part, place in enumerate(places):
                with self._share_log(part).open("ab") as log:
                    told = [str(word) for word in (*words, "--share", f"{part + 1}/{count}")]
                    children.append(
                        subprocess.Popen(told, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | place)
                    )
            codes = [child.wait() for child in children]
        finally:
            for child in children:
                child.kill()
        for part, code in enumerate(codes):
            if code not in (0, UNFINISHED):
                raise ValueError(f"answering ended with {code}: {_last_line(self._share_log(part))}")

    def answer(
        self, plans: dict[str, HeadPlan], *, share: tuple[int, int] = (0, 1), late: bool = False
    ) -> tuple[Answers, bool]:
        """Ask every question under every plan and budget; nothing new when it is late already."""
        ablation, started = self.ablation, time.monotonic()
        loaded = load_for(self.model, name=self.model_name, device=self.device)
        several = {*ablation.runs, *ablation.rivals, *ablation.plans}
        variants = [
            Variant(name=name, plan=plan, budget=budget)
            for name, plan in plans.items()
            for budget in (ablation.budgets if name in several else ablation.curve_budgets)
        ]
        given = ablation.exam_haystack
        haystack = python_haystack("evaluation") if given is None else file_haystack(given)
        self.tell(f"answering under {len(variants)} plans and budgets")

        def told(done: int, everything: int) -> None:
            if done % 50 == 0 or done == everything:
                self.tell(f"question {done} of {everything}: {time.monotonic() - started:.0f} s")

        with torch.inference_mode():
            return run_exam(
                loaded, variants, ablation.exam, haystack=haystack,
                folder=self.folder / "answers", share=share,
                until=started if late else self.until, tell=told, at_once=self.at_once,
            )  # fmt: skip

    def _plan_file(self, name: str) -> Path:
        return self.folder / "plans" / f"{name}.json"

    def _share_log(self, part: int) -> Path:
        return self.folder / f"answers-{part}.log"

    def _log_file(self, name: str) -> Path:
        return self.folder / "plans" / f"{name}.log"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "no word"
