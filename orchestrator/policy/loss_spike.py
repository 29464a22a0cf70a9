"""Whether a step's loss has gone astray: not a number, or far above what it has just been. Pure."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

WINDOW = 64
"""Losses before a step that it is held against; with fewer, no jump is called one."""


class LossSpikeDetector:
    """Judges losses in the order of their steps; the same on every rank and after every restart.

    Args:
        max_jump: times the median of the last `WINDOW` losses that a loss may be; None: any.
        recent: losses before the first one that is to be judged, oldest first.
    """

    def __init__(self, max_jump: float | None, recent: Iterable[float]) -> None:
        self._max_jump = max_jump
        self._recent = deque(recent, maxlen=WINDOW)

    def problem(self, loss: float) -> str | None:
        """What is wrong with a loss, in words; None where nothing is, and then it counts among the recent ones."""
        if not math.isfinite(loss):
            return f"loss={loss}"
        if self._max_jump is not None and len(self._recent) == WINDOW:
            usual = statistics.median(self._recent)
            if loss > self._max_jump * usual:
                return (
                    f"loss={loss:.4g} is more than train.max_loss_jump={self._max_jump:g} times the {usual:.4g} that "
                    f"was usual in the {WINDOW} steps before"
                )
        self._recent.append(loss)
        return None
