"""The files of the page, as a browser gets them; tests/gateway/browser uses them in one."""

from __future__ import annotations

import re

import pytest

from lychee_server.routes.page import FOLDER, MEDIA_TYPES

FILES = sorted(path.name for path in FOLDER.iterdir())
MARKUP = (FOLDER / "index.html").read_text(encoding="utf-8")
LONGEST_FILE = 400


def test_page_and_its_files_have_their_types(gateway):
    start = gateway.http.get("/")
    assert (start.status_code, start.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert start.text == MARKUP
    for name in FILES:
        answer = gateway.http.get(f"/page/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] == MEDIA_TYPES[f".{name.split('.')[-1]}"]
        assert answer.content == (FOLDER / name).read_bytes()


def test_scripts_and_styles_come_from_here_and_nowhere_else(gateway):
    answer = gateway.http.get("/")
    directives = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert directives["default-src"] == "'none'"
    assert {directives[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", MARKUP)
    for path in re.findall(r'(?:src|href)="([^"#]+)"', MARKUP):
        assert gateway.http.get(f"/{path}").status_code == 200
        assert "//" not in path
    for name in FILES:
        addresses = set(re.findall(r"\bhttps?://[^\s\"'`)]+", (FOLDER / name).read_text(encoding="utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name


def test_browsers_ask_each_time_and_load_only_what_has_changed(gateway):
    first = gateway.http.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = gateway.http.get("/", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert gateway.http.get("/", headers={"if-none-match": '"another"'}).status_code == 200
    tags = {gateway.http.get(f"/page/{name}").headers["etag"] for name in FILES}
    assert len(tags) == len(FILES)


@pytest.mark.parametrize("path", ["/page", "/page/", "/page/none.js", "/page/..%2fapp.py", "/page/%2e%2e/app.py"])
def test_nothing_else_is_served(gateway, path):
    answer = gateway.http.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_other_methods_and_paths_are_refused_as_before(gateway):
    assert gateway.http.post("/").status_code == 405
    assert gateway.http.post("/page/main.js").status_code == 405
    assert gateway.http.get("/v1/chat/completions").status_code == 405
    assert gateway.http.get("/nothing").status_code == 404


def test_loading_the_page_is_not_counted_as_a_request(gateway):
    gateway.http.get("/")
    gateway.http.get("/page/main.js")
    gateway.http.get("/nothing")
    assert gateway.value("lychee_requests_total", route="other", status="200") == 0
    assert gateway.value("lychee_requests_total", route="other", status="404") == 1


def test_pictures_in_the_readme_are_there_and_small():
    root = FOLDER.parents[2]
    pictures = re.findall(r'<img src="([^"]+)" width="\d+%" alt="[^"]{20,}">', (root / "README.md").read_text("utf-8"))
    assert sum("/page-" in picture for picture in pictures) == 2
    assert sum((root / picture).stat().st_size for picture in pictures) < 300_000


@pytest.mark.parametrize("name", FILES)
def test_files_stay_short(name):
    assert len((FOLDER / name).read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
