"""A question over a document, answered dense and sparse."""

from __future__ import annotations

import threading
from collections import defaultdict

import pytest
from playwright.sync_api import expect

from tests.gateway.browser.conftest import READING_TOKENS, answers, figure, stream, write
from tests.gateway.scripted_engine import Script, wait_until

NOTHING = "\N{EN DASH}"


def budgets(engine):
    return [(body.get("custom_params") or {}).get("lychee_budget") for body in engine.bodies]


@pytest.fixture
def gates():
    """Events by budget that answers wait for; all are set in the end."""
    events = defaultdict(threading.Event)
    yield events
    for event in events.values():
        event.set()


def held(reply, gates):
    """Answers that stop after their first word until their gate opens: a time between tokens on any machine."""

    def pieces(body):
        events = reply(body)
        if body["max_tokens"] > READING_TOKENS:
            events.insert(2, gates[body["custom_params"]["lychee_budget"]])
        return events

    return pieces


def let_answer(tab, pane, gate):
    expect(tab.locator(f"#{pane} .answer")).to_have_text("The")
    gate.set()


def milliseconds(tab, pane, name):
    number, unit = figure(tab, pane, name).inner_text().split("\u00a0")
    return float(number) * {"ms": 1, "s": 1000}[unit]


def test_both_panes_fill_and_are_compared(tab, engine, gates):
    engine.script.reply = held(answers, gates)
    engine.script.pause = 0.02
    write(tab)
    tab.get_by_role("button", name="Ask both").click()
    for pane, budget in (("dense", "dense"), ("sparse", 1024)):
        let_answer(tab, pane, gates[budget])
        expect(tab.locator(f"#{pane} .answer")).to_have_text("The code is 1234567.")
        expect(tab.locator(f"#{pane} .phase")).to_have_text("done")
        expect(figure(tab, pane, "tokens")).to_have_text("6")
        expect(figure(tab, pane, "context")).to_have_text("3,005")
        # two pauses come before the first piece of text
        assert milliseconds(tab, pane, "first") >= 40
        assert milliseconds(tab, pane, "token") > 0
    expect(figure(tab, "dense", "attended")).to_have_text("100\u00a0%")
    expect(figure(tab, "dense", "recall")).to_have_text("all of it")
    expect(tab.locator("#dense [data-bar=recall]")).to_have_attribute("width", "100")
    expect(figure(tab, "sparse", "attended")).to_have_text("25.0\u00a0%")
    expect(figure(tab, "sparse", "recall")).to_have_text("97.1\u00a0%")
    expect(figure(tab, "dense", "budget")).to_have_text("dense")
    expect(figure(tab, "sparse", "budget")).to_have_text("1,024 tokens (as asked)")
    expect(tab.locator("#verdict")).to_have_text("Yes, word for word.")
    ratio = milliseconds(tab, "dense", "token") / milliseconds(tab, "sparse", "token")
    assert float(tab.locator("#ratio").inner_text().removesuffix(" : 1")) == pytest.approx(ratio, rel=0.1, abs=0.006)
    expect(tab.locator("#runs-rows tr")).to_have_count(1)
    expect(tab.locator("#size")).to_have_text("3,000 tokens")
    # once to read the document, then dense, then sparse: greedy, the same prompt
    assert budgets(engine) == [1024, "dense", 1024]
    assert [body["max_tokens"] for body in engine.bodies] == [READING_TOKENS, 48, 48]
    assert {body["messages"][0]["content"] for body in engine.bodies} == {"The code is 1234567.\n\nWhat is the code?"}
    assert {(body["temperature"], body["model"], body["stream"]) for body in engine.bodies} == {(0, "tiny", True)}


def test_one_click_tries_an_example_and_checks_the_fact(tab):
    tab.get_by_label("of about").select_option("1500")
    tab.get_by_role("button", name="Try it with an example").click()
    expect(tab.locator("#verdict")).to_contain_text("Both give it.")
    text = tab.get_by_label("Document", exact=True).input_value()
    assert 5_500 < len(text) < 8_000
    # the fact's entry stays; an edit of it makes the text the user's own
    write(tab, "Something else: 7654321.")
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.locator("#dense .answer")).to_have_text("The code is 7654321.")
    expect(tab.locator("#verdict")).to_have_text("Yes, word for word.")


def test_an_example_does_not_lose_the_users_text(tab):
    write(tab, "mine", "whose?")
    tab.get_by_role("button", name="Try it with an example").click()
    expect(tab.locator("#runs-rows tr")).to_have_count(1)
    tab.get_by_role("button", name="Bring my text back").click()
    expect(tab.get_by_label("Document", exact=True)).to_have_value("mine")
    expect(tab.get_by_label("Question", exact=True)).to_have_value("whose?")
    expect(tab.locator("#restore")).to_be_hidden()


def test_a_file_becomes_the_document(tab):
    file = {"name": "a.log", "mimeType": "text/plain", "buffer": "Zeile für Zeile".encode()}
    tab.locator("#file").set_input_files(file)
    expect(tab.get_by_label("Document", exact=True)).to_have_value("Zeile für Zeile")


