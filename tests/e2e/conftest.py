"""The deployment that all tests of this folder share. Files run in the order of their names: the last one stops it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest

from tests.e2e.deployment import START_SECONDS, Deployment

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that runs waits for the start, on a loaded machine for minutes."""
    for item in items:
        if "tests/e2e/" in str(item.path):
            item.add_marker(pytest.mark.timeout(2 * START_SECONDS))


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        made.wait_ready()
        yield made
    finally:
        made.clean_up()


@pytest.fixture
def client(deployment: Deployment) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{deployment.url}/v1", api_key="none", max_retries=0, timeout=300) as found:
        yield found
