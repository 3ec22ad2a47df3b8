"""Makes the backend for a model runner, or refuses in one sentence (DESIGN.md section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lychee_sgl.backend.plans import choose_plan, model_shape
from lychee_sgl.config import EngineConfig

if TYPE_CHECKING:
    from lychee_sgl.backend.attention import LycheeAttnBackend


class BackendRefused(RuntimeError):
    """The backend `lychee` cannot serve this model with these settings."""


def check_server_args(runner: Any) -> None:
    """Refuses what the backend does not do.

    Args:
        runner: SGLang's ModelRunner.

    Raises:
        BackendRefused: names the setting, its value and what is allowed.
    """
    args, model = runner.server_args, runner.model_config
    device = str(runner.device)
    refusals = (
        (device != "cpu", f"device {device}: the kernels for it are not in this version; it serves on the CPU"),
        (runner.use_mla_backend, "models with multi-latent attention (MLA)"),
        (bool(runner.is_hybrid_swa) or bool(runner.sliding_window_size), "models with sliding-window attention"),
        (model.is_encoder_decoder, "encoder-decoder models"),
        (args.speculative_algorithm is not None, f"--speculative-algorithm {args.speculative_algorithm}"),
        (args.enable_mixed_chunk, "--enable-mixed-chunk"),
        (args.page_size not in (None, 1), f"--page-size {args.page_size} (on the CPU: 1)"),
        (args.tp_size > 1, f"--tp-size {args.tp_size} (in this version: 1)"),
        (str(runner.dtype) == "torch.float16", "--dtype float16 (on the CPU: bfloat16, float32)"),
    )
    for refused, what in refusals:
        if refused:
            raise BackendRefused(f"the attention backend lychee does not serve {what}")


def create_backend(runner: Any) -> LycheeAttnBackend:
    """Makes the backend; SGLang calls it in every scheduler process that selected `lychee`.

    Args:
        runner: SGLang's ModelRunner.

    Raises:
        BackendRefused: a hook has not been applied, or the model or a setting is not served.
        PlanError: the head plan cannot be read or does not fit.
        ConfigError: a setting has a value that is not allowed.
    """
    from lychee_sgl.backend import hooks
    from lychee_sgl.backend.attention import LycheeAttnBackend

    missing = hooks.missing()
    if missing:
        raise BackendRefused(
            f"the attention backend lychee needs hooks that could not be applied to this SGLang: {', '.join(missing)}"
        )
    check_server_args(runner)
    config = EngineConfig.from_env()
    args = runner.server_args
    shape = model_shape(runner.model_config.hf_text_config, args.model_path)
    chosen = choose_plan(config.heads, shape, args.served_model_name)
    backend = LycheeAttnBackend(runner, chosen, config)
    runner.lychee = backend
    return backend
