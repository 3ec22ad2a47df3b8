"""Cache correction: decoded tokens are run again densely, and their K/V replaced where they lie (DESIGN.md 11.2)."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lychee_sgl import compat
from lychee_sgl.backend.results import DeviceSteps
from lychee_sgl.backend.summary import Correction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lychee_sgl.backend.results import DenseSteps, HostSteps


def refusals(server_args: Any, model_config: Any) -> list[tuple[bool, str]]:
    """Lists what an extend of our own would leave out, and whether it is so here."""
    # with these, as with DP attention, ranks agree on a batch's tokens before it runs, and it is padded to them
    exchange, dense_ranks = (getattr(server_args, name, None) for name in ("moe_a2a_backend", "moe_dense_tp_size"))
    return [
        (bool(getattr(server_args, "enable_lora", False)), "--enable-lora"),
        (bool(getattr(server_args, "enable_dp_attention", False)), "--enable-dp-attention"),
        (exchange not in (None, "none"), f"--moe-a2a-backend {exchange}"),
        (dense_ranks is not None, f"--moe-dense-tp-size {dense_ranks}"),
        (bool(getattr(model_config, "model_is_mrope", False)), "a model with rotary positions of several axes"),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Tokens of one request that are to be run again.

    Attributes:
        row: the request's row of the batch.
        slot: its row of `req_to_token`.
        start: position of the first token.
        tokens: their numbers.
    """

    row: int
    slot: int
    start: int
    tokens: list[int]

    @property
    def end(self) -> int:
        """Position behind the last token."""
        return self.start + len(self.tokens)


class Schedule:
    """For every request slot, how often to correct and up to where its K/V are dense; on the host alone.

    Attributes:
        asked: whether any request has ever asked for correction: until then a decode step need not look.
    """

    def __init__(self, max_reqs: int) -> None:
        self._every = np.zeros(max_reqs + 1, dtype=np.int64)
        self._dense_up_to = np.zeros(max_reqs + 1, dtype=np.int64)
        self.asked = False

    def admit(self, slots: Sequence[int], every: Sequence[int], lengths: Sequence[int]) -> None:
        """Takes note of the requests of an extend batch, whose contexts are dense when it has run."""
        index = list(slots)
        self._every[index], self._dense_up_to[index] = every, lengths
        self.asked = self.asked or any(every)

    def wanted(self, reqs: Sequence[Any]) -> bool:
        """Whether any request of a batch is to be corrected at all; asked at every step, so of all at once."""
        return bool(self._every[[compat.req_pool_index(req) for req in reqs]].any())

    def due(self, reqs: Sequence[Any], lengths: Sequence[int]) -> list[Due]:
        """Finds what is to be run again before a decode step, and counts it as done.

        Args:
            reqs: the batch's requests.
            lengths: their contexts, the current token included.
        """
        found = []
        for row, (req, length) in enumerate(zip(reqs, lengths, strict=True)):
            slot = compat.req_pool_index(req)
            every, start = int(self._every[slot]), int(self._dense_up_to[slot])
            end, prompt = start + every, len(req.origin_input_ids)
            # the current token, at length - 1, has no K/V yet; with overlap the host does not know its number either
            if not every or end >= length or end > prompt + len(req.output_ids):
                continue
            self._dense_up_to[slot] = end
            tokens = [int(token) for token in req.output_ids[start - prompt : end - prompt]]
            found.append(Due(row=row, slot=slot, start=start, tokens=tokens))
        return found


