"""What must be true of this machine before an engine is worth starting; imports nothing heavy."""

import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Final

PLUGIN_GROUP: Final = "sglang.srt.plugins"
PLATFORM_GROUP: Final = "sglang.srt.platforms"
PLUGIN: Final = "lychee"
PLATFORM: Final = "lychee_cpu"
NEEDED_TO_SERVE: Final = ("sglang", "torch", "transformers", "numba", "fastapi", "uvicorn", "prometheus-client")


def accelerators(environ: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Names of the GPUs that the engine will see, found without importing torch.

    Args:
        environ: its `CUDA_VISIBLE_DEVICES` can hide some or all of them; which ones stay is told by their number alone.
        devices: where the driver's files are, one a GPU: they are counted where nvidia-smi is not installed.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return []
    if (tool := shutil.which("nvidia-smi")) is not None:
        try:
            query = [tool, "--query-gpu=name", "--format=csv,noheader"]
            answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return []  # a tool without a driver
        found = [line.strip() for line in answer.splitlines() if line.strip()]
    else:
        found = ["NVIDIA GPU" for _ in devices.glob("nvidia[0-9]*")]
    return found if visible is None else found[: len(visible.split(","))]


def missing_packages() -> list[str]:
    """Packages that engine or gateway need and that are not installed."""
    missing = []
    for name in NEEDED_TO_SERVE:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return missing


def plugin_problem(environ: Mapping[str, str], *, accelerator: bool) -> str | None:
    """Why SGLang would not load our plug-ins, in one sentence; None when it will.

    SGLang only logs such a problem and then starts without us, so it is looked for beforehand.

    Args:
        environ: the environment that the engine will get.
        accelerator: with one, the CPU platform is not needed.
    """
    wanted = {PLUGIN_GROUP: PLUGIN} if accelerator else {PLUGIN_GROUP: PLUGIN, PLATFORM_GROUP: PLATFORM}
    for group, name in wanted.items():
        if not [found for found in entry_points(group=group) if found.name == name]:
            return (
                f"the plug-in {name} is not registered in the group {group}: install lychee-sgl with pip, "
                "not only by its source folder"
            )
    allowed = {name.strip() for name in environ.get("SGLANG_PLUGINS", "").split(",") if name.strip()}
    masked = [name for name in wanted.values() if allowed and name not in allowed]
    if masked:
        return f"SGLANG_PLUGINS leaves out {' and '.join(masked)}: unset it, or add {','.join(masked)} to it"
    # a platform chosen by name also shuts out the plug-ins of every package that brings another one
    platform = environ.get("SGLANG_PLATFORM", "")
    if platform and (accelerator or platform != PLATFORM):
        return f"SGLANG_PLATFORM is {platform!r}, which shuts out the plug-in {PLUGIN}: unset it"
    return None
