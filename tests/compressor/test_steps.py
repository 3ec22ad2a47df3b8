"""What a step of a training is made of: its ratio and samples, the reader that is held to the plain model, casts."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from lychee_sgl.compressor import trainer as module
from lychee_sgl.compressor.data import Sample, Samples
from lychee_sgl.compressor.folder import READER
from lychee_sgl.compressor.model import Compressor
from lychee_sgl.compressor.reader import divergence, read, task_means
from lychee_sgl.compressor.settings import TASKS, TrainSettings
from lychee_sgl.compressor.trainer import Trainer, fifth, odds
from tests.compressor.conftest import SETTINGS, TEXT, WINDOW, drawn_model, shaken, with_reader


@pytest.fixture
def samples(tokenizer: Any) -> Samples:
    return Samples(tokenizer, TEXT, window=WINDOW, settings=SETTINGS)


def gradients(compressor: Compressor) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in compressor.trained().items() if value.grad is not None}


def test_low_ratios_are_drawn_more_often(compressor: Compressor, samples: Samples) -> None:
    assert odds((2, 4, 8, 16)) == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert odds((4,)) == [1.0]
    trainer = Trainer(compressor, samples, SETTINGS, {})
    drawn = Counter(trainer.ratio(step) for step in range(600))
    assert drawn.keys() == {2, 4}
    assert drawn[2] / 600 == pytest.approx(2 / 3, abs=0.06)
    assert [trainer.ratio(step) for step in range(20)] == [trainer.ratio(step) for step in range(20)]


def test_each_step_has_its_own_samples_drawn_once(compressor: Compressor, tokenizer: Any) -> None:
    asked: list[int] = []

    class Noted(Samples):
        def batch(self, step: int) -> list[Sample]:
            asked.append(step)
            return super().batch(step)

    noted = Noted(tokenizer, TEXT, window=WINDOW, settings=SETTINGS)
    trainer = Trainer(compressor, noted, SETTINGS, {})
    trainer.run()
    assert asked == list(range(SETTINGS.steps))  # one ahead, and none beyond the last
    trainer.step = 2
    assert trainer._batch(2) == noted.batch(2)


def test_a_fifth_of_each_task() -> None:
    batch = [Sample(TASKS[number % 3], (number,), (), (), ()) for number in range(18)]
    assert [sample.window[0] for sample in fifth(batch)] == [0, 1, 2, 3, 4, 5]  # of six two: no less than a fifth
    assert len(fifth(batch[:3])) == 3


def test_divergence_is_that_of_the_two_models(tokenizer: Any, samples: Samples) -> None:
    """By hand, from the probabilities of transformers' model and of the reader, for one sample beside a longer one."""
    compressor = with_reader(tokenizer)
    asked, longer = samples.batch(0)[2], samples.batch(0)[0]
    blocks = [compressor.embed(torch.tensor(one.window)) for one in (asked, longer)]
    with torch.no_grad():
        assert divergence(compressor, [asked, longer], blocks).abs().max() < 1e-6  # a new adapter changes nothing
        shaken(compressor)
        found = divergence(compressor, [asked, longer], blocks)
        ids = torch.tensor([asked.before + asked.window + asked.after + asked.target])
        count = len(asked.target)
        plain = drawn_model(tokenizer)(ids).logits[0, -count - 1 : -1].softmax(-1)
        own = compressor.logits(compressor.read(compressor.embed(ids)))[0, -count - 1 : -1].softmax(-1)
    assert len(found) == count + len(longer.target)
    torch.testing.assert_close(found[:count], (plain * (plain / own).log()).sum(-1), atol=1e-5, rtol=1e-4)
    means = task_means(found, [asked, longer])
    torch.testing.assert_close(means["answer"], found[:count].mean())
    torch.testing.assert_close(means["reconstruct"], found[count:].mean())


