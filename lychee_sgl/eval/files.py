r"""Benchmarks that the user has as files: LongBench v1 and v2, and questions of mathematics (AIME, MATH).

Wordings are the benchmarks' own.

* LongBench v1, JSON lines: `context`, `input`, `answers`, `all_classes`.
* LongBench v2, a JSON list or JSON lines: `context`, `question`, `choice_A` to `choice_D`, `answer`.
* Mathematics, JSON lines: `problem` or `question`, and `answer` (or a `solution` that ends in `\boxed{}`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from lychee_sgl.eval.errors import EvalError
from lychee_sgl.eval.metrics import maths_answer
from lychee_sgl.eval.sample import Sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MATHS_TOKENS: Final = 2048
MATHS_PROMPT: Final = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."
CHOICE_PROMPT: Final = (
    "Please read the following text and answer the question below.\n\n<text>\n{context}\n</text>\n\n"
    "What is the correct answer to this question: {question}\nChoices:\n(A) {a}\n(B) {b}\n(C) {c}\n(D) {d}\n\n"
    'Format your response as follows: "The correct answer is (insert answer here)".'
)
_PASSAGES = (
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "The following are given passages.\n{context}\n\n"
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "Question: {input}\nAnswer:"
)
_UNSURE = (
    'as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based '
    'on the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", '
    '"no", or "unanswerable". Do not provide any explanation.\n\n'
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One dataset of LongBench v1.

    Attributes:
        prompt: its wording.
        max_tokens: longest answer.
        kind: of `lychee_sgl.eval.metrics.longbench`.
        first_line: only the reply's first line counts.
    """

    prompt: str
    max_tokens: int
    kind: str
    first_line: bool = False


DATASETS: Final = {
    "narrativeqa": Dataset(
        prompt="You are given a story, which can be either a novel or a movie script, and a question. Answer the "
        "question asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\n"
        "Story: {context}\n\nNow, answer the question based on the story asconcisely as you can, using a single "
        "phrase if possible. Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:",
        max_tokens=128,
        kind="f1",
    ),
    "qasper": Dataset(
        prompt=f"You are given a scientific article and a question. Answer the question {_UNSURE}Article: {{context}}"
        f"\n\n Answer the question based on the above article {_UNSURE}Question: {{input}}\n\nAnswer:",
        max_tokens=128,
        kind="f1",
    ),
    "multifieldqa_en": Dataset(
        prompt="Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question based "
        "on the above text, only give me the answer and do not output any other words.\n\n"
        "Question: {input}\nAnswer:",
        max_tokens=64,
        kind="f1",
    ),
    "hotpotqa": Dataset(prompt=_PASSAGES, max_tokens=32, kind="f1"),
    "2wikimqa": Dataset(prompt=_PASSAGES, max_tokens=32, kind="f1"),
    "musique": Dataset(prompt=_PASSAGES, max_tokens=32, kind="f1"),
    "gov_report": Dataset(
        prompt="You are given a report by a government agency. Write a one-page summary of the report.\n\n"
        "Report:\n{context}\n\nNow, write a one-page summary of the report.\n\nSummary:",
        max_tokens=512,
        kind="rouge",
    ),
    "qmsum": Dataset(
        prompt="You are given a meeting transcript and a query containing a question or instruction. Answer the query "
        "in one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the above meeting "
        "transcript in one or more sentences.\n\nQuery: {input}\nAnswer:",
        max_tokens=512,
        kind="rouge",
    ),
    "multi_news": Dataset(
        prompt="You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\n"
        "Now, write a one-page summary of all the news.\n\nSummary:",
        max_tokens=512,
        kind="rouge",
    ),
    "trec": Dataset(
        prompt="Please determine the type of the question below. Here are some examples of questions.\n\n"
        "{context}\n{input}",
        max_tokens=64,
        kind="classes",
        first_line=True,
    ),
    "triviaqa": Dataset(
        prompt="Answer the question based on the given passage. Only give me the answer and do not output any other "
        "words. The following are some examples.\n\n{context}\n\n{input}",
        max_tokens=32,
        kind="f1",
        first_line=True,
    ),
    "samsum": Dataset(
        prompt="Summarize the dialogue into a few short sentences. The following are some examples.\n\n"
        "{context}\n\n{input}",
        max_tokens=128,
        kind="rouge",
        first_line=True,
    ),
    "passage_count": Dataset(
        prompt="There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please "
        "carefully read these paragraphs and determine how many unique paragraphs there are after removing "
        "duplicates. In other words, how many non-repeating paragraphs are there in total?\n\n{context}\n\n"
        "Please enter the final count of unique paragraphs after removing duplicates. The output format should only "
        "contain the number, such as 1, 2, 3, and so on.\n\nThe final answer is: ",
        max_tokens=32,
        kind="number",
    ),
    "passage_retrieval_en": Dataset(
        prompt="Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the "
        "abstract is from.\n\n{context}\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the number of "
        'the paragraph that the abstract is from. The answer format must be like "Paragraph 1", "Paragraph 2", etc.'
        "\n\nThe answer is: ",
        max_tokens=32,
        kind="number",
    ),
    "lcc": Dataset(
        prompt="Please complete the code given below. \n{context}Next line of code:\n", max_tokens=64, kind="code"
    ),
    "repobench-p": Dataset(
        prompt="Please complete the code given below. \n{context}{input}Next line of code:\n",
        max_tokens=64,
        kind="code",
    ),
}
"""The English datasets and the code; the Chinese ones want a segmenter of Chinese and are left out."""


