"""TensorBoard event files in the run's folder: one value for every step that the run's state contains.

Training files are written from ledger segments, after the checkpoint that lists them. `train/` holds one file per
save, so a step that was lost in a crash and repeated appears once. File names sort by step, since TensorBoard reads
them in that order. Evaluations have their own folder, which TensorBoard shows as a second curve.
"""

from __future__ import annotations

import importlib.util
import struct
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from data.stores.store import Store
from orchestrator.observe.tracker import Point, Tracked
from orchestrator.run.ledger import METRICS_SCHEMA, SAVE_SCHEMA, SCHEMA, Segment, read_rows

TRAIN, HELD_OUT = "tensorboard/train/", "tensorboard/held-out/"
"""Folders below the run's folder."""

PREFIX = "events.out.tfevents."
"""Prefix of the file names that TensorBoard reads."""

_LEDGER_COLUMNS = ("loss", "lr", "grad_norm", "world_size")
"""Columns of the ledger that are written unchanged."""

_EVENT_SCHEMA = pa.schema([*METRICS_SCHEMA, *SAVE_SCHEMA])
_FILE_SCHEMA = pa.schema([SCHEMA.field("step"), *SAVE_SCHEMA])
_TOKENS_SCHEMA = pa.schema([SCHEMA.field("tokens")])
"""Columns of the ledger that are read: for points, for the names of files, and for the token count."""


class TrainingEvents:
    """Event files of the training steps; owned by the process that writes checkpoints.

    There is a file for every save. It stays as it is when segments of the ledger are merged: a TensorBoard that is
    looking at the run has read it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: set[str] | None = None
        self._files: dict[str, tuple[str, ...]] = {}  # with the rows of each segment

    def follow(self, segments: Sequence[str]) -> None:
        """Writes the files of these ledger segments and deletes all others. May be called again after an error.

        Raises:
            MantaError: see `data.stores.store`.
        """
        if self._written is None:  # those of earlier attempts
            self._written = {found.key for found in self._store.list(TRAIN)}
        self._files = {segment: self._files.get(segment) or self._files_of(segment) for segment in segments}
        wanted = {file for files in self._files.values() for file in files}
        for outdated in sorted(self._written - wanted):
            self._store.delete(outdated)
            self._written.remove(outdated)
        for at, segment in enumerate(segments):
            if self._written.issuperset(self._files[segment]):
                continue
            for file, points in self._points(segments[max(0, at - 1) : at], segment):
                if file not in self._written:
                    self._store.put(file, event_file(points))
                    self._written.add(file)

    def _files_of(self, segment: str) -> tuple[str, ...]:
        """The files with the rows of a segment: one if it was written by a save, more if it was merged."""
        if self._written is not None and (own := _file(Segment.named(segment))) in self._written:
            return (own,)
        return tuple(file for file, _ in _by_file(read_rows(self._store, [segment], _FILE_SCHEMA)))

    def _points(self, before: Sequence[str], segment: str) -> Iterator[tuple[str, list[Point]]]:
        """Points of a segment by file; the segment `before` it, if any, gives the token count at its start."""
        tokens = 0
        if before:
            tokens = read_rows(self._store, before, _TOKENS_SCHEMA)["tokens"][-1].as_py()
        for file, table in _by_file(read_rows(self._store, [segment], _EVENT_SCHEMA)):
            points = []
            for row in table.to_pylist():
                speed = (row["tokens"] - tokens) / row["step_s"] if row["step_s"] > 0 else None
                tokens = row["tokens"]
                values = {name: row[name] for name in _LEDGER_COLUMNS} | {"tokens_per_s": speed}
                points.append(Point(row["step"], row["at"], values))
            yield file, points


def _file(segment: Segment) -> str:
    """Key of the file with the rows of a segment that was not merged."""
    return f"{TRAIN}{PREFIX}{str(segment).removesuffix('.parquet')}"


def _by_file(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each save, with the key of their file."""
    steps, saves, attempts = (rows[name].to_numpy() for name in ("step", "save", "attempt"))
    changes = np.flatnonzero((np.diff(saves) != 0) | (np.diff(attempts) != 0)) + 1
    for first, end in pairwise([0, *changes.tolist(), len(saves)]):
        saved = Segment(int(steps[first]), int(saves[first]), int(attempts[first]))
        yield _file(saved), rows.slice(first, end - first)


def evaluation_key(step: int, *, final: bool = False) -> str:
    """Key of the event file of an evaluation; `final`: the one at the end of the run."""
    return f"{HELD_OUT}{PREFIX}{step:08d}{'-final' if final else ''}"


def event_file(points: Iterable[Point]) -> bytes:
    """Encodes an event file with these points."""
    return encoded(scalar_events(points))


def scalar_events(points: Iterable[Point]) -> Iterator[Any]:
    """The points as Event messages."""
    _, event_type = _tensorboard()
    for point in points:
        event = event_type(step=point.step, wall_time=point.at)
        for name, value in point.values.items():
            if value is not None:
                event.summary.value.add(tag=name, simple_value=value)
        yield event


def encoded(events: Iterable[Any]) -> bytes:
    """Encodes an event file with these Event messages.

    A record is its length and its data, each followed by a masked CRC-32C; the first record gives the file version.
    """
    crc32c, event_type = _tensorboard()

    def record(event: Any) -> bytes:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        return b"".join([length, _masked(crc32c(length)), data, _masked(crc32c(data))])

    return b"".join(map(record, (event_type(file_version="brain.Event:2"), *events)))


def _masked(crc: int) -> bytes:
    """Masks a CRC as TFRecord does: rotated and offset, because a CRC over data that contains CRCs is weak."""
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _tensorboard() -> tuple[Any, Any]:
    """CRC-32C and the Event message of tensorboardX: 2 MB in every snapshot agent, against torch's hundreds."""
    with package_alone("tensorboardX"):
        from tensorboardX.crc32c import crc32c
        from tensorboardX.proto.event_pb2 import Event
    return crc32c, Event


@contextmanager
def package_alone(name: str) -> Iterator[None]:
    """Lets modules of a package be imported without running its __init__, which for tensorboardX imports torch."""
    if name in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is not installed"
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[name] = package
    try:
        yield
    finally:
        if sys.modules.get(name) is package:
            del sys.modules[name]


class HeldOutEvents:
    """A tracker that writes one event file per evaluation; a repeated evaluation replaces its file."""

    name = "TensorBoard"

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(self, run: Tracked) -> None:
        """Deletes evaluations after the step that the attempt continues from: the run reaches them again."""
        for found in list(self._store.list(HELD_OUT)):
            if found.key > evaluation_key(run.step, final=True):
                self._store.delete(found.key)

    def log(self, points: Sequence[Point]) -> None:
        """Does nothing: training steps have their own files, see `TrainingEvents`."""

    def log_evaluation(self, point: Point, *, final: bool) -> None:
        """Writes the file of the evaluation."""
        self._store.put(evaluation_key(point.step, final=final), event_file([point]))

    def finish(self, status: str) -> None:
        """Does nothing: all files are written."""
