"""Heartbeat: writes an attempt's progress into the run's record in the background.

A store that is slow or away holds up neither the driver's loop nor the preparation of data: the record is written when
the store answers again. Until then nobody else can claim the run, since that takes the same store.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

from data.errors import TransientStoreError
from data.stores.patience import Patience, Tell, silently
from orchestrator.run.fence import HEARTBEAT_S, Fence


class Heartbeat:
    """A context manager: in the block, the record is written every HEARTBEAT_S, and at once where `write` says so.

    Args:
        patience_s: seconds for which a store may fail.
        tell: told of outages of the store, in the background thread.
    """

    def __init__(self, fence: Fence, patience_s: float, tell: Tell = silently) -> None:
        self.fence = fence
        self._patience = Patience(patience_s, tell)
        self._fields: dict[str, Any] = {}
        self._closed = False
        self._error: BaseException | None = None
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def write(self, fields: dict[str, Any], *, at_once: bool = False) -> None:
        """Sets the fields of the attempt that are written with every heartbeat from now on. Does not wait.

        Args:
            at_once: write them now, not with the next heartbeat.

        Raises:
            see `check`.
        """
        self.check()
        self._fields = fields
        if at_once:
            self._due.set()

    def check(self) -> None:
        """Raises what ended the heartbeats.

        Raises:
            FencedError: a newer attempt has taken over the run.
            TransientStoreError: the store has failed for `patience_s`.
            MantaError: the store refuses.
        """
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ends the heartbeats; does not wait for one that is being written, after which `Fence.update` writes."""
        self._closed = True
        self._due.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _beat(self) -> None:
        while True:
            self._due.wait(HEARTBEAT_S)
            self._due.clear()
            if self._closed:
                return
            try:
                self.fence.update(attempt=self._fields, unless=lambda: self._closed)
                self._patience.succeeded()
            except TransientStoreError as error:
                try:
                    self._patience.failed(error)
                except TransientStoreError as last:
                    self._error = last
                    return
            except BaseException as error:  # raised in the thread that calls `check`
                self._error = error
                return