def test_its_gradient_is_the_readers_alone(tokenizer: Any, samples: Samples) -> None:
    compressor = shaken(with_reader(tokenizer))
    batch = samples.batch(0)
    divergence(compressor, batch, [compressor.embed(torch.tensor(one.window)) for one in batch]).sum().backward()
    moved = {name for name, value in gradients(compressor).items() if value.any()}
    assert moved == {name for name in compressor.trained() if f".{READER}." in name}


def test_a_reader_that_is_held_reads_whole_text_as_the_model_does(tokenizer: Any, samples: Samples) -> None:
    """The same steps with and without; what is learned of blocks stays of the same size."""

    def trained(keep: float) -> tuple[float, float]:
        settings = TrainSettings(steps=30, batch=3, target=8, facts=1, keep=keep, rate=0.02, warmup=0.0, decay=0.5)
        compressor = with_reader(tokenizer)
        trainer = Trainer(compressor, samples, settings, {})
        trainer.run()
        assert all((row[-1] > 0) is (keep > 0) for row in trainer.history[1:])
        batch = samples.batch(1000)
        with torch.no_grad():
            blocks = [compressor.embed(torch.tensor(one.window)) for one in batch]
            return float(divergence(compressor, batch, blocks).mean()), trainer.held_out_loss(1)

    (free, free_loss), (held, held_loss) = trained(0.0), trained(10.0)
    assert held < 0.5 * free
    assert held_loss == pytest.approx(free_loss, rel=0.2)


def test_both_gradients_stand_there_also_when_memory_was_out_between(
    tokenizer: Any, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device's error is raised by hand: a CPU has none."""
    compressor = shaken(with_reader(tokenizer))
    trainer = Trainer(compressor, samples, SETTINGS, {})
    batch = samples.batch(0)
    losses, drift = trainer._learn(batch, 2)
    wanted = gradients(compressor)
    trainer.settings = replace(SETTINGS, keep=0.0)
    assert trainer._learn(batch, 2)[1] is None
    alone = gradients(compressor)
    trainer.settings = SETTINGS
    calls: list[int] = []

    def once_out(of: Compressor, some: Any, blocks: Any) -> torch.Tensor:
        calls.append(len(some))
        if len(calls) == 2:  # after the first part of the smaller ones
            raise torch.OutOfMemoryError("out of memory")
        return divergence(of, some, blocks)

    trainer._whole.rows = 2
    monkeypatch.setattr(module, "divergence", once_out)
    again, drifted = trainer._learn(batch, 2)
    assert calls == [2, 1, 1, 1, 1]
    assert drift is not None
    assert drifted is not None
    torch.testing.assert_close(drifted, drift)
    assert list(again) == list(losses)
    for name, value in gradients(compressor).items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=1e-3)
    assert any(not torch.allclose(value, alone[name]) for name, value in wanted.items())


def test_casts_that_autocast_would_undo_change_no_loss(
    tokenizer: Any, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: a model of bfloat16 whose adapters are float32."""
    compressor = shaken(with_reader(tokenizer))
    compressor.model.get_base_model().to(torch.bfloat16)
    for value in compressor.trained().values():
        value.data = value.data.float()
    batch = samples.batch(0)
    windows = torch.tensor([sample.window for sample in batch])

    def seen() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        compressor.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = read(compressor, batch, list(compressor(windows, 4))).loss
        loss.mean().backward()
        return loss.detach(), gradients(compressor)

    loss, gradient = seen()
    assert {layer.cast_input_dtype_enabled for layer in compressor._adapted} == {False}
    compressor.backbone()  # outside of autocast they are needed
    assert {layer.cast_input_dtype_enabled for layer in compressor._adapted} == {True}
    monkeypatch.setattr(Compressor, "backbone", lambda self: self.model.get_base_model().model)
    wanted, other = seen()
    assert torch.equal(loss, wanted)
    assert gradient.keys() == other.keys()
    for name, value in gradient.items():
        torch.testing.assert_close(value, other[name], atol=1e-2, rtol=2e-2)