def file_samples(name: str, path: Path, *, max_tokens: int | None) -> list[Sample]:
    """All samples of a file, uncut.

    Args:
        name: `longbench/DATASET`, `longbench2` or `maths`.
        path: the file.
        max_tokens: longest answer; None: the benchmark's own.

    Raises:
        EvalError: the name is unknown, the package that scores it is not installed, the file is missing, or a field is.
    """
    make = _maker(name)
    _installed(name)
    samples = []
    for number, row in enumerate(_rows(name, path)):
        try:
            values = make(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise EvalError(f"{name}: entry {number + 1} of {path} lacks the field {error}") from error
        except ValueError as error:
            raise EvalError(f"{name}: entry {number + 1} of {path}: {error}") from error
        if max_tokens is not None:
            values["max_tokens"] = max_tokens
        samples.append(Sample(task=name, length=0, number=number, prefix="", **values))
    return samples


def _installed(name: str) -> None:
    """Scoring comes last; what it needs must be known to be there first."""
    kind, _, dataset = name.partition("/")
    rouge = kind == "longbench" and DATASETS[dataset].kind == "rouge"
    package = "rouge_score" if rouge else "math_verify" if name == "maths" else None
    if package is not None and find_spec(package) is None:
        raise EvalError(f"{name} is scored by the package {package}, which is missing: pip install 'lychee-sgl[eval]'")


def _maker(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    if name == "maths":
        return _maths
    if name == "longbench2":
        return _choice
    kind, _, dataset = name.partition("/")
    if kind == "longbench" and dataset in DATASETS:
        return lambda row: _longbench(DATASETS[dataset], row)
    raise EvalError(f"task is {name!r}; allowed of LongBench: {', '.join(f'longbench/{known}' for known in DATASETS)}")


def _rows(name: str, path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if text.lstrip().startswith("[") else [*map(json.loads, filter(None, text.split("\n")))]
    except (OSError, ValueError) as error:
        raise EvalError(f"{name} needs a file of samples: {path}: {error}") from error
    if not rows:
        raise EvalError(f"{name}: {path} is empty")
    return list(rows)


def _longbench(dataset: Dataset, row: dict[str, Any]) -> dict[str, Any]:
    options = {"kind": dataset.kind, "first_line": dataset.first_line}
    if dataset.kind == "classes":
        options["classes"] = _texts(row, "all_classes")
    return {
        "prompt": dataset.prompt.format(context=row["context"], input=row["input"]),
        "answers": tuple(_texts(row, "answers")),
        "metric": "longbench",
        "max_tokens": dataset.max_tokens,
        "options": options,
    }


def _texts(row: dict[str, Any], field: str) -> list[str]:
    """A field that has to be a list of strings, one or more: of a bare string every letter would be an answer."""
    value = row[field]
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{field} is {value!r}; allowed: a list of one string or more")
    return value


def _choice(row: dict[str, Any]) -> dict[str, Any]:
    if row["answer"] not in tuple("ABCD"):
        raise ValueError(f"answer is {row['answer']!r}; allowed: A, B, C, D")
    letters = {letter.lower(): row[f"choice_{letter}"].strip() for letter in "ABCD"}
    return {
        "prompt": CHOICE_PROMPT.format(context=row["context"].strip(), question=row["question"].strip(), **letters),
        "answers": (row["answer"],),
        "metric": "choice",
        "max_tokens": 128,
    }


def _maths(row: dict[str, Any]) -> dict[str, Any]:
    problem = row["problem"] if "problem" in row else row["question"]
    answer = str(row["answer"] if "answer" in row else row["solution"])
    if not maths_answer(answer):
        raise ValueError(f"answer is {answer!r}; allowed: an expression that math-verify can read")
    return {
        "prompt": MATHS_PROMPT.format(problem=problem),
        "answers": (answer,),
        "metric": "maths",
        "max_tokens": MATHS_TOKENS,
    }
