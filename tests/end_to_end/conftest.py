"""Shared by whole runs and sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.orchestrator.sweep.site import SweepSite


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepSite:
    """A folder for a sweep, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return SweepSite(tmp_path)
