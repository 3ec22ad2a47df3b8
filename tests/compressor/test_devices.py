"""The same code in bfloat16, and on a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lychee_sgl.compressor.data import Samples
from lychee_sgl.compressor.documents import Documents
from lychee_sgl.compressor.model import Compressor, load_compressor, shape_of
from lychee_sgl.compressor.reinforce import Reinforcer
from lychee_sgl.compressor.settings import ReinforceSettings
from lychee_sgl.compressor.trainer import Trainer
from tests.compressor.conftest import RATIOS, SETTINGS, TEXT, drawn_model

LONG = 128
PLAYED = ReinforceSettings(
    steps=2, tasks=2, group=4, ratios=RATIOS, windows=2, others=1, limit=5, gated=False, form=1.0, kl=0.1, warmup=0
)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_training_and_reinforcement_in_bfloat16(tokenizer: Any, tmp_path: Path, device: str) -> None:
    """What is trained stays float32 beside a model that is not; all of it moves, and comes back from disk."""
    model = drawn_model(tokenizer).to(device=device, dtype=torch.bfloat16)
    compressor = Compressor(model, shape_of(model, ratios=RATIOS, window=LONG, rank=2)).to(device)
    compressor.add_reader(2)
    assert {(value.dtype, value.device.type) for value in compressor.trained().values()} == {(torch.float32, device)}
    samples = Samples(tokenizer, TEXT, window=LONG, settings=SETTINGS)
    trainer = Trainer(compressor, samples, replace(SETTINGS, steps=2), {})
    assert trainer.pace(rounds=1) > 0
    before = trainer.weights()
    assert trainer.run(state=tmp_path / "training")
    trainer.resume(tmp_path / "training")
    for loop in (False, True):
        settings = replace(PLAYED, loop=loop)
        reinforcer = Reinforcer(compressor, Documents(samples, settings), settings, {})
        assert reinforcer.run(state=tmp_path / "reinforcement")
        assert len(reinforcer.history) == PLAYED.steps
    still = {name for name, value in compressor.trained().items() if torch.equal(value, before[name])}
    assert still == set()
    compressor.save(tmp_path / "made")
    again = load_compressor(tmp_path / "made", drawn_model(tokenizer).to(device=device, dtype=torch.bfloat16))
    ids = list(range(20, 40))
    assert again.compress(ids, 4).dtype == torch.bfloat16
    assert torch.equal(again.compress(ids, 4), compressor.compress(ids, 4))
