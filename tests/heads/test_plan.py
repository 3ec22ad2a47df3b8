"""The format of head plans, case by case."""

import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lychee_sgl.heads.plan import AutoBudget, HeadPlan, ModelShape, PlanDefaults, PlanError

SHAPE = ModelShape("tiny", "LlamaForCausalLM", 4, 6, 3, 8)


def plan_dict() -> dict[str, Any]:
    return {
        "schema": "lychee-sgl/head-plan",
        "version": 1,
        "name": "by hand",
        "model": {
            "name": "tiny",
            "architecture": "LlamaForCausalLM",
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 8,
        },
        "roles": ["RRR", "RSS", "SSS", "SRS"],
        "sources": {"2.1": "0.2", "3.0": "2.1", "3.2": "2.2"},
        "defaults": {
            "budget": 1024,
            "mode": "topk",
            "value": None,
            "sinks": 64,
            "recent": 256,
            "auto": {"fraction": 0.125, "min": 512, "max": 4096},
        },
        "provenance": {"method": "by hand", "scores": {"recall": 0.5}},
    }


def changed(path: str, value: object) -> dict[str, Any]:
    data = plan_dict()
    *parents, last = path.split("/")
    inner = data
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return data


def test_chains_resolve_to_the_retrieval_head_they_end_at() -> None:
    plan = HeadPlan.from_dict(plan_dict())
    assert plan.source(1, 1) == (0, 1)  # nothing is said: same index, layer before
    assert plan.source(2, 1) == (0, 2)
    assert plan.root(2, 0) == (1, 0)  # 2.0 -> 1.0, which retrieves
    assert plan.root(2, 2) == (0, 2)  # 2.2 -> 1.2 -> 0.2
    assert plan.root(3, 0) == (0, 2)  # 3.0 -> 2.1 -> 0.2
    assert plan.root(3, 2) == (0, 2)
    assert plan.root(3, 1) == (3, 1)  # a retrieval head is its own
    assert plan.roots() == ((0, 1), (0, 2), (1, 0))
    assert plan.sparse_heads() == ((1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0), (3, 2))
    assert (plan.retrieval_count, plan.head_count) == (5, 12)
    assert plan.is_retrieval(3, 1)
    assert not plan.is_retrieval(3, 0)


def test_a_source_that_only_repeats_the_default_is_dropped() -> None:
    plan = HeadPlan.from_dict(plan_dict())
    assert plan.sources == {(2, 1): (0, 2), (3, 0): (2, 1)}  # 3.2 -> 2.2 is the default
    assert plan.to_dict()["sources"] == {"2.1": "0.2", "3.0": "2.1"}


def test_no_head_outside_the_model() -> None:
    plan = HeadPlan.from_dict(plan_dict())
    for head in ((-1, 0), (0, -1), (4, 0), (0, 3)):
        with pytest.raises(IndexError, match=r"no head"):
            plan.is_retrieval(*head)
    with pytest.raises(ValueError, match=r"3\.1 is a retrieval head"):
        plan.source(3, 1)


