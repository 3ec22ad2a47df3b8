"""Looks at the request for an answer before a document is read for it: what is refused here has cost nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lychee_sgl.memory.split import Refused

if TYPE_CHECKING:
    from lychee_sgl.memory.settings import ReadSettings

_NOT_OF_A_TEMPLATE: Final = frozenset({"conversation", "tokenize", "add_generation_prompt"})
"""Arguments beside the template's own that SGLang sets: given twice, it breaks."""


def check_answer(serving: Any, final: Any, raw: Any, *, engine: Any, settings: ReadSettings) -> None:
    """Has SGLang convert a request, and checks what SGLang checks when it runs.

    Args:
        serving: SGLang's chat handler.
        final: the request for the answer, still without notes; converting changes it.
        raw: the HTTP request.
        engine: what is known of the engine's backend, for the budget.
        settings: how the document is read.

    Raises:
        ValueError: it would be refused; `Refused` where it is for its length.
    """
    from jinja2 import TemplateError
    from sglang.srt.sampling.sampling_params import SamplingParams

    manager = serving.tokenizer_manager
    for key in _NOT_OF_A_TEMPLATE & {*(final.chat_template_kwargs or {})}:
        field = f"chat_template_kwargs.{key}"
        raise Refused(f"{field} is given, allowed: what the template itself asks for", field)
    problem = serving._validate_request(final)
    if problem:
        raise ValueError(problem)
    try:
        adapted, _ = serving._convert_to_internal_request(final, raw)
        params = SamplingParams(**adapted.sampling_params)
    except (TypeError, TemplateError) as error:  # of fields whose values nobody has looked at, as SGLang has it
        raise ValueError(str(error)) from error
    engine.spec(adapted, 0)
    params.normalize(manager.tokenizer)
    params.verify(manager.model_config.vocab_size)
    if not manager.allow_auto_truncate:
        _check_length(manager, adapted, settings)


def _check_length(manager: Any, adapted: Any, settings: ReadSettings) -> None:
    """Checks that notes and answer fit beside question, system messages and tools."""
    ids = adapted.input_ids
    if ids is None:
        ids = manager.tokenizer([adapted.text], add_special_tokens=False)["input_ids"][0]
    window, around = manager.model_config.context_len, len(ids) + manager.num_reserved_tokens
    room = window - around - settings.most_note_tokens
    beside = (
        f"beside lychee_working_memory {settings.working_memory} and {around} tokens of question, system messages "
        f"and tools in a window of {window}"
    )
    if room < 1:
        raise Refused(f"messages: no token is left for the answer {beside}", "messages")
    asked = adapted.sampling_params.get("max_new_tokens")
    if asked is not None and asked > room and manager.validate_total_tokens:
        raise Refused(f"max_tokens is {asked}, allowed: up to {room} {beside}", "max_tokens")
