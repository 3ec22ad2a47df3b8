"""The engine as the loop of `lychee_sgl.memory` sees it: greedy calls through SGLang's own manager."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from lychee_sgl.backend.inlays import extra_key, overrides
from lychee_sgl.memory.model import ModelFailed, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lychee_sgl.memory.model import Inlay


class EngineModel:
    """The model behind a TokenizerManager, for one request.

    Attributes:
        summaries: what our backend said of each call that ended.
    """

    def __init__(
        self,
        manager: Any,
        *,
        identity: Mapping[str, object],
        fields: Mapping[str, Any],
        custom_params: Mapping[str, Any] | None,
        template: Mapping[str, Any],
        summarise: Callable[[Any], dict[str, Any] | None],
        secret: str = "",
    ) -> None:
        """Nothing is asked yet.

        Args:
            manager: SGLang's TokenizerManager.
            identity: what answers depend on beside the model.
            fields: of every `GenerateReqInput`.
            custom_params: of every call.
            template: further arguments of the chat template.
            summarise: our backend's account of a call.
            secret: of this process, for the keys of what has embeddings; only those need one.
        """
        self._secret = secret
        self._manager, self._fields, self._params = manager, dict(fields), dict(custom_params or {})
        self._template, self._summarise = dict(template), summarise
        self._name = uuid.uuid4().hex
        self._calls = 0
        self.summaries: list[dict[str, Any]] = []
        self._identity = dict(identity)

    @property
    def window(self) -> int:
        """The engine's."""
        return int(self._manager.model_config.context_len)

    @property
    def identity(self) -> str:
        """Weights and their version as they are now, budget, template, and what the request brought."""
        args = self._manager.server_args
        weights = [args.model_path, args.revision, args.weight_version, args.dtype, args.quantization]
        weights += [args.kv_cache_dtype, args.attention_backend, args.decode_attention_backend]
        return json.dumps([weights, self._params, self._template, self._identity], sort_keys=True, default=str)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenises with the engine's tokenizer."""
        ids: list[list[int]] = self._manager.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Applies the model's chat template; models that could think first are asked not to."""
        kwargs = {"enable_thinking": False, **self._template, "tokenize": False, "add_generation_prompt": True}
        text: str = self._manager.tokenizer.apply_chat_template([dict(message) for message in messages], **kwargs)
        return text

    async def generate(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int,
        score_from: int | None = None,
        stop: str | None = None,
        inlay: Inlay | None = None,
    ) -> Reply:
        """Asks the scheduler; a call that is cancelled is aborted there."""
        from fastapi import HTTPException
        from sglang.srt.managers.io_struct import GenerateReqInput

        self._calls += 1
        fields = dict(self._fields)
        if inlay is not None:
            fields["extra_key"] = extra_key(fields.get("extra_key"), self._secret, inlay)
            fields["positional_embed_overrides"] = overrides(inlay, dtype_name(self._manager))
        obj = GenerateReqInput(
            input_ids=list(tokens),
            sampling_params={
                "temperature": 0,
                "max_new_tokens": max_tokens,
                **({"stop": [stop]} if stop else {}),
                **({"custom_params": self._params} if self._params else {}),
            },
            return_logprob=score_from is not None,
            # the engine counts from the token whose successor it scores
            logprob_start_len=-1 if score_from is None else max(0, score_from - 1),
            rid=f"{self._name}-{self._calls}",
            **fields,
        )
        ended = False
        try:
            async for output in self._manager.generate_request(obj, None):
                found = output
            ended = True
        except HTTPException as error:
            ended = True
            raise ModelFailed(str(error.detail)) from error
        finally:
            if not ended:
                self._manager.abort_request(obj.rid)
        return self._reply(obj, found, score_from)

    def _reply(self, obj: Any, output: Mapping[str, Any], score_from: int | None) -> Reply:
        finish = output["meta_info"].get("finish_reason") or {}
        if finish.get("type") == "abort":
            raise ModelFailed(str(finish.get("message") or "the engine aborted the call"))
        summary = self._summarise(obj)
        if summary is not None:
            self.summaries.append(summary)
        return Reply.of_sglang(output, 0 if score_from is None else len(obj.input_ids) - score_from)


def dtype_name(manager: Any) -> str:
    """Names the dtype of the engine's embeddings, as torch does."""
    return str(manager.model_config.dtype).removeprefix("torch.")
