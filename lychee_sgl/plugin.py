"""What SGLang's plug-in loader calls. It only logs what is raised here: the backend's factory checks what took hold."""

from __future__ import annotations


def cpu_platform() -> str | None:
    """Names our CPU platform where no accelerator is, for the entry point group `sglang.srt.platforms`.

    Returns:
        The class's dotted name, or None to leave the choice to SGLang.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return None if accelerator is not None else "lychee_sgl.cpu.platform.LycheeCpuPlatform"


def register() -> None:
    """Registers the backend `lychee` and its hooks, for the entry point group `sglang.srt.plugins`; idempotent."""
    from lychee_sgl.backend import hooks

    hooks.install()
