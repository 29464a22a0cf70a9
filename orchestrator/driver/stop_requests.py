"""Requests to stop: Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequests:
    """Ctrl-C and SIGTERM as they come in, or what asks for an end instead of them."""

    def __init__(self) -> None:
        self._count = self._told = 0
        self._woken = threading.Event()

    def wake(self) -> None:
        """End the wait that goes on, or the next one."""
        self._woken.set()

    def wait(self, seconds: float) -> None:
        """Wait until a signal comes, `wake` is called, or the time is over."""
        self._woken.wait(seconds)
        self._woken.clear()

    def ask(self) -> None:
        """Ask for an end; state is saved first."""
        self._count += 1
        self.wake()

    def handle(self, _signal: int, _frame: object) -> None:
        """Signal handler: the first asks for an end, the second insists."""
        self.ask()
        if self._count > 1:
            raise KeyboardInterrupt

    @property
    def any(self) -> bool:
        """Whether one has come."""
        return self._count > 0

    def pop_new(self) -> bool:
        """Whether one came since the last time this was asked."""
        new, self._told = self._count > self._told, self._count
        return new


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Signals that ask the run to stop are gathered inside the block instead of ending the process."""
    requests = StopRequests()
    previous = {number: signal.signal(number, requests.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