def test_the_slider_sets_the_budget(tab, engine):
    write(tab)
    slider, number = tab.get_by_label("Tokens that a sparse head may read"), tab.get_by_label("Budget in tokens")
    expect(number).to_have_value("1024")  # the plan's default
    slider.focus()
    for key, tokens in (("ArrowLeft", "768"), ("ArrowLeft", "512"), ("End", "8192"), ("Home", "64")):
        slider.press(key)
        expect(number).to_have_value(tokens)
    assert slider.get_attribute("aria-valuetext") == "64 tokens"
    box = slider.bounding_box()
    tab.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.up()
    expect(number).to_have_value("768")  # the eighth of fifteen stops
    number.fill("700")
    tab.get_by_role("button", name="Ask sparse only").click()
    expect(figure(tab, "sparse", "budget")).to_have_text("700 tokens (as asked)")
    expect(tab.locator("#sparse .what")).to_have_text("budget: 700 tokens")
    slider.press("End")  # the pane goes on saying what was asked
    expect(tab.locator("#sparse .what")).to_have_text("budget: 700 tokens")
    assert budgets(engine) == [700, 700]


@pytest.mark.parametrize(
    ("choice", "sent", "hint"),
    [
        ("auto", {"lychee_budget": "auto"}, "Such a request would get 512 tokens now (a share of the prompt)."),
        ("default", None, "Such a request would get 1,024 tokens now (the default)."),
    ],
)
def test_budgets_that_are_no_number(tab, engine, choice, sent, hint):
    write(tab, "long " * 2000)
    tab.get_by_label(choice, exact=True).check()
    expect(tab.locator("#budget-hint")).to_have_text(hint)
    tab.get_by_role("button", name="Ask sparse only").click()
    expect(tab.locator("#sparse .phase")).to_have_text("done")
    assert engine.bodies[-1].get("custom_params") == sent


def test_a_recall_can_be_asked_for(tab, engine):
    write(tab, "long " * 2000)
    tab.get_by_label("Least recall").fill("0.9")
    expect(tab.get_by_label("recall of at least")).to_be_checked()
    expect(tab.locator("#budget-hint")).to_contain_text("now (for the recall asked).")
    forecast = tab.locator("#budget-hint").inner_text()
    tab.get_by_text("More settings").click()
    expect(tab.get_by_label("Selection")).to_be_disabled()
    tab.get_by_role("button", name="Ask sparse only").click()
    expect(tab.locator("#sparse .phase")).to_have_text("done")
    expect(figure(tab, "sparse", "budget")).to_contain_text("(for the recall asked)")
    expect(tab.locator("#runs-rows td").first).to_have_text("recall \N{GREATER-THAN OR EQUAL TO} 0.9")
    # the forecast is for the page's estimate of the length, what was sent for the gateway's
    words = forecast.removeprefix("Such a request would get ").split(" tokens")[0]
    assert int(words.replace(",", "")) == pytest.approx(engine.bodies[0]["custom_params"]["lychee_budget"], rel=0.2)


def test_other_modes_carry_their_value(tab, engine):
    write(tab)
    tab.get_by_text("More settings").click()
    tab.get_by_label("Selection").select_option("top_p")
    tab.get_by_label("Its value").fill("0.95")
    tab.get_by_role("button", name="Ask sparse only").click()
    expect(tab.locator("#sparse .phase")).to_have_text("done")
    assert engine.bodies[-1]["custom_params"] == {"lychee_budget": 1024, "lychee_mode": "top_p", "lychee_value": 0.95}


def test_tokens_show_while_the_answer_is_still_coming(tab, engine):
    reading, answering = threading.Event(), threading.Event()
    engine.script = Script(gate=reading, reply=answers)
    write(tab)
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.locator("#dense .phase")).to_have_text("waiting: the document is being read")
    wait_until(lambda: len(engine.bodies) == 1)
    engine.script = Script(gate=answering, reply=lambda body: answers(body)[:4])  # the last piece is " is"
    reading.set()
    expect(tab.locator("#dense .answer")).to_have_text("The code")
    expect(tab.locator("#dense .phase")).to_have_text("answering")
    expect(tab.locator("#sparse .phase")).to_have_text("waiting for its turn")
    assert len(engine.bodies) == 2
    answering.set()
    expect(tab.locator("#dense .answer")).to_have_text("The code is")


def test_asked_at_once_both_are_under_way(tab, engine):
    write(tab)
    tab.get_by_text("More settings").click()
    tab.get_by_label("Order").select_option("together")
    engine.script.reply = lambda body: (
        answers(body) if body["max_tokens"] == READING_TOKENS else [*answers(body)[:3], None]
    )
    tab.get_by_role("button", name="Ask both").click()
    for pane in ("dense", "sparse"):
        expect(tab.locator(f"#{pane} .answer")).to_have_text("The code")
        expect(tab.locator(f"#{pane} .phase")).to_have_text("answering")


