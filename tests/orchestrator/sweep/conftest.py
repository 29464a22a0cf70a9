"""Sweeps are read hundreds of times here: fewer points of their spaces are tried."""

from __future__ import annotations

import pytest

from orchestrator.sweep import refusals


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "DRAWS", 50)
