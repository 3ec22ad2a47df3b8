"""Takes the README's pictures of the page: `python docs/screenshots.py` beside a running `make serve`.

Needs Chromium on PATH. Asks the built-in example dense and sparse, once more with a smaller budget, waits until the
charts show it, and writes WebP files into docs/images. The figures in them are of that one run.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

FOLDER = Path(__file__).parent / "images"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DESKTOP: dict[str, Any] = {"viewport": {"width": 1320, "height": 900}, "color_scheme": "light"}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "is_mobile": True,
    "has_touch": True,
    "color_scheme": "dark",
}
ANSWER_MS = 10 * 60 * 1000  # a CPU reads 6,000 tokens in half a minute, a busy one in several
CHARTS_MS = 20_000
WEBP_QUALITY = 72
PHONE_HEIGHT = 1180  # of the picture: both panes
PHONE_SCALE = 1.5


def main() -> None:
    """Take both pictures."""
    parser = argparse.ArgumentParser(description="Take the README's pictures of the page.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the running gateway")
    parser.add_argument("--length", default="6000", choices=["1500", "3000", "6000"], help="tokens of the example")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to")
    asked = parser.parse_args()
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        sys.exit(f"no Chromium: none of {', '.join(PROGRAMS)} is on PATH")
    asked.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        take_desktop(browser, asked.url, asked.length, asked.out / "page-desktop.webp")
        take_phone(browser, asked.url, asked.length, asked.out / "page-phone.webp")
        browser.close()


def take_desktop(browser: Browser, url: str, length: str, file: Path) -> None:
    """The whole page, with two runs in its table."""
    page = opened(browser, url, DESKTOP)
    ask_example(page, length, runs=1)
    page.get_by_label("Budget in tokens").fill("256")
    page.get_by_role("button", name="Ask sparse only").click()
    wait_for_runs(page, 2)
    page.get_by_text("recall, mean").locator("b").filter(has_text="%").wait_for(timeout=CHARTS_MS)
    page.evaluate("window.scrollTo(0, 0); document.activeElement.blur()")
    size = page.locator("html").bounding_box()
    assert size is not None
    shoot(page, file, {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1})


def take_phone(browser: Browser, url: str, length: str, file: Path) -> None:
    """What a phone shows once both have answered."""
    page = opened(browser, url, PHONE)
    ask_example(page, length, runs=1)
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    box = page.locator("#answers").bounding_box()
    assert box is not None
    size = {"width": PHONE["viewport"]["width"], "height": PHONE_HEIGHT, "scale": PHONE_SCALE}
    shoot(page, file, {"x": 0, "y": box["y"] - 12, **size})


def opened(browser: Browser, url: str, options: dict[str, Any]) -> Page:
    """The page in a new tab, once its engine is ready."""
    page = browser.new_page(**options)
    page.goto(url)
    page.locator("#engine[data-state=ready]").wait_for()
    return page


def ask_example(page: Page, length: str, runs: int) -> None:
    """One click on the example, and the time that it takes."""
    page.get_by_label("of about").select_option(length)
    page.get_by_role("button", name="Try it with an example").click()
    wait_for_runs(page, runs)


def wait_for_runs(page: Page, runs: int) -> None:
    """Wait until the table has so many rows, or fail with the page's own words."""
    page.locator(f"#runs-rows:has(tr:nth-child({runs})), #notice:visible").first.wait_for(timeout=ANSWER_MS)
    if page.locator("#notice").is_visible():
        sys.exit(f"the page says: {page.locator('#notice').inner_text()}")


def shoot(page: Page, file: Path, clip: dict[str, float]) -> None:
    """Write a WebP of a part of the page, which can be larger than the window."""
    wanted = {"format": "webp", "quality": WEBP_QUALITY, "clip": clip, "captureBeyondViewport": True}
    picture = page.context.new_cdp_session(page).send("Page.captureScreenshot", wanted)
    file.write_bytes(base64.b64decode(picture["data"]))


if __name__ == "__main__":
    main()
