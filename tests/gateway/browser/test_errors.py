"""What the page says when something is wrong."""

from __future__ import annotations

import threading

import pytest
from playwright.sync_api import expect

from tests.gateway.browser.conftest import READING_TOKENS, answers, write
from tests.gateway.scripted_engine import Broken, Script, wait_until


def test_nothing_is_asked_without_a_question(tab, engine):
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.get_by_role("alert")).to_have_text("Write a question first, or try the example.")
    expect(tab.get_by_label("Question", exact=True)).to_have_attribute("aria-invalid", "true")
    assert engine.bodies == []


@pytest.mark.parametrize(
    ("label", "typed", "words"),
    [
        ("Budget in tokens", "99999", "lychee.budget is 99999; allowed: an integer from 1 to 8192"),
        ("Budget in tokens", "12.5", "lychee.budget is 12.5; allowed: an integer from 1 to 8192"),
        ("Budget in tokens", "", 'lychee.budget is ""; allowed: an integer from 1 to 8192'),
        ("Its value", "2", 'lychee.value is 2; allowed: a number above 0 and up to 1 (mode "ratio")'),
    ],
)
def test_a_wrong_field_is_named_before_anything_is_computed(tab, engine, label, typed, words):
    write(tab)
    tab.get_by_text("More settings").click()
    if label == "Its value":
        tab.get_by_label("Selection").select_option("ratio")
    tab.get_by_label(label).fill(typed)
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.get_by_role("alert")).to_contain_text(f"The request was refused: {words}")
    expect(tab.get_by_label(label)).to_have_attribute("aria-invalid", "true")
    expect(tab.locator("#dense .phase")).to_have_text("failed")
    assert engine.bodies == []
    tab.get_by_label(label).fill("1")
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.locator("#sparse .phase")).to_have_text("done")
    expect(tab.locator("#notice")).to_be_hidden()
    expect(tab.locator("[aria-invalid]")).to_have_count(0)


def test_on_a_phone_a_refusal_comes_into_view(open_tab, gateway, engine):
    tab = open_tab(gateway, viewport={"width": 390, "height": 844})
    write(tab)
    tab.get_by_label("Budget in tokens").fill("99999")
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.get_by_role("alert")).to_be_in_viewport(ratio=1)
    expect(tab.get_by_role("button", name="Stop the dense answer")).to_have_count(0)  # nothing runs


def test_a_busy_engine_says_when_to_try_again(tab, engine):
    engine.script.status = 503
    engine.script.answer = {"message": "the queue is full", "type": "x", "code": 503}
    write(tab)
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.get_by_role("alert")).to_contain_text(
        "The engine cannot answer now: the queue is full. Try again in 5 s. Request "
    )


def test_too_many_requests_say_when_to_try_again(open_tab, start_gateway, engine):
    engine.script = Script(gate=threading.Event())
    gateway = start_gateway(max_concurrency=1, max_queue=0)
    tab = open_tab(gateway)
    write(tab)
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    with gateway.http.stream("POST", "/v1/chat/completions", json=body):
        tab.get_by_role("button", name="Ask both").click()
        expect(tab.get_by_role("alert")).to_contain_text("Too many requests at the moment: ")
        expect(tab.get_by_role("alert")).to_contain_text("Try again in 5 s.")
    assert len(engine.bodies) == 1


def test_a_stream_that_breaks_keeps_its_text(tab, engine):
    engine.script.reply = lambda body: (
        answers(body) if body["max_tokens"] == READING_TOKENS else [*answers(body)[:3], Broken()]
    )
    write(tab)
    tab.get_by_role("button", name="Ask sparse only").click()
    expect(tab.locator("#sparse .problem")).to_contain_text("The answer broke off: the connection to the engine broke")
    expect(tab.locator("#sparse .answer")).to_have_text("The code")
    expect(tab.get_by_role("alert")).to_contain_text("Sparse: The answer broke off")


def test_an_engine_that_is_not_there_is_said_and_noticed_when_it_comes(open_tab, start_gateway, engine):
    engine.health = 503
    engine.script.reply = answers
    tab = open_tab(start_gateway(wait=False), ready=False)
    expect(tab.locator("#engine")).to_have_attribute("data-state", "away")
    expect(tab.locator("#engine")).to_contain_text("The engine cannot answer now: the engine is not ready")
    write(tab)
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.get_by_role("alert")).to_contain_text("The engine cannot answer now")
    engine.health = 200
    expect(tab.locator("#engine")).to_contain_text("Ready: tiny, window 8,192 tokens")
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.locator("#sparse .phase")).to_have_text("done")


def test_a_gateway_that_has_gone_is_said(tab, gateway):
    write(tab)
    gateway.server.kill()
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.get_by_role("alert")).to_contain_text("The gateway cannot be reached. Is it still running?")
    expect(tab.locator("#engine")).to_have_attribute("data-state", "away")
    expect(tab.locator("#live-hint")).to_contain_text("The charts stand still")


def test_the_key_goes_with_every_request_and_stays_in_the_tab(tab, engine):
    sent = []
    tab.on("request", lambda request: sent.append((request.url, request.headers.get("authorization"))))
    write(tab)
    tab.get_by_text("API key", exact=True).click()
    tab.get_by_label("Key, if this gateway asks for one").fill("secret")
    tab.get_by_label("Key, if this gateway asks for one").blur()
    tab.get_by_role("button", name="Ask sparse only").click()
    expect(tab.locator("#sparse .phase")).to_have_text("done")
    assert {key for url, key in sent if url.endswith("/completions")} == {"Bearer secret"}
    assert tab.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    tab.reload()
    expect(tab.locator("#key")).to_have_value("secret")
    tab.locator("#key").evaluate("(input) => { input.value = ''; input.dispatchEvent(new Event('change')); }")
    assert tab.evaluate("sessionStorage.length") == 0
    assert all("authorization" not in headers for headers in engine.headers)


def test_a_missing_key_is_asked_for(open_tab, start_gateway, engine):
    engine.script.reply = answers
    gateway = start_gateway(api_key="the-right-key-of-this-test")
    tab = open_tab(gateway, ready=False)
    expect(tab.locator("#engine")).to_have_attribute("data-state", "locked")
    write(tab)
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.get_by_role("alert")).to_contain_text("This gateway asks for an API key: ")
    field = tab.get_by_label("Key, if this gateway asks for one")
    expect(field).to_be_visible()
    expect(field).to_have_attribute("aria-invalid", "true")
    field.fill("a-wrong-key-of-this-test")
    field.press("Enter")
    expect(tab.get_by_role("alert")).to_contain_text("This gateway asks for an API key: ")
    field.fill("the-right-key-of-this-test")
    field.press("Enter")
    expect(tab.locator("#sparse .phase")).to_have_text("done")
    expect(tab.locator("#engine")).to_have_attribute("data-state", "ready")


def test_markup_in_an_answer_stays_text(tab, engine):
    engine.script.reply = lambda body: [
        event.replace(b" code", b" <img src=x onerror=alert(1)>") if isinstance(event, bytes) else event
        for event in answers(body)
    ]
    write(tab)
    tab.get_by_role("button", name="Ask sparse only").click()
    expect(tab.locator("#sparse .answer")).to_have_text("The <img src=x onerror=alert(1)> is 1234567.")
    assert tab.locator("#sparse .answer img").count() == 0
    wait_until(lambda: len(engine.bodies) == 2)
