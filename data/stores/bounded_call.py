"""Runs calls to a remote store within bounds: a line when one takes long, and an end to every one.

The libraries bound the silence between two bytes. A service that sends a byte now and then keeps them waiting for ever,
and none of them says that it waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from cluster.known_secrets import struck
from data.errors import TransientStoreError

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)

TOLD_AFTER_S = 10.0
"""Seconds until a call is told of; then again after three times as many."""

LONGEST_S = 120.0
"""Seconds in which a call must end or transfer LEAST_BYTES_PER_S; longer than the attempts of the libraries take."""

LEAST_BYTES_PER_S = 10_000
"""Rate that a transfer must keep up."""


class Transfer:
    """How far a call has come, and whether anybody still waits for it."""

    def __init__(self) -> None:
        self.moved, self.is_abandoned = 0, False
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Counts bytes that have arrived or left.

        Raises:
            TransientStoreError: the call was given up.
        """
        with self._lock:
            self.moved += count
        if self.is_abandoned:
            raise TransientStoreError("The call was given up.")


_own = threading.local()


def refuse_abandoned(**_: object) -> None:
    """Hook before every attempt of a request: nothing is sent for a call that was given up; it might undo newer writes.

    Raises:
        TransientStoreError: the call that this thread works for was given up.
    """
    transfer: Transfer | None = getattr(_own, "transfer", None)
    if transfer is not None:
        transfer.add(0)


def bounded(call: Callable[[Transfer], _T], doing: str, *, size: int = 0) -> _T:
    """What `call` returns or raises. It runs in a thread of its own, which is left alone if it does not end in time.

    Args:
        call: counts what it transfers.
        doing: what it does, as in "read s3://bucket/key".
        size: bytes that the call transfers without counting them.

    Raises:
        TransientStoreError: it has not ended in time.
    """
    transfer, done = Transfer(), threading.Event()
    result: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        _own.transfer = transfer
        try:
            result.append(call(transfer))
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="store-call", daemon=True).start()
    try:
        _await(done, transfer, doing, LONGEST_S + size / LEAST_BYTES_PER_S)
    finally:
        transfer.is_abandoned = not done.is_set()
    if errors:
        raise errors[0]
    return result[0]


def _await(done: threading.Event, transfer: Transfer, doing: str, longest_s: float) -> None:
    began = time.monotonic()
    window_began, moved_before, told_after_s = began, 0, TOLD_AFTER_S
    while not done.wait(min(1.0, TOLD_AFTER_S)):
        now = time.monotonic()
        if now - window_began > longest_s:
            if transfer.moved - moved_before < longest_s * LEAST_BYTES_PER_S:
                raise TransientStoreError(
                    f"Could not {doing}: given up after {now - began:.0f} s, with {transfer.moved:,} bytes transferred."
                )
            window_began, moved_before = now, transfer.moved
        if now - began > told_after_s:
            told_after_s *= 3
            said = (
                f"Waiting for the store since {now - began:.0f} s, with {transfer.moved:,} bytes transferred: {doing}"
            )
            _logger.warning("%s", repr(struck(said))[1:-1])  # a key of an object may hold what a terminal obeys


class DaemonExecutor:
    """Threads for the parts of a transfer, in place of s3transfer's own: they stop when the call is given up.

    They do not keep the process from ending, either.

    Args:
        max_workers: most threads.
    """

    def __init__(self, max_workers: int) -> None:
        self._most, self._threads = max_workers, list[threading.Thread]()
        self._tasks = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]()
        self._transfer: Transfer | None = getattr(_own, "transfer", None)

    def submit(self, task: Callable[..., _T], *args: Any, **kwargs: Any) -> Future[_T]:
        """Runs the task as soon as a thread is free."""
        future = Future[_T]()
        self._tasks.put((future, lambda: task(*args, **kwargs)))
        if len(self._threads) < self._most:
            self._threads.append(threading.Thread(target=self._work, name="store-part", daemon=True))
            self._threads[-1].start()
        return future

    def shutdown(self, wait: bool = True) -> None:
        """Ends the threads once all tasks are done."""
        for _ in self._threads:
            self._tasks.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        _own.transfer = self._transfer
        while (item := self._tasks.get()) is not None:
            future, task = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                answer = task()
            except BaseException as error:
                with suppress(Exception):
                    future.set_exception(error)
            else:
                future.set_result(answer)
