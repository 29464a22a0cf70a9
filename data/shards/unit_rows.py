"""One-row Arrow tables, one per unit: cached in object storage, and reported on while they are made.

A cached row is an IPC stream, compressed, behind a digest of itself and its key: Arrow reads damaged bytes without an
error, and the row of another unit is as sound as its own. The key is a hash of everything the row depends on, so
nothing is ever invalidated: after a change the key is another one.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import pyarrow as pa

from data.errors import ObjectNotFoundError
from data.shards.manifest import Unit
from data.stores.artifact import json_digest
from data.stores.store import Store

Log = Callable[[str], None]
"""Takes one line for the console."""

LOG_INTERVAL_S, SILENCE_S = 2.0, 10.0
"""Seconds between two lines of progress, and without any after which a line says so."""

_Row = TypeVar("_Row")


class UnitJob(Protocol):
    """Makes one row of every unit, and caches it."""

    @property
    def cache(self) -> Store:
        """Where rows are cached."""

    @property
    def schema(self) -> pa.Schema:
        """Schema of a row; `problem` is one of its columns."""

    def cache_key(self, unit: Unit) -> str:
        """Key of the unit's row: a hash of everything it depends on."""


def load_or_make(unit: Unit, job: UnitJob, make: Callable[[], pa.Table]) -> pa.Table:
    """The unit's row: from the cache, or made and then cached. A row with a `problem` is not cached."""
    table = load_cached(unit, job)
    if table is None:
        table = make()
        if table["problem"][0].as_py() is None:
            key = job.cache_key(unit)
            job.cache.put(key, serialize(table, key))
    return table


def row_key(depends_on: object) -> str:
    """The cache key of a row that depends on `depends_on`."""
    digest = json_digest(depends_on)
    return f"{digest[:2]}/{digest}.arrow"


def load_cached(unit: Unit, job: UnitJob) -> pa.Table | None:
    """The unit's row from the cache; None where it is missing, damaged, or that of another unit or job."""
    key = job.cache_key(unit)
    try:
        return deserialize(job.cache.get(key), key, job.schema)
    except ObjectNotFoundError:
        return None


def serialize(table: pa.Table, key: str) -> bytes:
    """A row, or any table, as bytes that the store keeps under `key`."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return _digest_with(key, hashlib.sha256(content).digest()) + content


def _digest_with(key: str, sha256: bytes) -> bytes:
    return hashlib.sha256(key.encode() + sha256).digest()


def deserialize(data: bytes, key: str, schema: pa.Schema | None = None) -> pa.Table | None:
    """Inverse of `serialize`; None where the bytes are damaged, of another key, or of a table with other columns."""
    digest, content = data[:32], memoryview(data)[32:]
    sha256 = hashlib.sha256(content).digest()
    if digest not in (_digest_with(key, sha256), sha256):  # version 0.2.0 wrote a sha256 without the key
        return None
    with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
        table = reader.read_all()
    try:
        return table if schema is None else table.cast(schema)
    except (ValueError, pa.ArrowException):  # a sound file of another kind
        return None


def with_progress(rows: Iterable[_Row], total: int, label: str, log: Log) -> Iterator[_Row]:
    """Yields the rows, one per unit; logs at intervals, and after the last, how many of `total` there have been.

    What `log` raises while a unit takes long is raised with the next row.
    """
    logged_at, done = time.monotonic(), 0
    silence = _Silence(lambda seconds: log(f"{label}: {done:,} of {total:,} units, none for {seconds:.0f} s"))
    try:
        for row in rows:
            done += 1
            silence.end_for_now()
            yield row
            if done == total or time.monotonic() - logged_at >= LOG_INTERVAL_S:
                logged_at = time.monotonic()
                log(f"{label}: {done:,} of {total:,} units")
    finally:
        silence.end()


class _Silence(threading.Thread):
    """Tells every SILENCE_S that nothing has come for so many seconds."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        super().__init__(name="silence", daemon=True)
        self._tell, self._ended, self._since = tell, threading.Event(), time.monotonic()
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """The thread's body."""
        while not self._ended.wait(SILENCE_S):
            if (seconds := time.monotonic() - self._since) >= SILENCE_S:
                try:
                    self._tell(seconds)
                except BaseException as error:  # such as that another attempt has taken over
                    self._error = error
                    return

    def end_for_now(self) -> None:
        """Something has come; raises what telling raised."""
        self._since = time.monotonic()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self.join()
