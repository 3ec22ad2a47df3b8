"""The page without a mouse, without sight, on a phone, in the dark, without motion."""

from __future__ import annotations

import itertools

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.gateway.browser.conftest import DESKTOP, answers, stream, write

PHONE = {"width": 390, "height": 844}
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


def violations(tab):
    found = Axe().run(tab, options=RULES).response["violations"]
    return [(rule["id"], node["html"]) for rule in found for node in rule["nodes"]]


@pytest.mark.parametrize(
    ("scheme", "viewport"), [("light", DESKTOP), ("dark", PHONE)], ids=["light desktop", "dark phone"]
)
def test_axe_finds_nothing(open_tab, gateway, engine, scheme, viewport):
    engine.script.reply = answers
    tab = open_tab(gateway, color_scheme=scheme, viewport=viewport)
    assert violations(tab) == []
    for details in ("More settings", "API key"):
        tab.get_by_text(details, exact=True).click()
    write(tab)
    tab.get_by_label("Budget in tokens").fill("99999")
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.get_by_role("alert")).to_be_visible()
    assert violations(tab) == []
    tab.get_by_label("Budget in tokens").fill("256")
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.locator("#runs-rows tr")).to_have_count(1)
    assert violations(tab) == []


def test_keyboard_alone_asks_moves_the_slider_and_stops(tab, engine):
    def focused():
        return tab.evaluate("(({id, value, textContent}) => id || value || textContent.trim())(document.activeElement)")

    order = []
    for _ in range(16):
        tab.keyboard.press("Tab")
        order.append(focused())
    assert order == [
        "Skip to the answers", "API", "Metrics", "document", "file", "try", "example-length", "question",
        "tokens", "min-recall", "budget-slider", "budget-number", "both", "sparse-only", "More settings", "API key",
    ]  # fmt: skip
    for _ in range(12):
        tab.keyboard.press("Shift+Tab")
    tab.keyboard.type("The code is 1234567.")
    for _ in range(4):
        tab.keyboard.press("Tab")
    tab.keyboard.type("What is the code?")
    for _ in range(3):
        tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowLeft")
    for _ in range(2):
        tab.keyboard.press("Tab")
    assert focused() == "both"
    tab.keyboard.press("Enter")
    expect(tab.locator("#sparse .answer")).to_have_text("The code is 1234567.")
    expect(tab.locator("#sparse .phase")).to_have_text("done")
    expect(tab.get_by_role("button", name="Ask both")).to_be_focused()
    assert engine.bodies[-1]["custom_params"] == {"lychee_budget": 768}
    engine.script.reply = lambda body: [*answers(body)[:2], None]
    tab.keyboard.press("Control+Enter")
    expect(tab.get_by_role("button", name="Stop", exact=True)).to_be_focused()
    tab.keyboard.press("Enter")
    expect(tab.locator("#sparse .phase")).to_have_text("stopped")
    expect(tab.get_by_role("button", name="Ask both")).to_be_focused()


def test_a_screen_reader_hears_the_answers_and_not_every_token(tab, engine):
    words = [f"word{number} " for number in range(40)]
    engine.script.pause = 0.005
    engine.script.reply = lambda body: stream(words[: body["max_tokens"]], budget=512)
    tab.evaluate(
        """() => {
          window.heard = [];
          const region = document.getElementById("announcer");
          const listen = () => window.heard.push([performance.now(), region.textContent]);
          new MutationObserver(listen).observe(region, {childList: true});
        }"""
    )
    write(tab)
    tab.get_by_role("button", name="Ask both").click()
    expect(tab.locator("#announcer")).to_contain_text("Sparse answer: word0 word1")
    heard = tab.evaluate("window.heard")
    assert heard[0][1] == "Reading the document"
    assert 2 <= len(heard) <= 5
    assert all(later - earlier > 1900 for (earlier, _), (later, _) in itertools.pairwise(heard))
    assert tab.locator(".answer[aria-live]").count() == 0


def test_no_width_needs_scrolling_sideways(tab):
    tab.get_by_role("button", name="Try it with an example").click()
    expect(tab.locator("#runs-rows tr")).to_have_count(1)
    for width in (320, 390, 768, 1280, 2000):
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_a_phone_shows_the_answers_once_asked(open_tab, gateway, engine):
    engine.script.reply = lambda body: [*answers(body)[:2], None]
    tab = open_tab(gateway, viewport=PHONE, has_touch=True, is_mobile=True)
    tab.get_by_role("button", name="Try it with an example").tap()
    expect(tab.locator("#dense")).to_be_in_viewport()


@pytest.mark.parametrize(("wish", "animation"), [("reduce", "none"), ("no-preference", "blink")])
def test_motion_only_for_those_who_do_not_mind(open_tab, gateway, engine, wish, animation):
    engine.script.reply = lambda body: [*answers(body)[:2], None]
    tab = open_tab(gateway, reduced_motion=wish)
    tab.get_by_role("button", name="Try it with an example").click()
    expect(tab.locator("#dense.busy")).to_be_visible()
    style = "getComputedStyle(document.querySelector('#dense .answer'), '::after').animationName"
    assert tab.evaluate(style) == animation