def test_round_trips(tmp_path: Path) -> None:
    plan = HeadPlan.from_dict(plan_dict())
    plan.save(tmp_path / "plan.json")
    assert HeadPlan.load(tmp_path / "plan.json") == plan == HeadPlan.from_dict(plan.to_dict())
    assert pickle.loads(pickle.dumps(plan)) == plan  # schedulers run in processes of their own
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_failed_save_leaves_the_old_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = HeadPlan.from_dict(plan_dict())
    plan.save(tmp_path / "plan.json")

    def fail(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        HeadPlan.from_dict(changed("name", "other")).save(tmp_path / "plan.json")
    assert HeadPlan.load(tmp_path / "plan.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_hash_follows_content_and_not_layout(tmp_path: Path) -> None:
    plan = HeadPlan.from_dict(plan_dict())
    spread = tmp_path / "spread.json"
    spread.write_text(json.dumps(dict(reversed(plan_dict().items())), indent=8))
    assert HeadPlan.load(spread).sha256() == plan.sha256()
    assert HeadPlan.from_dict(changed("name", "other")).sha256() != plan.sha256()
    assert len(plan.sha256()) == 64


def test_what_may_be_left_out() -> None:
    data = plan_dict()
    for key in ("sources", "defaults", "provenance"):
        del data[key]
    plan = HeadPlan.from_dict(data)
    assert plan.defaults == PlanDefaults(1024, "topk", None, 64, 256, AutoBudget(0.125, 512, 4096))
    assert HeadPlan.from_dict({**data, "defaults": {"budget": "auto"}}).defaults.budget == "auto"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", "other", r"schema is 'other'.*lychee-sgl/head-plan"),
        ("version", 2, r"version is 2.*allowed: 1"),
        ("version", True, r"version is True"),
        ("version", 1.0, r"version is 1\.0"),
        ("extra", 1, r"extra is 1.*no such key.*provenance"),
        ("name", "", r"name is ''"),
        ("name", "two\nlines", r"printable"),
        ("name", 7, r"name is 7"),
        ("model", [], r"model is \[\]"),
        ("model/head_dim", 0, r"model\.head_dim is 0"),
        ("model/head_dim", True, r"model\.head_dim is True"),
        ("model/num_key_value_heads", 4, r"num_key_value_heads is 4.*divisor of num_attention_heads = 6"),
        ("model/colour", "red", r"model\.colour is 'red'"),
        ("roles", "RRR", r"roles is 'RRR'"),
        ("roles", ["RRR"] * 3, r"roles has 3 rows.*4"),
        ("roles", ["RRR", "RS", "SSS", "SRS"], r"roles\[1\] is 'RS'.*3 letters"),
        ("roles", ["RRR", "RSS", "SSSS", "SRS"], r"roles\[2\] is 'SSSS'"),
        ("roles", ["RRR", "rss", "SSS", "SRS"], r"roles\[1\] is 'rss'"),
        ("roles", ["RRR", None, "SSS", "SRS"], r"roles\[1\] is None"),
        ("roles", ["RRS", "RSS", "SSS", "SRS"], r"roles\[0\] is 'RRS'.*R alone"),
        ("sources", {"3.1": "2.0"}, r"sources\[3\.1\] is '2\.0'.*retrieval head"),
        ("sources", {"2.1": "2.0"}, r"sources\[2\.1\] is '2\.0'.*layer before 2"),
        ("sources", {"2.1": "3.1"}, r"sources\[2\.1\] is '3\.1'.*layer before 2"),
        ("sources", {"2.1": "1.3"}, r"sources\[2\.1\] is '1\.3'.*head below 3"),
        ("sources", {"4.1": "1.1"}, r"'4\.1'.*layer below 4"),
        ("sources", {"2.1": 1.0}, r"sources\[2\.1\] is 1\.0"),
        ("sources", {"2.1": "01.0"}, r"'01\.0'"),
        ("sources", {"2.1": "-1.0"}, r"'-1\.0'"),
        ("sources", {"2": "1.0"}, r"a key of sources is '2'"),
        ("sources", {"2.9999999999999": "1.0"}, r"a key of sources"),
        ("defaults/budget", 0, r"defaults\.budget is 0"),
        ("defaults/budget", -5, r"defaults\.budget is -5"),
        ("defaults/budget", 12.5, r"defaults\.budget is 12\.5"),
        ("defaults/budget", True, r"defaults\.budget is True"),
        ("defaults/budget", "lots", r"defaults\.budget is 'lots'"),
        ("defaults/budget", None, r"defaults\.budget is None.*topk"),
        ("defaults/mode", "best", r"defaults\.mode is 'best'.*topk, ratio, threshold, top_p"),
        ("defaults/value", 0.5, r"defaults\.value is 0\.5.*null"),
        ("defaults/sinks", -1, r"defaults\.sinks is -1"),
        ("defaults/recent", 1.5, r"defaults\.recent is 1\.5"),
        ("defaults/auto/fraction", 0, r"defaults\.auto\.fraction is 0"),
        ("defaults/auto/fraction", float("nan"), r"defaults\.auto\.fraction is nan"),
        ("defaults/auto/min", 0, r"defaults\.auto\.min is 0"),
        ("defaults/auto/max", 511, r"defaults\.auto\.max is 511.*512"),
        ("defaults/auto/step", 1, r"defaults\.auto\.step is 1"),
        ("defaults/auto", None, r"defaults\.auto is None"),
        ("defaults/depth", 1, r"defaults\.depth is 1"),
        ("provenance", [], r"provenance is \[\]"),
        ("provenance", {"score": float("inf")}, r"provenance is .*JSON"),
    ],
)
def test_every_malformed_plan_is_refused_by_name(path: str, value: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        HeadPlan.from_dict(changed(path, value))


@pytest.mark.parametrize("key", ["schema", "version", "name", "model", "roles"])
def test_missing_keys_are_named(key: str) -> None:
    data = plan_dict()
    del data[key]
    with pytest.raises(PlanError, match=key):
        HeadPlan.from_dict(data)


@pytest.mark.parametrize(
    ("mode", "value", "fine"),
    [
        ("ratio", 1, True), ("ratio", 0, False), ("ratio", 1.1, False), ("ratio", None, False),
        ("threshold", 0.01, True), ("threshold", 1.0, False), ("threshold", True, False),
        ("top_p", 1.0, True), ("top_p", float("nan"), False), ("top_p", "0.9", False),
    ],
)  # fmt: skip
def test_values_of_the_modes(mode: str, value: Any, fine: bool) -> None:
    data = changed("defaults", {"mode": mode, "value": value, "budget": None})
    if fine:
        assert HeadPlan.from_dict(data).defaults.value == value
    else:
        with pytest.raises(PlanError, match=r"defaults\.value is"):
            HeadPlan.from_dict(data)


def test_dense_takes_no_mode() -> None:
    assert HeadPlan.from_dict(changed("defaults", {"budget": "dense"})).defaults.budget == "dense"
    with pytest.raises(PlanError, match=r"defaults\.mode is 'ratio'.*dense"):
        HeadPlan.from_dict(changed("defaults", {"budget": "dense", "mode": "ratio", "value": 0.5}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b'{"a": 1, "b": {"x": 1, "x": 2}}', "'x' appears twice"),
        (b'{"version": NaN}', "NaN is not a JSON number"),
        (b'{"version": 1e999}', "schema is None"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[]", r"the plan is \[\]"),
        (b"3", "the plan is 3"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 10_000, "not JSON"),
    ],
)
def test_files_that_are_no_plans(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=message) as caught:
        HeadPlan.load(path)
    assert "plan.json" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nothing\.json: cannot be read: No such file"):
        HeadPlan.load(tmp_path / "nothing.json")
    with pytest.raises(PlanError, match="cannot be read"):
        HeadPlan.load(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        ModelShape("tiny", "Qwen3ForCausalLM", 4, 6, 3, 8),
        ModelShape("tiny", "LlamaForCausalLM", 5, 6, 3, 8),
        ModelShape("tiny", "LlamaForCausalLM", 4, 9, 3, 8),
        ModelShape("tiny", "LlamaForCausalLM", 4, 6, 6, 8),
        ModelShape("tiny", "LlamaForCausalLM", 4, 6, 3, 16),
    ],
)
def test_another_shape_is_refused_with_both_named(other: ModelShape) -> None:
    with pytest.raises(PlanError) as caught:
        HeadPlan.from_dict(plan_dict()).check_fits(other)
    assert str(SHAPE) in str(caught.value)
    assert str(other) in str(caught.value)


