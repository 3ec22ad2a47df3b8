"""The compressor: a frozen model, a LoRA adapter on it, memory tokens and a readout.

One memory token stands after every `ratio` raw tokens. The adapted model reads both; a memory token's block is the mean
of its raw tokens' input embeddings plus a linear map of its last hidden state, normed, at the scale of embeddings. The
map begins as zero, so an untrained compressor gives mean embeddings. The reader is the frozen model itself, without the
adapter: blocks take the place of token embeddings in its input, which is what stock SGLang can be given (DESIGN.md
section 14). Reinforcement gives the reader an adapter of its own on the same model.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from lychee_sgl.compressor.fingerprint import weights_of_model
from lychee_sgl.compressor.folder import (
    READER,
    SCHEMA,
    Base,
    check_base,
    no_compressor,
    open_to_readers,
    read_description,
)
from lychee_sgl.compressor.settings import CompressorShape
from lychee_sgl.heads.checks import write_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = logging.getLogger(__name__)

PARTS: Final = ("memory", "readout")
_TARGETS: Final = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Compressor(nn.Module):
    """A model that compresses and a model that reads, one set of weights."""

    def __init__(self, model: Any, shape: CompressorShape, *, seed: int = 0, adapter: Path | None = None) -> None:
        """Puts an adapter on a model.

        Args:
            model: a causal language model of transformers; its weights are frozen.
            shape: of the compressor.
            seed: of the adapter's first weights.
            adapter: folder of a trained adapter; None: a new one.

        Raises:
            ValueError: the model has another shape.
        """
        super().__init__()
        found = CompressorShape(
            hidden=model.config.hidden_size, vocabulary=model.config.vocab_size, layers=model.config.num_hidden_layers,
            ratios=shape.ratios, window=shape.window, rank=shape.rank,
        )  # fmt: skip
        if found != shape:
            raise ValueError(f"the compressor is for {shape}, the model has {found}")
        self.shape = shape
        self.base = Base(model=_name(model), weights=weights_of_model(model))
        if adapter is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.model: Any = get_peft_model(model, _lora(shape.rank))
        else:
            self.model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
        table = self.model.get_input_embeddings().weight
        end = model.config.eos_token_id or 0
        first = table[end[0] if isinstance(end, list) else end].detach().float()
        self.memory = nn.Parameter(first.repeat(len(shape.ratios), 1))
        self.readout = nn.Parameter(torch.zeros(shape.hidden, shape.hidden, device=table.device))
        # so that a step of Adam moves a block by a small share of an embedding, whatever the model's scales are
        self.scale = float(table.detach().float().std()) / math.sqrt(shape.hidden)
        self._adapted = [layer for layer in self.model.modules() if isinstance(layer, BaseTunerLayer)]

    @property
    def has_reader(self) -> bool:
        """Whether the reader has an adapter of its own."""
        return READER in self.model.peft_config

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.readout.device

    def trained(self) -> dict[str, torch.Tensor]:
        """Everything that training changes, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Input embeddings of tokens."""
        embedded: torch.Tensor = self.model.get_input_embeddings()(tokens)
        return embedded

    def forward(self, tokens: torch.Tensor, ratio: int) -> torch.Tensor:
        """Compress windows.

        Args:
            tokens: int64 [B, n], n a multiple of the ratio and at most a window.
            ratio: raw tokens a block stands for.

        Returns:
            Blocks, [B, n / ratio, hidden], in the dtype of the model's embeddings.

        Raises:
            ValueError: there is no such ratio, or n does not do.
        """
        place = self.shape.check_ratio(ratio)
        rows, count = tokens.shape
        if count == 0 or count % ratio or count > self.shape.window:
            raise ValueError(f"{count} tokens in a window; allowed: a multiple of {ratio} up to {self.shape.window}")
        raw = self.embed(tokens).unflatten(1, (count // ratio, ratio))
        memory = self.memory[place].to(raw.dtype).expand(rows, count // ratio, 1, -1)
        mixed = torch.cat((raw, memory), 2).flatten(1, 2)
        hidden = self.backbone()(inputs_embeds=mixed, use_cache=False).last_hidden_state
        last = hidden.unflatten(1, (count // ratio, ratio + 1))[:, :, -1]
        last = last.to(self.readout.dtype)
        last = last * torch.rsqrt(last.square().mean(-1, keepdim=True) + 1e-6)
        blocks: torch.Tensor = raw.mean(2) + (self.scale * (last @ self.readout)).to(raw.dtype)
        return blocks

    def compress(self, tokens: Sequence[int], ratio: int) -> torch.Tensor:
        """Compress a text of any length, window by window, without gradient.

        Args:
            tokens: of the text; up to `ratio` - 1 last ones that fill no block are not compressed: the caller keeps
                them as tokens.
            ratio: raw tokens a block stands for.

        Returns:
            Blocks, [len(tokens) // ratio, hidden].

        Raises:
            ValueError: there is no such ratio, or there are fewer tokens than one block takes.
        """
        self.shape.check_ratio(ratio)
        whole = len(tokens) // ratio * ratio
        if whole == 0:
            raise ValueError(f"{len(tokens)} tokens; allowed: {ratio} or more at ratio {ratio}")
        ids = torch.tensor(list(tokens[:whole]), device=self.device)
        with torch.no_grad():
            parts = [self(window.unsqueeze(0), ratio)[0] for window in ids.split(self.shape.window)]
        return torch.cat(parts)

    def add_reader(self, rank: int = 16, *, seed: int = 0, adapter: Path | None = None) -> None:
        """Give the reader an adapter; a new one changes nothing before it is trained.

        Args:
            rank: of a new adapter.
            seed: of its first weights.
            adapter: folder of a trained one; None: a new one.

        Raises:
            ValueError: there is one already, or the folder holds none for this model.
        """
        if self.has_reader:
            raise ValueError("the reader has an adapter; allowed: one")
        if adapter is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.model.add_adapter(READER, _lora(rank))
        else:
            try:
                self.model.load_adapter(str(adapter), READER, is_trainable=True, torch_device=str(self.device))
            except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
                raise ValueError(
                    f"reader is {adapter}; allowed: a folder with an adapter for this model ({error})"
                ) from error
        self.to(self.device)
        self._train_all()

    @contextmanager
    def reading(self, *, plain: bool = False) -> Iterator[None]:
        """In it the backbone is the reader: the model with the reader's adapter if there is one, else without any.

        Args:
            plain: without any in either case.
        """
        adapters, off = ([READER], False) if self.has_reader and not plain else (["default"], True)
        self._switch(adapters, off=off)
        try:
            yield
        finally:
            self._switch(["default"])

    def read(self, embedded: torch.Tensor, *, plain: bool = False) -> torch.Tensor:
        """Last hidden states of the reader, or of the plain model, over input embeddings [B, n, hidden]."""
        with self.reading(plain=plain):
            hidden: torch.Tensor = self.backbone()(inputs_embeds=embedded, use_cache=False).last_hidden_state
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the next token, from hidden states."""
        scores: torch.Tensor = self.model.get_output_embeddings()(hidden)
        return scores

    def save(self, folder: Path) -> None:
        """Write adapter, memory tokens and readout; the description last, so a folder without one is no compressor."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compressor.json").unlink(missing_ok=True)
        if not self.has_reader:  # another compressor's
            shutil.rmtree(folder / READER, ignore_errors=True)
        self.model.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)  # a model card without a word of its own
        parts = {name: getattr(self, name).detach().cpu().contiguous() for name in PARTS}
        save_file(parts, folder / "compressor.safetensors")
        told = {"schema": SCHEMA, "version": 1, "shape": asdict(self.shape), "base": asdict(self.base)}
        write_text(folder / "compressor.json", json.dumps(told, indent=1) + "\n")
        open_to_readers(folder)

    def backbone(self) -> Any:
        """The transformer without its head; the adapters are inside it."""
        # an adapter casts its input to float32 first, which autocast would undo at once: the same numbers, for nothing
        cast = not torch.is_autocast_enabled(self.device.type)
        for layer in self._adapted:
            layer.cast_input_dtype_enabled = cast
        return self.model.get_base_model().model

    def _switch(self, adapters: list[str], *, off: bool = False) -> None:
        """Which adapters count. Peft's own switches say which weights take gradients, too: slow, and not wanted."""
        for layer in self._adapted:
            layer._active_adapter, layer._disable_adapters = adapters, off

    def _train_all(self) -> None:
        """Every adapter takes gradients: peft gives them to the active one alone."""
        for name, value in self.model.named_parameters():
            if "lora_" in name:
                value.requires_grad_(True)


def _name(model: Any) -> str:
    place = Path(getattr(model, "name_or_path", ""))
    return place.resolve().name if place.is_dir() else place.name


def _lora(rank: int) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_TARGETS, bias="none")


