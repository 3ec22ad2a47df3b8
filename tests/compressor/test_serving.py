"""A compressor at work for an engine: the bytes are those of its blocks, and it can be given up."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lychee_sgl.backend.memory_blocks import EngineCompressor, choose_compressor
from lychee_sgl.compressor import folder as room
from lychee_sgl.compressor.folder import describe, find_shipped
from lychee_sgl.compressor.model import load_base, load_compressor
from lychee_sgl.compressor.serving import Stopped, Worker
from lychee_sgl.config import ConfigError, EngineConfig
from lychee_sgl.memory.model import ModelFailed
from tests.compressor.conftest import RATIOS, WINDOW

if TYPE_CHECKING:
    from pathlib import Path

    from lychee_sgl.compressor.model import Compressor

TOKENS = [number % 300 for number in range(3, 2 * WINDOW + 23)]  # two windows and twenty tokens


@pytest.fixture
def saved(compressor: Compressor, tmp_path: Path) -> Path:
    """A compressor that differs from an untrained one."""
    torch.manual_seed(1)
    with torch.no_grad():
        compressor.readout.normal_()
    compressor.save(tmp_path / "compressor")
    return tmp_path / "compressor"


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_bytes_are_the_blocks(saved: Path, folder: Path, ratio: int, dtype: str, rows: int) -> None:
    worker = Worker(saved, str(folder), device="cpu", dtype=dtype)
    worker._rows = rows
    data = worker.compress(TOKENS, ratio, threading.Event())
    expected = load_compressor(saved, load_base(folder)).compress(TOKENS, ratio)
    got = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).view(-1, 16)
    assert got.shape == expected.shape == (len(TOKENS) // ratio, 16)
    torch.testing.assert_close(got, expected.to(got.dtype), rtol=1e-2 if dtype == "bfloat16" else 1e-4, atol=1e-5)


def test_an_untrained_one_gives_mean_embeddings(compressor: Compressor, folder: Path, tmp_path: Path) -> None:
    compressor.save(tmp_path / "untrained")
    data = Worker(tmp_path / "untrained", str(folder), device="cpu", dtype="float32").compress(
        [5, 5, 7, 9], 2, threading.Event()
    )
    table = AutoModelForCausalLM.from_pretrained(str(folder)).get_input_embeddings().weight
    got = torch.frombuffer(bytearray(data), dtype=torch.float32).view(2, 16)
    assert torch.equal(got[0], table[5])
    torch.testing.assert_close(got[1], (table[7] + table[9]) / 2)


def test_what_does_not_fill_its_blocks_is_refused_and_what_is_given_up_ends(saved: Path, folder: Path) -> None:
    worker, stop = Worker(saved, str(folder), device="cpu", dtype="float32"), threading.Event()
    for tokens, ratio in (([], 2), ([1, 2, 3], 2), ([1, 2, 3], 3)):
        with pytest.raises(ValueError, match="allowed"):
            worker.compress(tokens, ratio, stop)
    stop.set()
    with pytest.raises(Stopped):
        worker.compress([1, 2], 2, stop)


async def test_an_engines_compressor_works_in_a_thread_and_says_what_it_is(saved: Path, folder: Path) -> None:
    one = EngineCompressor(describe(saved), model=str(folder), device="cpu", dtype="bfloat16", threads=1)
    data = await one.compress(TOKENS[:8], 4)
    assert len(data) == 2 * one.vector_bytes == 2 * 16 * 2
    assert await one.compress(TOKENS[:8], 4) == data
    with pytest.raises(ModelFailed, match=r"could not be compressed: ratio is 3; allowed: 2, 4"):
        await one.compress(TOKENS[:6], 3)
    one.close()
    same = EngineCompressor(describe(saved), model=str(folder), device="cpu", dtype="bfloat16", threads=1)
    assert same.identity == one.identity
    assert (
        EngineCompressor(describe(saved), model=str(folder), device="cpu", dtype="float32", threads=1).identity
        != one.identity
    )
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    assert (
        EngineCompressor(describe(saved), model=str(folder), device="cpu", dtype="bfloat16", threads=1).identity
        != one.identity
    )


async def test_a_model_that_cannot_be_loaded_is_a_failed_block(saved: Path, tmp_path: Path) -> None:
    one = EngineCompressor(describe(saved), model=str(tmp_path / "gone"), device="cpu", dtype="float32", threads=1)
    with pytest.raises(ModelFailed, match="gone"):
        await one.compress([1, 2], 2)
    one.close()


async def test_giving_up_stops_the_windows_that_are_left(saved: Path, folder: Path) -> None:
    one = EngineCompressor(describe(saved), model=str(folder), device="cpu", dtype="float32", threads=1)
    await one.compress([1, 2], 2)  # loaded
    task = asyncio.create_task(one.compress(TOKENS * 2000, 2))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(await one.compress([1, 2], 2)) == one.vector_bytes  # nobody waits for the thousands of windows
    one.close()


class Args:
    """SGLang's arguments: what is not named here is not set."""

    model_path, served_model_name = "/models/tiny-model", "tiny"

    def __getattr__(self, name: str) -> None:
        return None


