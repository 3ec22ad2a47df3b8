"""What stands for an engine that reads documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lychee_sgl.config import EngineConfig
from tests.engine.memory_engine import Manager

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from lychee_sgl.models.embedded import ensure_unpacked

    return AutoTokenizer.from_pretrained(str(ensure_unpacked(lambda _: None)))


@pytest.fixture
def manager(tokenizer: Any, tmp_path: Path) -> Manager:
    return Manager(tokenizer, EngineConfig(memory_bank=tmp_path / "bank.sqlite"))
