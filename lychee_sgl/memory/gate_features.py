"""What a gate knows of a block: numbers from one scoring pass of the model, and from the words of three texts."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lychee_sgl.memory.notes import sentences
from lychee_sgl.memory.retrieval import best_scores

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OF_THE_GAIN: Final = ("gain_mean", "gain_max", "gain_top3", "gain_hard", "surprise")
OF_WORDS: Final = ("bm25_question", "bm25_both", "bm25_notes", "covered", "named", "hop", "noted")
NAMES: Final = (*OF_THE_GAIN, *OF_WORDS)

_WORD: Final = re.compile(r"\w+")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+|\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a verdict is made from.

    Attributes:
        question: what is asked.
        notes: the working memory's text; empty at first.
        block: the block's text.
        gained: for each token of the question, how much likelier the block makes it beside the notes, in nats; empty
            where the model was not asked.
        alone: log-probability of each of these tokens beside the notes alone.
    """

    question: str
    notes: str
    block: str
    gained: tuple[float, ...] = ()
    alone: tuple[float, ...] = ()


def features(evidence: Evidence) -> dict[str, float]:
    """Gives the values of all features; those of the gain only where the model was asked.

    * `gain_mean`, `gain_max`, `gain_top3`: of the tokens' gains the mean, the highest, the mean of the highest three.
    * `gain_hard`: mean gain of the quarter of the tokens that are least likely without the block: names and numbers,
      as a rule, whatever the language.
    * `surprise`: how unlikely a token of the question is without the block, in nats: a question that the notes
      explain has less to gain.
    * `bm25_question`, `bm25_both`, `bm25_notes`: ln(1 + score) of the sentence that BM25 ranks first for the question,
      for question and notes, and for those words of the notes that the question does not have.
    * `covered`: share of the question's words that stand in the block, each counted as rare as it is among the
      block's sentences.
    * `named`: share of the question's names and numbers that stand in the block; where it has none, `covered`.
    * `hop`: of the names and numbers that a note has beyond the question, the share that stands in the block; of the
      best note.
    * `noted`: 1 with notes, else 0.
    """
    return {**_of_the_gain(evidence.gained, evidence.alone), **_of_words(evidence)}


def _of_the_gain(gained: Sequence[float], alone: Sequence[float]) -> dict[str, float]:
    if not gained:
        return {}
    highest = sorted(gained, reverse=True)[:3]
    hard = sorted(range(len(alone)), key=lambda i: alone[i])[: max(1, len(alone) // 4)]
    return {
        "gain_mean": sum(gained) / len(gained),
        "gain_max": highest[0],
        "gain_top3": sum(highest) / len(highest),
        "gain_hard": sum(gained[i] for i in hard) / len(hard),
        "surprise": -sum(alone) / len(alone),
    }


def _of_words(evidence: Evidence) -> dict[str, float]:
    texts = [evidence.block[start:end] for start, end in sentences(evidence.block)]
    held = Counter(word for text in texts for word in _words(text))
    asked = _words(evidence.question)
    queries = [asked, asked | _words(evidence.notes), _words(evidence.notes) - asked]
    question, both, notes = (math.log1p(score) for score in best_scores(texts, queries))
    covered = _covered(asked, held, len(texts))
    names = _names(evidence.question)
    beyond = [_names(line) - asked for line in evidence.notes.splitlines()]
    return {
        "bm25_question": question,
        "bm25_both": both,
        "bm25_notes": notes,
        "covered": covered,
        "named": _share(names, held) if names else covered,
        "hop": max((_share(words, held) for words in beyond if words), default=0.0),
        "noted": float(bool(evidence.notes)),
    }


def _words(text: str) -> set[str]:
    return {match[0].lower() for match in _WORD.finditer(text)}


def _names(text: str) -> set[str]:
    """Words with a digit, and capitalised words that begin no sentence, in small letters."""
    return {
        word.lower()
        for sentence in _SENTENCE_END.split(text)
        for number, word in enumerate(_WORD.findall(sentence))
        if (number and word[0].isupper()) or any(map(str.isdigit, word))
    }


def _share(words: Iterable[str], held: Counter[str]) -> float:
    wanted = list(words)
    return sum(word in held for word in wanted) / len(wanted)


def _covered(words: Iterable[str], held: Counter[str], count: int) -> float:
    """Share of words that are there, each weighted as BM25 does: by how few of so many sentences have it."""
    weight = {word: math.log1p((count - held[word] + 0.5) / (held[word] + 0.5)) for word in words}
    every = sum(weight.values())
    return sum(weight[word] for word in weight if word in held) / every if every else 0.0
