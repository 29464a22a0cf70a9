"""Tokenized units in order, from the cache or made now; and a reader that works ahead of training."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from weakref import WeakValueDictionary

import pyarrow as pa

from data.errors import TransientStoreError
from data.order.packing import UnitStream
from data.ray_data import SEGMENT_BYTES, SEGMENT_UNITS, chunks, rows_in_order
from data.shards.manifest import Manifest, Unit
from data.shards.unit_rows import load_cached
from data.stores.patience import Patience, Tell, silently
from data.tokens.unit import TokenizeJob, load_or_tokenize, stream_columns, unit_stream


def tokenized_units(
    units: Sequence[Unit], job: TokenizeJob, columns: Sequence[str], start_ray: Callable[[], None] = lambda: None
) -> Iterator[pa.Table]:
    """One-row tables `ordinal` and `columns` of the units, in order; read from the cache, or made by `rows_in_order`.

    Cached rows are read in this process, so a warm start does not wait for Ray Data. Who makes another row looks into
    the cache once more, because another run of a sweep may have made the row meanwhile.

    Args:
        start_ray: called if there is much to tokenize; Ray runs when it returns.

    Raises:
        MantaError: as `load_or_tokenize`.
    """
    load, make = partial(load_cached, job=job), partial(load_or_tokenize, job=job)
    rows = rows_in_order(units, load, make, start_ray)
    for unit, row in zip(units, rows, strict=True):
        yield row.select(list(columns)).add_column(0, "ordinal", pa.array([unit.ordinal], pa.int64()))


def tokenized_units_in_chunks(
    manifest: Manifest,
    job: TokenizeJob,
    columns: Sequence[str],
    start_ray: Callable[[], None] = lambda: None,
    ordinals: Sequence[int] | None = None,
    tell: Tell = silently,
) -> Iterator[pa.Table]:
    """`tokenized_units` of a manifest, some at a time, so that a caller that stops early wastes little.

    A store that fails is waited for, as long as `store.patience` allows; no unit is yielded twice.

    Args:
        ordinals: units to read; None: all.
        tell: see `Patience`.
    """
    patience = Patience(job.store_config.patience, tell)
    for chunk in chunks(manifest, ordinals):
        done = 0
        while done < len(chunk):
            try:
                for table in tokenized_units(chunk[done:], job, columns, start_ray):
                    patience.succeeded()
                    done += 1
                    yield table
            except TransientStoreError as error:
                patience.wait(error)


_shared: WeakValueDictionary[str, UnitStream] = WeakValueDictionary()
"""Streams that some reader of this process has, by the key of the cached row: trials of a sweep read the same units."""

_shared_lock = threading.Lock()


class ReadAhead:
    """Training streams of units, read in a background thread in the order of the latest request.

    Streams that are no longer requested are kept up to `keep_bytes`, the most recently used ones, so that a data set
    that fits is read once and not once per epoch. A store that fails is waited for, as long as `store.patience` allows.

    Args:
        tell: see `Patience`; called in the background thread.
    """

    def __init__(
        self,
        manifest: Manifest,
        job: TokenizeJob,
        *,
        keep_bytes: int = 256_000_000,
        tell: Tell = silently,
    ) -> None:
        self._manifest, self._job, self._keep_bytes = manifest, job, keep_bytes
        self._patience = Patience(job.store_config.patience, tell, sleep=self._sleep)
        self._streams: OrderedDict[int, UnitStream] = OrderedDict()
        self._requests: list[int] = []
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._read, name="read-ahead", daemon=True).start()

    def request(self, ordinals: Sequence[int]) -> None:
        """Sets the units that will be needed soon, in about that order. Replaces the request before."""
        with self._changed:
            self._requests = list(ordinals)
            self._evict()
            self._changed.notify_all()

    def stream(self, ordinal: int) -> UnitStream:
        """The stream of a unit. Waits until it has been read.

        Raises:
            MantaError: reading failed for a reason other than the shard's content.
            RuntimeError: the reader was closed.
        """
        with self._changed:
            while ordinal not in self._streams:
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise RuntimeError(f"unit {ordinal} is not read any more")
                if ordinal not in self._requests:
                    self._requests.insert(0, ordinal)
                    self._changed.notify_all()
                self._changed.wait()
            self._streams.move_to_end(ordinal)
            return self._streams[ordinal]

    def close(self) -> None:
        """Stops reading. A segment that is being read is finished in the background."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _read(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._closed or any(unit not in self._streams for unit in self._requests)
                    )
                    if self._closed:
                        return
                    segment = [unit for unit in self._next_segment() if not self._has_shared(unit)]
                try:
                    for table in tokenized_units(segment, self._job, stream_columns("train", self._job)):
                        self._patience.succeeded()
                        self._add(table)
                except TransientStoreError as error:  # what has not been read is in the next segment
                    self._patience.wait(error)
        except BaseException as error:  # raised by `stream` in the threads that wait
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _sleep(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def _next_segment(self) -> list[Unit]:
        """The first requested units that have not been read, about SEGMENT_BYTES of shards."""
        segment, size = [], 0
        for ordinal in dict.fromkeys(self._requests):
            if ordinal not in self._streams:
                segment.append(self._manifest.unit(ordinal))
                size += segment[-1].unit_bytes
            if size >= SEGMENT_BYTES or len(segment) == SEGMENT_UNITS:
                break
        return segment

    def _has_shared(self, unit: Unit) -> bool:
        """Takes over the stream of a unit that another reader has, if there is one."""
        with _shared_lock:
            stream = _shared.get(self._job.cache_key(unit))
        if stream is not None:
            self._streams[unit.ordinal] = stream
            self._changed.notify_all()
        return stream is not None

    def _add(self, table: pa.Table) -> None:
        ordinal = table["ordinal"][0].as_py()
        stream = unit_stream(table, "train", self._job)
        if stream.problem is None:  # else it is not cached either
            with _shared_lock:
                stream = _shared.setdefault(self._job.cache_key(self._manifest.unit(ordinal)), stream)
        with self._changed:
            self._streams[ordinal] = stream
            self._changed.notify_all()

    def _evict(self) -> None:
        excess = sum(stream.tokens.nbytes for stream in self._streams.values()) - self._keep_bytes
        requested = set(self._requests)
        for ordinal, stream in list(self._streams.items()):
            if excess <= 0:
                return
            if ordinal not in requested:
                excess -= stream.tokens.nbytes
                del self._streams[ordinal]
