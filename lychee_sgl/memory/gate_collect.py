"""Features of generated blocks, from a running engine, kept line by line: what was broken off goes on."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

from lychee_sgl.heads.needles import CHARS_PER_TOKEN
from lychee_sgl.memory import prompts
from lychee_sgl.memory.chunks import cut
from lychee_sgl.memory.gate import VERSION
from lychee_sgl.memory.gate_examples import SPLITS, sample, text_of, to_row
from lychee_sgl.memory.gate_examples import VERSION as BLOCKS
from lychee_sgl.memory.gate_features import NAMES, OF_WORDS, Evidence, features
from lychee_sgl.memory.loop import Report
from lychee_sgl.memory.settings import ReadSettings
from lychee_sgl.memory.step import Asker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lychee_sgl.memory.gate_examples import Question, Sample, Split
    from lychee_sgl.memory.model import Model

SCHEMA: Final = "lychee-sgl/memory-gate-features"
_SAMPLE_PARAGRAPHS: Final = 40

Row = dict[str, Any]


class Features:
    """A file of features, one line a block, behind a line that says of what.

    Attributes:
        texts: what the blocks of each half are made of.
        rows: what the file holds.
    """

    def __init__(self, path: Path, *, model: str | None, seed: int) -> None:
        """Opens or begins the file; reading the texts takes seconds.

        Args:
            path: of the file.
            model: the name of the model that is asked; None: words alone are looked at.
            seed: of the blocks.

        Raises:
            ValueError: it holds something else.
        """
        self.texts = {split: text_of(split) for split in SPLITS}
        digests = {split: text.digest for split, text in self.texts.items()}
        head = {
            "schema": SCHEMA, "version": VERSION, "prompts": prompts.VERSION, "blocks": BLOCKS, "model": model,
            "seed": seed, "text": digests, "features": [*(OF_WORDS if model is None else NAMES)],
        }  # fmt: skip
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if lines and _parsed(lines[0]) != head:
            raise ValueError(f"{path} holds features of something else; move it away, or choose another --out")
        self._path = path
        self.rows: list[Row] = [row for line in lines[1:] if (row := _parsed(line)) is not None]
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_text("".join(json.dumps(row) + "\n" for row in (head, *self.rows)), encoding="utf-8")
        fresh.replace(path)

    def add(self, row: Row) -> None:
        """Keeps a block's features."""
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _parsed(line: str) -> Row | None:
    """A line's object; None for one that was cut off by a crash."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def collect(
    model: Model | None, kept: Features, counts: Mapping[Split, int], *, seed: int, tell: Callable[[int, int], None]
) -> list[Row]:
    """Asks an engine about all blocks that are not kept yet.

    Args:
        model: who is asked; None: nobody, for features of words.
        kept: where features go.
        counts: blocks of each half.
        seed: of the blocks.
        tell: gets how many blocks are done, and of how many.

    Returns:
        The rows of these blocks.

    Raises:
        ModelFailed: the engine does not answer; what it has said is kept.
    """
    done = {row["block"]: row for row in kept.rows}
    wanted = [(split, number) for split, count in counts.items() for number in range(count)]
    # both halves in step: what was collected until somebody stopped it serves fewer blocks of each
    wanted.sort(key=lambda pair: pair[1] / counts[pair[0]])
    rows = []
    texts = kept.texts
    chars = {split: _chars_per_token(model, texts[split].paragraphs) for split in counts}
    for at, (split, number) in enumerate(wanted):
        name = f"{split}-{number}"
        if name not in done:
            block = sample(split, number, seed, texts[split], chars[split])
            done[name] = to_row(block, asyncio.run(_values(model, block)))
            kept.add(done[name])
        rows.append(done[name])
        tell(at + 1, len(wanted))
    return rows


async def _values(model: Model | None, block: Sample) -> list[dict[str, float]]:
    if model is None:
        return [features(Evidence(question=q.question, notes=q.notes, block=block.text)) for q in block.questions]
    (cut_out,) = cut(block.text, model.window, model.encode)
    served = model

    async def one(question: Question) -> dict[str, float]:
        asker = await asyncio.to_thread(Asker, served, None, ReadSettings(), question.question, Report())
        return features(await asker.evidence(cut_out, question.notes, needs_gain=True))

    first, *others = block.questions
    # the first one prefills the block for all others, which then go together
    return [await one(first), *await asyncio.gather(*map(one, others))]


def _chars_per_token(model: Model | None, paragraphs: tuple[str, ...]) -> float:
    if model is None:
        return CHARS_PER_TOKEN
    text = "\n\n".join(paragraphs[:_SAMPLE_PARAGRAPHS])
    return round(len(text) / len(model.encode([text])[0]), 2)
