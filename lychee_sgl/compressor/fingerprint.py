"""Which weights a model has, told in a second: a digest of a fixed sample, the same from its files and from memory.

Of every tensor that a compressor builds on (embeddings, projections, norms) name, shape and some rows are taken,
rounded to bfloat16: so a model is the same in float32, in bfloat16, saved again or sharded otherwise, and another as
soon as a tensor is trained or an adapter is merged into it. A few changed rows of a tensor alone can be missed.
The configuration is left out: versions of transformers write it differently, and rotary positions stretched for longer
contexts are no other weights. So is the output head, which no block goes through.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SAMPLED: Final = re.compile(
    r"(?:base_model\.model\.)?(model\.(?:embed_tokens|norm|layers\.\d+\."
    r"(?:self_attn\.[qkvo]_proj|self_attn\.[qk]_norm|mlp\.(?:gate|up|down)_proj|\w+_layernorm)))"
    r"(?:\.base_layer)?\.(weight|bias)"
)
_HEAD: Final = "lm_head."
_FILE: Final = "model.safetensors"
_ROWS: Final = 4
_ROWS_OF_EMBEDDINGS: Final = 16
_COLUMNS: Final = 512
_DIGITS: Final = 16


def weights_of_model(model: Any) -> str:
    """Tells the weights of a causal language model of transformers, adapters on it left aside.

    Raises:
        ValueError: it has none of the tensors that a compressor builds on.
    """
    found = {name: (tuple(value.shape), value.detach()) for name, value in model.named_parameters()}
    told = _digest(found)
    if told is None:
        raise ValueError(f"model is a {type(model).__name__}; allowed: one of the Llama family")
    return told


def weights_of_folder(model: Path | str) -> str | None:
    """Tells the weights of a model's safetensors files; reads little of them.

    Args:
        model: its folder, or its name in the local cache.

    Returns:
        The digest; None where there are no such files, or none of the Llama family.
    """
    with _opened(model) as found:
        return _digest(found)


def parameters_of_folder(model: Path | str) -> int | None:
    """Counts the parameters that a compressor needs of a model: all but the output head; None as above."""
    with _opened(model) as found:
        return sum(math.prod(shape) for name, (shape, _) in found.items() if not name.startswith(_HEAD)) or None


@contextmanager
def _opened(model: Path | str) -> Iterator[Mapping[str, tuple[tuple[int, ...], Any]]]:
    """Shape and something to take rows of, for every tensor of the files; nothing where they cannot be read."""
    with ExitStack() as stack:
        found = {}
        try:
            for file in _files(Path(model)):
                tensors = stack.enter_context(safe_open(str(file), framework="pt"))
                for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                    one = tensors.get_slice(name)
                    found[name] = tuple(one.get_shape()), one
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
            found = {}
        yield found


def _files(model: Path) -> Sequence[Path]:
    """The files that transformers would load."""
    folder = model if model.is_dir() else _cached(str(model))
    if folder is None:
        return ()
    if (folder / _FILE).is_file():
        return (folder / _FILE,)
    index = folder / f"{_FILE}.index.json"
    if not index.is_file():
        return ()
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / name for name in sorted({*names})]


def _cached(name: str) -> Path | None:
    """Where a model of the hub lies, if it is here; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        place = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(place).parent if isinstance(place, str) else None


def _digest(found: Mapping[str, tuple[tuple[int, ...], Any]]) -> str | None:
    named = {f"{match[1]}.{match[2]}": name for name in found if (match := _SAMPLED.fullmatch(name))}
    if "model.embed_tokens.weight" not in named or len(named) == 1:
        return None
    whole = sha256()
    for told, name in sorted(named.items()):
        shape, tensor = found[name]
        whole.update(json.dumps([told, shape]).encode())
        for row in _rows(shape, _ROWS_OF_EMBEDDINGS if "embed" in told else _ROWS):
            part = tensor[:_COLUMNS] if row is None else tensor[row : row + 1, :_COLUMNS]
            rounded = part.to(torch.float32).to(torch.bfloat16).contiguous().cpu()
            whole.update(rounded.view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:_DIGITS]


def _rows(shape: tuple[int, ...], count: int) -> Sequence[int | None]:
    """Evenly spread, the first and the last among them; of a vector its beginning."""
    if len(shape) != 2:
        return (None,)
    return sorted({number * (shape[0] - 1) // (count - 1) for number in range(count)})
