"""TensorBoard event files in the run's folder: one value for every step that the run's state contains.

Training files are written from ledger segments, after the checkpoint that lists them. `train/` holds one file per
segment, so a step that was lost in a crash and repeated appears once. File names sort by step, since TensorBoard reads
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
from typing import Any

from data.stores.store import Store
from orchestrator.observe.tracker import Point, Tracked
from orchestrator.run.ledger import read_segments

TRAIN, HELD_OUT = "tensorboard/train/", "tensorboard/held-out/"
"""Folders below the run's folder."""

PREFIX = "events.out.tfevents."
"""Prefix of the file names that TensorBoard reads."""

_LEDGER_COLUMNS = ("loss", "lr", "grad_norm", "world_size")
"""Columns of the ledger that are written unchanged."""


class TrainingEvents:
    """Event files of the training steps; owned by the process that writes checkpoints."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: set[str] | None = None

    def follow(self, segments: Sequence[str]) -> None:
        """Writes a file for each of these ledger segments and deletes all others. May be called again after an error.

        Raises:
            MantaError: see `data.stores.store`.
        """
        wanted = {f"{TRAIN}{PREFIX}{segment.removesuffix('.parquet')}": at for at, segment in enumerate(segments)}
        if self._written is None:  # those of earlier attempts
            self._written = {found.key for found in self._store.list(TRAIN)}
        for outdated in sorted(self._written - wanted.keys()):
            self._store.delete(outdated)
            self._written.remove(outdated)
        for key, at in wanted.items():
            if key not in self._written:
                self._store.put(key, event_file(self._points(segments, at)))
                self._written.add(key)

    def _points(self, segments: Sequence[str], at: int) -> Iterator[Point]:
        """Points of segment number `at`; the segment before it gives the token count at its start."""
        *before, rows = read_segments(self._store, segments[max(0, at - 1) : at + 1])
        tokens = before[0]["tokens"][-1].as_py() if before else 0
        for row in rows.drop_columns("sample_ids").to_pylist():
            speed = (row["tokens"] - tokens) / row["step_s"] if row["step_s"] > 0 else None
            tokens = row["tokens"]
            yield Point(
                row["step"], row["at"], {**{name: row[name] for name in _LEDGER_COLUMNS}, "tokens_per_s": speed}
            )


def evaluation_key(step: int, *, final: bool = False) -> str:
    """Key of the event file of an evaluation; `final`: the one at the end of the run."""
    return f"{HELD_OUT}{PREFIX}{step:08d}{'-final' if final else ''}"


def event_file(points: Iterable[Point]) -> bytes:
    """Encodes an event file.

    A record is its length and its data, each followed by a masked CRC-32C; the first record gives the file version.
    """
    crc32c, event_type = _tensorboard()

    def record(event: Any) -> bytes:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        return b"".join([length, _masked(crc32c(length)), data, _masked(crc32c(data))])

    begin, *records = [record(event_type(file_version="brain.Event:2"))]
    for point in points:
        event = event_type(step=point.step, wall_time=point.at)
        for name, value in point.values.items():
            if value is not None:
                event.summary.value.add(tag=name, simple_value=value)
        records.append(record(event))
    return b"".join([begin, *records])


def _masked(crc: int) -> bytes:
    """Masks a CRC as TFRecord does: rotated and offset, because a CRC over data that contains CRCs is weak."""
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _tensorboard() -> tuple[Any, Any]:
    """CRC-32C and the Event message of tensorboardX: 2 MB in every snapshot agent, against torch's hundreds."""
    with _package_alone("tensorboardX"):
        from tensorboardX.crc32c import crc32c
        from tensorboardX.proto.event_pb2 import Event
    return crc32c, Event


@contextmanager
def _package_alone(name: str) -> Iterator[None]:
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
