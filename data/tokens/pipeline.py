"""Units to tokens in Ray Data tasks, in the order asked for."""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial

import pyarrow as pa

from data.errors import MantaError
from data.order.packing import UnitStream
from data.ray_data import ordered_block_refs, use_ordered_quiet_data
from data.shards.manifest import Manifest, Unit
from data.tokens.unit import TokenizeJob, load_cached, load_or_tokenize, stream_columns, unit_stream

READERS = 8
"""Cached units fetched at once; they wait for the store, not for a core."""

SEGMENT_UNITS = 256
"""Units at most in one execution, where they are small: each is a task and a block."""

SEGMENT_BYTES = 64_000_000
"""Shard bytes handed to one execution of Ray Data; enough to hide its start-up, little enough to stay near the need."""


def tokenized_units(
    units: Sequence[Unit], job: TokenizeJob, columns: Sequence[str], start_ray: Callable[[], None] = lambda: None
) -> Iterator[pa.Table]:
    """One-row tables `ordinal` and `columns` of the units, in order; read from the cache, or made in Ray Data tasks.

    What is cached is read right here: a warm start need not wait for Ray Data's own. What is not is looked for once
    more by its task: by then, another run of a sweep may have made it.

    Args:
        start_ray: called if something is not cached; Ray runs when it returns.

    Raises:
        MantaError: what `load_or_tokenize` raised.
    """
    load, make = partial(load_cached, job=job), partial(load_or_tokenize, job=job)
    rows = rows_in_order(units, load, make, start_ray)
    for unit, row in zip(units, rows, strict=True):
        yield row.select(list(columns)).add_column(0, "ordinal", pa.array([unit.ordinal], pa.int64()))


def rows_in_order(
    units: Sequence[Unit],
    load: Callable[[Unit], pa.Table | None],
    make: Callable[[Unit], pa.Table],
    start_ray: Callable[[], None],
) -> Iterator[pa.Table]:
    """One-row tables of the units, in order: what `load` finds here, and of the rest what `make` returns in a task.

    Args:
        make: makes a unit's row and keeps it where `load` looks; picklable.
    """
    with ThreadPoolExecutor(READERS, thread_name_prefix="read-cached") as readers:
        cached = list(readers.map(load, units))
    missing = [unit for unit, table in zip(units, cached, strict=True) if table is None]
    if missing:
        start_ray()
    made = _made_in_ray_data(missing, make)
    for table in cached:
        yield next(made) if table is None else table


def _made_in_ray_data(units: Sequence[Unit], make: Callable[[Unit], pa.Table]) -> Iterator[pa.Table]:
    """The units' rows in order, each made by a Ray Data task of its own."""
    if not units:
        return
    import ray.data  # half a second that a feeder with everything cached need not spend

    use_ordered_quiet_data()

    def row_of(batch: pa.Table) -> pa.Table:
        try:
            return make(Unit(**batch["unit"][0].as_py()))
        except MantaError as error:  # raised, it would arrive as an error of Ray Data's, its class and message lost
            return pa.table({"error": [pickle.dumps(error)]})

    items = [{"unit": asdict(unit)} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        row_of, batch_size=None, batch_format="pyarrow"
    )
    for ref in ordered_block_refs(dataset):
        row = ray.get(ref)
        if "error" in row.column_names:
            raise pickle.loads(row["error"][0].as_py())  # noqa: S301 (of our own task, through Ray)
        yield row


def tokenized_units_in_chunks(
    manifest: Manifest,
    job: TokenizeJob,
    columns: Sequence[str],
    start_ray: Callable[[], None] = lambda: None,
    ordinals: Sequence[int] | None = None,
) -> Iterator[pa.Table]:
    """`tokenized_units` of a manifest, some segments at a time: a reader that stops early costs little.

    Args:
        ordinals: units to read; None: all.
    """
    for chunk in chunks(manifest, ordinals):
        yield from tokenized_units(chunk, job, columns, start_ray)


def chunks(manifest: Manifest, ordinals: Sequence[int] | None = None) -> Iterator[list[Unit]]:
    """Units in order, all or those of `ordinals`, as many at a time as fill some executions of Ray Data."""
    ordinals = range(manifest.num_units) if ordinals is None else ordinals
    chunk: list[Unit] = []
    chunk_bytes = 0
    for done, ordinal in enumerate(ordinals, start=1):
        chunk.append(manifest.unit(ordinal))
        chunk_bytes += chunk[-1].unit_bytes
        if chunk_bytes >= 4 * SEGMENT_BYTES or len(chunk) == 16 * SEGMENT_UNITS or done == len(ordinals):
            yield chunk
            chunk, chunk_bytes = [], 0


class ReadAhead:
    """Train streams of units, tokenized in the background in the order they are wished for.

    Streams no longer wished for are kept up to `keep_bytes`, the latest used first, so that a data set that fits is
    read once and not once an epoch.
    """

    def __init__(self, manifest: Manifest, job: TokenizeJob, *, keep_bytes: int = 256_000_000) -> None:
        self._manifest, self._job, self._keep_bytes = manifest, job, keep_bytes
        self._streams: OrderedDict[int, UnitStream] = OrderedDict()
        self._requests: list[int] = []
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._read, name="read-ahead", daemon=True).start()

    def request(self, ordinals: Sequence[int]) -> None:
        """Say which units will be needed soon, in about the order they will be; replaces what was said before."""
        with self._changed:
            self._requests = list(ordinals)
            self._evict()
            self._changed.notify_all()

    def stream(self, ordinal: int) -> UnitStream:
        """A unit's stream. Waits until it is there.

        Raises:
            MantaError: reading failed for a reason that is not the shard's content.
        """
        with self._changed:
            while ordinal not in self._streams:
                if self._error is not None:
                    raise self._error
                if ordinal not in self._requests:
                    self._requests.insert(0, ordinal)
                    self._changed.notify_all()
                self._changed.wait()
            self._streams.move_to_end(ordinal)
            return self._streams[ordinal]

    def close(self) -> None:
        """Stop reading; what is under way is finished in the background."""
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
                    segment = self._next_segment()
                for table in tokenized_units(segment, self._job, stream_columns("train", self._job)):
                    self._arrived(table)
        except BaseException as error:  # handed to whoever waits for a stream
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_segment(self) -> list[Unit]:
        """The first wanted that are not there yet, about SEGMENT_BYTES of them."""
        segment, size = [], 0
        for ordinal in dict.fromkeys(self._requests):
            if ordinal not in self._streams:
                segment.append(self._manifest.unit(ordinal))
                size += segment[-1].unit_bytes
            if size >= SEGMENT_BYTES or len(segment) == SEGMENT_UNITS:
                break
        return segment

    def _arrived(self, table: pa.Table) -> None:
        ordinal = table["ordinal"][0].as_py()
        stream = unit_stream(table, "train", self._job)
        with self._changed:
            self._streams[ordinal] = stream
            self._changed.notify_all()

    def _evict(self) -> None:
        excess = sum(stream.tokens.nbytes for stream in self._streams.values()) - self._keep_bytes
        wanted = set(self._requests)
        for ordinal, stream in list(self._streams.items()):
            if excess <= 0:
                return
            if ordinal not in wanted:
                excess -= stream.tokens.nbytes
                del self._streams[ordinal]
