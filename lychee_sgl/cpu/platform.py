"""SGLang's platform for machines without an accelerator: stock pools and allocator, nothing of the GPU."""

from __future__ import annotations

from typing import Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform


class LycheeCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """Runs stock SGLang on the CPU.

    SGLang's in-tree CPU platform needs `sgl_kernel`, whose wheel needs a CUDA driver; an out-of-tree one takes the
    torch implementations everywhere ("native").
    """

    _enum = PlatformEnum.OOT

    def get_default_attention_backend(self) -> str:
        """Our backend; `--attention-backend torch_native` gives SGLang's own."""
        return "lychee"

    def get_device(self, local_rank: int | None = 0) -> str:
        """The device's name: SGLang splits it as a string, where the mixin gives a torch.device."""
        return "cpu"

    def is_pin_memory_available(self, device: Any = None) -> bool:
        """There is no device to pin memory for."""
        return False

    def get_mha_kv_pool_cls(self) -> type:
        """The stock pool (asked for by 0.5.17; later versions take it by default)."""
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        pool: type = MHATokenToKVPool
        return pool

    def get_paged_allocator_cls(self) -> Any:
        """The stock allocator of single slots: the paged one launches Triton kernels."""
        return _single_slot_allocator


def _single_slot_allocator(size: int, *, page_size: int, **kwargs: Any) -> Any:
    """Makes SGLang's token allocator out of the paged allocator's arguments.

    Raises:
        ValueError: the page size is not 1.
    """
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator

    if page_size != 1:
        raise ValueError(f"--page-size is {page_size}, on the CPU allowed: 1")
    return TokenToKVPoolAllocator(size, **kwargs)
