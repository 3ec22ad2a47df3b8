"""What README tells users to run is run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.deployment import Deployment

pytestmark = pytest.mark.engine

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "http://127.0.0.1:8000"


def block(language: str, word: str, deployment: Deployment) -> str:
    """README's one block in a language with a word in it, asking the deployment in place of the default address."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (found,) = [text for text in blocks if word in text]
    assert ADDRESS in found
    return str(found.replace(ADDRESS, deployment.url))


def test_the_python_snippet(deployment: Deployment) -> None:
    program = block("python", "from openai", deployment)
    answer = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    assert "Paris" in answer.stdout
    assert "'budget': 512" in answer.stdout


def test_the_curl(deployment: Deployment) -> None:
    command = block("sh", "curl", deployment)
    answer = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    body = json.loads(answer.stdout)
    assert "Paris" in body["choices"][0]["message"]["content"]
    assert (body["lychee"]["budget"], body["lychee"]["reason"]) == (512, "dense_below")
