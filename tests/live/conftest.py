"""Real engines on the embedded model, started once for all tests of this folder.

`LYCHEE_LIVE_ARGS` holds further arguments of SGLang for both engines, for example on a GPU `--page-size 16` or
`--kv-cache-dtype fp8_e4m3`: everything that the tests say has to hold under them as well.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from lychee_sgl.heads.registry import shipped_plans
from lychee_sgl.heads.shard import shard
from lychee_sgl.models.embedded import ensure_unpacked
from lychee_sgl.serve.solo import solo_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(Path(__file__).parent))

from client import Client

GPU = torch.cuda.is_available()
STOCK = "flashinfer" if GPU else "torch_native"
"""The dense backend that ours is compared with."""
RANKS = 3
ENVIRON = {"LYCHEE_DENSE_BELOW": "0", "LYCHEE_RECALL_EVERY": "4", "LYCHEE_RIVAL_POLICIES": "1"}
ARGS = (
    *(("--mem-fraction-static", "0.3", "--cuda-graph-bs-decode", "1", "2", "4", "8", "16") if GPU else ()),
    *shlex.split(os.environ.get("LYCHEE_LIVE_ARGS", "")),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that waits for the start of two engines and for their answers takes minutes, on a loaded machine many."""
    for item in items:
        if "tests/live/" in str(item.path):
            item.add_marker(pytest.mark.timeout(1800))


def save_untrained(folder: Path) -> None:
    """Writes a compressor for the embedded model that gives mean embeddings."""
    from lychee_sgl.compressor.model import Compressor, load_base, shape_of

    base = load_base(ensure_unpacked(lambda _: None))
    Compressor(base, shape_of(base, ratios=(2, 4), window=128, rank=2)).save(folder)


@pytest.fixture(scope="session")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Sparse from the first decode step on, by the embedded model's plan as three ranks can share it.

    And with a compressor that nobody has trained, where peft is installed.
    """
    plan = tmp_path_factory.mktemp("plan") / "tp3.json"
    shard(shipped_plans()[0], RANKS).plan.save(plan)
    blocks = tmp_path_factory.mktemp("blocks")
    memory = {
        "LYCHEE_MEMORY_BANK": str(blocks / "memory.sqlite"),
        "LYCHEE_MEMORY_BANK_BYTES": "0",  # compressed blocks are kept, steps are not
    }
    if importlib.util.find_spec("peft") is not None:
        save_untrained(blocks / "compressor")
        memory["LYCHEE_COMPRESSOR"] = str(blocks / "compressor")
    return {**ENVIRON, **memory, "LYCHEE_HEADS": str(plan)}


@pytest.fixture(scope="session")
def lychee(tmp_path_factory: pytest.TempPathFactory, environ: dict[str, str]) -> Iterator[Client]:
    """Our backend on one device."""
    state = tmp_path_factory.mktemp("lychee")
    with (
        solo_engine(state, engine_args=ARGS, accelerator=GPU, environ=environ) as address,
        closing(Client(address)) as client,
    ):
        yield client


@pytest.fixture(scope="module")  # five processes that look for work all the time
def ranks(tmp_path_factory: pytest.TempPathFactory, environ: dict[str, str]) -> Iterator[Client]:
    """The same on three ranks, which have one KV head of a layer each."""
    state = tmp_path_factory.mktemp("ranks")
    alone = {"LYCHEE_RIVAL_POLICIES": "0"}  # they are for one process
    with solo_engine(state, tp=RANKS, environ={**environ, **alone}) as address, closing(Client(address)) as client:
        yield client


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """SGLang's own dense backend on the same device."""
    with (
        solo_engine(tmp_path_factory.mktemp("stock"), backend=STOCK, engine_args=ARGS, accelerator=GPU) as address,
        closing(Client(address)) as client,
    ):
        yield client
