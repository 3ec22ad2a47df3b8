"""The command for two GPUs from its words to the table, with SGLang's answers stood in for: there is no GPU here."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import json
import re
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from lychee_sgl.bench import gpu, gpu_tokens
from lychee_sgl.bench.cli import app

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"^```\n(lychee-sgl bench gpu .*?)^```", re.MULTILINE | re.DOTALL)


class Engine(BaseHTTPRequestHandler):
    """SGLang's `/generate` and `/start_profile`, as far as the bench reads their answers."""

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/start_profile":
            assert body["activities"] == ["GPU"]
            for rank in range(2):
                with gzip.open(Path(body["output_dir"]) / f"{body['profile_id']}-TP-{rank}.trace.json.gz", "wt") as out:
                    json.dump({"traceEvents": trace(rank)}, out)
            return self.answer(b"Start profiling.\n")
        rows = body["input_ids"] if isinstance(body["input_ids"][0], list) else [body["input_ids"]]
        params = body["sampling_params"]
        params = params if isinstance(params, list) else [params]
        answers = [generated(row, each) for row, each in zip(rows, params, strict=True)]
        if not body.get("stream"):
            return self.answer(json.dumps(answers if body["input_ids"] is rows else answers[0]).encode())
        steps = range(params[0]["max_new_tokens"])
        chunks = [b"data: " + json.dumps({"index": i, **a}).encode() for _ in steps for i, a in enumerate(answers)]
        return self.answer(b"\n\n".join([*chunks, b"data: [DONE]"]) + b"\n\n")

    def answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def generated(ids: list[int], params: dict[str, Any]) -> dict[str, Any]:
    count, dense = params["max_new_tokens"], params["custom_params"]["lychee_budget"] == "dense"
    # a step's attended and dense-equivalent entries, fallback, budget, context, recall, batch
    steps = [None, *([[len(ids) if dense else 100, len(ids), 0, 0, len(ids), None, 1]] * (count - 1))]
    best = [[[-0.1, 5 + i, None], [-2.0 - len(ids) / 1000, 6 + i, None]] for i in range(count)]
    return {"output_ids": list(range(5, 5 + count)), "meta_info": {"lychee": steps, "output_top_logprobs": best}}


def trace(rank: int) -> list[dict[str, Any]]:
    kernels = {"attend_kernel": 1000 + 500 * rank, "nvjet": 2000, "cross_device_reduce_1stage": 100}
    launches = [{"name": "cudaGraphLaunch", "cat": "cuda_runtime", "ts": i, "dur": 1} for i in range(2)]
    return [*launches, *({"name": n, "cat": "kernel", "ts": 10, "dur": dur} for n, dur in kernels.items())]


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_from_the_command_to_the_table(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, int, str]] = []

    @contextlib.contextmanager
    def engine(_: Path, *, model: Path, backend: str, environ: dict[str, str], tp: int, **__: Any):
        assert (model / "config.json").is_file()
        started.append((backend, tp, environ.get("LYCHEE_HEADS", "").rsplit("/", 1)[-1]))
        yield address, 1.0

    (block,) = COMMAND.findall((ROOT / "DESIGN.md").read_text(encoding="utf-8"))
    words = shlex.split(block.replace("\\\n", " "))[2:]
    words[words.index("--out") + 1] = str(tmp_path / "gpu-tp2.json")
    for option in ("--cases", "--flashinfer"):  # as many rows, shorter: nothing reads them here
        words[words.index(option) + 1] = "300x4,200x8"
    words[words.index("--tokens") + 1] = "3"
    words += ["--repeats", "1"]
    (tmp_path / "one.json").write_text(
        json.dumps({"lychee": {"batches": {name: {"speedup": 2.0} for name in ("300x4", "200x8")}}})
    )
    words[words.index("--against") + 1] = str(tmp_path / "one.json")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(gpu, "engine", engine)
    monkeypatch.setattr(gpu_tokens, "engine", engine)
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert started == [
        ("lychee", 2, "lychee.json"), ("lychee", 2, "lychee_unbalanced.json"), ("flashinfer", 2, ""),
        ("lychee", 1, "tokens-plan.json"), ("torch_native", 1, ""), ("lychee", 2, "tokens-plan.json"),
        ("torch_native", 2, ""),
    ]  # fmt: skip
    record = json.loads((tmp_path / "gpu-tp2.json").read_text())
    assert record["kept"].keys() == {"lychee", "lychee_unbalanced"}
    line = record["lychee"]["batches"]["300x4"]
    assert line["attended_fraction"] == 100 / 200  # prompts leave room for a hundred new tokens
    assert line["profile"]["sparse"][1]["groups_ms"]["attention"] == 0.75
    assert record["tokens"]["lychee"]["512"] == {
        "answers": 3, "identical": 3, "near_ties": 0, "gaps": [], "noise": 0.0, "allowed": 0.0,
    }  # fmt: skip
    monkeypatch.syspath_prepend(ROOT / "docs")
    text = importlib.import_module("tables").gpu_ranks(record, "gpu-tp2.json")
    assert "| 300 x 4 |" in text
    assert "| 200 x 8 | unbalanced | 0.50 / 0.75 | 0.00 | 1.00 | 0.05 | 0.00 |" in text
    assert "3 of 3 identical" in text
    # the same command has nothing left to do
    started.clear()
    assert CliRunner().invoke(app, words).exit_code == 0
    assert started == []
