"""The step ledger: one row for every step that the run's state contains, with the sample ids of the step.

Rows reach object storage with the checkpoint that contains their step, as Parquet segments that are never changed:
`ledger/00000001-00000200-a1.parquet`. A checkpoint's state lists its segments, so a step that was lost in a crash and
repeated is in the ledger once. Neighbouring segments are merged into a new one as a run goes on, so that the list grows
with the logarithm of the steps. `metrics.jsonl` holds the same rows without sample ids, for people and plots.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data.errors import DamagedObjectError, MantaError, ObjectNotFoundError
from data.order.sample_order import Ints
from data.stores.store import Store
from orchestrator.run.segment_file import REMEDY, read_segment, write_segment

LEDGER = "ledger/"
"""Folder of the segments below the run's folder."""

NO_DIGESTS: Mapping[str, str] = MappingProxyType({})
"""Those of segments that a checkpoint of version 0.2.0 lists."""

MERGED = 16
"""Neighbouring segments that are merged into one."""

GROWTH = 8
"""Least growth of the oldest of them. With less, rows are written again more often; with more, segments are more."""

METRICS_SCHEMA = pa.schema(
    {
        "step": pa.int64(),
        "loss": pa.float64(),
        "lr": pa.float64(),
        "grad_norm": pa.float64(),
        "tokens": pa.int64(),
        "world_size": pa.int64(),
        "step_s": pa.float64(),
        "at": pa.float64(),
    }
)
"""Columns of a segment with the fields of `StepRow`."""

SAVE_SCHEMA = pa.schema({"save": pa.int64(), "attempt": pa.int64()})
"""Columns that tell in merged segments which checkpoint each row was saved with: its step and attempt."""

IDS_SCHEMA = pa.schema({"sample_ids": pa.list_(pa.int64())})

SCHEMA = pa.schema([*METRICS_SCHEMA, *SAVE_SCHEMA, *IDS_SCHEMA])
"""Columns of a segment. Versions up to 0.2 did not write those of `SAVE_SCHEMA`, which follow from the name then."""


@dataclass(frozen=True)
class StepRow:
    """One step.

    Attributes:
        step: optimizer updates applied after this one.
        loss: mean over the step's target tokens, nats; like `grad_norm`, None if the step's data was skipped.
        tokens: target tokens trained on since step 0.
        step_s: seconds the step took, including the wait for data.
        at: when it was completed, seconds since the epoch.
        sample_ids: (global_batch_size,) int64 as the ranks reported them, see `Samples.ids`.
    """

    step: int
    loss: float | None
    lr: float
    grad_norm: float | None
    tokens: int
    world_size: int
    step_s: float
    at: float
    sample_ids: Ints

    def metrics(self) -> dict[str, Any]:
        """The row without its sample ids."""
        return {name: getattr(self, name) for name in METRICS_SCHEMA.names}


def save_rows(path: Path, rows: Sequence[StepRow]) -> None:
    """Writes rows to a file as two numpy arrays: their metrics (JSON bytes) and their sample ids.

    Not as an Arrow table: building one imports pandas, which training workers do not load.
    """
    metrics = json.dumps([row.metrics() for row in rows]).encode()
    with path.open("wb") as file:
        np.save(file, np.frombuffer(metrics, np.uint8))
        np.save(file, np.array([row.sample_ids for row in rows], np.int64))


def load_rows(path: Path) -> list[StepRow]:
    """Inverse of `save_rows`."""
    with path.open("rb") as file:
        metrics = json.loads(np.load(file, allow_pickle=False).tobytes())
        ids = np.load(file, allow_pickle=False)
    return [StepRow(**row, sample_ids=its) for row, its in zip(metrics, ids, strict=True)]


_NAME = re.compile(r"(\d+)-(\d+)-a(\d+)\.parquet")


class Segment(NamedTuple):
    """A segment as its name tells it: first and last step, and the attempt that wrote it."""

    first: int
    last: int
    attempt: int

    @classmethod
    def named(cls, name: str) -> Segment:
        """Inverse of `str`."""
        match = _NAME.fullmatch(name)
        assert match is not None, f"{name} is no segment"
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.first:08d}-{self.last:08d}-a{self.attempt}.parquet"

    @property
    def span(self) -> tuple[int, int]:
        """Its first and last step."""
        return self.first, self.last

    @property
    def steps(self) -> int:
        """Number of its rows."""
        return self.last - self.first + 1

    def covers(self, other: Segment) -> bool:
        """Whether it has all steps of the other one."""
        return self.first <= other.first and other.last <= self.last


