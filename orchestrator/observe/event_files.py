"""Event files of TensorBoard in the run's folder: a value for every step that the run's state contains, once.

Training's are made from the segments of the ledger, after the checkpoint that lists them: `train/` holds one file a
segment, so that a step which was lost in a crash and done again is in them once. Names sort by step, in which order
TensorBoard reads them. Evaluations have a folder of their own, which TensorBoard shows as a curve beside training's.
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
"""Below the run's folder."""

PREFIX = "events.out.tfevents."
"""How a file's name begins that TensorBoard reads."""

_OF_ROWS = ("loss", "lr", "grad_norm", "world_size")
"""Columns of the ledger that are shown as they are."""


class TrainingEvents:
    """Event files of the training loop; kept by whoever writes checkpoints."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: set[str] | None = None

    def follow(self, segments: Sequence[str]) -> None:
        """Have a file for each of these segments of the ledger, and no other; may be tried again.

        Raises:
            MantaError: see `data.store`.
        """
        wanted = {f"{TRAIN}{PREFIX}{segment.removesuffix('.parquet')}": at for at, segment in enumerate(segments)}
        if self._written is None:  # an earlier attempt, or a version that wrote none
            self._written = {found.key for found in self._store.list(TRAIN)}
        for stray in sorted(self._written - wanted.keys()):
            self._store.delete(stray)
            self._written.remove(stray)
        for key, at in wanted.items():
            if key not in self._written:
                self._store.put(key, event_file(self._points(segments, at)))
                self._written.add(key)

    def _points(self, segments: Sequence[str], at: int) -> Iterator[Point]:
        """The steps of segment number `at`; the one before tells how many tokens came before."""
        *before, rows = read_segments(self._store, segments[max(0, at - 1) : at + 1])
        tokens = before[0]["tokens"][-1].as_py() if before else 0
        for row in rows.drop_columns("sample_ids").to_pylist():
            speed = (row["tokens"] - tokens) / row["step_s"] if row["step_s"] > 0 else None
            tokens = row["tokens"]
            yield Point(row["step"], row["at"], {**{name: row[name] for name in _OF_ROWS}, "tokens_per_s": speed})


def evaluation_key(step: int, *, final: bool = False) -> str:
    """Where the event file of an evaluation is; `final`: of the one at the end of the run."""
    return f"{HELD_OUT}{PREFIX}{step:08d}{'-final' if final else ''}"


def event_file(points: Iterable[Point]) -> bytes:
    """The content of an event file.

    A record is its length and data, a checksum (masked CRC-32C) behind each; the first says which version it is.
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
    """A checksum as records have it: rotated, so that one of data that holds checksums is no trivial one."""
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _tensorboard() -> tuple[Any, Any]:
    """CRC-32C and the type of an event, as tensorboardX has them: 2 MB in the agent of every node."""
    with _package_alone("tensorboardX"):
        from tensorboardX.crc32c import crc32c
        from tensorboardX.proto.event_pb2 import Event
    return crc32c, Event


@contextmanager
def _package_alone(name: str) -> Iterator[None]:
    """Modules of a package can be imported inside the block without the package's own, which here imports torch."""
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
    """See `orchestrator.observe.trackers.Tracker`. A file an evaluation: one done again replaces the one before."""

    name = "TensorBoard's folder"

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(self, run: Tracked) -> None:
        """Remove what was found after the step that is gone on from: the run comes there again."""
        for found in list(self._store.list(HELD_OUT)):
            if found.key > evaluation_key(run.step, final=True):
                self._store.delete(found.key)

    def log(self, points: Sequence[Point]) -> None:
        """Nothing: steps have files of their own, see `TrainingEvents`."""

    def evaluated(self, point: Point, *, final: bool) -> None:
        """Write it."""
        self._store.put(evaluation_key(point.step, final=final), event_file([point]))

    def finish(self, status: str) -> None:
        """Nothing: all is written."""
