"""A model of two layers with drawn weights, and a tokeniser trained on a few sentences."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lychee_sgl.compressor import corpus
from lychee_sgl.compressor.model import Compressor, shape_of
from lychee_sgl.compressor.settings import ReinforceSettings, TrainSettings

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}<e>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
TEXT = tuple(f"Paragraph {i} says that the {w} is older than the sea, and nobody knows why it is so." for i in range(60)
             for w in ("wind", "stone", "rain"))  # fmt: skip
SETTINGS = TrainSettings(steps=6, batch=3, target=8, facts=1, warmup=0.0, decay=0.5)
WINDOW, RATIOS = 64, (2, 4)
LONG = 2 * WINDOW
SMALL = ReinforceSettings(
    steps=3, tasks=2, group=3, ratios=(2, 4), windows=2, others=1, limit=5, rate=0.01, warmup=2, reader_rank=2
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def short_text(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of Python's documentation the language reference alone: parsing the standard library takes seconds."""
    monkeypatch.setattr("lychee_sgl.heads.haystack._docstrings", list)
    corpus._python.cache_clear()
    yield
    corpus._python.cache_clear()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "<e>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<e>", chat_template=TEMPLATE)


def drawn_model(tokenizer: Any, *, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )  # fmt: skip
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    return model


@pytest.fixture
def compressor(tokenizer: Any) -> Compressor:
    model = drawn_model(tokenizer)
    return Compressor(model, shape_of(model, ratios=RATIOS, window=WINDOW, rank=2))


@pytest.fixture
def folder(tokenizer: Any, tmp_path: Path) -> Path:
    place = tmp_path / "tiny-model"
    drawn_model(tokenizer).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def shaken(compressor: Compressor) -> Compressor:
    """With weights as if it had been trained."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in compressor.trained().values():
            value += 0.1 * torch.randn_like(value)
    return compressor


def with_reader(tokenizer: Any, *, rank: int = 2) -> Compressor:
    model = drawn_model(tokenizer)
    compressor = Compressor(model, shape_of(model, ratios=RATIOS, window=LONG, rank=2))
    if rank:
        compressor.add_reader(rank)
    return compressor
