"""Keys: how they are made and stored, who gets in, and reading them again."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys

import httpx
import pytest

from lychee_server.__main__ import main
from lychee_server.keys import KeyEntry, KeyRing, KeysError, hash_key, load_ring, parse_entries, read_entries
from lychee_server.settings import SettingsError, load_settings
from tests.gateway.scripted_engine import wait_until

ALICE = "lychee-test-key-of-alice"
PATHS = ["/v1/models", "/v1/models/tiny", "/v1/nothing"]


@pytest.fixture
def keys_file(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(f'- id: alice\n  tier: gold\n  sha256: "{hash_key(ALICE)}"\n')
    return path


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_hash_is_sha256():
    assert hash_key("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_add_shows_a_key_once_and_stores_its_hash(tmp_path, capsys):
    path = tmp_path / "keys.yaml"
    assert main(["keys", "add", "--file", str(path), "--id", "alice", "--tier", "gold"]) == 0
    shown = capsys.readouterr()
    key = shown.out.strip()
    assert re.fullmatch(r"lychee-[A-Za-z0-9_-]{43}", key)
    assert key not in shown.err + path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text(path.read_text() + "# a comment of mine\n")
    path.chmod(0o640)
    assert main(["keys", "add", "--file", str(path), "--id", "123"]) == 0
    other = capsys.readouterr().out.strip()
    assert "# a comment of mine" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    ring = load_ring(path, None)
    alice, number = ring.find(key), ring.find(other)
    assert (alice.id, alice.tier, number.id, number.tier) == ("alice", "gold", "123", None)
    assert ring.find(key[:-1]) is ring.find("") is ring.find("\ud800é") is None
    assert [each.name for each in tmp_path.iterdir()] == ["keys.yaml"]


def test_add_refuses_what_it_cannot_add_to_and_leaves_it_as_it_is(tmp_path, capsys, keys_file):
    flow = tmp_path / "flow.yaml"
    flow.write_text(f'[{{id: a, sha256: "{"0" * 64}"}}]\n')
    before = keys_file.read_text()
    assert main(["keys", "add", "--file", str(flow), "--id", "b"]) == 1
    assert "cannot be added to" in capsys.readouterr().err
    assert main(["keys", "add", "--file", str(keys_file), "--id", "alice"]) == 1
    assert "'alice' (or its hash) is there twice" in capsys.readouterr().err
    assert main(["keys", "add", "--file", str(keys_file), "--id", "a b"]) == 1
    assert capsys.readouterr().err.startswith("lychee-gateway: --id is 'a b': ")
    assert main(["keys", "add", "--file", str(tmp_path / "no" / "keys"), "--id", "a"]) == 1
    assert "No such file" in capsys.readouterr().err
    assert keys_file.read_text() == before


def test_hash_of_a_key_of_ones_own(capsys, monkeypatch):
    command = [sys.executable, "-m", "lychee_server", "keys", "hash"]
    environ = {**os.environ, "PYTHONPATH": "server"}
    done = subprocess.run(command, input="a" * 20 + "\n", capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stdout.strip()) == (0, hash_key("a" * 20))
    short = subprocess.run(command, input="secret\n", capture_output=True, text=True, env=environ)
    assert short.returncode == 1
    assert short.stderr == "lychee-gateway: the key has 6 characters; at least 20 are needed, random ones\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- id: a\n  sha256: no-hash-but-a-secret", "k: entry 1.sha256: String should match pattern"),
        ("a: 1", "k: the file: Input should be a valid list"),
        (f'- id: a\n  sha256: "{"0" * 64}"\n  key: oops-secret', "k: entry 1.key: Extra inputs are not permitted"),
        ("a: b: c", "k:1: not YAML"),
        ("\x00", "k: not YAML"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_without_its_secrets(text, words):
    with pytest.raises(KeysError) as refused:
        parse_entries(text, "k")
    assert str(refused.value).startswith(words)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_same_id_or_hash_twice_and_no_key_at_all(tmp_path):
    one = KeyEntry(id="a", sha256="0" * 64)
    for other in (KeyEntry(id="a", sha256="1" * 64), KeyEntry(id="b", sha256="0" * 64)):
        with pytest.raises(KeysError, match="there twice"):
            KeyRing([one, other])
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(KeysError, match="no keys; without a keys file the gateway is open"):
        load_ring(tmp_path / "empty", None)
    with pytest.raises(KeysError, match="No such file"):
        read_entries(tmp_path / "none")


def test_hashes_that_begin_alike_are_told_apart():
    keys = [f"key number {number}" for number in range(2000)]  # of 65,536 beginnings: some are shared
    ring = KeyRing(KeyEntry(id=f"k{number}", sha256=hash_key(key)) for number, key in enumerate(keys))
    assert [ring.find(key).id for key in keys] == [f"k{number}" for number in range(2000)]
    assert len(ring) == 2000


def test_v1_needs_a_key_and_nothing_else_does(start_gateway, running, keys_file):
    gateway = start_gateway(keys_file=keys_file)
    for path in PATHS:
        for headers in (
            {},
            bearer("wrong"),
            {"authorization": "Bearer"},
            {"authorization": "Basic YTpi"},
            {"authorization": ALICE},
        ):
            reply = gateway.http.get(path, headers=headers)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            error = reply.json()["error"]
            assert error["type"] == "invalid_request_error"
            assert error["code"] in ("invalid_api_key", "missing_api_key")
            assert reply.headers["x-request-id"]
    assert gateway.chat().status_code == 401
    assert running.engine.bodies == []
    for path in ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert gateway.http.get(path).status_code == 200
    assert gateway.http.get("/v1/models", headers=bearer(ALICE)).status_code == 200
    assert gateway.http.get("/v1/models", headers={"authorization": f"bearer  {ALICE}"}).status_code == 200
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert gateway.http.post("/v1/chat/completions", json=body, headers=bearer(ALICE)).status_code == 200
    assert "authorization" not in running.engine.headers[0]
    assert gateway.total("lychee_requests_refused_total", reason="no_key") == 5 * 3 + 1
    assert gateway.total("lychee_requests_total", route="/v1/chat/completions", status="401") == 1


def test_one_key_from_the_environment_or_a_secret(tmp_path, start_gateway, running):
    (tmp_path / "secret").write_text("of-the-environment\n")
    environ = {"LYCHEE_GATEWAY_API_KEY_FILE": str(tmp_path / "secret"), "LYCHEE_GATEWAY_ENGINE_API_KEY": "inner"}
    settings = load_settings(environ, {})
    assert settings.api_key.get_secret_value() == "of-the-environment"
    assert "of-the-environment" not in repr(settings)
    gateway = start_gateway(api_key=settings.api_key, engine_api_key=settings.engine_api_key)
    assert gateway.http.get("/v1/models").status_code == 401
    body = {"messages": [{"role": "user", "content": "hi"}]}
    reply = gateway.http.post("/v1/chat/completions", json=body, headers=bearer("of-the-environment"))
    assert reply.status_code == 200
    assert running.engine.headers[0]["authorization"] == "Bearer inner"
    with pytest.raises(SettingsError, match="LYCHEE_GATEWAY_API_KEY_FILE is '/none': No such file"):
        load_settings({"LYCHEE_GATEWAY_API_KEY_FILE": "/none"}, {})
    with pytest.raises(SettingsError) as refused:
        load_settings({"LYCHEE_GATEWAY_API_KEY": ""}, {"engine_api_key": ""})
    assert str(refused.value).startswith("LYCHEE_GATEWAY_API_KEY: ") or "--engine-api-key: " in str(refused.value)


def test_a_bad_keys_file_ends_the_start_in_one_line(tmp_path, capsys):
    (tmp_path / "keys").write_text("- id: a\n")
    assert main(["--keys-file", str(tmp_path / "keys"), "--port", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"lychee-gateway: {tmp_path}/keys: entry 1.sha256: Field required"


def test_sighup_reads_the_keys_again_and_keeps_the_old_ones_over_a_bad_file(running, keys_file):
    command = [sys.executable, "-m", "lychee_server", "--engine-url", running.server.url, "--port", "0"]
    environ = {**os.environ, "PYTHONPATH": "server", "LYCHEE_GATEWAY_KEYS_FILE": str(keys_file)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)
    try:
        assert process.stderr is not None
        lines = (json.loads(line) for line in process.stderr)
        port = next(line for line in lines if line["message"] == "listening")["port"]
        next(line for line in lines if line["message"] == "callers need a key")

        def status(key: str) -> int:
            return httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=bearer(key), timeout=60).status_code

        wait_until(lambda: accepts(port))
        assert (status(ALICE), status("b" * 20)) == (200, 401)
        keys_file.write_text(f'- id: bob\n  sha256: "{hash_key("b" * 20)}"\n')
        process.send_signal(signal.SIGHUP)
        assert next(line for line in lines if "reloaded" in line["message"])["keys"] == 1
        assert (status(ALICE), status("b" * 20)) == (401, 200)
        keys_file.write_text("- nonsense\n")
        process.send_signal(signal.SIGHUP)
        refused = next(line for line in lines if "reloaded" in line["message"])
        assert refused["message"] == "the keys were not reloaded; the old ones stay"
        assert status("b" * 20) == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def accepts(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez", timeout=60).status_code == 200
    except httpx.TransportError:
        return False
