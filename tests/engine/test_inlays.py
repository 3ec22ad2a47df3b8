"""Embeddings in prompts: SGLang's radix cache shares their KV among equal ones, and with nobody else."""

from __future__ import annotations

import struct
from array import array
from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lychee_sgl import compat
from lychee_sgl.backend.inlays import MARK, around_next_round, extra_key, overrides
from lychee_sgl.memory.model import Inlay

# SGLang warns of much where there is no GPU when it is imported
pytestmark = pytest.mark.filterwarnings("ignore")

PROMPT = [5, 0, 0, 0, 6, 7]


def inlay(numbers: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), at: int = 1, count: int = 3) -> Inlay:
    vectors = struct.pack(f"{len(numbers)}f", *numbers)
    return Inlay(at=at, count=count, vectors=vectors, digest=sha256(vectors).digest())


def test_sglang_gets_the_embeddings_and_their_places() -> None:
    given = overrides(inlay(), "float32")
    assert given.positions == [1, 2, 3]
    assert given.embeds.tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    half = torch.tensor([[0.5, -2.0]], dtype=torch.bfloat16)
    data = half.view(torch.uint8).numpy().tobytes()
    given = overrides(Inlay(at=4, count=1, vectors=data, digest=b""), "bfloat16")
    assert (given.positions, given.embeds.dtype, given.embeds.tolist()) == ([4], torch.bfloat16, [[0.5, -2.0]])


def test_only_equal_embeddings_in_the_same_place_of_the_same_process_and_tenant_have_the_same_key() -> None:
    one = inlay()
    key = extra_key("tenant", "secret", one)
    assert key == extra_key("tenant", "secret", inlay())
    assert key.startswith(f"tenant{MARK}")
    others = [
        extra_key("tenant", "secret", inlay((1.0, 2.0, 3.0, 4.0, 5.0, 7.0))),
        extra_key("tenant", "secret", replace(one, at=2)),
        extra_key("tenant", "secret", replace(one, count=2)),
        extra_key("tenant", "another", one),
        extra_key("somebody", "secret", one),
        extra_key(None, "secret", one),
    ]
    assert len({key, *others}) == 1 + len(others)


class Cache:
    """SGLang's radix cache over a pool that is not there."""

    def __init__(self) -> None:
        from sglang.srt.mem_cache.radix_cache import RadixCache

        self.tree = RadixCache.create_simulated()

    def fill(self, req: Any, first_slot: int) -> int:
        """Puts a request's KV in, as after its prefill; gives how many of its tokens were there."""
        from sglang.srt.mem_cache.base_prefix_cache import InsertParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        ids = array("q", PROMPT)
        slots = torch.arange(first_slot, first_slot + len(ids))
        found: int = self.tree.insert(InsertParams(key=RadixKey(ids, req.extra_key), value=slots)).prefix_len
        return found

    def found(self, req: Any) -> list[int]:
        """Has a request look for its prefix through our hook; gives the slots that it would read."""
        from sglang.srt.managers.schedule_batch import Req

        around_next_round(Req.init_next_round_input, req, self.tree)
        return [int(slot) for slot in req.prefix_indices]


def request(given: Inlay | None, key: str | None) -> Any:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    embeds = None if given is None else overrides(given, "float32")
    params = SamplingParams(max_new_tokens=4)
    return Req("r", "", array("q", PROMPT), params, extra_key=key, positional_embed_overrides=embeds, vocab_size=100)


def test_the_same_embeddings_find_their_prefix_and_nobody_else_does() -> None:
    cache, one, other = Cache(), inlay(), inlay((9.0,) * 6)
    key = extra_key(None, "secret", one)
    cache.fill(request(one, key), 10)
    again = request(one, key)
    assert cache.found(again) == [10, 11, 12, 13, 14]  # the last token is always run
    assert again.positional_embed_overrides.positions == [1, 2, 3]
    assert cache.found(request(other, extra_key(None, "secret", other))) == []
    assert cache.found(request(None, None)) == []
    # nor do they find what a prompt of the same ids has left
    cache.fill(request(None, None), 20)
    assert cache.found(request(None, None)) == [20, 21, 22, 23, 24]
    assert cache.found(request(other, extra_key(None, "secret", other))) == []


def test_without_a_key_of_its_own_the_second_would_decode_from_the_firsts_kv() -> None:
    """Why there are keys: SGLang 0.5.17 puts KV of embeddings into the cache under ids that say nothing of them."""
    cache = Cache()
    assert cache.fill(request(inlay(), None), 10) == 0
    taken = cache.fill(request(inlay((9.0,) * 6), None), 20)
    assert taken == len(PROMPT)
    assert cache.found(request(inlay(), None)) == []  # embeddings of somebody else's stay without a prefix


def test_a_later_sglang_is_told_to_keep_them() -> None:
    req = SimpleNamespace(positional_embed_overrides=object(), extra_key=f"{MARK}1", skip_radix_cache_insert=True)
    around_next_round(lambda req: None, req)
    assert req.skip_radix_cache_insert is False
    other = SimpleNamespace(positional_embed_overrides=object(), extra_key=None, skip_radix_cache_insert=True)
    around_next_round(lambda req: None, other)
    assert other.skip_radix_cache_insert is True
    compat.share_embeddings(old := SimpleNamespace())
    assert not vars(old)


def test_the_embeddings_are_back_whatever_happens() -> None:
    def fail(req: Any) -> None:
        assert req.positional_embed_overrides is None
        raise RuntimeError("no")

    held = object()
    req = SimpleNamespace(positional_embed_overrides=held, extra_key=f"mine{MARK}1")
    with pytest.raises(RuntimeError, match="no"):
        around_next_round(fail, req)
    assert req.positional_embed_overrides is held
