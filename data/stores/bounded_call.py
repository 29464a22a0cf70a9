"""Runs calls to a remote store within bounds: a line when one takes long, and an end to every one.

The libraries bound the silence between two bytes. A service that sends a byte now and then keeps them waiting for ever,
and none of them says that it waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from data.errors import TransientStoreError

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)

TOLD_AFTER_S = 10.0
"""Seconds until a call is told of; then again after three times as many."""

LONGEST_S = 120.0
"""Seconds for a call that moves nothing; longer than the attempts of the libraries take together."""

LEAST_BYTES_PER_S = 10_000
"""Rate that a transfer must keep up beyond LONGEST_S."""


class Transfer:
    """How far a call has come, and whether anybody still waits for it."""

    def __init__(self) -> None:
        self.moved, self.is_abandoned = 0, False
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Counts bytes that have arrived or left."""
        with self._lock:
            self.moved += count


_own = threading.local()


def refuse_abandoned(**_: object) -> None:
    """Hook before every attempt of a request: nothing is sent for a call that was given up; it might undo newer writes.

    Raises:
        TransientStoreError: this thread's call was given up.
    """
    transfer = getattr(_own, "transfer", None)
    if transfer is not None and transfer.is_abandoned:
        raise TransientStoreError("The call was given up.")


def bounded(call: Callable[[Transfer], _T], doing: str) -> _T:
    """What `call` returns or raises. It runs in a thread of its own, which is left alone if it does not end in time.

    Args:
        call: counts what it transfers.
        doing: what it does, as in "read s3://bucket/key".

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

    began, told_after_s = time.monotonic(), TOLD_AFTER_S
    threading.Thread(target=run, name="store-call", daemon=True).start()
    try:
        while not done.wait(min(1.0, TOLD_AFTER_S)):
            passed_s = time.monotonic() - began
            if passed_s > LONGEST_S + transfer.moved / LEAST_BYTES_PER_S:
                raise TransientStoreError(
                    f"Could not {doing}: given up after {passed_s:.0f} s, with {transfer.moved:,} bytes transferred."
                )
            if passed_s > told_after_s:
                told_after_s *= 3
                _logger.warning(
                    "Waiting for the store since %.0f s, with %s bytes transferred: %s",
                    passed_s,
                    f"{transfer.moved:,}",
                    doing,
                )
    finally:
        transfer.is_abandoned = not done.is_set()
    if errors:
        raise errors[0]
    return result[0]
