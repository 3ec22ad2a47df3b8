"""GGUF to a Hugging Face folder, for Llama models with a byte-level BPE tokenizer. Runs in a process of its own.

`python -m lychee_sgl.models.convert SOURCE.gguf FOLDER` prints one progress line a stage and fills an existing
folder. The tokenizer is rebuilt here and not by transformers' own GGUF reader, which leaves out the splitting of
digits and takes the start token for the end token.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

LAYER_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
CONTROL_TOKEN: Final = 3  # GGUF's token type for control tokens


def hugging_face_name(name: str) -> str:
    """Translate a GGUF tensor name of a Llama model.

    Raises:
        ValueError: a tensor that this conversion does not know.
    """
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in LAYER_NAMES and parts[3] == "weight":
        return f"model.layers.{int(parts[1])}.{LAYER_NAMES[parts[2]]}.weight"
    raise ValueError(f"tensor {name!r} is none of a plain Llama model")


def restore_rotary_order(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undo GGUF's reordering of query and key rows.

    GGUF stores the two halves of a head interleaved (rows 0, D/2, 1, D/2+1, ...); Hugging Face rotates halves and
    wants 0, 1, ..., D/2, D/2+1, ...

    Args:
        weight: [heads * D, hidden].
        heads: number of heads in it.

    Returns:
        [heads * D, hidden] in Hugging Face's order.
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


class Source:
    """A GGUF file: its fields by name, its tensors dequantised."""

    def __init__(self, path: Path) -> None:
        self.reader = GGUFReader(path)
        if self.field("general.architecture") != "llama" or self.field("tokenizer.ggml.model") != "gpt2":
            raise ValueError(f"{path.name}: only Llama models with a byte-level BPE tokenizer can be converted")
        if self.field("tokenizer.ggml.pre") != "smollm":
            # The rule by which text is cut before BPE is only named in the file, so each rule is code of its own.
            raise ValueError(f"{path.name}: its text splitting is not SmolLM's")

    def field(self, name: str) -> Any:
        """Value of a metadata field; KeyError names a missing one."""
        found = self.reader.get_field(name)
        if found is None:
            raise KeyError(f"GGUF field {name!r} is missing")
        return found.contents()

    def tensors(self) -> dict[str, torch.Tensor]:
        """All weights in bfloat16 under their Hugging Face names."""
        heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
        result = {}
        for tensor in self.reader.tensors:
            weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
            kind = tensor.name.split(".")[-2]
            if kind in heads:
                weight = restore_rotary_order(weight, int(self.field(heads[kind])))
            # a copy: a view of the mapped, read-only file is no tensor storage
            bfloat = torch.from_numpy(np.array(weight)).to(torch.bfloat16).contiguous()
            result[hugging_face_name(tensor.name)] = bfloat
        return result


def shortest(value: float) -> float:
    """The decimal that a float32 of the file was written for: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def model_config(source: Source, *, tied: bool) -> dict[str, Any]:
    """`config.json` of the model."""
    heads = int(source.field("llama.attention.head_count"))
    hidden = int(source.field("llama.embedding_length"))
    theta = shortest(source.field("llama.rope.freq_base"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": int(source.field("llama.feed_forward_length")),
        "max_position_embeddings": int(source.field("llama.context_length")),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": int(source.field("llama.block_count")),
        "num_key_value_heads": int(source.field("llama.attention.head_count_kv")),
        "rms_norm_eps": shortest(source.field("llama.attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "rope_theta": theta,  # where readers older than rope_parameters look
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": int(source.field("llama.vocab_size")),
        **special_ids(source),
    }


def special_ids(source: Source) -> dict[str, int]:
    """Token ids that configuration and generation share."""
    return {
        "bos_token_id": int(source.field("tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(source.field("tokenizer.ggml.eos_token_id")),
        "pad_token_id": int(source.field("tokenizer.ggml.padding_token_id")),
    }


def build_tokenizer(tokens: list[str], types: list[int], merges: list[str]) -> Tokenizer:
    """SmolLM's tokenizer: digits one by one, then GPT-2's byte-level splitting, then BPE.

    Args:
        tokens: every token, by id.
        types: GGUF's type of every token; control tokens become special tokens.
        merges: BPE merges, "left right", the first the strongest.
    """
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def tokenizer_config(source: Source, tokens: list[str]) -> dict[str, Any]:
    """`tokenizer_config.json`, the chat template in it."""
    ids = special_ids(source)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": tokens[ids["bos_token_id"]],
        "eos_token": tokens[ids["eos_token_id"]],
        "pad_token": tokens[ids["pad_token_id"]],
        "unk_token": tokens[int(source.field("tokenizer.ggml.unknown_token_id"))],
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(source.field("llama.context_length")),
        "chat_template": str(source.field("tokenizer.chat_template")),
    }


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file as Hugging Face's own are written."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def convert(path: Path, folder: Path) -> None:
    """Fill a folder with the model of a GGUF file.

    Args:
        path: the GGUF file.
        folder: an existing folder.

    Raises:
        ValueError: a model that this conversion does not know.
        KeyError: a metadata field is missing.
    """
    say("reading the packed model")
    source = Source(path)
    say("unpacking the weights")
    tensors = source.tensors()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    say("writing configuration and tokenizer")
    write_json(folder / "config.json", model_config(source, tied="lm_head.weight" not in tensors))
    write_json(folder / "generation_config.json", special_ids(source))
    tokens = [str(token) for token in source.field("tokenizer.ggml.tokens")]
    types = [int(kind) for kind in source.field("tokenizer.ggml.token_type")]
    merges = [str(merge) for merge in source.field("tokenizer.ggml.merges")]
    build_tokenizer(tokens, types, merges).save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_config(source, tokens))


def say(line: str) -> None:
    """Report a stage to the parent process, which reads this process's standard output."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
