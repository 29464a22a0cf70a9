"""Watches a start of workers for hangs, in a thread of the controller's process."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress

from orchestrator.policy.hang import Hang
from orchestrator.workers.group_size import GroupSize, StartAction
from orchestrator.workers.pool import WorkerPool

POLL_INTERVAL_S = 1.0
"""Seconds between two questions to the hook."""

_logger = logging.getLogger(__name__)


class StartWatch(threading.Thread):
    """Kills workers that hang while they start: the controller waits for a start however long it takes.

    Args:
        size: hook; decides whether the start hangs.
        start: the start, which also hangs if it takes longer than `start.timeout_s`.
    """

    def __init__(self, pool: WorkerPool, size: GroupSize, start: StartAction) -> None:
        super().__init__(name="start-watch", daemon=True)
        self._pool, self._size, self._start = pool, size, start
        self._deadline = time.monotonic() + start.timeout_s
        self._ended = threading.Event()

    def stop(self) -> None:
        """Ends the watch."""
        self._ended.set()

    def run(self) -> None:
        """The thread's body."""
        while not self._ended.wait(POLL_INTERVAL_S):
            hang = self._hang()
            if hang is not None and not self._ended.is_set() and (killed := self._pool.kill(hang)):
                _logger.warning("While workers started: %s.", killed)
                return

    def _hang(self) -> Hang | None:
        workers = self._pool.names(self._start.workers)
        if time.monotonic() > self._deadline:
            return Hang(f"the workers did not start within {self._start.timeout_s:.0f} s", workers)
        with suppress(Exception):  # the hook may fail for a while; the deadline stands
            self._pool.tell_of_processes()
            return self._size.while_starting(workers)
        return None
