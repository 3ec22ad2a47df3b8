"""What tells a model's weights: the same from files and memory, another after any training; who is refused by it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from lychee_sgl.backend.memory_blocks import announce, choose_compressor, needed_bytes
from lychee_sgl.compressor.cli import app
from lychee_sgl.compressor.fingerprint import parameters_of_folder, weights_of_folder, weights_of_model
from lychee_sgl.compressor.folder import describe
from lychee_sgl.compressor.model import Compressor, load_base, load_compressor, shape_of
from lychee_sgl.compressor.serving import Worker
from lychee_sgl.config import ConfigError, EngineConfig
from tests.compressor.conftest import RATIOS, WINDOW, shaken
from tests.compressor.test_serving import Args, model_of

ROOT = Path(__file__).parents[2]


def served(folder: Path) -> Any:
    """SGLang's arguments for a model."""
    args = Args()
    args.model_path = str(folder)  # type: ignore[misc]
    return args


@pytest.fixture
def other(folder: Path, tmp_path: Path) -> Path:
    """A model of the same shape, of which one projection was trained a little."""
    place = tmp_path / "other-model"
    model = load_base(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.05)
    model.save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (place / name).write_bytes((folder / name).read_bytes())
    return place


def test_files_and_memory_tell_the_same_whatever_dtype_and_shards(folder: Path, tmp_path: Path) -> None:
    told = weights_of_folder(folder)
    assert told is not None
    assert len(told) == 16
    for dtype in (torch.float32, torch.bfloat16):
        model = load_base(folder, dtype=dtype)
        assert weights_of_model(model) == told
        model.save_pretrained(tmp_path / "again", max_shard_size="9KB")
        assert (tmp_path / "again" / "model.safetensors.index.json").is_file()
        assert weights_of_folder(tmp_path / "again") == told
    wrapped = Compressor(model, shape_of(model, ratios=RATIOS, window=WINDOW, rank=2))
    assert weights_of_model(wrapped.model) == wrapped.base.weights == told  # an adapter is no part of it


def test_every_tensor_counts_and_the_output_head_does_not(folder: Path, tmp_path: Path) -> None:
    tensors, place = load_file(folder / "model.safetensors"), tmp_path / "model.safetensors"
    seen = {weights_of_folder(folder)}
    for name, value in tensors.items():
        if name != "lm_head.weight":
            save_file({**tensors, name: value * 1.05}, place)
            seen.add(weights_of_folder(tmp_path))
    assert len(seen) == len(tensors)
    save_file({**tensors, "lm_head.weight": tensors["lm_head.weight"] * 1.05}, place)
    assert weights_of_folder(tmp_path) in seen
    head = tensors.pop("lm_head.weight").numel()
    assert head > 0
    assert parameters_of_folder(tmp_path) == sum(value.numel() for value in tensors.values())


def test_files_that_do_not_tell(folder: Path, tmp_path: Path) -> None:
    assert weights_of_folder(tmp_path / "gone") is None
    assert weights_of_folder("nobody/has-this-model") is None
    assert parameters_of_folder(tmp_path) is None
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert weights_of_folder(folder) is None
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    assert weights_of_folder(folder) is None
    with pytest.raises(ValueError, match="model is a Linear; allowed: one of the Llama family"):
        weights_of_model(torch.nn.Linear(2, 2))


def test_a_compressor_of_other_weights_is_refused_with_both_named(
    compressor: Compressor, folder: Path, other: Path, tmp_path: Path
) -> None:
    mine = load_base(folder)
    made = Compressor(mine, compressor.shape)
    made.save(tmp_path / "made")
    base = json.loads((tmp_path / "made" / "compressor.json").read_text())["base"]
    assert base == {"model": "tiny-model", "weights": weights_of_folder(folder)}
    said = (
        rf"made was trained on tiny-model \(weights {base['weights']}\), the model is \S*other-model "
        rf"\(weights {weights_of_folder(other)}\); allowed: a compressor that was trained on this model"
    )
    with pytest.raises(ValueError, match=said):
        load_compressor(tmp_path / "made", load_base(other))
    with pytest.raises(ValueError, match=said):
        Worker(tmp_path / "made", str(other), device="cpu", dtype="float32")
    config = EngineConfig(compressor=tmp_path / "made")
    with pytest.raises(ConfigError, match=f"^LYCHEE_COMPRESSOR: \\S*{said}$"):
        choose_compressor(config, served(other), model_of(compressor))
    assert choose_compressor(config, served(folder), model_of(compressor)) is not None
    for command in (["evaluate"], ["reinforce", "--steps", "1", "--out", str(tmp_path / "out")]):
        ended = CliRunner().invoke(
            app, [*command, "--model", str(other), "--compressor", str(tmp_path / "made"), "--device", "cpu"]
        )
        assert ended.exit_code == 1
        line = ended.output.splitlines()[-1]
        assert line.startswith("error: ")
        assert "the model is other-model" in line


