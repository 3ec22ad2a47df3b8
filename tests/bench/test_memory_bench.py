"""Asking about long documents: documents, baselines, resuming, and what the report says, over a scripted engine."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lychee_sgl.bench.memory import (
    Answers,
    Bench,
    MemoryBenchError,
    Plan,
    Row,
    chars_per_token,
    served,
    served_compressor,
    shortened,
)
from lychee_sgl.bench.memory_report import plot, report
from lychee_sgl.bench.memory_tasks import KINDS, documents
from lychee_sgl.heads.haystack import Haystack
from tests.gateway.scripted_engine import DONE, INFO, Script, ScriptedEngine, ThreadedServer, chunk, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXT = Haystack(tuple(f"Paragraph {number} says nothing at all." for number in range(400)), "test")
PLAN = Plan(lengths=(1000,), documents=2, chunk=128, working_memory=64, seed=0, model="tiny", haystack="x")
ACCOUNT = {"mode": "text", "chunks": 8, "kept": 1}


@pytest.fixture
def engine() -> ScriptedEngine:
    made = ScriptedEngine()
    made.script = Script(reply=read, answer=answer)
    return made


@pytest.fixture
def address(engine: ScriptedEngine) -> Iterator[str]:
    with serving(ThreadedServer(engine.app)) as server:
        yield server.url


def said(body: dict[str, Any]) -> str:
    """The numbers of all facts that the engine can see."""
    texts = [part["text"] for message in body["messages"] for part in message["content"]]
    return " ".join(word.rstrip(".") for word in texts[0].split() if word.rstrip(".").isdigit() and len(word) > 6)


def answer(body: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"message": {"content": said(body)}}], "usage": {"prompt_tokens": 180}}


def read(body: dict[str, Any]) -> list[Any]:
    progress = {"phase": "read", "chunk": 1, "chunks": 8, "kept": 0, "says": "reading chunk 1 of 8, kept 0"}
    return [
        chunk({}, lychee={"memory": progress}),
        chunk({"content": said(body)}),
        chunk({}, finish_reason="stop"),
        chunk({}, usage={"prompt_tokens": 1500}, lychee={"memory": ACCOUNT}),
        DONE,
    ]


def ask(address: str, path: Path, methods: tuple[str, ...] = ("text", "truncation"), plan: Plan = PLAN) -> list[Row]:
    answers = Answers(path, plan)
    bench = Bench(address, plan, ours=False)
    texts = documents(plan.lengths, plan.documents, seed=0, text=TEXT, chars_per_token=4.0)
    bench.run(texts, methods, answers, lambda line: None, chars=4.0)
    bench.close()
    return answers.rows


def test_documents_hold_each_fact_once_and_the_second_hop_on_its_side() -> None:
    for document in documents((1000, 9000), 3, seed=1, text=TEXT, chars_per_token=4.0):
        assert abs(len(document.text) - 4 * document.tokens) < 200
        assert {asked.kind for asked in document.asked} == set(KINDS)
        for asked in document.asked:
            assert document.text.count(asked.answer) == 1
            assert asked.answer not in asked.question
            if asked.kind == "single":
                continue
            place = asked.question.split("the ")[-1]
            first = document.text.index(f"The key of the {place.removesuffix('?')} is kept by")
            assert (first < document.text.index(asked.answer)) is (asked.kind == "two-hop")


def test_the_question_that_comes_first_turns() -> None:
    made = documents((1000,), 4, seed=0, text=TEXT, chars_per_token=4.0)
    assert [document.asked[0].kind for document in made] == [*KINDS, "single"]
    assert made == documents((1000,), 4, seed=0, text=TEXT, chars_per_token=4.0)


def test_there_is_text_for_a_million_tokens() -> None:
    (document,) = documents((1_000_000,), 1, seed=0, text=TEXT, chars_per_token=4.5)
    assert 4_490_000 < len(document.text) < 4_510_000
    assert all(document.text.count(asked.answer) == 1 for asked in document.asked)


def test_what_the_baselines_see() -> None:
    text = "\n\n".join([*TEXT.paragraphs[:200], "The key is kept by Ada.", *TEXT.paragraphs[200:]])
    cut = shortened(text, "Who has the key?", "truncation", 200, 4.0)
    assert cut.startswith("Paragraph 0 says")
    assert cut.endswith("Paragraph 399 says nothing at all.")
    assert len(cut) == 802
    found = shortened(text, "Who is the key kept by?", "retrieval", 600, 4.0)
    assert "The key is kept by Ada." in found
    assert len(found) <= 2400
    assert shortened("short", "Why?", "retrieval", 600, 4.0) == "short"


def test_every_question_is_asked_in_every_way(address: str, engine: ScriptedEngine, tmp_path: Path) -> None:
    rows = ask(address, tmp_path / "a.jsonl")
    assert [(row.document, row.method, row.order) for row in rows] == [
        (f"1000-{number}", method, order)
        for number in (0, 1)
        for method in ("text", "truncation")
        for order in (0, 1, 2)
    ]
    assert all(row.right and row.account == ACCOUNT and row.tokens_read == 1500 for row in rows if row.method == "text")
    assert engine.flushed == 4
    body = engine.bodies[0]
    assert body["custom_params"] == {"lychee_memory": "text", "lychee_chunk": 128, "lychee_working_memory": 64}
    assert len(body["messages"][0]["content"]) == 2
    assert "custom_params" not in engine.bodies[3]


def test_it_goes_on_where_it_stopped(address: str, engine: ScriptedEngine, tmp_path: Path) -> None:
    whole = ask(address, tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:7], lines[7][:40]]))
    engine.bodies.clear()
    resumed = ask(address, tmp_path / "a.jsonl")
    assert len(engine.bodies) == 6
    assert [(row.document, row.method, row.order) for row in resumed] == [
        (row.document, row.method, row.order) for row in whole
    ]
    # two of a document's three questions, and the last line without its end: the document is begun anew
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    for cut in ([*lines[:6]], [*lines[:6], lines[6][:-1]]):
        (tmp_path / "a.jsonl").write_text("\n".join(cut))
        engine.bodies.clear()
        assert len(ask(address, tmp_path / "a.jsonl")) == 12
        assert len(engine.bodies) == 9
    with pytest.raises(MemoryBenchError, match="holds answers under other settings"):
        Answers(tmp_path / "a.jsonl", replace(PLAN, chunk=64))


def test_an_error_in_the_stream_ends_it_by_name(address: str, engine: ScriptedEngine, tmp_path: Path) -> None:
    failed = b'data: {"error": {"message": "chunk 3 of 8 failed 3 times"}}\n\n'
    engine.script = Script(events=[failed, DONE])
    with pytest.raises(MemoryBenchError, match="1000-0: chunk 3 of 8 failed 3 times"):
        ask(address, tmp_path / "a.jsonl")


def test_an_engine_that_does_not_read_is_refused(address: str, engine: ScriptedEngine) -> None:
    assert served(address) == ("tiny", None)
    engine.token_count = 400
    sample = sum(len(block) for block in TEXT.paragraphs[:40]) + 2 * 39
    assert chars_per_token(address, "tiny", TEXT) == pytest.approx(sample / 400, abs=0.01)
    engine.info = {**INFO, "memory": {"modes": [], "default": "off"}}
    with pytest.raises(MemoryBenchError, match="is no engine that reads documents"):
        served(address)


def test_compressed_blocks_are_asked_of_an_engine_that_names_them(
    address: str, engine: ScriptedEngine, tmp_path: Path
) -> None:
    with pytest.raises(MemoryBenchError, match="no engine that compresses blocks"):
        served_compressor(address, None)
    told = {"modes": ["text", "compressed"], "default": "ask", "ratio": 4, "ratios": [2, 4], "compressor": "ab12"}
    engine.info = {**INFO, "memory": told}
    assert served_compressor(address, None) == ("ab12", 4)
    assert served_compressor(address, 2) == ("ab12", 2)
    with pytest.raises(MemoryBenchError, match=r"--ratio is 8; allowed: 2, 4"):
        served_compressor(address, 8)
    rows = ask(address, tmp_path / "a.jsonl", ("compressed",), replace(PLAN, compressor="ab12", ratio=2))
    assert {(row.method, row.right, row.tokens_read) for row in rows} == {("compressed", True, 1500)}
    expected = {"lychee_memory": "compressed", "lychee_chunk": 128, "lychee_working_memory": 64, "lychee_ratio": 2}
    assert engine.bodies[0]["custom_params"] == expected


def row(kind: str, order: int, method: str, right: bool, seconds: float) -> Row:
    return Row(
        document="d", tokens=1000, kind=kind, order=order, method=method, right=right, reply="", seconds=seconds,
        tokens_read=100, peak_bytes=2**30, account=None,
    )  # fmt: skip


def test_the_report_and_its_plot(tmp_path: Path) -> None:
    rows = [
        row("single", 0, "text", True, 12.0),
        row("two-hop", 1, "text", False, 2.0),
        row("single", 0, "text", True, 8.0),
    ]
    every = [record for record in report(rows) if record["kind"] == "all"]
    (record,) = every
    assert (record["asked"], record["right"], record["accuracy"]) == (3, 2, 0.6667)
    # Wilson's interval for 2 of 3, by hand: (2/3 + z²/6 ± z sqrt(2/27 + z²/36)) / (1 + z²/3) with z = 1.96
    z = 1.959964
    middle, half, scale = 2 / 3 + z * z / 6, z * math.sqrt(2 / 27 + z * z / 36), 1 + z * z / 3
    assert record["interval"] == pytest.approx([(middle - half) / scale, (middle + half) / scale], abs=1e-4)
    assert (record["first_seconds"], record["later_seconds"], record["later_is_faster"]) == (10.0, 2.0, 5.0)
    assert (record["tokens_read"], record["peak_gib"]) == (100, 1.0)
    plot(report(rows), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_writes_json(address: str, engine: ScriptedEngine, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from lychee_sgl.bench.cli import app

    engine.token_count = 400
    out = tmp_path / "memory.json"
    words = ["memory", "--engine-url", address, "--out", str(out), "--lengths", "1200", "--documents", "1"]
    words += ["--haystack", str(tmp_path), "--methods", "text"]
    (tmp_path / "prose.txt").write_text("\n\n".join(f"Paragraph {i} {'says nothing ' * 10}at all." for i in range(50)))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert record["kind"] == "memory"
    assert [cell["kind"] for cell in record["cells"]][-1] == "all"
    assert CliRunner().invoke(app, ["memory", "--lengths", "12"]).exit_code == 1
    assert CliRunner().invoke(app, ["memory", "--methods", "magic"]).exit_code == 1
    assert CliRunner().invoke(app, [*words, "--gate", "1.2"]).exit_code == 1
    assert CliRunner().invoke(app, [*words, "--compressor", str(tmp_path)]).exit_code == 1
    refused = CliRunner().invoke(app, ["memory", "--engine-url", "http://127.0.0.1:1", "--out", str(out)])
    assert (refused.exit_code, refused.output.startswith("error: ")) == (1, True)


def test_gates_are_asked_for_by_their_arms(address: str, engine: ScriptedEngine, tmp_path: Path) -> None:
    rows = ask(
        address, tmp_path / "a.jsonl", ("text", "text-gate", "text-oracle"), replace(PLAN, gate=1.2, documents=1)
    )
    bodies = [body["custom_params"].get("lychee_gate") for body in engine.bodies]
    assert bodies[:6] == ["off"] * 3 + [None] * 3
    (text,) = documents(PLAN.lengths, 1, seed=0, text=TEXT, chars_per_token=4.0)
    assert bodies[6:] == [list(asked.needed) for asked in text.asked]
    assert sorted(map(len, bodies[6:])) == [1, 2, 2]
    assert all(text.text.count(fact) == 1 for asked in text.asked for fact in asked.needed)
    gated = [replace(one, account={**ACCOUNT, "gated": 6}) for one in rows if one.method == "text-gate"]
    every = {record["method"]: record for record in report([*rows, *gated]) if record["kind"] == "all"}
    assert (every["text"]["blocks"], every["text"]["gated"]) == (8.0, 0.0)
    assert every["text-gate"]["gated"] == 3.0  # half of the rows say 6, the others nothing


def test_compressed_blocks_are_asked_for_with_and_without_the_gate(
    address: str, engine: ScriptedEngine, tmp_path: Path
) -> None:
    ask(address, tmp_path / "a.jsonl", ("compressed", "compressed-gate"), replace(PLAN, gate=1.2, documents=1, ratio=4))
    asked = [body["custom_params"] for body in engine.bodies]
    assert [(one["lychee_memory"], one["lychee_ratio"]) for one in asked] == [("compressed", 4)] * 6
    assert [one.get("lychee_gate") for one in asked] == ["off"] * 3 + [None] * 3


def test_a_gate_that_cannot_be_measured_is_refused(address: str, engine: ScriptedEngine, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from lychee_sgl.bench.cli import app

    run = CliRunner()
    assert run.invoke(app, ["memory", "--gate", "1.2"]).exit_code == 1
    assert run.invoke(app, ["memory", "--methods", "text-gate"]).exit_code == 1
    assert run.invoke(app, ["memory", "--methods", "text-gate", "--gate", "no-such-gate"]).exit_code == 1
    words = ["memory", "--engine-url", address, "--methods", "text-gate", "--out", str(tmp_path / "m.json")]
    refused = run.invoke(app, words)
    assert (refused.exit_code, "has no gate (LYCHEE_MEMORY_GATE)" in refused.output) == (1, True)
