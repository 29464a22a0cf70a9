"""Detects loss spikes: a step's loss that is not a number, or far above the losses just before it. Pure.

A module of its own because every rank and the run's stored state use it, and nothing else of the policies.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

WINDOW = 64
"""Losses before a step with which its loss is compared; with fewer, no jump counts as a spike."""


class LossSpikeDetector:
    """Judges losses in step order, with the same result on every rank and after every restart.

    Args:
        max_jump: highest loss that is not a spike, as a multiple of the median of the last `WINDOW` losses; None: any.
        recent: losses before the first one to judge, oldest first.
    """

    def __init__(self, max_jump: float | None, recent: Iterable[float]) -> None:
        self._max_jump = max_jump
        self._recent = deque(recent, maxlen=WINDOW)

    def problem(self, loss: float) -> str | None:
        """Describes the spike, or returns None for a normal loss, which then joins the recent ones."""
        if not math.isfinite(loss):
            return f"loss={loss}"
        if self._max_jump is not None and len(self._recent) == WINDOW:
            median = statistics.median(self._recent)
            if loss > self._max_jump * median:
                return (
                    f"loss={loss:.4g} is more than train.max_loss_jump={self._max_jump:g} times {median:.4g}, the "
                    f"median of the last {WINDOW} losses"
                )
        self._recent.append(loss)
        return None
