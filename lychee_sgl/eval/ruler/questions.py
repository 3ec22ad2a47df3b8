"""`qa_1` and `qa_2`: questions of SQuAD and HotpotQA among documents that do not answer them, from a user's file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final

from lychee_sgl.eval.errors import EvalError
from lychee_sgl.eval.fit import Recipe, Request
from lychee_sgl.eval.sample import Text

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE: Final = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\n{context}\n\n"
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {query}"
)
PREFIX: Final = " Answer:"
STEP: Final = 10
SOURCES: Final = {
    "qa_1": "SQuAD 2.0's dev-v2.0.json",
    "qa_2": "HotpotQA's hotpot_dev_distractor_v1.json",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question.

    Attributes:
        text: the question.
        answers: any of them is right.
        documents: numbers of those that belong to it.
        near: numbers of documents of the same article, which are taken first to fill up.
    """

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    near: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """A file's questions and documents."""

    asked: tuple[Question, ...]
    documents: tuple[str, ...]


def question_recipe(name: str, path: Path) -> Recipe:
    """The task over a file.

    Args:
        name: `qa_1` (SQuAD) or `qa_2` (HotpotQA).
        path: the file as its authors publish it.

    Raises:
        EvalError: the file is missing or has another form.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        questions = _squad(data) if name == "qa_1" else _hotpot(data)
    except OSError as error:
        raise EvalError(f"{name} needs {SOURCES[name]}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise EvalError(f"{name}: {path} is not {SOURCES[name]}: {type(error).__name__} {error}") from error
    if not questions.asked:
        raise EvalError(f"{name}: {path} has no question that can be answered")
    return Recipe(
        name=name,
        summary=f"a question among documents ({SOURCES[name].split(chr(39))[0]}), from your file",
        metric="match_any",
        max_tokens=32,
        build=partial(_build, questions),
        step=lambda length: STEP,
    )


def _squad(data: Any) -> Questions:
    articles = data["data"]
    documents = sorted({part["context"] for article in articles for part in article["paragraphs"]})
    place = {document: number for number, document in enumerate(documents)}
    asked = []
    for article in articles:
        near = [place[part["context"]] for part in article["paragraphs"]]
        for part in article["paragraphs"]:
            own = place[part["context"]]
            asked += [
                Question(
                    text=question["question"],
                    answers=tuple(answer["text"] for answer in question["answers"]),
                    documents=(own,),
                    near=tuple(number for number in near if number != own),
                )
                for question in part["qas"]
                if not question.get("is_impossible", False)
            ]
    return Questions(asked=tuple(asked), documents=tuple(documents))


def _hotpot(data: Any) -> Questions:
    def named(title: str, lines: list[str]) -> str:
        return f"{title}\n{''.join(lines)}"

    documents = sorted({named(*document) for entry in data for document in entry["context"]})
    place = {document: number for number, document in enumerate(documents)}
    asked = tuple(
        Question(
            text=entry["question"],
            answers=(entry["answer"],),
            documents=tuple(place[named(*document)] for document in entry["context"]),
        )
        for entry in data
    )
    return Questions(asked=asked, documents=tuple(documents))


def _build(questions: Questions, request: Request) -> Text:
    if request.number >= len(questions.asked):
        raise EvalError(f"samples is more than {request.number}; allowed: the file's {len(questions.asked)} questions")
    question = questions.asked[max(0, request.number)]
    total = len(questions.documents)
    if request.size < total:
        own, near = list(question.documents), list(question.near)
        missing = request.size - len(own)
        if missing > len(near):
            known = {*own, *near}
            others = [number for number in range(total) if number not in known]
            chosen = own + near + request.draw.sample(others, missing - len(near))
        else:
            chosen = own + request.draw.sample(near, max(0, missing))
    else:
        chosen = [number % total for number in range(request.size)]
    Random(request.seed).shuffle(chosen)
    context = "\n\n".join(f"Document {place}:\n{questions.documents[number]}" for place, number in enumerate(chosen, 1))
    return Text(prompt=TEMPLATE.format(context=context, query=question.text), prefix=PREFIX, answers=question.answers)
