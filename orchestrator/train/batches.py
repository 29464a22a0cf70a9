"""A rank's micro-batches, fetched from the feeder in the background."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray

from data.feed.spec import BlockShare
from data.order.packing import MicroBatch

FETCH_TRIES = 3
"""Times a step's micro-batches may be lost between the feeder's answer and their arrival."""

WAIT_S = 5.0
"""Seconds after which waiting for a step is worth a word."""

DEPTH = 2
"""Steps fetched before they are needed."""


@dataclass(frozen=True)
class FetchedShare:
    """A rank's part of a step with its micro-batches at hand; see `data.feeder.BlockShare`."""

    micro_steps: range
    batches: list[MicroBatch]
    target_tokens: int


class BatchPrefetcher:
    """Steps `first` to `last` (exclusive) of a rank, one by one. A context manager: leaving it ends its thread."""

    def __init__(self, feeder: ray.actor.ActorHandle[Any], rank: int, world_size: int, first: int, last: int) -> None:
        self._feeder, self._rank, self._world_size = feeder, rank, world_size
        self._queue: queue.Queue[FetchedShare | BaseException] = queue.Queue(DEPTH)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fetch, args=(first, last), name="step-reader", daemon=True)

    def take(self, while_waiting: Callable[[], object] = lambda: None) -> FetchedShare:
        """The next step's share; `while_waiting` is called every WAIT_S seconds that it is not there.

        Raises:
            MantaError: what the feeder could not get over.
        """
        while True:
            try:
                item = self._queue.get(timeout=WAIT_S)
                break
            except queue.Empty:
                while_waiting()
        if isinstance(item, BaseException):
            raise item
        return item

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()

    def _fetch(self, first: int, last: int) -> None:
        try:
            step = first
            while step < last:
                for share in self._fetch_from(step):
                    if step == last or not self._put(share):
                        return
                    step += 1
        except BaseException as error:  # raised in the loop, by take()
            self._put(error)

    def _fetch_from(self, step: int) -> list[FetchedShare]:
        """`step` and what follows it in its block."""
        for tries_left in reversed(range(FETCH_TRIES)):
            ref: ray.ObjectRef[BlockShare] = self._feeder.share.remote(step, self._rank, self._world_size)
            share = ray.get(ref)
            try:
                steps = zip(*ray.get(share.refs), strict=True)
            except ray.exceptions.ObjectLostError:  # with the feeder; the one made in its place makes the same again
                if not tries_left:
                    raise
                continue
            whole = [
                FetchedShare(share.micro_steps, list(batches), target_tokens)
                for batches, target_tokens in zip(steps, share.target_tokens, strict=True)
            ]
            return whole[step - share.first_step :]
        raise AssertionError("the last try returns or raises")

    def _put(self, item: FetchedShare | BaseException) -> bool:
        """Queue an item; False if the reader was closed while there was no room."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.5)
                return True
            except queue.Full:
                continue
        return False
