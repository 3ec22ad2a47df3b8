"""What a compressor gives, what its reader makes of it, and that it comes back from disk as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lychee_sgl.compressor.data import Sample
from lychee_sgl.compressor.model import Compressor, load_compressor, shape_of
from lychee_sgl.compressor.reader import read, task_means
from lychee_sgl.compressor.settings import CompressorShape, TrainSettings
from tests.compressor.conftest import RATIOS, WINDOW, drawn_model, shaken


def tokens(count: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(5, 200, (rows, count), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("ratio", RATIOS)
def test_untrained_blocks_are_mean_embeddings(compressor: Compressor, ratio: int) -> None:
    ids = tokens(8, rows=2)
    blocks = compressor(ids, ratio)
    assert blocks.shape == (2, 8 // ratio, 16)
    torch.testing.assert_close(blocks, compressor.embed(ids).unflatten(1, (-1, ratio)).mean(2))


def test_memory_begins_as_the_end_of_text(compressor: Compressor, tokenizer: Any) -> None:
    end = compressor.embed(torch.tensor([tokenizer.eos_token_id]))[0]
    assert all(torch.equal(row, end) for row in compressor.memory)


def test_only_adapter_memory_and_readout_are_trained(compressor: Compressor) -> None:
    names = compressor.trained()
    assert {"memory", "readout"} < set(names)
    assert all("lora_" in name for name in set(names) - {"memory", "readout"})
    assert len(names) == 2 + 2 * 7 * 2  # two matrices for each of seven in each of two layers


def test_a_block_follows_from_the_tokens_up_to_it(compressor: Compressor) -> None:
    shaken(compressor)
    ids = tokens(16)
    other = ids.clone()
    other[0, 8:] = 7
    one, two = compressor(ids, 4)[0], compressor(other, 4)[0]
    torch.testing.assert_close(one[:2], two[:2])
    assert not torch.allclose(one[2], two[2])
    first = ids.clone()
    first[0, 0] = 9
    assert not torch.allclose(one[3], compressor(first, 4)[0, 3])  # and from all of them


def test_a_long_text_is_compressed_window_by_window(compressor: Compressor) -> None:
    shaken(compressor)
    ids = tokens(2 * WINDOW + 7)
    blocks = compressor.compress(ids[0].tolist(), 4)
    assert blocks.shape == (2 * WINDOW // 4 + 1, 16)
    with torch.no_grad():
        torch.testing.assert_close(blocks[WINDOW // 4 : 2 * WINDOW // 4], compressor(ids[:, WINDOW : 2 * WINDOW], 4)[0])
        torch.testing.assert_close(blocks[-1:], compressor(ids[:, 2 * WINDOW : 2 * WINDOW + 4], 4)[0])
    assert not blocks.requires_grad


def test_refusals(compressor: Compressor, tokenizer: Any) -> None:
    for ids, ratio, said in (
        (tokens(8), 3, "ratio is 3; allowed: 2, 4"),
        (tokens(9), 2, "9 tokens in a window; allowed: a multiple of 2 up to 64"),
        (tokens(0), 2, "0 tokens"),
        (tokens(WINDOW + 4), 4, "68 tokens in a window"),
    ):
        with pytest.raises(ValueError, match=said):
            compressor(ids, ratio)
    with pytest.raises(ValueError, match="3 tokens; allowed: 4 or more at ratio 4"):
        compressor.compress([1, 2, 3], 4)
    shape = {"hidden": 16, "vocabulary": 400, "layers": 2}
    for change, said in (
        ({"ratios": (4, 2)}, "rising whole numbers from 2 on"), ({"ratios": (1,)}, "rising whole numbers from 2 on"),
        ({"window": 24}, "a multiple of each of"), ({"rank": 0}, "rank is 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            CompressorShape(**{**shape, **change})
    for change, said in (
        ({"batch": 4}, "a multiple of 3"), ({"steps": 0}, "steps is 0"), ({"rate": 0.0}, "rate is 0"),
        ({"warmup": 0.5, "decay": 0.6}, "shares of the steps"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            TrainSettings(**change)
    with pytest.raises(ValueError, match="the compressor is for"):
        Compressor(drawn_model(tokenizer, layers=1), compressor.shape)


def test_rate_by_hand() -> None:
    settings = TrainSettings(steps=10, warmup=0.2, decay=0.5)
    assert [settings.factor(step) for step in (0, 1, 4, 5, 6, 9)] == [0.5, 1.0, 1.0, 1.0, 0.8, 0.2]


def test_the_reader_is_the_model_as_it_was(compressor: Compressor, tokenizer: Any) -> None:
    """Against transformers' own loss over token ids, with the adapter shaken and padding beside a longer row."""
    shaken(compressor)
    ids = tokens(30)[0].tolist()
    sample = Sample("reconstruct", tuple(ids[3:15]), tuple(ids[:3]), tuple(ids[15:20]), tuple(ids[20:30]))
    short = Sample("answer", tuple(ids[3:7]), (), tuple(ids[7:9]), tuple(ids[9:11]))
    with torch.no_grad():
        blocks = [compressor.embed(torch.tensor(one.window)) for one in (sample, short)]
        found = read(compressor, [sample, short], blocks)
        plain = drawn_model(tokenizer)
        for number, (one, begin) in enumerate(((sample, 0), (short, 3))):
            said = ids[begin : begin + len(one.before + one.window + one.after + one.target)]
            logits = plain(torch.tensor([said])).logits[0, -len(one.target) - 1 : -1]
            target = torch.tensor(one.target)
            wanted = torch.nn.functional.cross_entropy(logits, target, reduction="none")
            torch.testing.assert_close(found.loss[found.row == number], wanted, atol=1e-5, rtol=1e-5)
            assert found.right[found.row == number].tolist() == (logits.argmax(-1) == target).tolist()
    losses = task_means(found.loss, [sample, short])
    torch.testing.assert_close(losses["answer"], found.loss[10:].mean())
    torch.testing.assert_close(losses["reconstruct"], found.loss[:10].mean())


def test_it_comes_back_from_disk_as_it_was(compressor: Compressor, tokenizer: Any, tmp_path: Path) -> None:
    shaken(compressor)
    compressor.save(tmp_path / "made")
    again = load_compressor(tmp_path / "made", drawn_model(tokenizer))
    with torch.no_grad():
        assert torch.equal(again(tokens(16), 4), compressor(tokens(16), 4))
    assert again.shape == compressor.shape
    assert set(again.trained()) == set(compressor.trained())
    files = [*(tmp_path / "made").iterdir()]
    names = {path.name for path in files}
    assert len({path.stat().st_mode for path in files}) == 1  # who may read one may read all
    assert names == {"adapter_config.json", "adapter_model.safetensors", "compressor.json", "compressor.safetensors"}
    with pytest.raises(ValueError, match="the compressor is for"):
        load_compressor(tmp_path / "made", drawn_model(tokenizer, layers=3))
    with pytest.raises(ValueError, match="allowed: a folder that a training wrote"):
        load_compressor(tmp_path, drawn_model(tokenizer))


def test_shape_of_a_model(tokenizer: Any) -> None:
    shape = shape_of(drawn_model(tokenizer), ratios=(2,), window=8, rank=3)
    assert (shape.hidden, shape.layers, shape.vocabulary) == (16, 2, len(tokenizer))
