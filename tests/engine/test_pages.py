"""What is left in SGLang's radix cache, and in its pool, when requests end, for pages of one token and of many.

The pool, the allocators, the radix cache and the release are SGLang's own; the scheduler around them is played here.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lychee_sgl import compat
from lychee_sgl.backend import hooks

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # SGLang warns while it is imported where there is no GPU
    pytest.mark.skipif(compat.sglang_version() >= (0, 5, 18), reason="drives the requests of SGLang 0.5.17"),
]

SIZE = 512
PAGES = [1, 16]


@dataclass
class Cache:
    """SGLang's memory for a model of one layer."""

    page: int
    rows: Any = field(init=False)
    slots: Any = field(init=False)
    tree: Any = field(init=False)
    served: int = 0

    def __post_init__(self) -> None:
        from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
        from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
        from sglang.srt.mem_cache.radix_cache import RadixCache

        kind = {"dtype": torch.float32, "device": "cpu"}
        pool = MHATokenToKVPool(SIZE, self.page, head_num=1, head_dim=2, layer_num=1, enable_memory_saver=False, **kind)
        self.rows = ReqToTokenPool(8, SIZE, "cpu", enable_memory_saver=False)
        common = {"kvcache": pool, "need_sort": False, **kind}
        self.slots = (
            TokenToKVPoolAllocator(SIZE, **common)
            if self.page == 1
            else PagedTokenToKVPoolAllocator(SIZE, self.page, **common)
        )
        self.tree = RadixCache(
            CacheInitParams(
                disable=False,
                req_to_token_pool=self.rows,
                token_to_kv_pool_allocator=self.slots,
                page_size=self.page,
            )
        )

    def prefill(self, prompt: list[int], *, ends: bool = False) -> Any:
        """Runs a prompt up to its first output token; unless that ends the request, the prompt is cached."""
        from sglang.srt.managers.schedule_batch import Req, ReqKvInfo
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
        from sglang.srt.mem_cache.radix_cache import RadixKey
        from sglang.srt.sampling.sampling_params import SamplingParams

        self.served += 1
        req = Req(str(self.served), "", array("q", prompt), SamplingParams())
        found = self.tree.match_prefix(MatchPrefixParams(key=RadixKey(array("q", prompt[:-1]), None)))
        req.last_node, hit = found.last_device_node, len(found.device_indices)
        self.tree.inc_lock_ref(req.last_node)
        req.prefix_indices, req.cache_protected_len = found.device_indices, hit
        self.rows.alloc([req])
        self.rows.write((req.req_pool_idx, slice(0, hit)), found.device_indices.to(torch.int32))
        req.kv = ReqKvInfo(kv_allocated_len=hit, swa_evicted_seqlen=0)
        req.kv_committed_len = hit
        self.grow(req, len(prompt) - hit)
        req._refresh_fill_ids()
        req.set_extend_range(hit, len(prompt))
        if not ends:
            self.tree.cache_unfinished_req(req)
        req.output_ids.append(1000 + self.served)
        return req

    def grow(self, req: Any, tokens: int) -> None:
        """Gives a request slots for more tokens: what is left of its last page, then whole pages."""
        row, start = self.rows.req_to_token[req.req_pool_idx], req.kv_committed_len
        for position in range(start, start + tokens):
            if position % self.page == 0:
                row[position : position + self.page] = self.slots.alloc(self.page).to(torch.int32)
        req.kv_committed_len = req.kv.kv_allocated_len = start + tokens

    def decode(self, req: Any, steps: int, *, sparse: bool, seen: bool = True) -> None:
        """Runs decode steps; the tokens of a step that was begun too early are never `seen`."""
        self.grow(req, steps)
        req.output_ids.extend([1000 + self.served] * steps if seen else [])
        setattr(req, hooks.SPARSE_FLAG, sparse)

    def release(self, req: Any, **how: bool) -> None:
        """Ends or retracts a request, through our hook."""
        from sglang.srt.mem_cache.common import release_kv_cache

        args, kwargs = hooks.before_release(req, self.tree, **how) or ((req, self.tree), how)
        release_kv_cache(*args, **kwargs)

    def cached(self, tokens: list[int]) -> list[int]:
        """The slots of the longest cached prefix."""
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        found = self.tree.match_prefix(MatchPrefixParams(key=RadixKey(array("q", tokens), None)))
        return [int(slot) for slot in found.device_indices]

    def check_nothing_is_lost(self) -> None:
        """All slots are free or in the cache, and come back out of it."""
        from sglang.srt.mem_cache.base_prefix_cache import EvictParams

        assert self.tree.protected_size() == 0
        assert self.slots.available_size() + self.tree.evictable_size() == SIZE
        self.tree.evict(EvictParams(num_tokens=SIZE))
        assert self.slots.available_size() == SIZE
        assert len(set(self.slots.free_pages.tolist())) == SIZE // self.page
        assert sorted(self.rows.free_slots) == list(range(1, 9))


