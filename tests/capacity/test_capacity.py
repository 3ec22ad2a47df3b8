"""What fits which GPUs: by published sizes, by hand, and by what the kernels really allocate."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lychee_kernels import work
from lychee_sgl.capacity import plan
from lychee_sgl.capacity.cli import COLUMNS, app, heads_of, table_rows
from lychee_sgl.capacity.sizes import GIB, GPUS, MODELS, ModelSizes
from lychee_sgl.heads.heuristic import heuristic_plan
from lychee_sgl.heads.plan import PlanError

LLAMA, QWEN_8B = MODELS[0], MODELS[1]
H200 = GPUS[-1]
ROOT = Path(__file__).parents[2]


def test_weights_are_the_published_numbers() -> None:
    assert [model.parameters for model in MODELS] == [
        8_030_261_248, 8_190_735_360, 14_768_307_200, 32_762_123_264, 70_553_706_496,
    ]  # fmt: skip


def test_a_config_is_read() -> None:
    qwen = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "tie_word_embeddings": False,
    }  # fmt: skip
    assert ModelSizes.from_config(qwen).parameters == QWEN_8B.parameters
    # Qwen2.5-7B has biases and no norms by head
    qwen25 = {**qwen, "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    qwen25 |= {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
    assert ModelSizes.from_config(qwen25).parameters == 7_615_616_512
    with pytest.raises(ValueError, match="vocab_size is None"):
        ModelSizes.from_config({key: value for key, value in qwen.items() if key != "vocab_size"})


def test_a_tokens_bytes_by_hand() -> None:
    # keys and values, 32 layers, 8 heads of 128, two bytes: 128 KiB
    assert LLAMA.token_bytes(1) == 2 * 32 * 8 * 128 * 2 == 128 * 1024
    assert [LLAMA.token_bytes(tp) for tp in (2, 8, 16)] == [64 * 1024, 16 * 1024, 16 * 1024]


@pytest.mark.parametrize(("tp", "tokens"), [(1, 786_432), (1, 20_000), (4, 300_000), (16, 131_072)])
def test_the_workspace_is_what_the_kernels_allocate(tp: int, tokens: int) -> None:
    local = max(1, 8 // tp)
    heads = plan.Heads(roots=20, writers=local)
    found = plan.workspace(LLAMA, heads, tp=tp, tokens=tokens, context=131_072, processors=132)
    group = 32 // tp // local
    shape = work.WorkShape(
        kv_heads=local, group=group, head_dim=128, block=128, chunk=plan.CHUNK, patterns=(1,),
        programs=plan.PROGRAMS * 132,
    )  # fmt: skip
    real = work.Workspace.empty(
        shape, max_rows=plan.MAX_ROWS, layers=32, roots=20, writers=heads.writers, set_capacity=found.set_tokens,
        score_capacity=found.score_tokens, device="meta",
    )  # fmt: skip
    assert found.bytes == real.bytes()
    share = tokens * LLAMA.token_bytes(tp) * plan.SCORE_SHARE / (heads.writers * (2 * group + 2))
    assert found.score_tokens == max(131_072, -(-int(share) // 16) * 16)


def test_the_constants_are_the_backends() -> None:
    source = (ROOT / "lychee_sgl" / "backend" / "gpu_attention.py").read_text()
    for line in (
        f"MAX_ROWS = {plan.MAX_ROWS}",
        f"WORKSPACE_SHARE = {plan.SCORE_SHARE}",
        f"PROGRAMS_PER_PROCESSOR = {plan.PROGRAMS}",
        f"CHUNK = 128, {plan.CHUNK}",
    ):
        assert line in source
    assert work.BINS == plan.BINS


def test_eight_billion_on_one_h200() -> None:
    found = plan.capacity(LLAMA, H200, context=131_072)
    # 88% of (140.4 - 1) GiB less 14.96 GiB of weights, 128 KiB a token; six such requests have been run
    assert found.pool_tokens == int((139.4 * GIB * 0.88 - 2 * LLAMA.parameters) / (128 * 1024))
    assert (found.rows, found.sparse_rows) == (6, 6)
    two = plan.capacity(LLAMA, H200, tp=2, context=131_072)
    assert two.weights == found.weights // 2
    assert two.rows > 2 * found.rows


def test_what_does_not_fit_or_is_not_allowed() -> None:
    assert plan.capacity(MODELS[-1], GPUS[0], context=1000).rows == 0
    with pytest.raises(PlanError, match=r"tensor parallel size is 3; allowed .*: 1, 2, 4, 8, 16, 32"):
        plan.capacity(LLAMA, H200, tp=3, context=1000)
    with pytest.raises(ValueError, match="fraction is 1"):
        plan.capacity(LLAMA, H200, context=1000, fraction=1.0)
    for size in (0.0, -1.0, 8.5, float("nan")):
        with pytest.raises(ValueError, match=f"bytes of a weight are {size}, allowed: a number above 0 to 8"):
            plan.capacity(LLAMA, H200, context=1000, weight_bytes=size)


def test_a_plans_own_sets_count() -> None:
    heads = heads_of(heuristic_plan(LLAMA.shape), LLAMA, 2)
    # two of four heads of a rank are read in each layer but the last
    assert (heads.roots, heads.writers) == (31 * 2, 2)
    assert plan.half_of_the_heads(LLAMA, 2).roots >= heads.roots


def test_the_readmes_table_is_computed() -> None:
    text = (ROOT / "deploy" / "README.md").read_text().split("## What fits")[1].split("\n## ")[0]
    lines = re.findall(r"^\|.*$", text, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == list(COLUMNS)
    assert rows[2:] == [list(row) for row in table_rows()]


def test_the_command() -> None:
    runner = CliRunner()
    told = runner.invoke(app, ["--model", "llama-3.1-8b", "--gpu", "h200", "--context", "131072", "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["rows"] == 6
    none = runner.invoke(app, ["--model", "llama-3.1-70b", "--gpu", "80"])
    assert (none.exit_code, "not one request" in none.stdout) == (1, True)
    refused = runner.invoke(app, ["--model", "no-such"])
    assert refused.exit_code == 1
    assert "--model is 'no-such', allowed: a folder" in refused.stderr
    for gpu in ("B9", "inf", "nan", "-5", "0"):
        assert f"--gpu is '{gpu}', allowed: " in runner.invoke(app, ["--model", "qwen3-8b", "--gpu", gpu]).stderr
