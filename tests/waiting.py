"""Waiting for what becomes true by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

WAIT_S = 60.0
POLL_INTERVAL_S = 0.02


def wait_until(true: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: it did not come true; `what` names it.
    """
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(POLL_INTERVAL_S)
