"""Drift on dense traces: sparse rows against one-by-one decoding, corrected rows against a prefill, sums by hand."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
import torch
from typer.testing import CliRunner

from lychee_sgl.heads.cli import app
from lychee_sgl.heads.evaluate.drift import Arm, DriftSettings, _summary, run_drift, trace
from lychee_sgl.heads.evaluate.variants import Variant
from lychee_sgl.heads.haystack import Haystack
from lychee_sgl.heads.hybrid_hf import Decoding, hybrid_attention, prefill, step
from lychee_sgl.heads.plan import HeadPlan, PlanDefaults

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from lychee_sgl.heads.measure import LoadedModel

ROLES = ("RRR", "SRS", "SSS", "RSS")
TOKENS = 12
SETTINGS = DriftSettings(prompts=2, prompt_tokens=40, tokens=TOKENS, buckets=3, temperature=0)
TEXT = Haystack(tuple(f"Paragraph {i} of a text that says nothing, in many words." for i in range(40)), "a test")


def plan_of(tiny: LoadedModel) -> HeadPlan:
    return HeadPlan("mixed", tiny.shape, ROLES, {(2, 1): (0, 1)}, PlanDefaults(sinks=2, recent=3))


def prompt_of(seed: int = 1) -> list[int]:
    return torch.randint(3, 259, (40,), generator=torch.Generator().manual_seed(seed)).tolist()  # type: ignore[no-any-return]


def run(tiny: LoadedModel, *arms: Arm) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return trace(tiny.model, prompt_of(), arms, SETTINGS, stop=frozenset(), generator=generator)


@pytest.fixture(scope="module")
def dense(tiny: LoadedModel) -> tuple[list[int], torch.Tensor]:
    """The tokens that the dense model takes, and its log-probabilities after each: [tokens, V]."""
    decoding, tokens, logits = Decoding(prefix=prefill(tiny.model, prompt_of())), [], []
    token = int(decoding.prefix.logits.argmax())
    with torch.no_grad(), hybrid_attention(tiny.model):
        for _ in range(TOKENS):
            tokens.append(token)
            logits.append(step(tiny.model, decoding, [token])[-1].log_softmax(-1).double())
            token = int(logits[-1].argmax())
    return tokens, torch.stack(logits)


def expected(told: torch.Tensor, dense: torch.Tensor) -> tuple[list[float], list[float]]:
    """Divergence and agreement of [tokens, V], written out once more."""
    divergence = [float((p.exp() * (p - q)).sum()) for p, q in zip(dense, told, strict=True)]
    return divergence, [float(p.argmax() == q.argmax()) for p, q in zip(dense, told, strict=True)]


def test_an_uncorrected_row_is_decoding_one_by_one_on_the_dense_tokens(tiny: LoadedModel, dense) -> None:
    tokens, log_p = dense
    alone, told, recall = Decoding(prefix=prefill(tiny.model, prompt_of()), plan=plan_of(tiny), budget=8), [], []
    with torch.no_grad(), hybrid_attention(tiny.model):
        for token in tokens:
            before = sum(alone.recall.values())
            told.append(step(tiny.model, alone, [token])[-1].log_softmax(-1).double())
            recall.append((sum(alone.recall.values()) - before) / len(alone.recall))
    divergence, agreement = expected(torch.stack(told), log_p)
    (got,) = run(tiny, Arm(variant=Variant(name="mixed", plan=plan_of(tiny), budget=8)))
    assert got[:, 0].tolist() == pytest.approx(divergence, abs=1e-5)
    assert got[:, 1].tolist() == agreement
    assert got[:, 2].tolist() == pytest.approx(recall, abs=1e-5)
    assert max(divergence) > 1e-3, "the budget is too large for a difference"


@pytest.mark.parametrize("every", [1, 4])
def test_a_corrected_row_reads_what_a_prefill_of_the_same_tokens_writes(tiny: LoadedModel, dense, every: int) -> None:
    """Up to the last correction the context is prefilled anew, densely; behind it decoded sparse."""
    tokens, log_p = dense
    told = []
    with torch.no_grad():
        for position in range(TOKENS):
            corrected = position // every * every
            prefix = prefill(tiny.model, prompt_of() + tokens[:corrected])
            alone = Decoding(prefix=prefix, plan=plan_of(tiny), budget=8)
            with hybrid_attention(tiny.model):
                for token in tokens[corrected : position + 1]:
                    logits = step(tiny.model, alone, [token])[-1]
            told.append(logits.log_softmax(-1).double())
    divergence, _ = expected(torch.stack(told), log_p)
    (got,) = run(tiny, Arm(variant=Variant(name="mixed", plan=plan_of(tiny), budget=8), correction=every))
    assert got[:, 0].tolist() == pytest.approx(divergence, abs=1e-4, rel=1e-4)


def test_a_budget_beyond_the_context_does_not_drift(tiny: LoadedModel) -> None:
    (got,) = run(tiny, Arm(variant=Variant(name="mixed", plan=plan_of(tiny), budget=500)))
    assert got[:, 0].abs().max() < 1e-5
    assert got[:, 1].tolist() == [1.0] * TOKENS
    assert got[:, 2].tolist() == pytest.approx([1.0] * TOKENS, abs=1e-5)


def test_tokens_that_end_an_answer_are_never_drawn(tiny: LoadedModel, dense) -> None:
    """With the first dense token forbidden, the whole trace is another one."""
    arm = Arm(variant=Variant(name="mixed", plan=plan_of(tiny), budget=8))
    generator = torch.Generator().manual_seed(0)
    stopped = trace(tiny.model, prompt_of(), [arm], SETTINGS, stop=frozenset({dense[0][0]}), generator=generator)
    assert not torch.allclose(stopped, run(tiny, arm))


def test_means_and_growth_by_hand() -> None:
    """Two traces of eight tokens whose divergence is 0 to 7, and twice that; buckets of four; quarters of two."""
    column = torch.arange(8, dtype=torch.float64)
    traces = torch.zeros(2, 8, 3, dtype=torch.float64)
    traces[0, :, 0], traces[1, :, 0] = column, 2 * column
    traces[:, :, 2] = math.nan
    arm = Arm(variant=Variant(name="mixed", plan=None, budget=64), correction=32)
    got = _summary(arm, traces, DriftSettings(prompts=2, tokens=8, buckets=2))
    assert (got["name"], got["budget"], got["correction"]) == ("mixed@64+32", 64, 32)
    # the traces' means are 1.5 and 3 in the first bucket, 5.5 and 11 in the second; the error is half the gap
    assert [(point["from"], point["to"]) for point in got["points"]] == [(0, 4), (4, 8)]
    assert [point["divergence"] for point in got["points"]] == [
        {"mean": 2.25, "error": 0.75},
        {"mean": 8.25, "error": 2.75},
    ]
    # the last two positions less the first two: 6.5 - 0.5, and twice that
    assert got["grows"]["divergence"] == {"mean": 9.0, "error": 3.0}
    assert got["all"]["recall"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": 1}, "prompts is 1; allowed: a whole number from 2"),
        ({"tokens": 4, "buckets": 5}, "buckets is 5; allowed: up to the 4 tokens"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"tokens": 5000}, r"prompt_tokens 512 and tokens 5000 are more than .*; allowed: 4096 together"),
        ({"prompt_tokens": 3000, "tokens": 16}, "prompt_tokens is 3000; allowed: what there is in a test"),
    ],
)
def test_refusals(tiny: LoadedModel, change: dict[str, float], message: str) -> None:
    arms = [Arm(variant=Variant(name="mixed", plan=plan_of(tiny), budget=8))]
    with pytest.raises(ValueError, match=message):
        run_drift(tiny, arms, DriftSettings(**change), haystack=TEXT)  # type: ignore[arg-type]


def test_arms_need_different_names(tiny: LoadedModel) -> None:
    arm = Arm(variant=Variant(name="mixed", plan=plan_of(tiny), budget=8))
    with pytest.raises(ValueError, match="arms are mixed@8, mixed@8; allowed: one or more, with different names"):
        run_drift(tiny, [arm, arm], SETTINGS, haystack=TEXT)


@pytest.fixture
def drift(tiny: LoadedModel, model_folder: Path, tmp_path: Path) -> Callable[..., Result]:
    """Call the command with a small plan and small numbers."""
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_of(tiny).to_dict()))

    def call(**changed: object) -> Result:
        given = {"model": model_folder, "heads": plan, "out": tmp_path / "drift.json", "budget": 8, "tokens": 12,
                 "prompt-tokens": 30, "prompts": 3, "buckets": 3}  # fmt: skip
        return CliRunner().invoke(app, ["drift", *(f"--{key}={value}" for key, value in (given | changed).items())])

    return call


def test_shares_and_an_ended_run_give_the_report_of_one(drift: Callable[..., Result], tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole.json", tmp_path / "shared.json"
    assert drift(out=whole).exit_code == 0
    first = drift(out=shared, share="2/2")
    assert (first.exit_code, shared.exists()) == (0, False), first.output
    assert "this share is done" in first.output
    folder = tmp_path / "shared.json.traces"
    assert {file.name for file in folder.iterdir()} == {"asked.json", "1.npy"}
    (folder / "0.77.part").write_bytes(b"of a process that was killed")
    kept = (folder / "1.npy").stat().st_mtime_ns
    assert drift(out=shared).exit_code == 0
    assert (folder / "1.npy").stat().st_mtime_ns == kept
    assert json.loads(shared.read_text())["arms"] == json.loads(whole.read_text())["arms"]
    assert f"error: {folder} holds other traces: tokens was 12 and is 13\n" in drift(out=shared, tokens=13).output
    (folder / "0.npy").write_bytes(b"")
    assert f"error: {folder / '0.npy'} is no trace" in drift(out=shared).output


@pytest.mark.parametrize("share", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3"])
def test_a_share_that_is_none(drift: Callable[..., Result], share: str) -> None:
    result = drift(share=share)
    assert result.exit_code == 1
    assert result.output == f"error: --share is {share!r}; allowed: I/N with I from 1 to N\n"


def test_the_command_writes_numbers_and_a_picture(tiny: LoadedModel, model_folder: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_of(tiny).to_dict()))
    out, png = tmp_path / "drift.json", tmp_path / "drift.png"
    paths = {"--model": model_folder, "--heads": plan, "--out": out, "--plot": png}
    numbers = {"--correction": 4, "--tokens": 12, "--prompt-tokens": 30, "--prompts": 2, "--buckets": 3}
    given = [str(word) for pair in (paths | numbers).items() for word in pair]
    result = CliRunner().invoke(app, ["drift", "--budget", "8", "--budget", "16", *given])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert [arm["name"] for arm in report["arms"]] == ["mixed@8", "mixed@8+4", "mixed@16", "mixed@16+4"]
    assert all(len(arm["points"]) == 3 for arm in report["arms"])
    assert report["settings"]["tokens"] == 12
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "mixed@8+4: KL" in result.output
