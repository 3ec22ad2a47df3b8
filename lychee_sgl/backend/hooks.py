"""Every place where the plug-in touches SGLang, in one table.

SGLang's loader only logs a hook that it cannot apply. `missing` tells which ones those are, and the backend's factory
refuses to start with any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lychee_sgl import compat

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
        backend.admit(reqs)
        for req in reqs:
            # what is prefilled, a retracted request's answer included, is dense
            setattr(req, SPARSE_FLAG, False)


def around_forward(original: Callable[..., Any], runner: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Takes a step's statistics out of the backend: notes whose KV is no longer dense, and hands them to SGLang."""
    output = original(runner, forward_batch, *args, **kwargs)
    backend = getattr(runner, "lychee", None)
    if backend is not None and backend.batch_reqs is not None and output.logits_output is not None:
        from lychee_sgl.backend.summary import INFO_KEY

        reqs = backend.batch_reqs
        steps = backend.take_results()
        for req, step in zip(reqs, steps or (), strict=steps is not None):
            if step.sparse:
                setattr(req, SPARSE_FLAG, True)
        # plain tuples: what leaves in `meta_info` is written as JSON
        ours = [None] * len(reqs) if steps is None else [tuple(step) for step in steps]
        output.logits_output.customized_info = {**(output.logits_output.customized_info or {}), INFO_KEY: ours}
        backend.batch_reqs = None
    return output


def before_release(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Keeps KV of sparse decode steps out of the radix cache (DESIGN.md 2.3); the prompt is in it since the prefill."""
    req = args[0] if args else kwargs["req"]
    if not getattr(req, SPARSE_FLAG, False):
        return None
    return compat.keep_out_of_radix_cache(args, kwargs)


def _scheduler_hooks() -> list[Hook]:
    return [
        Hook("sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new", after_init_new, "after"),
        Hook("sglang.srt.model_executor.model_runner.ModelRunner.forward", around_forward, "around"),
        Hook("sglang.srt.mem_cache.common.release_kv_cache", before_release, "before"),
    ]


def _http_hooks() -> list[Hook]:
    from lychee_sgl.backend import openai

    serving = "sglang.srt.entrypoints.openai.serving_"
    chat, completion = f"{serving}chat.OpenAIServingChat", f"{serving}completions.OpenAIServingCompletion"
    return [
        Hook("sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request", openai.watch, "around"),
        Hook(f"{chat}._generate_chat_stream", openai.decorate_stream, "around"),
        Hook(f"{completion}._generate_completion_stream", openai.decorate_stream, "around"),
        Hook(f"{chat}._handle_non_streaming_request", openai.decorate_answer, "around"),
        Hook(f"{completion}._handle_non_streaming_request", openai.decorate_answer, "around"),
        Hook("sglang.srt.entrypoints.http_server._setup_and_run_http_server", openai.add_routes, "before"),
    ]


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

    return _scheduler_hooks() + _http_hooks() + (_cpu_hooks() if cpu_platform() else [])


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