@pytest.fixture
def cache(request: pytest.FixtureRequest) -> Iterator[Cache]:
    from sglang.srt.runtime_context import get_context

    with get_context().override_server_args():
        yield Cache(request.param)


def whole_pages(tokens: int, page: int) -> int:
    return tokens // page * page


@pytest.mark.parametrize("cache", PAGES, indirect=True)
@pytest.mark.parametrize("prompt_tokens", [15, 16, 17, 40])
@pytest.mark.parametrize("steps", [1, 16, 23])
@pytest.mark.parametrize("sparse", [True, False])
def test_a_sparse_answer_leaves_its_prompts_whole_pages_and_a_dense_one_all(
    cache: Cache, prompt_tokens: int, steps: int, sparse: bool
) -> None:
    prompt = list(range(prompt_tokens))
    req = cache.prefill(prompt)
    cache.decode(req, steps, sparse=sparse)
    slots = cache.rows.req_to_token[req.req_pool_idx].tolist()
    cache.release(req)
    kept = prompt_tokens if sparse else prompt_tokens + steps
    assert cache.cached([*prompt, *req.output_ids]) == slots[: whole_pages(kept, cache.page)]
    cache.check_nothing_is_lost()


@pytest.mark.parametrize("cache", PAGES, indirect=True)
@pytest.mark.parametrize("prompt_tokens", [15, 16, 31])
def test_a_step_that_nobody_needed_never_fills_a_page_of_the_cache(cache: Cache, prompt_tokens: int) -> None:
    # 15 tokens and one of a sparse step are a whole page
    prompt = list(range(prompt_tokens))
    req = cache.prefill(prompt, ends=True)
    cache.decode(req, 1, sparse=True, seen=False)
    slots = cache.rows.req_to_token[req.req_pool_idx].tolist()
    cache.release(req)
    assert cache.cached([*prompt, *req.output_ids]) == slots[: whole_pages(prompt_tokens, cache.page)]
    cache.check_nothing_is_lost()


@pytest.mark.parametrize("cache", PAGES, indirect=True)
def test_a_retracted_request_starts_again_from_its_prompts_whole_pages(cache: Cache) -> None:
    prompt = list(range(37))
    req = cache.prefill(prompt)
    cache.decode(req, 20, sparse=True)
    cache.release(req, is_insert=False)
    so_far = [*prompt, *req.output_ids]
    assert len(cache.cached(so_far)) == whole_pages(37, cache.page)
    again = cache.prefill(so_far)
    setattr(again, hooks.SPARSE_FLAG, False)  # what is prefilled is dense
    cache.release(again)
    assert len(cache.cached(so_far)) == whole_pages(len(so_far), cache.page)
    cache.check_nothing_is_lost()


@pytest.mark.parametrize("cache", PAGES, indirect=True)
def test_sparse_and_dense_answers_to_one_prompt_share_its_pages(cache: Cache) -> None:
    prompt = list(range(45))
    # both are prefilled before either is cached again: one of the two copies of the prompt is given back
    first, second = cache.prefill(prompt), cache.prefill(prompt)
    third = cache.prefill([*prompt[:33], *range(500, 520)])
    cache.decode(first, 10, sparse=True)
    cache.decode(second, 30, sparse=False)
    cache.decode(third, 5, sparse=True)
    answer = list(second.output_ids)
    for req in (third, first, second):
        cache.release(req)
    assert len(cache.cached([*prompt, *answer])) == whole_pages(45 + 30, cache.page)
    assert len(cache.cached([*prompt, *first.output_ids])) == whole_pages(45, cache.page)
    cache.check_nothing_is_lost()