class StepLedger:
    """Writes rows to object storage; owned by the process that writes checkpoints.

    Args:
        step: step of the checkpoint that the attempt continues from.
        segments: segments of that checkpoint.
        digests: their digests, as far as they are known.

    Attributes:
        step: newest step written.
        segments: all segments, oldest first.
        digests: digest by segment. A segment of another run is as well formed, and the checkpoint's state is trusted.
    """

    def __init__(
        self,
        store: Store,
        attempt: int,
        step: int,
        segments: Sequence[str],
        digests: Mapping[str, str] = NO_DIGESTS,
    ) -> None:
        self._store, self._attempt = store, attempt
        self.step, self.segments, self.digests = step, list(segments), dict(digests)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a checkpoint's state.json from which its rows are read."""
        digests = {name: self.digests[name] for name in self.segments if name in self.digests}
        return {"ledger": self.segments, "ledger_digests": digests}

    def write(self, rows: Sequence[StepRow]) -> None:
        """Writes the rows after `step` to a new segment. May be called again after an error."""
        new = [row for row in rows if row.step > self.step]
        if not new:
            return
        segment = Segment(new[0].step, new[-1].step, self._attempt)
        columns = {name: [getattr(row, name) for row in new] for name in (*METRICS_SCHEMA.names, "sample_ids")}
        saved = {"save": [segment.last] * len(new), "attempt": [segment.attempt] * len(new)}
        sink = pa.BufferOutputStream()
        digest = write_segment(sink, segment.span, [pa.table({**columns, **saved}, schema=SCHEMA)], SCHEMA)
        self._store.put(f"{LEDGER}{segment}", sink.getvalue().to_pybytes())
        self.segments, self.step = [*self.segments, str(segment)], segment.last
        self.digests[str(segment)] = digest

    def merge(self) -> None:
        """Merges the first neighbours that are due, see `due_merge`, into a new segment, which takes their place.

        At most once in a call, so that a save does not wait long for it. Holds a few row groups in memory at most.

        Raises:
            MantaError, OSError, ArrowException: nothing has changed, and it may be called again.
        """
        due = due_merge(self.segments)
        if due is None:
            return
        sources = self.segments[due]
        merged = Segment(Segment.named(sources[0]).first, Segment.named(sources[-1]).last, self._attempt)
        with tempfile.TemporaryDirectory(prefix="manta-ledger-") as folder:
            path = Path(folder) / str(merged)
            rows = read_segments(self._store, sources, digests=self.digests)
            digest = write_segment(path, merged.span, _each_step_once(merged, rows), SCHEMA)
            self._store.put_file(f"{LEDGER}{merged}", path)
        self.segments = [*self.segments[: due.start], str(merged), *self.segments[due.stop :]]
        self.digests[str(merged)] = digest


def due_merge(segments: Sequence[str]) -> slice | None:
    """The first MERGED neighbours of which the newer ones together have at least GROWTH times the steps of the oldest.

    Where there are none, segments become the longer the older they are, so that their number grows with the logarithm
    of the steps: 10,000 saves leave at most 45, and a row is written again about three times.
    """
    steps = [Segment.named(name).steps for name in segments]
    starts = range(len(steps) - MERGED + 1)
    found = next((at for at in starts if sum(steps[at + 1 : at + MERGED]) >= GROWTH * steps[at]), None)
    return None if found is None else slice(found, found + MERGED)


def sweep_segments(store: Store, lists: Iterable[Sequence[str]]) -> None:
    """Deletes segments that were merged, or left by attempts that ended, and that nobody needs; and unfinished ones.

    A segment is deleted where each of the lists has another one that covers its steps. What a save in progress has
    written is not: its new rows are in no other segment, and what it has merged is longer than its parts in the lists.
    A merge in progress, of an agent whose group is gone, may fail, which its save survives.

    Args:
        lists: the segments of the checkpoint that the newest one continued, of the newest one, and of all kept ones. No
            more of them are taken than it needs to see that there is nothing to delete.
    """
    store.delete_unfinished(LEDGER)
    names = [info.key.removeprefix(LEDGER) for info in store.list(LEDGER)]
    unneeded = {name: Segment.named(name) for name in names if _NAME.fullmatch(name)}
    for each in lists:
        listed = {name: Segment.named(name) for name in each}
        unneeded = {
            name: segment
            for name, segment in unneeded.items()
            if name not in listed and any(other.covers(segment) for other in listed.values())
        }
        if not unneeded:
            return
    for name in unneeded:
        store.delete(f"{LEDGER}{name}")


def read_segments(
    store: Store, segments: Sequence[str], schema: pa.Schema = SCHEMA, digests: Mapping[str, str] = NO_DIGESTS
) -> Iterator[pa.Table]:
    """Reads the segments in step order, a row group at a time.

    Args:
        schema: the columns to read: a part of SCHEMA. Of a large segment, no others are transferred.
        digests: see `StepLedger`.

    Raises:
        DamagedObjectError: a segment is missing, damaged, or another one; perhaps after its rows.
    """
    for name in segments:
        segment, key = Segment.named(name), f"{LEDGER}{name}"
        try:
            file = store.open(key)
        except ObjectNotFoundError as error:
            raise DamagedObjectError(f"{store.url_of(key)} is missing. {REMEDY}") from error
        with file:
            found = (file, store.url_of(key), segment.span, schema.names, SAVE_SCHEMA.names, digests.get(name))
            for table in read_segment(*found):
                yield _completed(table, segment, schema)


def read_rows(
    store: Store,
    segments: Sequence[str],
    schema: pa.Schema = METRICS_SCHEMA,
    digests: Mapping[str, str] = NO_DIGESTS,
) -> pa.Table:
    """The rows of the segments in step order; see `read_segments`."""
    return pa.concat_tables([schema.empty_table(), *read_segments(store, segments, schema, digests)])


def _completed(table: pa.Table, segment: Segment, schema: pa.Schema) -> pa.Table:
    """The table with the columns of `schema`; those that it lacks have the same value in every row."""
    same = {"save": segment.last, "attempt": segment.attempt}
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.array(np.full(table.num_rows, same[field.name]), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _each_step_once(segment: Segment, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the tables.

    Raises:
        MantaError: they do not have each step of the segment once, in order.
    """
    step = segment.first
    for table in tables:
        if not np.array_equal(table["step"].to_numpy(), np.arange(step, step + table.num_rows)):
            break
        step += table.num_rows
        yield table
    if step != segment.last + 1:
        raise MantaError(f"The ledger does not have each step from {segment.first} to {segment.last} once.")