def test_a_folder_that_does_not_say_is_doubted_and_taken(
    compressor: Compressor, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compressor.save(tmp_path / "made")
    file = tmp_path / "made" / "compressor.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in told.items() if name != "base"}))
    assert describe(tmp_path / "made").base is None
    with caplog.at_level(logging.WARNING):
        chosen = choose_compressor(
            EngineConfig(compressor=tmp_path / "made"), served(folder), model_of(compressor)
        )  # fmt: skip
        again = load_compressor(tmp_path / "made", load_base(folder))
    assert chosen is not None
    assert [record.message.count("does not say which weights it was trained on") for record in caplog.records] == [1, 1]
    again.save(tmp_path / "further")  # what goes on from it says it
    assert describe(tmp_path / "further").base == again.base
    file.write_text(json.dumps({**told, "base": "tiny-model"}))
    with pytest.raises(ValueError, match="allowed: a folder that a training wrote"):
        describe(tmp_path / "made")


def test_weights_that_nobody_can_read_at_the_start_are_told_when_they_are_loaded(
    compressor: Compressor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compressor.save(tmp_path / "made")
    assert choose_compressor(EngineConfig(compressor=tmp_path / "made"), Args(), model_of(compressor)) is not None
    assert "whether /models/tiny-model has its weights shows when they are loaded" in caplog.text


def test_the_start_says_what_the_first_block_loads(
    compressor: Compressor, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And that is what it loads: without the output head, in the engine's dtype on a GPU, in float32 on a CPU."""
    shaken(compressor).save(tmp_path / "made")
    found = describe(tmp_path / "made")
    own = sum((tmp_path / "made" / name).stat().st_size for name in ("adapter_model.safetensors",
              "compressor.safetensors", "adapter_config.json", "compressor.json"))  # fmt: skip
    count = sum(v.numel() for name, v in load_base(folder).named_parameters() if not name.startswith("lm_head"))
    assert needed_bytes(found, model=str(folder), device="cuda:1", dtype="bfloat16") == 2 * count + own
    assert needed_bytes(found, model=str(folder), device="cpu", dtype="bfloat16") == 4 * count + own
    assert needed_bytes(found, model="gone", device="cpu", dtype="bfloat16") is None
    worker = Worker(tmp_path / "made", str(folder), device="cpu", dtype="bfloat16")
    held = {id(value): value for value in worker._compressor.parameters()}
    adapter = sum(value.numel() for value in worker._compressor.trained().values())
    assert sum(value.numel() for value in held.values()) == count + adapter
    assert {value.dtype for value in held.values()} == {torch.float32}
    with caplog.at_level(logging.INFO):
        announce(found, model=str(folder), device="cuda", dtype="bfloat16")
    assert "the first one loads 0.00 GiB of weights on cuda in the HTTP process; leave room for it" in caplog.text


SHAPES = {
    "SmolLM2-135M": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                     "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    "Llama-3.1-8B": {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                     "num_attention_heads": 32, "num_key_value_heads": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_the_table_of_sizes(name: str) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[name]))
    model.set_output_embeddings(torch.nn.Identity())
    count = sum(value.numel() for value in model.parameters())
    row = f"| {name} | {count:,} | {2 * count / 2**30:.2f} GiB | {4 * count / 2**30:.2f} GiB |"
    assert row in (ROOT / "lychee_sgl" / "compressor" / "README.md").read_text(encoding="utf-8")
