"""A gateway with a policy file in front of a scripted engine."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def with_policy(start_gateway, tmp_path):
    """Start a gateway with a policy; the file is `policy.yaml` in `tmp_path`."""

    def start(text: str, **settings: Any):
        file = tmp_path / "policy.yaml"
        file.write_text(text)
        return start_gateway(policy_file=file, **settings)

    return start
