"""Every place where the plug-in touches SGLang, in one table.

SGLang's loader only logs a hook that it cannot apply. `missing` tells which ones those are, and the backend's factory
refuses to start with any.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from lychee_sgl import compat
from lychee_sgl.config import ConfigError, EngineConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from sglang.srt.plugins.hook_registry import HookType

SPARSE_FLAG = "lychee_has_sparse_kv"
"""Set on a SGLang request while some of its decoded KV comes from sparse steps."""


class Hook(NamedTuple):
    """A function around, before, after or in place of one of SGLang's."""

    target: str
    function: Callable[..., Any]
    when: str


def after_init_new(result: Any, cls: type, batch: Any, runner: Any, *args: Any, **kwargs: Any) -> None:
    """Sees every batch with its requests before it runs: notes them, and writes the row tables at an extend."""
    backend = getattr(runner, "lychee", None)
    if backend is None:
        return
    backend.batch_reqs = reqs = list(batch.reqs)
    if result.forward_mode.is_extend():
        parts = zip(result.extend_prefix_lens_cpu, result.extend_seq_lens_cpu, strict=True)
        backend.admit(reqs, [int(before) + int(new) for before, new in parts])
        for req in reqs:
            # what is prefilled, a retracted request's answer included, is dense
            setattr(req, SPARSE_FLAG, False)