def passes(due: Sequence[Due], most: int) -> Iterator[list[Due]]:
    """Divides what is due so that no pass has more than `most` tokens, or one request's."""
    group: list[Due] = []
    for each in due:
        if group and sum(len(other.tokens) for other in group) + len(each.tokens) > most:
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def extend_batch(decode: Any, due: Sequence[Due], req_to_token: torch.Tensor, modes: Any) -> Any:
    """Makes the batch that runs tokens again, out of the decode batch that they are in.

    Args:
        decode: SGLang's ForwardBatch of the decode step.
        due: what is to be run again; at least one request.
        req_to_token: SGLang's table of slots.
        modes: SGLang's ForwardMode and CaptureHiddenMode.

    Returns:
        A ForwardBatch of mode EXTEND that writes its K/V over those that are there.
    """
    forward_mode, hidden_mode = modes
    device = decode.seq_lens.device
    starts, sizes = [each.start for each in due], [len(each.tokens) for each in due]
    ends, total = [each.end for each in due], sum(sizes)

    def send(values: list[int], dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.tensor(values, dtype=dtype)
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    slots = [req_to_token[each.slot, each.start : each.end] for each in due]
    known = {field.name for field in dataclasses.fields(decode)}
    changes = {
        "forward_mode": forward_mode.EXTEND,
        "batch_size": len(due),
        "input_ids": send([token for each in due for token in each.tokens], decode.input_ids.dtype),
        "req_pool_indices": send([each.slot for each in due], decode.req_pool_indices.dtype),
        "seq_lens": send(ends, decode.seq_lens.dtype),
        "seq_lens_cpu": torch.tensor(ends, dtype=torch.int64),
        "orig_seq_lens": send(ends, torch.int32),
        "seq_lens_sum": sum(ends),
        "out_cache_loc": torch.cat(slots).to(decode.out_cache_loc.dtype),
        "positions": send([p for each in due for p in range(each.start, each.end)], decode.positions.dtype),
        "extend_num_tokens": total,
        "extend_seq_lens": send(sizes, torch.int32),
        "extend_prefix_lens": send(starts, torch.int32),
        "extend_start_loc": send([sum(sizes[:i]) for i in range(len(sizes))], torch.int32),
        "extend_seq_lens_cpu": sizes,
        "extend_prefix_lens_cpu": starts,
        "extend_logprob_start_lens_cpu": sizes,
        "num_token_non_padded": None if decode.num_token_non_padded is None else send([total], torch.int32)[0],
        "num_token_non_padded_cpu": total,
        "rids": None if decode.rids is None else [decode.rids[each.row] for each in due],
        "lora_ids": None if decode.lora_ids is None else [decode.lora_ids[each.row] for each in due],
        "capture_hidden_mode": hidden_mode.NULL,
        "return_logprob": False,
        "top_logprobs_nums": None,
        "token_ids_logprobs": None,
        "sampling_info": None,
        "mm_inputs": None,
    }
    return dataclasses.replace(decode, **{name: value for name, value in changes.items() if name in known})


class Stopwatch:
    """The time of what a device does between two points of its stream, or of the host where that does the work."""

    def __init__(self, device: torch.device) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self._host = [0.0, 0.0]

    def mark(self, point: int) -> None:
        """Takes the beginning (0) or the end (1)."""
        self._host[point] = time.perf_counter()
        if self._events:
            self._events[point].record()

    def seconds(self) -> float:
        """Gives the time; on a device only to be asked once the results of that step have arrived."""
        if self._events:
            self._events[1].synchronize()
            return float(self._events[0].elapsed_time(self._events[1])) / 1000
        return self._host[1] - self._host[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """What has been run again before a decode step.

    Attributes:
        entries: KV entries read, by row of the batch.
        tokens: tokens run again, by row.
        watches: the pass in which a row was, and how many requests shared it.
    """

    entries: dict[int, int]
    tokens: dict[int, int]
    watches: dict[int, tuple[Stopwatch, int]]

    def of(self, row: int) -> Correction | None:
        """Gives a row's part; None where it was not due."""
        if row not in self.tokens:
            return None
        watch, shared = self.watches[row]
        return Correction(self.tokens[row], self.entries[row], watch.seconds() / shared)


class CorrectedSteps:
    """A step's statistics with those of the corrections before it."""

    def __init__(self, steps: HostSteps | DenseSteps | DeviceSteps, corrected: Corrected) -> None:
        self._steps, self._corrected, self.sparse = steps, corrected, steps.sparse

    def start_copy(self) -> None:
        """Starts the copy to the host where the step's own statistics need one."""
        if isinstance(self._steps, DeviceSteps):
            self._steps.start_copy()

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        correction = self._corrected.of(row)
        values = self._steps[row]
        # a correction's reads are part of what its step read
        return values if correction is None else (values[0] + correction.entries, *values[1:], *correction)


def correct(
    forward: Callable[[Any], Any],
    decode: Any,
    due: Sequence[Due],
    req_to_token: torch.Tensor,
    *,
    most: int,
    heads: int,
) -> Corrected:
    """Runs tokens again.

    Args:
        forward: the model runner's forward pass.
        decode: the ForwardBatch of the decode step that comes next.
        due: what is to be run again.
        req_to_token: SGLang's table of slots.
        most: tokens of a pass.
        heads: KV heads of all layers.
    """
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardMode

    corrected = Corrected(entries={}, tokens={}, watches={})
    for group in passes(due, most):
        watch = Stopwatch(decode.seq_lens.device)
        watch.mark(0)
        forward(extend_batch(decode, group, req_to_token, (ForwardMode, CaptureHiddenMode)))
        watch.mark(1)
        for each in group:
            corrected.entries[each.row] = each.end * heads
            corrected.tokens[each.row] = len(each.tokens)
            corrected.watches[each.row] = (watch, len(group))
    return corrected
