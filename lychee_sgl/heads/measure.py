"""How well a plan answers: needle questions that the dense model answers, decoded under the plan."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lychee_sgl.heads.hybrid_hf import Decoding, Prefix, continues_as, generate, hybrid_attention, prefill
from lychee_sgl.heads.plan import PlanError
from lychee_sgl.heads.shapes import read_shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lychee_sgl.heads.needles import NeedlePrompt
    from lychee_sgl.heads.plan import HeadPlan, ModelShape

MAX_ANSWER = 24
"""Tokens of an answer: a sentence with seven digits has some fifteen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model of transformers, frozen, its tokeniser and what a plan knows of it."""

    model: Any
    tokenizer: Any
    shape: ModelShape
    path: Path

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return torch.device(self.model.device)

    @property
    def stop(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return frozenset(int(end) for end in (*ends, self.tokenizer.eos_token_id) if end is not None)

    def chat(self, text: str) -> list[int]:
        """One user message as the tokens after which the model answers."""
        message = [{"role": "user", "content": text}]
        told = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
        return [int(token) for token in told["input_ids"]]

    def answer(self, text: str) -> list[int]:
        """The tokens of an answer, nothing added."""
        return [int(token) for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]]


def load_model(
    path: str | Path, *, name: str | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Load a model folder.

    Args:
        path: the folder.
        name: the model's name, by default as `read_shape` has it.
        device: where it runs.
        dtype: of its weights.

    Raises:
        PlanError: it is not a model folder.
    """
    shape = read_shape(path, name=name)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa").to(device)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise PlanError(f"model {path}: {' '.join(str(error).split())[:300]}") from error
    model.eval().requires_grad_(False)
    return LoadedModel(model=model, tokenizer=tokenizer, shape=shape, path=Path(path))


def prefilled(loaded: LoadedModel, tokens: Sequence[int], cache: Path | None) -> Prefix:
    """A prompt's prefix, from the cache folder if it is there.

    Args:
        loaded: the model.
        tokens: the prompt.
        cache: folder for prefixes (46 KB a token for SmolLM2-135M), or None to keep none.
    """
    if cache is None:
        return prefill(loaded.model, tokens)
    weights = sorted((file.name, file.stat().st_size) for file in loaded.path.glob("*.safetensors"))
    key = hashlib.sha256(json.dumps([loaded.shape.name, weights, list(tokens)]).encode()).hexdigest()[:24]
    file = cache / f"{key}.safetensors"
    if not file.exists():
        prefix = prefill(loaded.model, tokens)
        cache.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file({"keys": prefix.keys, "values": prefix.values, "logits": prefix.logits}, part)
        part.replace(file)
    kept = load_file(file, device=str(loaded.device))
    return Prefix(keys=kept["keys"], values=kept["values"], logits=kept["logits"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """A question, and how the dense model answers it.

    Attributes:
        prompt: the question.
        prefix: the prefilled prompt.
        reply: the dense answer.
        tokens: its tokens, the ending left out.
        ending: the token that ended it, or None at the length limit.
    """

    prompt: NeedlePrompt
    prefix: Prefix
    reply: str
    tokens: tuple[int, ...]
    ending: int | None

    @property
    def passed(self) -> bool:
        """Whether the dense model answers right; only such questions say anything about a plan."""
        return self.prompt.is_answered_by(self.reply)


def exams(loaded: LoadedModel, prompts: Sequence[NeedlePrompt], *, cache: Path | None = None) -> Iterator[Exam]:
    """Ask the dense model every question, one after another; each prefix is dropped when the next is made."""
    for prompt in prompts:
        prefix = prefilled(loaded, loaded.chat(prompt.text), cache)
        with hybrid_attention(loaded.model):
            decoding = Decoding(prefix=prefix)
            tokens = generate(loaded.model, decoding, stop=loaded.stop, max_tokens=MAX_ANSWER)
        ending = None if len(tokens) == MAX_ANSWER else min(loaded.stop, default=None)
        yield Exam(
            prompt=prompt, prefix=prefix, reply=loaded.tokenizer.decode(tokens), tokens=tuple(tokens), ending=ending
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One question under one plan.

    Attributes:
        answered: the number is in the answer.
        identical: the answer is the dense one, token for token.
        recall: attention mass that the sparse heads' sets held, mean over sparse heads and steps.
        reply: the answer.
    """

    answered: bool
    identical: bool
    recall: float
    reply: str


def examine(loaded: LoadedModel, exam: Exam, plan: HeadPlan, budget: int) -> Result:
    """Decode one answer under a plan.

    Args:
        loaded: the model.
        exam: a question with its dense answer, which must not be empty.
        plan: roles and sources.
        budget: tokens in a set, mode `topk`.
    """
    with hybrid_attention(loaded.model):
        decoding = Decoding(prefix=exam.prefix, plan=plan, budget=budget)
        same = continues_as(loaded.model, decoding, exam.tokens, exam.ending)
        if same == len(exam.tokens) + (exam.ending is not None):
            return Result(answered=exam.passed, identical=True, recall=decoding.mean_recall, reply=exam.reply)
        free = Decoding(prefix=exam.prefix, plan=plan, budget=budget)
        tokens = generate(loaded.model, free, stop=loaded.stop, max_tokens=MAX_ANSWER)
    reply = loaded.tokenizer.decode(tokens)
    return Result(answered=exam.prompt.is_answered_by(reply), identical=False, recall=decoding.mean_recall, reply=reply)
