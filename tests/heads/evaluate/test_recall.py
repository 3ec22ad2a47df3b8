"""Where attention mass is lost: one head by hand in float64, the parts by hand, and the command."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from typer.testing import CliRunner

from lychee_kernels.layout import ratio_bounds
from lychee_sgl.heads.cli import app
from lychee_sgl.heads.evaluate.recall import PARTS, Held, Probe, RecallSettings, attended, run_recall, summary
from lychee_sgl.heads.haystack import Haystack
from lychee_sgl.heads.hybrid_hf import Decoding, generate, hybrid_attention, prefill, step
from lychee_sgl.heads.plan import HeadPlan, ModelShape, PlanDefaults

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from lychee_sgl.heads.measure import LoadedModel

ROLES = ("RRR", "SRS", "SSS", "RSS")
TEXT = Haystack(tuple(f"Paragraph {i} of a text that says nothing, in many words." for i in range(80)), "a test")
SETTINGS = RecallSettings(share=0.25, contexts=(100,), steps=6)


def plan_of(shape: ModelShape) -> HeadPlan:
    return HeadPlan("mixed", shape, ROLES, {(1, 0): (0, 2), (2, 1): (0, 1)}, PlanDefaults(sinks=2, recent=3))


def prompt_of(count: int) -> list[int]:
    return torch.randint(3, 259, (count,), generator=torch.Generator().manual_seed(4)).tolist()  # type: ignore[no-any-return]


def weights_of(tiny: LoadedModel, tokens: list[int], layer: int, head: int) -> list[float]:
    """The last token's dense attention in a layer, mean over a head's group, in float64 and one dot product each."""
    model, shape = tiny.model.model, tiny.shape
    with torch.no_grad():
        hidden = tiny.model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states[layer]
        normed = model.layers[layer].input_layernorm(hidden)
        attention, size = model.layers[layer].self_attn, shape.head_dim
        q, k = (
            part(normed).view(1, len(tokens), -1, size).transpose(1, 2) for part in (attention.q_proj, attention.k_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *model.rotary_emb(hidden, torch.arange(len(tokens))[None]))
    total = [0.0] * len(tokens)
    for member in range(head * shape.group_size, (head + 1) * shape.group_size):
        query, keys = q[0, member, -1].tolist(), k[0, head].tolist()
        raised = [math.exp(sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(size)) for key in keys]
        total = [a + b / sum(raised) / shape.group_size for a, b in zip(total, raised, strict=True)]
    return total


def best(weights: list[float], size: int, kept: set[int]) -> set[int]:
    others = sorted(set(range(len(weights))) - kept, key=lambda i: (-weights[i], i))
    return kept | set(others[: size - len(kept)])


def test_one_head_by_hand(tiny: LoadedModel) -> None:
    """Head 1.0 reads the set of 0.2: before layer 1 nothing is sparse, so its attention is that of the dense model."""
    prompt, token = prompt_of(47), 77
    plan = plan_of(tiny.shape)
    probe = Probe(plan, 0.25)
    decoding = Decoding(prefix=prefill(tiny.model, prompt), plan=plan, share=0.25, observer=probe)
    with torch.no_grad(), hybrid_attention(tiny.model):
        step(tiny.model, decoding, [token])
    root, mine = (weights_of(tiny, [*prompt, token], *head) for head in ((0, 2), (1, 0)))
    kept = {0, 1, 45, 46, 47}  # two sinks, three recent; 12 of 48 tokens
    recall = sum(mine[i] for i in best(root, 12, kept))
    assert probe.held.sets[2, 3].item() == pytest.approx(recall, abs=1e-5)
    assert decoding.recall[1, 0] == pytest.approx(recall, abs=1e-5)
    assert probe.held.sets[3, 3].item() == pytest.approx(sum(mine[i] for i in best(mine, 12, kept)), abs=1e-5)
    assert probe.held.free[3].item() == pytest.approx(sum(mine[i] for i in best(mine, 12, {47})), abs=1e-5)
    # 5 of 12 heads retrieve: the plan reads 5/12 + 7/12 * 1/4 = 9/16 of all entries, 27 of 48 tokens
    assert attended(plan, 0.25) == 9 / 16
    assert probe.held.equal[3].item() == pytest.approx(sum(mine[i] for i in best(mine, 27, kept)), abs=1e-5)
    assert recall < 0.9, "the set is too large for a difference"


def test_the_probe_sees_what_decoding_counts(tiny: LoadedModel) -> None:
    plan = plan_of(tiny.shape)
    probe = Probe(plan, 0.25)
    decoding = Decoding(prefix=prefill(tiny.model, prompt_of(60)), plan=plan, share=0.25, observer=probe)
    with hybrid_attention(tiny.model):
        generate(tiny.model, decoding, stop=frozenset(), max_tokens=7)
    rows = summary(plan, probe.held, 0.25)["heads"]
    assert decoding.steps == 7
    assert len(decoding.recall) == 7
    for row in rows:
        if row["root"] is None:
            assert (row["layer"], row["head"]) not in decoding.recall
            continue
        assert row["recall"] == pytest.approx(decoding.recall[row["layer"], row["head"]] / 7, abs=1e-5)
        assert row["own"] >= row["recall"]
        assert all(part >= -1e-6 for part in row["parts"].values())
        assert sum(row["parts"].values()) == pytest.approx(1 - row["recall"], abs=1e-5)


def test_sizes_of_a_share() -> None:
    assert ratio_bounds(0.125, torch.tensor([1, 8, 9, 16, 100])).tolist() == [1, 1, 2, 2, 13]
    assert ratio_bounds(0.1, torch.tensor([10, 30])).tolist() == [1, 3]  # 0.1 * 30 is above 3 in binary


def test_a_share_is_a_budget_that_grows(tiny: LoadedModel) -> None:
    prefix, tokens = prefill(tiny.model, prompt_of(38)), [5, 6, 7]
    with torch.no_grad(), hybrid_attention(tiny.model):
        share = Decoding(prefix=prefix, plan=plan_of(tiny.shape), share=0.25)
        got = step(tiny.model, share, tokens)  # contexts of 39, 40 and 41 tokens: sets of 10, 10 and 11
        ten = Decoding(prefix=prefix, plan=plan_of(tiny.shape), budget=10)
        eleven = Decoding(prefix=prefix, plan=plan_of(tiny.shape), budget=11)
        small, large = step(tiny.model, ten, tokens), step(tiny.model, eleven, tokens)
    assert torch.allclose(got[:2], small[:2], atol=1e-4)
    assert not torch.allclose(got[2], small[2], atol=1e-3)
    assert not torch.allclose(got[0], large[0], atol=1e-3)


def test_parts_of_the_loss_by_hand() -> None:
    """Two heads a layer; 1.1 reads 0.1 but 0.0 would serve better, 2.0 reads 1.0 though 1.1 would serve best."""
    shape = ModelShape("m", "A", 3, 4, 2, 8)
    plan = HeadPlan("p", shape, ("RR", "RS", "SR"), {(1, 1): (0, 1)})
    sets = torch.zeros(6, 6, dtype=torch.float64)
    sets[:2, 3] = torch.tensor([0.7, 0.6])
    sets[:4, 4] = torch.tensor([0.3, 0.2, 0.5, 0.75])
    sets.diagonal()[:] = torch.tensor([1.0, 1.0, 1.0, 0.8, 0.85, 0.4])
    free = torch.tensor([1.0, 1.0, 1.0, 0.9, 0.95, 0.6], dtype=torch.float64)
    told = summary(plan, Held(sets=sets, free=free, equal=free), 0.5)
    first, second = told["heads"][3], told["heads"][4]
    assert first["parts"] == pytest.approx({"size": 0.1, "kept": 0.1, "alone": 0.1, "cover": 0, "choice": 0.1})
    assert second["parts"] == pytest.approx({"size": 0.05, "kept": 0.1, "alone": 0.1, "cover": 0.25, "choice": 0})
    assert (first["root"], first["distance"], first["best_retrieval"]) == ([0, 1], 1, [0, 0])
    assert (second["root"], second["distance"], second["best_earlier"]) == ([1, 0], 1, [1, 1])
    assert told["heads"][5] == {"layer": 2, "head": 1, "root": None, "own": 0.4}
    assert (told["all"]["recall"], told["all"]["own"]) == pytest.approx((0.55, 0.825))
    # 0.4 and 0.5 are lost, 0.9 in all
    wanted = {"size": 0.15 / 0.9, "kept": 0.2 / 0.9, "alone": 0.2 / 0.9, "cover": 0.25 / 0.9, "choice": 0.1 / 0.9}
    assert told["shares"] == pytest.approx(wanted, abs=1e-6)
    assert [(row["layer"], row["loss_share"]) for row in told["layers"]] == [(1, 0.444444), (2, 0.555556)]
    assert told["worst"] == {"heads": 2, "loss_share": 1.0}
    assert (told["attended"], told["equal"]) == (round(4 / 6 + 2 / 6 * 0.5, 6), round(5.45 / 6, 6))


def test_a_run_is_the_mean_of_its_prompts(tiny: LoadedModel) -> None:
    seen: list[tuple[int, int]] = []
    told = run_recall(tiny, plan_of(tiny.shape), SETTINGS, haystack=TEXT, tell=lambda done, of: seen.append((done, of)))
    assert seen == [(i, 4) for i in (1, 2, 3, 4)]
    assert "prose" in {row["kind"] for row in told["prompts"]} <= {"single", "multi-key", "multi-value", "prose"}
    assert all(1 <= row["steps"] <= 6 for row in told["prompts"])
    recalls = [row["recall"] for row in told["prompts"]]
    assert told["recall"]["mean"] == pytest.approx(sum(recalls) / len(recalls), abs=1e-5)
    assert told["all"]["recall"] == pytest.approx(told["recall"]["mean"], abs=1e-4)
    assert told["all"]["own"] > told["all"]["recall"]
    assert set(told["shares"]) == set(PARTS)
    assert sum(told["shares"].values()) == pytest.approx(1, abs=1e-5)
    assert sum(row["loss_share"] for row in told["layers"]) == pytest.approx(1, abs=1e-5)


def test_a_plan_without_sparse_heads_has_no_recall(tiny: LoadedModel) -> None:
    with pytest.raises(ValueError, match="head plan 'all' has no sparse head; allowed: a plan with one or more"):
        run_recall(tiny, HeadPlan("all", tiny.shape, ("RRR",) * 4), SETTINGS, haystack=TEXT)
    with pytest.raises(ValueError, match="no decode step was observed"):
        _ = Probe(plan_of(tiny.shape), 0.5).held


@pytest.fixture
def recall(tiny: LoadedModel, model_folder: Path, tmp_path: Path) -> Callable[..., Result]:
    """Call the command with a small plan and small numbers."""
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_of(tiny.shape).to_dict()))

    def call(**changed: object) -> Result:
        given = {"model": model_folder, "heads": plan, "out": tmp_path / "recall.json", "share": 0.25, "context": 100,
                 "steps": 4}  # fmt: skip
        return CliRunner().invoke(app, ["recall", *(f"--{key}={value}" for key, value in (given | changed).items())])

    return call


def test_the_command_writes_numbers_and_a_picture(recall: Callable[..., Result], tmp_path: Path) -> None:
    png = tmp_path / "recall.png"
    result = recall(plot=png)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "recall.json").read_text())
    assert (report["schema"], report["settings"]["contexts"], report["share"]) == (
        "lychee-sgl/recall-heads",
        [100],
        0.25,
    )
    assert {"machine", "versions", "commit", "date", "command", "device", "text"} <= report.keys()
    assert [(row["layer"], row["head"]) for row in report["heads"]] == [divmod(i, 3) for i in range(12)]
    assert png.read_bytes().startswith(b"\x89PNG")
    assert f"recall {report['all']['recall']:.3f}, own best {report['all']['own']:.3f}" in result.output
    assert "the 7 worst heads make 100% of it" in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0}, "share is 0.0; allowed: a number between 0 and 1"),
        ({"share": "nan"}, "share is nan; allowed: a number between 0 and 1"),
        ({"context": 63}, "context is 63; allowed: different whole numbers from 64"),
        ({"steps": 0}, "steps is 0; allowed: a whole number from 1"),
        ({"questions": -1}, "questions is -1; allowed: a whole number from 1"),
        ({"seed": -1}, "seed is -1; allowed: a whole number from 0"),
        ({"context": 4000}, "context is 4000; allowed: up to 3836 for tiny-llama"),
    ],
)
def test_refusals(recall: Callable[..., Result], tmp_path: Path, change: dict[str, object], message: str) -> None:
    result = recall(**change)
    assert (result.exit_code, result.output.splitlines()[-1]) == (1, f"error: {message}")
    assert not (tmp_path / "recall.json").exists()


def test_a_model_without_a_plan_is_told_to_name_one(model_folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["recall", f"--model={model_folder}", f"--out={tmp_path / 'r.json'}"])
    assert result.exit_code == 1
    assert "no plan is built in for tiny-llama; name one with --heads" in result.output
