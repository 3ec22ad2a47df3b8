"""A model of four layers with random weights, as a folder that transformers reads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lychee_sgl.heads.measure import LoadedModel, load_model

TEMPLATE = "{% for m in messages %}<u>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    special = ["</s>", "<u>", "<a>"]
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=len(special))}
    bytewise = Tokenizer(models.BPE(vocab={**{s: i for i, s in enumerate(special)}, **letters}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, eos_token="</s>", additional_special_tokens=special[1:], chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(letters) + len(special), hidden_size=48, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=6, num_key_value_heads=3, head_dim=8, max_position_embeddings=4096,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(model_folder: Path) -> LoadedModel:
    return load_model(model_folder)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors are slower on many threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
