"""A real Chromium, headless, on the page of a real gateway; the engine is the scripted one."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.gateway.scripted_engine import DONE, SUMMARY, chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.gateway.conftest import RunningGateway
    from tests.gateway.scripted_engine import Piece, ScriptedEngine

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DESKTOP = {"width": 1280, "height": 900}
READING_TOKENS = 2  # of the request that reads the document before the answers
PATIENCE_MS = 10_000  # a loaded machine; what does not happen at all fails a little later

expect.set_options(timeout=PATIENCE_MS)


# For one module, not the session: while it lives, tests that are coroutines cannot run in this thread.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no Chromium here: none of {', '.join(PROGRAMS)} is on PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture
def open_tab(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Open the page of a gateway. Errors of scripts, and anything that the policy blocks, fail the test."""
    problems: list[str] = []
    contexts = []

    def note(message: Any) -> None:
        # A status of 400 and above is a line of the console, and what some tests are about.
        if message.type == "error" and "Failed to load resource" not in message.text:
            problems.append(message.text)

    def start(gateway: RunningGateway, *, ready: bool = True, **options: Any) -> Page:
        context = chromium.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(PATIENCE_MS)
        tab.on("console", note)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(gateway.server.url)
        if ready:
            expect(tab.locator("#engine")).to_have_attribute("data-state", "ready")
        return tab

    yield start
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def tab(open_tab: Callable[..., Page], gateway: RunningGateway, engine: ScriptedEngine) -> Page:
    engine.script.reply = answers
    return open_tab(gateway)


def answers(body: dict[str, Any]) -> list[Piece]:
    """What the engine says: the number in the prompt, with the budget that was asked for in force."""
    asked = (body.get("custom_params") or {}).get("lychee_budget", 1024)
    code = re.search(r"\b\d{7}\b", body["messages"][0]["content"])
    pieces = ["The", " code", " is", f" {code[0]}" if code else " unknown", "."]
    return stream(pieces[: body["max_tokens"]], budget=asked)


def stream(pieces: list[str], *, budget: object) -> list[Piece]:
    """A stream in SGLang's shape: the summary with the finish reason, then the usage."""
    dense = budget == "dense"
    summary = {
        **SUMMARY,
        "budget": budget,
        "mode": None if dense else "topk",
        "attended_fraction": 1.0 if dense else 0.25,
        "recall": None if dense else 0.9712,
        "context_tokens": 3005,
    }
    usage = {"prompt_tokens": 3000, "completion_tokens": len(pieces) + 1, "total_tokens": 3001 + len(pieces)}
    last = json.dumps({"id": "1", "object": "chat.completion.chunk", "choices": [], "usage": usage})
    return [
        chunk({"role": "assistant", "content": ""}),
        *[chunk({"content": piece}) for piece in pieces],
        chunk({}, finish_reason="stop", lychee=summary),
        b"data: " + last.encode() + b"\n\n",
        DONE,
    ]


def figure(tab: Page, pane: str, name: str) -> Any:
    return tab.locator(f"#{pane} [data-figure={name}]")


def write(tab: Page, text: str = "The code is 1234567.", question: str = "What is the code?") -> None:
    tab.get_by_label("Document", exact=True).fill(text)
    tab.get_by_label("Question", exact=True).fill(question)
