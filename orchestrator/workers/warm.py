"""Workers that wait for the next run of this process: trials of a sweep follow each other in the same workers.

Starting a worker takes seconds, most of which is importing torch; a leg of a small trial trains for two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from orchestrator.workers.beacon import SendBeat
from orchestrator.workers.pool import WorkerPool

IDLE_S = 5.0
"""Seconds for which workers wait; after that, their slots are free for others."""


class WarmWorkers:
    """Keeps the worker pool of the run that ended last, in the process of its driver and controller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[dict[str, float], WorkerPool] | None = None
        self._timer: threading.Timer | None = None

    def take(
        self, resources: Mapping[str, float], prepare: Callable[[], None], send: SendBeat, most_workers: int
    ) -> WorkerPool:
        """The kept pool, if its workers have these resources, or a new one; see `WorkerPool` for the arguments."""
        with self._lock:
            kept, self._kept = self._kept, None
            self._stop_timer()
        if kept is None or kept[0] != dict(resources):
            if kept is not None:
                kept[1].end()
            return WorkerPool(resources, prepare, send, most_workers)
        kept[1].adopt(prepare, send, most_workers)
        return kept[1]

    def keep(self, resources: Mapping[str, float], pool: WorkerPool) -> None:
        """Keeps the workers of a run that has ended, for IDLE_S."""
        pool.leave_group()
        with self._lock:
            self._kept = dict(resources), pool
            self._stop_timer()
            self._timer = threading.Timer(IDLE_S, self.end)
            self._timer.daemon = True
            self._timer.start()

    def end(self) -> None:
        """Ends the workers that are kept."""
        with self._lock:
            kept, self._kept = self._kept, None
            self._stop_timer()
        if kept is not None:
            kept[1].end()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
