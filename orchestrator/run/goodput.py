"""The goodput ledger: every second of a run counts under exactly one cause, so the causes add up to wall time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

CAUSES = (
    "training",  # forward, backward, all-reduce, update
    "data_wait",  # the loop waits for micro-batches
    "compile",  # the model is compiled: its first step, and whatever is compiled later
    "snapshot",  # the loop copies its state into the node's memory
    "checkpoint",  # the loop waits for object storage: the last save, or a save before nodes leave
    "store_wait",  # training stands still because a store fails: no data is left, or the last save waits
    "evaluation",
    "startup",  # from the command to the loop: preparing data, Ray, workers, restoring
    "detection",  # from a failure to its detection
    "restart",  # from the detection to the restarted loop
    "replay",  # steps repeated because a failure lost them
    "shutdown",  # from the end of the loop to the end of the command
    "idle",  # between two attempts
)


class GoodputClock:
    """Counts the time since its creation under one cause at a time.

    Args:
        now: monotonic clock, seconds.
    """

    def __init__(self, cause: str, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._cause, self._since = cause, now()
        self._seconds: dict[str, float] = {}

    def switch(self, cause: str) -> str:
        """Counts time under `cause` from now on; returns the previous cause."""
        moment = self._now()
        self._seconds[self._cause] = self._seconds.get(self._cause, 0.0) + moment - self._since
        previous, self._cause, self._since = self._cause, cause, moment
        return previous

    @contextmanager
    def during(self, cause: str) -> Iterator[None]:
        """Counts the time inside the block under `cause`, and afterwards under the previous cause again."""
        previous = self.switch(cause)
        try:
            yield
        finally:
            self.switch(previous)

    def seconds(self) -> dict[str, float]:
        """Seconds by cause up to now; they add up to the clock's age."""
        self.switch(self._cause)
        return dict(self._seconds)


def add_up(ledgers: Iterable[dict[str, float]]) -> dict[str, float]:
    """Sums several ledgers; every cause is present in the result."""
    total = dict.fromkeys(CAUSES, 0.0)
    for ledger in ledgers:
        for cause, seconds in ledger.items():
            total[cause] += seconds
    return total
