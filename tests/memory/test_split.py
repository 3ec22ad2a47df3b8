"""Which text is the document and which the question; what is unclear is refused by name."""

from __future__ import annotations

import pytest

from lychee_sgl.memory.settings import MemoryRequest, ReadSettings, check_fits, fit
from lychee_sgl.memory.split import Refused, take_apart

DOCUMENT = "First paragraph.\n\nSecond one."


def user(*texts: str) -> dict[str, object]:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": f"{DOCUMENT}\n\nWho?"}],
        [{"role": "user", "content": f"Who?\n \n{DOCUMENT}"}],
        [user(DOCUMENT, "Who?")],
        [user("Who?", DOCUMENT)],
        [user(DOCUMENT), user("Who?")],
        [user(DOCUMENT, " "), {"role": "user", "content": "Who?"}],
    ],
)
def test_document_and_question(messages) -> None:
    chat = take_apart(messages)
    assert (chat.document, chat.question, chat.system) == (DOCUMENT, "Who?", ())


def test_a_question_in_two_parts_and_system_messages() -> None:
    chat = take_apart(
        [{"role": "system", "content": "Be brief."}, user("Read this.", DOCUMENT), {"role": "user", "content": "Who?"}]
    )
    assert (chat.document, chat.question, chat.system) == (DOCUMENT, "Read this.\n\nWho?", ("Be brief.",))


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([user("One paragraph alone.")], "messages", "it is not clear what is the document"),
        ([], "messages", "it is not clear"),
        ([user(DOCUMENT), {"role": "assistant", "content": "x"}], "messages[1].role", "'assistant'; allowed"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content", "is no text"),
        ([{"role": "user", "content": None}], "messages[0].content", "is no text"),
    ],
)
def test_what_is_unclear_is_refused(messages, param: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        take_apart(messages)
    assert refused.value.param == param


def test_what_a_request_asks_for() -> None:
    params = {"lychee_memory": "text", "lychee_chunk": 512, "lychee_budget": 64, "own": 1}
    assert MemoryRequest.from_custom_params(params) == MemoryRequest(mode="text", chunk=512)
    assert MemoryRequest.strip(params) == {"lychee_budget": 64, "own": 1}
    assert MemoryRequest.strip({"lychee_memory": "off"}) is None
    assert MemoryRequest.from_custom_params(None) == MemoryRequest()


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"lychee_memory": "best"}, "lychee_memory is 'best', allowed: 'text', 'compressed', 'off'"),
        ({"lychee_memory": "text", "lychee_chunk": 63}, "lychee_chunk is 63, allowed: a whole number from 64"),
        ({"lychee_memory": "text", "lychee_chunk": True}, "lychee_chunk is True"),
        ({"lychee_memory": "text", "lychee_working_memory": 1.5}, "lychee_working_memory is 1.5"),
        ({"lychee_chunk": 512}, "lychee_chunk is 512, allowed: only with lychee_memory"),
        ({"lychee_memory": "off", "lychee_working_memory": 64}, "only with lychee_memory"),
    ],
)
def test_what_a_request_may_not_ask_for(params, words: str) -> None:
    with pytest.raises(Refused, match=words):
        MemoryRequest.from_custom_params(params)


def test_defaults_fit_the_window() -> None:
    assert fit(MemoryRequest(), 8192) == (4096, 1024)
    assert fit(MemoryRequest(), 131_072) == (4096, 1024)
    assert fit(MemoryRequest(), 2048) == (1024, 256)
    assert fit(MemoryRequest(chunk=100, working_memory=50), 8192) == (100, 50)


def test_what_does_not_fit_is_refused_with_all_numbers() -> None:
    # 1000 notes and an eighth, 100 of frame, 64 of quote: 2048 - 1289 = 759 are left
    check_fits(ReadSettings(chunk=759, working_memory=1000), window=2048, frame=100)
    with pytest.raises(
        Refused, match=r"lychee_chunk is 760, allowed: up to 759 beside lychee_working_memory 1000 and 100"
    ):
        check_fits(ReadSettings(chunk=760, working_memory=1000), window=2048, frame=100)
