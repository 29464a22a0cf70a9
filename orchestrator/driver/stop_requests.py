"""Requests to stop: Ctrl-C and SIGTERM, from the first moment of a command to its last."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequests:
    """Counts requests to stop, from signals or from `ask`, and wakes the thread that waits for them.

    While nothing has to be saved, a signal raises KeyboardInterrupt at once. Inside `saving`, the first one only
    requests a stop, and the second raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self._count = self._seen = 0
        self._saves = False
        self._woken = threading.Event()

    def wake(self) -> None:
        """Ends the current call of `wait`, or the next one."""
        self._woken.set()

    def wait(self, seconds: float) -> None:
        """Waits until a signal arrives, `wake` is called, or the time is over."""
        self._woken.wait(seconds)
        self._woken.clear()

    def ask(self) -> None:
        """Requests a stop; the run saves its state first."""
        self._count += 1
        self.wake()

    def handle(self, _signal: int, _frame: object) -> None:
        """Signal handler."""
        self.ask()
        if self._count > 1 or not self._saves:
            raise KeyboardInterrupt

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Inside the block, the state is saved before a request to stop is followed.

        Raises:
            KeyboardInterrupt: a request came before, as the interrupt of a signal may be lost in a library's callback.
        """
        if self._count:
            raise KeyboardInterrupt
        self._saves = True
        try:
            yield
        finally:
            self._saves = False

    @property
    def any(self) -> bool:
        """Whether a stop has been requested."""
        return self._count > 0

    def pop_new(self) -> bool:
        """Whether a request arrived since the last call."""
        new, self._seen = self._count > self._seen, self._count
        return new


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Handles SIGINT and SIGTERM inside the block. Only the main thread can."""
    requests = StopRequests()
    previous = {number: signal.signal(number, requests.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
