"""The goodput ledger: every second of a run under exactly one cause, so that they add up to wall time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

CAUSES = (
    "training",  # forward, backward, all-reduce, update
    "data_wait",  # the loop waits for micro-batches
    "compile",  # first step of a compiled model
    "snapshot",  # the loop copies its state into the node's memory
    "checkpoint",  # the loop waits for object storage: a last save, or one before nodes go
    "evaluation",
    "startup",  # from the command to the loop: preparing data, Ray, workers, restoring
    "detection",  # from a failure to its being noticed
    "restart",  # from its being noticed to the loop
    "replay",  # steps done again because a failure lost them
    "shutdown",  # from the loop's end to the command's
    "idle",  # between two attempts
)


class GoodputClock:
    """Attributes the time since its making to one cause at a time.

    Args:
        now: monotonic clock, seconds.
    """

    def __init__(self, cause: str, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._cause, self._since = cause, now()
        self._seconds: dict[str, float] = {}

    def switch(self, cause: str) -> str:
        """From now on time goes to `cause`; returns the one it went to until now."""
        moment = self._now()
        self._seconds[self._cause] = self._seconds.get(self._cause, 0.0) + moment - self._since
        previous, self._cause, self._since = self._cause, cause, moment
        return previous

    @contextmanager
    def during(self, cause: str) -> Iterator[None]:
        """Time inside the block goes to `cause`, afterwards to the one before again."""
        previous = self.switch(cause)
        try:
            yield
        finally:
            self.switch(previous)

    def seconds(self) -> dict[str, float]:
        """Seconds by cause up to this moment; they add up to the clock's age."""
        self.switch(self._cause)
        return dict(self._seconds)


def add_up(ledgers: Iterable[dict[str, float]]) -> dict[str, float]:
    """Seconds by cause over several ledgers, every cause present."""
    total = dict.fromkeys(CAUSES, 0.0)
    for ledger in ledgers:
        for cause, seconds in ledger.items():
            total[cause] += seconds
    return total