def around_forward(original: Callable[..., Any], runner: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Takes a step's statistics out of the backend: notes whose KV is no longer dense, and hands them to SGLang.

    Before a decode step, tokens that are due are run again (DESIGN.md 11.2), on the same stream and unseen by SGLang.
    """
    backend = getattr(runner, "lychee", None)
    corrected = None if backend is None else backend.correct(functools.partial(original, runner), forward_batch)
    output = original(runner, forward_batch, *args, **kwargs)
    if backend is not None and backend.batch_reqs is not None and output.logits_output is not None:
        from lychee_sgl.backend.correction import CorrectedSteps
        from lychee_sgl.backend.summary import INFO_KEY

        reqs = backend.batch_reqs
        steps = backend.take_results()
        if steps is not None:
            for req, sparse in zip(reqs, steps.sparse, strict=True):
                if sparse:
                    setattr(req, SPARSE_FLAG, True)
        if corrected is not None and steps is not None:
            steps = CorrectedSteps(steps, corrected)
        ours = [None] * len(reqs) if steps is None else steps
        output.logits_output.customized_info = {**(output.logits_output.customized_info or {}), INFO_KEY: ours}
        backend.batch_reqs = None
    return output


def before_copy(*args: Any, **kwargs: Any) -> None:
    """Starts the copy of a device's statistics where SGLang starts its own."""
    from lychee_sgl.backend.correction import CorrectedSteps
    from lychee_sgl.backend.results import DeviceSteps
    from lychee_sgl.backend.summary import INFO_KEY

    result = args[0] if args else kwargs["self"]
    info = getattr(result.logits_output, "customized_info", None) or {}
    if isinstance(info.get(INFO_KEY), DeviceSteps | CorrectedSteps):
        info[INFO_KEY].start_copy()


def around_capture(original: Callable[..., Any], graph_runner: Any, *args: Any, **kwargs: Any) -> None:
    """Captures a batch size twice: once all rows dense, by SGLang's dense backend, and once with our kernels."""
    backend = getattr(graph_runner.model_runner, "lychee", None)
    if backend is None:
        original(graph_runner, *args, **kwargs)
        return
    for variant in backend.graph_variants:
        backend.variant_to_capture = variant
        original(graph_runner, *args, **kwargs)


def around_graph_key(original: Callable[..., Any], graph_runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Tells the graphs of the two variants apart; the backend has chosen when it prepared the step's metadata."""
    key = original(graph_runner, *args, **kwargs)
    backend = getattr(graph_runner.model_runner, "lychee", None)
    if backend is None:
        return key
    ours = f"lychee_{backend.variant}"
    # SGLang's own variants (LoRA) are captured for each of ours
    label = ours if key.variant_label is None else f"{key.variant_label}_{ours}"
    return dataclasses.replace(key, variant_label=label)


def around_can_run_graph(original: Callable[..., Any], graph_runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Keeps a batch with a rival policy out of the graphs: such a step runs in torch, with sets of any size."""
    backend = getattr(graph_runner.model_runner, "lychee", None)
    if backend is not None and backend.batch_has_rivals():
        return False
    return original(graph_runner, *args, **kwargs)


def before_release(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Keeps KV of sparse decode steps out of the radix cache (DESIGN.md 2.3); the prompt is in it since the prefill.

    Not so where the prefill's token was the last: SGLang then puts the prompt in here, when with overlap scheduling a
    sparse step that nobody needs has already run. There it is put in first.
    """
    req = args[0] if args else kwargs["req"]
    if not getattr(req, SPARSE_FLAG, False):
        return None
    if len(req.output_ids) <= 1:
        compat.keep_prompt(args, kwargs)
    return compat.keep_out_of_radix_cache(args, kwargs)


def before_launch(args: Any) -> None:
    """Looks at an engine's arguments before its processes start."""
    from lychee_sgl.backend import factory

    factory.before_launch(args)


def _scheduler_hooks() -> list[Hook]:
    from lychee_sgl.backend import inlays

    return [
        Hook("sglang.srt.server_args.ServerArgs.check_server_args", before_launch, "before"),
        Hook("sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new", after_init_new, "after"),
        Hook("sglang.srt.model_executor.model_runner.ModelRunner.forward", around_forward, "around"),
        Hook("sglang.srt.mem_cache.common.release_kv_cache", before_release, "before"),
        Hook("sglang.srt.managers.schedule_batch.Req.init_next_round_input", inlays.around_next_round, "around"),
    ]


def _http_hooks() -> list[Hook]:
    from lychee_sgl.backend import memory, openai

    serving = "sglang.srt.entrypoints.openai.serving_"
    chat, completion = f"{serving}chat.OpenAIServingChat", f"{serving}completions.OpenAIServingCompletion"
    return [
        Hook("sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request", openai.watch, "around"),
        Hook(f"{chat}.handle_request", memory.around_chat, "around"),
        Hook(f"{chat}._generate_chat_stream", openai.decorate_stream, "around"),
        Hook(f"{completion}._generate_completion_stream", openai.decorate_stream, "around"),
        Hook(f"{chat}._handle_non_streaming_request", openai.decorate_answer, "around"),
        Hook(f"{completion}._handle_non_streaming_request", openai.decorate_answer, "around"),
        Hook("sglang.srt.entrypoints.http_server._setup_and_run_http_server", openai.add_routes, "before"),
    ]


def _gpu_hooks() -> list[Hook]:
    graphs = "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner"
    return [
        Hook("sglang.srt.managers.utils.GenerationBatchResult.copy_to_cpu", before_copy, "before"),
        Hook(f"{graphs}.capture_one_shape", around_capture, "around"),
        Hook(f"{graphs}._make_graph_key", around_graph_key, "around"),
        *([Hook(f"{graphs}.can_run_graph", around_can_run_graph, "around")] if _serves_rivals() else []),
    ]


def _serves_rivals() -> bool:
    try:
        return EngineConfig.from_env().rival_policies
    except ConfigError:
        return False  # the factory says what is wrong; SGLang would only log it here


def _cpu_hooks() -> list[Hook]:
    from lychee_sgl.cpu import grammar, linear, threads

    xgrammar = "sglang.srt.constrained.xgrammar_backend"
    hooks = [
        Hook(f"{xgrammar}._allocate_token_bitmask", grammar.allocate, "replace"),
        Hook(f"{xgrammar}.XGrammarGrammar.apply_vocab_mask", grammar.apply_method, "replace"),
        Hook(f"{xgrammar}.XGrammarGrammarBackend.apply_vocab_mask", grammar.apply, "replace"),
        Hook("sglang.srt.utils.common.support_triton", lambda *args, **kwargs: False, "after"),
        Hook("sglang.srt.model_executor.model_runner.ModelRunner._forward_raw", threads.around_forward, "around"),
    ]
    if not linear.has_bfloat16_arithmetic():
        target = "sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod.apply"
        hooks.append(Hook(target, linear.apply, "around"))
    return hooks


def hooks() -> list[Hook]:
    """Lists the hooks that this machine needs."""
    from lychee_sgl.plugin import cpu_platform

    return _scheduler_hooks() + _http_hooks() + (_cpu_hooks() if cpu_platform() else _gpu_hooks())


def install() -> None:
    """Registers the backend's name and the hooks; SGLang's loader applies them. A second call changes nothing."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS, register_attention_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import add_attention_backend_choices

    from lychee_sgl.backend.factory import create_backend

    if "lychee" in ATTENTION_BACKENDS:
        return
    compat.check_version()
    kinds: dict[str, HookType] = {kind.value: kind for kind in HookType}
    for hook in hooks():
        HookRegistry.register(hook.target, hook.function, kinds[hook.when])
    add_attention_backend_choices(["lychee"])
    register_attention_backend("lychee")(create_backend)


def missing() -> list[str]:
    """Names the targets whose hooks SGLang could not apply."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    return [hook.target for hook in hooks() if hook.target not in HookRegistry._patched]