def load_base(
    folder: Path, *, device: str = "cpu", dtype: torch.dtype | None = torch.float32, head: bool = True
) -> Any:
    """A frozen causal language model of the Llama family.

    Args:
        folder: of the model, or its name in the local cache.
        device: where it goes.
        dtype: of its weights; None: that of its files.
        head: with what makes scores of hidden states; one that only compresses needs none.

    Raises:
        ValueError: the folder holds none.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype or "auto", local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"model is {folder}; allowed: a folder that transformers reads ({error})") from error
    if not head:
        model.set_output_embeddings(nn.Identity())
    return model.to(device).eval()


def shape_of(model: Any, *, ratios: tuple[int, ...], window: int, rank: int) -> CompressorShape:
    """The shape of a new compressor for a model."""
    config = model.config
    return CompressorShape(
        hidden=config.hidden_size, vocabulary=config.vocab_size, layers=config.num_hidden_layers,
        ratios=ratios, window=window, rank=rank,
    )  # fmt: skip


def load_compressor(folder: Path, model: Any) -> Compressor:
    """A trained compressor on its model.

    Raises:
        ValueError: the folder holds no compressor, or one for a model of another shape or with other weights.
    """
    shape, base = read_description(folder)
    try:
        parts = load_file(folder / "compressor.safetensors")
        made = {name: parts[name] for name in PARTS}
    except (OSError, KeyError, SafetensorError) as error:
        raise no_compressor(folder, error) from error
    try:
        compressor = Compressor(model, shape, adapter=folder)
    except (OSError, RuntimeError, KeyError, TypeError, SafetensorError) as error:  # what peft makes of half a file
        raise no_compressor(folder, error) from error
    if doubt := check_base(folder, base, compressor.base.model, compressor.base.weights):
        log.warning("%s", doubt)
    with torch.no_grad():
        for name, value in made.items():
            own = getattr(compressor, name)
            if own.shape != value.shape:
                raise no_compressor(folder, f"{name} is {[*value.shape]}, wanted: {[*own.shape]}")
            own.copy_(value)
    compressor.to(next(model.parameters()).device)
    return compressor
