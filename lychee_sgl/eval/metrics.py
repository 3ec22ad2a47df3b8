"""Scores of replies: pure functions from a reply and its sample to a number in [0, 1]."""

from __future__ import annotations

import re
import string
from collections import Counter
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from lychee_sgl.eval.sample import Sample

CONTROL = re.compile(r"[\x00-\x1f]")
ARTICLES = re.compile(r"\b(a|an|the)\b")
MATHS_MODE = re.compile(r"(?<!\\)\$")
MATHS_SECONDS = 60
"""For reading or comparing an expression; what takes longer counts as wrong. The package's 5 pass on a busy machine."""
CHOICES = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))


def _printable(reply: str) -> str:
    return CONTROL.sub("\n", reply.strip()).strip()


def match_all(reply: str, sample: Sample) -> float:
    """Share of the expected strings that the reply holds, whatever their case: RULER's metric."""
    told = _printable(reply).lower()
    return sum(answer.lower() in told for answer in sample.answers) / len(sample.answers)


def match_any(reply: str, sample: Sample) -> float:
    """1 where the reply holds one of the expected strings: RULER's metric for its questions."""
    told = _printable(reply).lower()
    return float(any(answer.lower() in told for answer in sample.answers))


def final_line(reply: str, sample: Sample) -> float:
    """1 where the last line `Label: answer` of a trace has the expected answer, and nothing else."""
    found = re.findall(rf"^\s*{re.escape(sample.options['label'])}:\s*(\S+?)\.?\s*$", reply, re.MULTILINE)
    return float(bool(found) and found[-1] == sample.answers[0])


def steps_right(reply: str, sample: Sample) -> float:
    """Share of a trace's expected lines that the reply has, from the first on, up to the first that is wrong.

    A reply that does not continue the prefix may begin with it again.
    """
    wanted = sample.options["lines"]
    whole = reply if reply.lstrip().startswith(sample.prefix) else f"{sample.prefix}{reply}"
    told = [" ".join(line.split()) for line in whole.splitlines() if line.strip()]
    right = 0
    for line, expected in zip(told, wanted, strict=False):
        if line != expected:
            break
        right += 1
    return right / len(wanted)


def _words(text: str) -> list[str]:
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return ARTICLES.sub(" ", bare).split()


def question_f1(reply: str, answer: str) -> float:
    """F1 of the words, without case, punctuation and articles: SQuAD's metric, as LongBench uses it."""
    told, wanted = _words(reply), _words(answer)
    shared = sum((Counter(told) & Counter(wanted)).values())
    return 2 * shared / (len(told) + len(wanted)) if shared else 0.0


def rouge_l(reply: str, answer: str) -> float:
    """F1 of the longest common subsequence of words, by the package rouge-score."""
    from rouge_score.rouge_scorer import RougeScorer

    return float(RougeScorer(["rougeL"]).score(answer, reply)["rougeL"].fmeasure)


def number_share(reply: str, answer: str) -> float:
    """Share of the reply's numbers that are the expected one, so that naming all of them does not help."""
    wanted = re.findall(r"\d+", answer)[:1]
    told = re.findall(r"\d+", reply)
    return sum(number == wanted[0] for number in told) / len(told) if told and wanted else 0.0


def code_line(reply: str, answer: str) -> float:
    """Similarity of the reply's first line of code, comments and fences passed over, with the expected one.

    In whole percent, as `fuzz.ratio` of fuzzywuzzy gives it.
    """
    lines = reply.lstrip("\n").split("\n")
    told = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return round(100 * SequenceMatcher(None, told, answer).ratio()) / 100 if told and answer else 0.0


def one_class(reply: str, answer: str, classes: list[str]) -> float:
    """1 over the number of classes that the reply names, if the expected one is among them.

    A class whose name is a part of the expected one's does not count as named.
    """
    named = [name for name in classes if name in reply and not (name in answer and name != answer)]
    return 1 / len(named) if answer in named else 0.0


def longbench(reply: str, sample: Sample) -> float:
    """The best score over the expected answers, by the dataset's own metric."""
    if sample.options.get("first_line"):
        reply = reply.lstrip("\n").split("\n")[0]
    kind = sample.options["kind"]
    if kind == "classes":
        return max(one_class(reply, answer, sample.options["classes"]) for answer in sample.answers)
    scores: dict[str, Callable[[str, str], float]] = {
        "f1": question_f1, "rouge": rouge_l, "number": number_share, "code": code_line,
    }  # fmt: skip
    return max(scores[kind](reply, answer) for answer in sample.answers)


def choice(reply: str, sample: Sample) -> float:
    """1 where the first "The correct answer is (X)", else the first without brackets, is right: LongBench v2."""
    told = reply.replace("*", "")
    found = CHOICES[0].search(told) or CHOICES[1].search(told)
    return float(found is not None and found[1] == sample.answers[0])


def maths_answer(text: str) -> list[Any]:
    r"""What an expected answer means: an expression, or a solution with `\boxed{}`; empty: it cannot be read."""
    from math_verify import parse

    marked = "\\boxed" in text or MATHS_MODE.search(text) is not None
    return list(parse(text if marked else f"\\boxed{{{text}}}", parsing_timeout=MATHS_SECONDS))


def equal_maths(reply: str, sample: Sample) -> float:
    r"""1 where the reply's last expression (`\boxed{}` first) equals the expected one, by the package math-verify."""
    from math_verify import parse, verify

    said = parse(reply, parsing_timeout=MATHS_SECONDS)
    return float(verify(maths_answer(sample.answers[0]), said, timeout_seconds=MATHS_SECONDS))


METRICS: dict[str, Callable[[str, Sample], float]] = {
    "match_all": match_all,
    "match_any": match_any,
    "final_line": final_line,
    "longbench": longbench,
    "choice": choice,
    "maths": equal_maths,
}


def score(reply: str, sample: Sample) -> float:
    """A reply's score in [0, 1]."""
    return METRICS[sample.metric](reply, sample)
