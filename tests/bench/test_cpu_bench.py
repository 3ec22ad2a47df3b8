"""The arithmetic of the bench, by hand, and a stream with known pauses."""

import http.server
import json
import threading
import time

import pytest
from typer.testing import CliRunner

from lychee_sgl.bench import cpu
from lychee_sgl.bench.cli import app
from lychee_sgl.bench.machine import describe, float32_gflops, tree_pss

TINY = {
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def test_the_floor_of_a_prefill() -> None:
    # a layer: q and o 4*4 each, k and v 4*2 each, three matrices 4*8: 48 + 96 = 144 weights; 2 layers: 288
    # attention: 2 layers * 2 heads * 2 * 4 flop * 10*10/2 pairs = 1600
    floor = cpu.prefill_floor(TINY, tokens=10, gflops=1e-6)
    assert floor["linear_gflop"] == pytest.approx(2 * 288 * 10 / 1e9)
    assert floor["attention_gflop"] == pytest.approx(1600 / 1e9)
    assert floor["seconds"] == pytest.approx((5760 + 1600) / 1e3)


def test_ratios_are_stock_over_ours() -> None:
    context = {
        "context_tokens": 7,
        "per_token_seconds": {"stock": 0.6, "dense": 0.3, "512": 0.1},
        "first_token_seconds": {"stock": 8.0, "dense": 0.5, "512": 0.4},
        "fresh_prefill_seconds": {"stock": 9.0, "lychee": 3.0},
    }
    ratios = cpu._ratios(context)
    assert ratios["per_token"] == {"dense": pytest.approx(2), "512": pytest.approx(6)}
    assert ratios["first_token_after_hit"] == {"dense": pytest.approx(16), "512": pytest.approx(20)}
    assert ratios["fresh_prefill"] == pytest.approx(3)


class Paced(http.server.BaseHTTPRequestHandler):
    """Streams a token every 30 ms after a first one at 100 ms; the body says whether two come at a time."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        bundle = body["sampling_params"]["custom_params"]["lychee_budget"]
        self.send_response(200)
        self.end_headers()
        time.sleep(0.1)
        for done in range(bundle, 9, bundle):
            meta = {"completion_tokens": done, "cached_tokens": 5}
            self.wfile.write(f"data: {json.dumps({'meta_info': meta})}\n\n".encode())
            self.wfile.flush()
            time.sleep(0.03)
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def paced():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Paced) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("bundle", "per_token"), [(1, 0.03), (2, 3 * 0.03 / 7)])
def test_pauses_between_tokens(paced: str, bundle: int, per_token: float) -> None:
    timed = cpu.time_stream(paced, [1, 2, 3], 8, bundle)
    assert timed.cached == 5
    # a machine may be slow, never fast
    assert timed.first >= 0.1
    assert per_token * 0.95 <= timed.per_token < per_token + 0.2


@pytest.mark.parametrize("contexts", ["", "7,x", "10", "9000"])
def test_contexts_out_of_range_are_refused(contexts: str) -> None:
    result = CliRunner().invoke(app, ["cpu", "--contexts", contexts])
    assert result.exit_code == 1
    assert "--contexts is" in result.output


def test_a_record_says_where_it_was_taken() -> None:
    record = describe()
    assert record["versions"]["lychee-sgl"] == "0.1.0"
    assert record["machine"]["cores"] >= 1
    assert float32_gflops(size=64, seconds=0.05) > 0
    import os

    assert tree_pss(os.getpid()) > 1 << 20