def test_another_name_is_only_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    plan = HeadPlan.from_dict(plan_dict())
    with caplog.at_level(logging.WARNING):
        plan.check_fits(ModelShape("somewhere/TINY", "LlamaForCausalLM", 4, 6, 3, 8))
        assert not caplog.records  # the same name, only longer
        plan.check_fits(ModelShape("else", "LlamaForCausalLM", 4, 6, 3, 8))
    assert "'by hand' was made for tiny, the model is called else" in caplog.text


@pytest.mark.parametrize(("prompt", "budget"), [(1, 512), (4096, 512), (4097, 513), (8000, 1000), (10**6, 4096)])
def test_auto_is_a_share_within_bounds(prompt: int, budget: int) -> None:
    assert AutoBudget(0.125, 512, 4096).resolve(prompt) == budget


def test_shape_of_a_config_file() -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "hidden_size": 48,
        "_name_or_path": "some/where",
    }
    assert ModelShape.from_config(config) == ModelShape("some/where", "LlamaForCausalLM", 4, 6, 6, 8)
    assert ModelShape.from_config({**config, "num_key_value_heads": 3}, name="tiny") == SHAPE
    assert ModelShape.from_config({**config, "head_dim": 16}).head_dim == 16
    assert ModelShape.from_config({**config, "head_dim": None}).head_dim == 8
    with pytest.raises(PlanError, match=r"hidden_size is 50.*num_attention_heads = 6"):
        ModelShape.from_config({**config, "hidden_size": 50})
    with pytest.raises(PlanError, match="num_hidden_layers is None"):
        ModelShape.from_config({key: value for key, value in config.items() if key != "num_hidden_layers"})
    with pytest.raises(PlanError, match="architectures is None"):
        ModelShape.from_config({})


def test_plan_room_needs_the_standard_library_only() -> None:
    code = (
        "import sys; import lychee_sgl.heads.plan, lychee_sgl.heads.heuristic, lychee_sgl.heads.registry;"
        "import lychee_sgl.heads.needles; print([m for m in sys.modules if m.split('.')[0] not in"
        " {*sys.stdlib_module_names, 'lychee_sgl', '__main__'}])"
    )
    told = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert told.stdout.strip() == "[]"
