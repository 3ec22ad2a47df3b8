"""Tools that users have, unchanged, against the gateway in front of a scripted engine."""

from __future__ import annotations

from tests.gateway.conftest import engine, gateway, running, start_gateway

__all__ = ["engine", "gateway", "running", "start_gateway"]
