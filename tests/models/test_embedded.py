import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lychee_sgl.models import embedded, manifest
from lychee_sgl.models.manifest import MANIFEST_NAME, describe, find_fault, sha256_of

MAKE = """
from lychee_sgl.models.embedded import ensure_unpacked
print(ensure_unpacked(lambda line: print(line, flush=True)))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "weights").write_bytes(b"12345")
    describe(made, converter=1, source_sha256="abc").write(made)
    return made


def fault(folder: Path, *, every_hash: bool = False) -> str | None:
    return find_fault(folder, converter=1, source_sha256="abc", every_hash=every_hash)


def test_intact_folder_has_no_fault(folder: Path) -> None:
    assert fault(folder) is None
    assert fault(folder, every_hash=True) is None
    described = json.loads((folder / MANIFEST_NAME).read_text())["files"]
    assert described["weights"]["bytes"] == 5
    # sha256 of "12345", as sha256sum prints it
    assert described["weights"]["sha256"] == "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"


def test_faults_are_named(folder: Path) -> None:
    assert find_fault(folder, converter=2, source_sha256="abc") == "made by conversion 1, this is conversion 2"
    assert find_fault(folder, converter=1, source_sha256="def") == "made from another source file"
    (folder / "config.json").write_text("[]")
    assert fault(folder) == "config.json has changed (SHA-256 differs)"
    (folder / "config.json").write_text("{} ")
    assert fault(folder) == "config.json has 3 bytes, the manifest says 2"
    (folder / "config.json").unlink()
    assert fault(folder) == "config.json cannot be read (No such file or directory)"


def test_big_files_are_hashed_on_request_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "HASHED_ON_REUSE_BYTES", 4)
    (folder / "weights").write_bytes(b"54321")
    assert fault(folder) is None
    assert fault(folder, every_hash=True) == "weights has changed (SHA-256 differs)"


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "other"}', '{"schema": "lychee-sgl/model-folder"}'])
def test_unreadable_manifest_is_a_fault(folder: Path, text: str) -> None:
    (folder / MANIFEST_NAME).write_text(text)
    found = fault(folder)
    assert found is not None
    assert "not a readable manifest" in found


def test_packed_model_is_found_by_the_packages_record() -> None:
    packed = embedded.find_packed()
    assert packed.path.stat().st_size == 98_362_432
    assert packed.sha256 == sha256_of(packed.path)
    assert packed.folder_name == "SmolLM2-135M-Instruct-" + packed.sha256[:12]


def test_missing_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no-such-package")
    with pytest.raises(embedded.ModelUnavailable, match="no-such-package is not installed; install it with"):
        embedded.find_packed()


def test_full_disk_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "NEEDED_BYTES", 10**18)
    with pytest.raises(embedded.ModelUnavailable, match="MB free, the model needs 1000000000000 MB"):
        embedded.ensure_unpacked(lambda line: None)


def test_read_only_cache_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(embedded.ModelUnavailable, match="cannot make the embedded model"):
        embedded.ensure_unpacked(lambda line: None)


def test_failed_conversion_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    packed = embedded.PackedModel(path=broken, sha256=sha256_of(broken))
    monkeypatch.setattr(embedded, "find_packed", lambda: packed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(embedded.ModelUnavailable, match="unpacking SmolLM2-135M-Instruct failed: ValueError"):
        embedded.ensure_unpacked(lambda line: None)
    assert [path.name for path in embedded.cache_root().iterdir() if not path.name.endswith(".lock")] == []


def test_damaged_package_is_not_unpacked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not what the record says")
    monkeypatch.setattr(embedded, "find_packed", lambda: embedded.PackedModel(path=broken, sha256="0" * 64))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(embedded.ModelUnavailable, match="is damaged: reinstall"):
        embedded.ensure_unpacked(lambda line: None)


def test_killed_conversion_is_never_used_and_two_starts_share_the_next(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    root = tmp_path / "lychee-sgl" / "models"

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-c", MAKE]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)

    with start() as victim:
        assert victim.stdout is not None
        while "unpacking the weights" not in victim.stdout.readline():
            pass
        time.sleep(0.5)
        os.killpg(victim.pid, signal.SIGKILL)
    (lock,) = root.glob(".*.lock")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # free when the last process of the group is gone
    leftovers = [path for path in root.iterdir() if ".making-" in path.name]
    assert len(leftovers) == 1
    assert not [path for path in root.iterdir() if not path.name.startswith(".")]

    with start() as first, start() as second:
        outputs = [process.communicate(timeout=240)[0].splitlines() for process in (first, second)]
    made = root / embedded.find_packed().folder_name
    assert [lines[-1] for lines in outputs] == [str(made), str(made)]
    converted = [lines for lines in outputs if any("unpacking the weights" in line for line in lines)]
    waited = [lines for lines in outputs if any("waiting for another process" in line for line in lines)]
    assert len(converted) == 1
    assert len(waited) == 1
    assert sorted(path.name for path in root.iterdir()) == [f".{made.name}.lock", made.name]
    packed = embedded.find_packed()
    assert find_fault(made, converter=embedded.CONVERTER, source_sha256=packed.sha256, every_hash=True) is None
    assert (made / "model.safetensors").stat().st_size > 260 * 10**6


def test_the_model_answers() -> None:
    """By transformers alone: weights, rotary order, tokenizer and chat template have to be right together."""
    script = f"""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = {str(embedded.ensure_unpacked(lambda line: None))!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
messages = [{{"role": "user", "content": "What is the capital of France?"}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
assert prompt.startswith("<|im_start|>system\\nYou are a helpful AI assistant named SmolLM"), prompt
tokens = tokenizer(prompt, return_tensors="pt")
assert tokenizer.decode(tokens["input_ids"][0]) == prompt
answer = model.generate(**tokens, do_sample=False, max_new_tokens=20)[0, tokens["input_ids"].shape[1]:]
assert answer[-1] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
print("ANSWER", tokenizer.decode(answer, skip_special_tokens=True))
"""
    run = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "ANSWER The capital of France is Paris." in run.stdout
