"""Makes the backend for a model runner, or refuses in one sentence (DESIGN.md section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lychee_sgl.backend.correction import refusals
from lychee_sgl.backend.memory_blocks import choose_compressor
from lychee_sgl.backend.plans import ChosenPlan, choose_plan, model_shape
from lychee_sgl.backend.ranks import Ranks
from lychee_sgl.config import EngineConfig
from lychee_sgl.heads.ranks import check_plan

if TYPE_CHECKING:
    from lychee_sgl.backend.hybrid import HybridHeads

GPU_KV_DTYPES = ("torch.bfloat16", "torch.float16", "torch.float8_e4m3fn", "torch.float8_e5m2")


class BackendRefused(RuntimeError):
    """The backend `lychee` cannot serve this model with these settings."""


def check_server_args(runner: Any) -> None:
    """Refuses what the backend does not do.

    Args:
        runner: SGLang's ModelRunner.

    Raises:
        BackendRefused: names the setting, its value and what is allowed.
    """
    _refuse(
        (runner.use_mla_backend, "models with multi-latent attention (MLA)"),
        (bool(runner.is_hybrid_swa) or bool(runner.sliding_window_size), "models with sliding-window attention"),
        (runner.model_config.is_encoder_decoder, "encoder-decoder models"),
        (not runner.model_config.is_generation, "embedding and reward models, which decode nothing"),
        (getattr(runner, "lychee", None) is not None, "a second attention backend in one model runner"),
        *_argument_refusals(runner.server_args),
        *_layer_refusals(runner),
        *(_cpu_refusals(runner) if str(runner.device) == "cpu" else _gpu_refusals(runner)),
    )


def _refuse(*refusals: tuple[bool, str]) -> None:
    for refused, what in refusals:
        if refused:
            raise BackendRefused(f"the attention backend lychee does not serve {what}")


def _argument_refusals(args: Any) -> tuple[tuple[bool, str], ...]:
    """What the arguments alone say."""
    return (
        (args.speculative_algorithm is not None, f"--speculative-algorithm {args.speculative_algorithm}"),
        (args.enable_mixed_chunk, "--enable-mixed-chunk"),
        # their ranks have rows, or parts of a row's context, of their own; statistics are added up over equal rows
        (args.enable_dp_attention, "--enable-dp-attention"),
        (args.attn_cp_size > 1, f"--attn-cp-size {args.attn_cp_size} (in this version: 1)"),
        (args.dcp_size > 1, f"--dcp-size {args.dcp_size} (in this version: 1)"),
        (args.pp_size > 1, f"--pp-size {args.pp_size} (in this version: 1)"),
        # these make several backends, and sets and budgets live in one
        (args.enable_pdmux, "--enable-pdmux"),
        (args.enable_two_batch_overlap, "--enable-two-batch-overlap"),
        # such a session keeps the slots of its answers for its next turn, sparse ones too
        (args.enable_streaming_session, "--enable-streaming-session"),
        # its requests never pass a prefill here, where budgets are read
        (args.disaggregation_mode == "decode", "--disaggregation-mode decode"),
        # SGLang loads no plug-in in such workers, where budgets would be checked and answers get their account
        (args.tokenizer_worker_num > 1, f"--tokenizer-worker-num {args.tokenizer_worker_num} (in this version: 1)"),
        (args.get_attention_backends()[1] != "lychee", "prefill alone: --decode-attention-backend has to be lychee"),
        (args.enable_torch_compile, "--enable-torch-compile"),
        # how work is cut up follows the batch; SGLang says so itself unless another backend does the prefill
        (args.enable_deterministic_inference, "--enable-deterministic-inference"),
    )


def _layer_refusals(runner: Any) -> list[tuple[bool, str]]:
    """What single attention layers ask for beyond a scale: sets would be chosen, and sums made, without it."""
    layers = [layer for layer in runner.model.modules() if type(layer).__name__ == "RadixAttention"]
    return [
        (any(layer.logit_cap for layer in layers), "models with a soft cap on attention logits"),
        (any(layer.is_cross_attention for layer in layers), "models with cross-attention"),
        (any(layer.v_head_dim != layer.head_dim for layer in layers), "models with value heads of another size"),
        (any(layer.sliding_window_size > 0 for layer in layers), "models with sliding-window attention"),
        (any(layer.attn_type.value != "decoder" for layer in layers), "models with attention that is not causal"),
        (
            len(layers) != runner.model_config.num_hidden_layers,
            f"models without attention in every layer ({len(layers)} of {runner.model_config.num_hidden_layers})",
        ),
    ]


def _cpu_refusals(runner: Any) -> tuple[tuple[bool, str], ...]:
    args = runner.server_args
    return (
        (args.page_size not in (None, 1), f"--page-size {args.page_size} (on the CPU: 1)"),
        (str(runner.dtype) == "torch.float16", "--dtype float16 (on the CPU: bfloat16, float32)"),
        (
            str(runner.kv_cache_dtype) not in ("torch.bfloat16", "torch.float32"),
            f"--kv-cache-dtype {runner.kv_cache_dtype_str} (on the CPU: the model's bfloat16 or float32)",
        ),
    )


def _gpu_refusals(runner: Any) -> tuple[tuple[bool, str], ...]:
    model = runner.model_config
    group = model.num_attention_heads // max(1, model.num_key_value_heads)
    return (
        (str(runner.device) != "cuda", f"device {runner.device} (its kernels are for cpu, cuda)"),
        (str(runner.dtype) == "torch.float32", "--dtype float32 (on a GPU: bfloat16, float16)"),
        (
            # mxfp8 is a float8, too, with scales for blocks of 32 entries beside it
            str(runner.kv_cache_dtype) not in GPU_KV_DTYPES or runner.kv_cache_dtype_str == "mxfp8",
            f"--kv-cache-dtype {runner.kv_cache_dtype_str} (on a GPU: auto, bfloat16, fp8_e4m3, fp8_e5m2)",
        ),
        (
            # SGLang would divide by them what it stores, and its dense decode would read it as it is
            getattr(runner.server_args, "quantization_param_path", None) is not None,
            "--quantization-param-path (scales of an fp8 KV cache are taken from the checkpoint)",
        ),
        (model.head_dim not in (64, 128), f"heads of size {model.head_dim} (on a GPU: 64, 128)"),
        (group > 16, f"{group} query heads for a KV head (on a GPU: up to 16)"),
    )


def _check_hooks() -> None:
    from lychee_sgl.backend import hooks

    missing = hooks.missing()
    if missing:
        raise BackendRefused(
            f"the attention backend lychee needs hooks that could not be applied to this SGLang: {', '.join(missing)}"
        )


def _plan(config: EngineConfig, args: Any, model: Any, tp: int) -> ChosenPlan:
    """The plan of an engine, checked against its model and its ranks."""
    shape = model_shape(model.hf_text_config, args.model_path)
    chosen = choose_plan(config.heads, shape, args.served_model_name)
    check_plan(chosen.plan, tp, path=None if config.heads is None else str(config.heads))
    return chosen


def before_launch(args: Any) -> None:
    """Refuses before any process starts and weights are read what can be told from arguments and files.

    `create_backend` looks at it all again, in every scheduler.

    Args:
        args: SGLang's ServerArgs, complete.

    Raises:
        BackendRefused, PlanError, ConfigError: as `create_backend`.
    """
    if "lychee" in args.get_attention_backends():
        _check_hooks()
        _refuse(*_argument_refusals(args))
        config, model = EngineConfig.from_env(), args.get_model_config()
        _plan(config, args, model, args.tp_size)
        choose_compressor(config, args, model)


def create_backend(runner: Any) -> HybridHeads:
    """Makes the backend; SGLang calls it in every scheduler process that selected `lychee`.

    Args:
        runner: SGLang's ModelRunner.

    Raises:
        BackendRefused: a hook has not been applied, or the model or a setting is not served.
        PlanError: the head plan cannot be read or does not fit, or its sets would cross ranks.
        RanksDiffer: another rank of this engine has another plan or other settings.
        ConfigError: a setting has a value that is not allowed.
    """
    _check_hooks()
    check_server_args(runner)
    config = EngineConfig.from_env()
    args = runner.server_args
    if config.cache_correction:
        for refused, what in refusals(args, runner.model_config):
            if refused:
                every = config.cache_correction
                raise BackendRefused(f"LYCHEE_CACHE_CORRECTION is {every}, allowed with {what}: 0")
    ranks = Ranks.of_this_process()
    if config.rival_policies and ranks.size > 1:
        raise BackendRefused(f"LYCHEE_RIVAL_POLICIES is 1, allowed with --tp-size {ranks.size}: 0")
    chosen = _plan(config, args, runner.model_config, ranks.size)
    backend: HybridHeads
    if str(runner.device) == "cpu":
        from lychee_sgl.backend.cpu_attention import LycheeCpuBackend

        backend = LycheeCpuBackend(runner, chosen, config, ranks)
    else:
        from lychee_sgl.backend.gpu_attention import LycheeGpuBackend

        backend = LycheeGpuBackend(runner, chosen, config, ranks)
    runner.lychee = backend
    return backend
