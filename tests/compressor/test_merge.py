"""A reader's adapter in the model's weights: the same answers, the same blocks, and one folder that a server reads."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from lychee_sgl.backend.memory_blocks import choose_compressor
from lychee_sgl.compressor.cli import app
from lychee_sgl.compressor.fingerprint import weights_of_folder
from lychee_sgl.compressor.folder import READER, describe, find_own
from lychee_sgl.compressor.model import Compressor, load_base, load_compressor
from lychee_sgl.compressor.run import measure
from lychee_sgl.compressor.serving import Worker
from lychee_sgl.config import ConfigError, EngineConfig
from tests.compressor.conftest import TEXT, shaken
from tests.compressor.test_fingerprint import served
from tests.compressor.test_serving import TOKENS, model_of


@pytest.fixture
def trained(folder: Path, compressor: Compressor, tmp_path: Path) -> Compressor:
    """Both adapters as if they had been trained, and of different ranks; saved."""
    made = Compressor(load_base(folder), compressor.shape)
    made.add_reader(3)
    shaken(made).save(tmp_path / "trained")
    return made


def merge(folder: Path, tmp_path: Path, *, compressor: str = "trained", out: str = "merged") -> tuple[int, str]:
    given = ["--model", str(folder), "--compressor", str(tmp_path / compressor), "--out", str(tmp_path / out)]
    ended = CliRunner().invoke(app, ["merge", *given])
    return ended.exit_code, " ".join(ended.output.split())


def test_the_merged_model_says_and_compresses_what_reader_and_compressor_did(
    trained: Compressor, folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    assert merge(folder, tmp_path)[0] == 0
    out = tmp_path / "merged"
    tokens = torch.tensor([TOKENS[:40]])
    plain, merged = (AutoModelForCausalLM.from_pretrained(str(place)).eval() for place in (folder, out))
    with torch.no_grad():
        wanted = trained.logits(trained.read(trained.embed(tokens)))
        torch.testing.assert_close(merged(tokens).logits, wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(plain(tokens).logits, wanted, rtol=1e-2, atol=1e-2)
    # on the merged weights, by the folder alone
    own = find_own(str(out))
    assert own is not None
    data = Worker(own, str(out), device="cpu", dtype="float32").compress(TOKENS, 4, threading.Event())
    blocks = torch.frombuffer(bytearray(data), dtype=torch.float32).view(-1, 16)
    torch.testing.assert_close(blocks, trained.compress(TOKENS, 4), rtol=1e-4, atol=1e-5)
    on_merged = Compressor(load_base(out), trained.shape, adapter=tmp_path / "trained")  # which loading would refuse
    with torch.no_grad():
        for name in ("memory", "readout"):
            getattr(on_merged, name).copy_(getattr(trained, name))
    assert not torch.allclose(blocks, on_merged.compress(TOKENS, 4), rtol=1e-2, atol=1e-3)
    assert AutoTokenizer.from_pretrained(str(out)).encode("the wind") == tokenizer.encode("the wind")
    assert {stat.S_IMODE(file.stat().st_mode) for file in out.rglob("*") if file.is_file()} == {
        stat.S_IMODE((out / "config.json").stat().st_mode)
    }
    assert (out / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_a_server_finds_the_merged_ones_and_refuses_every_mixture(
    trained: Compressor, folder: Path, tmp_path: Path
) -> None:
    assert merge(folder, tmp_path)[0] == 0
    out, start = tmp_path / "merged", tmp_path / "trained"
    own = out / "compressor"

    def chosen(compressor: Path | None, model: Path) -> Any:
        return choose_compressor(EngineConfig(compressor=compressor), served(model), model_of(trained))

    assert chosen(None, out) == describe(own)
    assert chosen(own, out) == describe(own)
    assert not describe(own).has_reader
    assert (describe(own).shape.rank, describe(start).shape.rank) == (2 + 3, 2)
    with pytest.raises(ConfigError, match=r"trained on merged \(weights .*, the model is \S*tiny-model"):
        chosen(own, folder)
    with pytest.raises(ConfigError, match=r"trained on tiny-model \(weights .*, the model is \S*merged"):
        chosen(start, out)
    with pytest.raises(ConfigError, match=r"whose reader has an adapter .*`lychee-sgl compressor merge`"):
        chosen(start, folder)
    assert chosen(None, folder) is None
    # a compressor that nobody named never stops an engine
    (own / "compressor.json").write_text((start / "compressor.json").read_text())
    assert chosen(None, out) is None


def test_a_merged_folder_is_trained_on_like_any_other(trained: Compressor, folder: Path, tmp_path: Path) -> None:
    assert merge(folder, tmp_path)[0] == 0
    out = tmp_path / "merged"
    given = {"windows": 2, "questions": 3, "text": TEXT}
    before = measure(folder, tmp_path / "trained", reader=True, **given)
    after = measure(out, out / "compressor", **given)
    for name, arms in before["ratios"].items():
        assert after["ratios"][name]["trained"]["token_loss"] == pytest.approx(arms["trained"]["token_loss"], abs=2e-4)
    again = load_compressor(out / "compressor", load_base(out))
    again.add_reader(2)
    again.save(tmp_path / "further")
    assert merge(out, tmp_path, compressor="further", out="twice")[0] == 0
    told = json.loads((tmp_path / "twice" / "compressor" / "merge.json").read_text())
    assert told["model"] == {"model": "merged", "weights": weights_of_folder(out)}
    assert weights_of_folder(tmp_path / "twice") == told["base"]["weights"]


def test_a_merge_is_whole_or_not_there(
    trained: Compressor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (left := tmp_path / ".merged.part").mkdir()  # by one that was killed
    (left / "model.safetensors").write_bytes(b"half")
    with monkeypatch.context() as broken:
        broken.setattr("lychee_sgl.compressor.merge._save_model", lambda *args: (_ for _ in ()).throw(OSError("full")))
        status, said = merge(folder, tmp_path)
        assert status == 1
        assert said.endswith("error: full")
    assert not left.exists()
    assert not (tmp_path / "merged").exists()
    assert merge(folder, tmp_path)[0] == 0
    assert not left.exists()
    assert {path.name for path in (tmp_path / "merged" / "compressor").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "compressor.json", "compressor.safetensors", "merge.json",
    }  # fmt: skip


def test_what_cannot_be_merged(trained: Compressor, compressor: Compressor, folder: Path, tmp_path: Path) -> None:
    compressor.save(tmp_path / "plain")
    assert "allowed: one whose reader has an adapter (reader/)" in merge(folder, tmp_path, compressor="plain")[1]
    assert merge(folder, tmp_path, out="trained") == (1, f"error: out is {tmp_path / 'trained'}, which is there; "
                                                      "allowed: a new folder")  # fmt: skip
    assert "model is /gone; allowed: a folder that transformers reads" in merge(Path("/gone"), tmp_path)[1]
    other = tmp_path / "other"
    model = load_base(folder)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.1)
    model.save_pretrained(other)
    assert "was trained on tiny-model" in merge(other, tmp_path)[1]
    assert not (tmp_path / "merged").exists()
    (tmp_path / "trained" / READER / "adapter_model.safetensors").write_bytes(b"torn")
    assert "reader is" in merge(folder, tmp_path)[1]
