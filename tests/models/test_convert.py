import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import load_file

from lychee_sgl.models.convert import build_tokenizer, convert, hugging_face_name, restore_rotary_order, shortest

# Every single byte in GPT-2's alphabet of printable stand-ins, then a few words, then one control token.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [number for number in range(256) if number not in PRINTABLE]
ALPHABET = [chr(number) for number in PRINTABLE] + [chr(256 + index) for index in range(len(OTHERS))]
MERGES = ["h i", "Ġ hi", "1 2"]
TOKENS = [*ALPHABET, "hi", "Ġhi", "12", "<|end|>"]
TYPES = [1] * (len(TOKENS) - 1) + [3]
END = len(TOKENS) - 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.12.attn_k.weight", "model.layers.12.self_attn.k_proj.weight"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
    ],
)
def test_names(name: str, expected: str) -> None:
    assert hugging_face_name(name) == expected


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.attn_q_norm.weight"])
def test_unknown_tensors_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        hugging_face_name(name)


def test_rotary_order_by_hand() -> None:
    # two heads of six rows; GGUF interleaves the halves: 0 3 1 4 2 5
    packed = np.array([[0], [3], [1], [4], [2], [5], [10], [13], [11], [14], [12], [15]], dtype=np.float32)
    expected = [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]
    assert restore_rotary_order(packed, 2)[:, 0].tolist() == expected


def test_shortest_decimal_of_a_float32() -> None:
    assert shortest(9.999999747378752e-06) == 1e-05
    assert shortest(100000.0) == 100000.0


def test_digits_stand_alone_and_text_comes_back() -> None:
    tokenizer = build_tokenizer(TOKENS, TYPES, MERGES)
    # "12" is a token and a merge, and still is never used: digits are cut apart before BPE
    assert tokenizer.encode("hi hi12<|end|>").tokens == ["hi", "Ġhi", "1", "2", "<|end|>"]
    # the spaces before a digit stay together, which GPT-2's own splitting would not do
    assert tokenizer.encode("  1").tokens == ["Ġ", "Ġ", "1"]
    for text in ("hi  hi", "x=10\n\ty", "grün 你好 🙂", " a"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.decode(tokenizer.encode("hi<|end|>").ids) == "hi"
    assert tokenizer.token_to_id("<|end|>") == END


def write_gguf(path: Path, *, architecture: str = "llama", splitting: str = "smollm") -> dict[str, np.ndarray]:
    """One layer, two query heads and one KV head of size four, everything in float32."""
    writer = GGUFWriter(path, architecture)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_context_length(64)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(MERGES)
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id, writer.add_pad_token_id):
        add(END)
    writer.add_chat_template("{{ messages }}")
    random = np.random.default_rng(0)
    shapes = {"attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8), "attn_output": (8, 8), "ffn_gate": (16, 8)}
    shapes |= {"ffn_up": (16, 8), "ffn_down": (8, 16), "attn_norm": (8,), "ffn_norm": (8,)}
    tensors = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    tensors |= {"token_embd.weight": (len(TOKENS), 8), "output_norm.weight": (8,)}
    values = {name: random.standard_normal(shape).astype(np.float32) for name, shape in tensors.items()}
    for name, value in values.items():
        writer.add_tensor(name, value, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def test_folder_of_a_small_model(tmp_path: Path) -> None:
    values = write_gguf(tmp_path / "tiny.gguf")
    folder = tmp_path / "out"
    folder.mkdir()
    convert(tmp_path / "tiny.gguf", folder)
    weights = load_file(folder / "model.safetensors")
    assert len(weights) == len(values)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    value = torch.from_numpy(values["blk.0.attn_v.weight"]).bfloat16()
    assert torch.equal(weights["model.layers.0.self_attn.v_proj.weight"], value)
    key = torch.from_numpy(values["blk.0.attn_k.weight"]).bfloat16()
    assert torch.equal(weights["model.layers.0.self_attn.k_proj.weight"], key[[0, 2, 1, 3]])
    query = torch.from_numpy(values["blk.0.attn_q.weight"]).bfloat16()
    assert torch.equal(weights["model.layers.0.self_attn.q_proj.weight"], query[[0, 2, 1, 3, 4, 6, 5, 7]])

    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is True  # the file has no output weights of its own
    assert config["head_dim"] == 4
    assert config["rope_parameters"] == {"rope_theta": 5000.0, "rope_type": "default"}
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == END
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert (tokenizer["eos_token"], tokenizer["model_max_length"]) == ("<|end|>", 64)


@pytest.mark.parametrize(
    ("change", "message"), [({"architecture": "gpt2"}, "only Llama"), ({"splitting": "x"}, "SmolLM")]
)
def test_other_models_are_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    write_gguf(tmp_path / "other.gguf", **change)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "other.gguf", tmp_path)