def model_of(compressor: Compressor, **other: int) -> Any:
    shape = compressor.shape
    sizes = {"hidden_size": shape.hidden, "vocab_size": shape.vocabulary, "num_hidden_layers": shape.layers}
    return SimpleNamespace(hf_text_config=SimpleNamespace(**{**sizes, **other}))


def test_the_folder_that_is_set_is_chosen_and_off_is_off(compressor: Compressor, saved: Path) -> None:
    chosen = choose_compressor(EngineConfig(compressor=saved), Args(), model_of(compressor))
    assert chosen is not None
    assert (chosen.folder, chosen.shape) == (saved, compressor.shape)
    assert choose_compressor(EngineConfig(compressor=saved, memory="off"), Args(), model_of(compressor)) is None
    assert choose_compressor(EngineConfig(), Args(), model_of(compressor)) is None


def test_a_shipped_one_is_chosen_by_the_models_name_and_never_stops_an_engine(
    compressor: Compressor, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "__file__", str(tmp_path / "package" / "folder.py"))
    shutil.copytree(saved, place := tmp_path / "package" / "shipped" / "tiny-model")
    assert find_shipped("/models/tiny-model", None) == find_shipped(None, "tiny-model") == place
    assert find_shipped("/models/other", "") is None
    chosen = choose_compressor(EngineConfig(), Args(), model_of(compressor))
    assert chosen is not None
    assert chosen.folder == place
    assert choose_compressor(EngineConfig(), Args(), model_of(compressor, hidden_size=17)) is None


@pytest.mark.parametrize(
    ("config", "args", "model", "message"),
    [
        ({}, {}, {"hidden_size": 17}, r"for hidden 16, .*; allowed: one for hidden 17, "),
        ({"compressor_ratio": 8}, {}, {}, r"LYCHEE_COMPRESSOR_RATIO is 8, allowed with .*: 2, 4"),
        ({}, {"hicache_storage_backend": "file"}, {}, r"allowed with --hicache-storage-backend file: none"),
        ({}, {"enable_lmcache": True}, {}, r"allowed with --enable-lmcache: none"),
        ({}, {"revision": "main"}, {}, r"allowed with --revision main: none"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(
    compressor: Compressor,
    saved: Path,
    config: dict[str, Any],
    args: dict[str, Any],
    model: dict[str, int],
    message: str,
) -> None:
    given = Args()
    for name, value in args.items():
        setattr(given, name, value)
    wanted = EngineConfig(**{"compressor": saved, **config})
    with pytest.raises(ConfigError, match=message):
        choose_compressor(wanted, given, model_of(compressor, **model))


@pytest.mark.parametrize("lost", ["compressor.json", "adapter_model.safetensors"])
def test_a_folder_that_is_no_compressor_is_refused(compressor: Compressor, saved: Path, lost: str) -> None:
    (saved / lost).unlink()
    with pytest.raises(ConfigError, match=rf"LYCHEE_COMPRESSOR: .*{lost}"):
        choose_compressor(EngineConfig(compressor=saved), Args(), model_of(compressor))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "compressor.safetensors"])
async def test_half_a_file_is_told_in_a_line(saved: Path, folder: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"compressor is \S*compressor; allowed: a folder that a training wrote \("):
        load_compressor(saved, load_base(folder))
    one = EngineCompressor(describe(saved), model=str(folder), device="cpu", dtype="float32", threads=1)
    with pytest.raises(ModelFailed, match="it could not be compressed: compressor is"):
        await one.compress([1, 2], 2)
    one.close()


def test_parts_of_another_compressor_are_told(saved: Path, folder: Path) -> None:
    parts = load_file(saved / "compressor.safetensors")
    save_file({**parts, "memory": parts["memory"][:1].contiguous()}, saved / "compressor.safetensors")
    with pytest.raises(ValueError, match=r"memory is \[1, 16\], wanted: \[2, 16\]"):
        load_compressor(saved, load_base(folder))


@pytest.mark.parametrize(
    ("ratios", "own"), [((2, 4, 8), 4), ((2, 8), 2), ((8, 16), 8), ((3,), 3)], ids=["4", "lower", "lowest", "one"]
)
def test_the_ratio_where_nobody_says_one(
    compressor: Compressor, saved: Path, ratios: tuple[int, ...], own: int
) -> None:
    told = json.loads((saved / "compressor.json").read_text())
    told["shape"] |= {"ratios": ratios, "window": 48}
    (saved / "compressor.json").write_text(json.dumps(told))
    chosen = choose_compressor(EngineConfig(compressor=saved), Args(), model_of(compressor))
    assert chosen is not None
    assert chosen.ratio == own


def test_no_page_of_another_tree_and_no_missing_peft(
    compressor: Compressor, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_EXPERIMENTAL_CPP_RADIX_TREE", "1")
    with pytest.raises(ConfigError, match="SGLANG_EXPERIMENTAL_CPP_RADIX_TREE"):
        choose_compressor(EngineConfig(compressor=saved), Args(), model_of(compressor))
    monkeypatch.delenv("SGLANG_EXPERIMENTAL_CPP_RADIX_TREE")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"without peft: none \(pip install 'lychee-sgl\[train\]'\)"):
        choose_compressor(EngineConfig(compressor=saved), Args(), model_of(compressor))