def test_stopping_one_answer_aborts_it_and_lets_the_other_run(tab, engine):
    def reply(body):
        dense = body["custom_params"]["lychee_budget"] == "dense"
        return [*answers(body)[:3], None] if dense else answers(body)

    engine.script.reply = reply
    write(tab)
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.locator("#dense .answer")).to_have_text("The code")
    tab.get_by_role("button", name="Stop the dense answer").click()
    expect(tab.locator("#dense .phase")).to_have_text("stopped")
    expect(tab.locator("#dense .answer")).to_have_text("The code")
    expect(tab.locator("#sparse .answer")).to_have_text("The code is 1234567.")
    expect(tab.locator("#ratio")).to_have_text(NOTHING)
    wait_until(lambda: [rid for rid, _ in engine.aborts] == [engine.bodies[1]["rid"]])


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop_aborts_everything(tab, engine, gateway, way):
    engine.script.reply = lambda body: [*answers(body)[:2], None]
    write(tab)
    tab.get_by_role("button", name="Ask both").click()
    wait_until(lambda: len(engine.bodies) == 1)
    if way == "button":
        tab.get_by_role("button", name="Stop", exact=True).click()
    else:
        tab.keyboard.press("Escape")
    for pane in ("dense", "sparse"):
        expect(tab.locator(f"#{pane} .phase")).to_have_text("stopped")
    wait_until(lambda: len(engine.aborts) == 1)
    assert len(engine.bodies) == 1
    assert gateway.total("lychee_client_disconnects_total") == 1
    expect(tab.get_by_role("button", name="Ask both")).to_be_enabled()


def test_sparse_again_is_held_against_the_dense_answer_of_the_same_text_only(tab, engine, gates):
    engine.script.reply = held(answers, gates)
    write(tab)
    tab.get_by_role("button", name="Ask both").click()
    for pane, budget in (("dense", "dense"), ("sparse", 1024)):
        let_answer(tab, pane, gates[budget])
    expect(tab.locator("#verdict")).to_have_text("Yes, word for word.")
    read = tab.locator("#read-time").inner_text()
    gates[1024].clear()
    engine.script.reply = held(lambda _: stream(["The", " code", " was", " lost."], budget=256), gates)
    tab.get_by_role("button", name="Ask sparse only").click()
    let_answer(tab, "sparse", gates[1024])
    expect(tab.locator("#verdict")).to_have_text("They part at word 3.")
    expect(tab.locator("#ratio")).to_contain_text(" : 1")
    assert tab.locator("#read-time").inner_text() == read  # this time it was in the cache
    write(tab, "Another text.")
    tab.get_by_role("button", name="Ask sparse only").click()
    expect(tab.locator("#runs-rows tr")).to_have_count(3)
    expect(tab.locator("#verdict")).to_have_text(NOTHING)
    expect(tab.locator("#dense .answer")).to_have_text("")


def test_a_long_answer_is_shown_whole_with_a_strip_of_bounded_size(tab, engine):
    words = [f"word{number} " for number in range(1000)]
    engine.script.reply = lambda body: stream(words[: body["max_tokens"]], budget=1024)
    write(tab)
    tab.get_by_text("More settings").click()
    tab.get_by_label("Longest answer").fill("1000")
    tab.get_by_role("button", name="Ask sparse only").click()
    expect(tab.locator("#sparse .phase")).to_have_text("done")
    expect(tab.locator("#sparse .answer")).to_have_text("".join(words).strip())
    expect(tab.locator("#sparse .gaps rect")).to_have_count(143)  # 999 gaps, 7 in a bar
    expect(tab.locator("#sparse figcaption")).to_contain_text("7 in a bar")


def test_reasoning_is_shown_apart(tab, engine):
    def reply(body):
        first, *rest = answers(body)
        thought = first.replace(b'"content": ""', b'"content": null, "reasoning_content": "Let me see."')
        return [thought, *rest]

    engine.script.reply = reply
    write(tab)
    tab.get_by_role("button", name="Ask sparse only").click()
    expect(tab.locator("#sparse .reasoning")).to_have_text("Let me see.")
    expect(tab.locator("#sparse .answer")).to_have_text("The code is 1234567.")


def test_charts_follow_the_gateways_metrics(tab):
    chart = tab.locator(".chart:visible")
    expect(chart).to_have_count(6)  # without a speed curve none of the speedup
    write(tab)
    tab.get_by_role("button", name="Ask both").click()
    recall = chart.filter(has_text="Recall and attended share")
    expect(recall.locator(".value").first).to_have_text("97.1\u00a0% recall, mean")
    # read: 25 %, dense: 100 %, sparse: 25 %
    expect(recall.locator(".value").nth(1)).to_have_text("50.0\u00a0% attended, mean")
    assert recall.locator("svg").get_attribute("aria-label").startswith("Recall and attended share, last 1 min")
    budget = chart.filter(has_text="Budget in force")
    expect(budget.locator(".value").first).to_have_text("1,024 tokens, mean")
    expect(budget.locator("path.line")).to_have_count(1)
    tab.get_by_role("button", name="Pause").click()
    expect(tab.get_by_role("button", name="Go on")).to_have_attribute("aria-pressed", "true")
