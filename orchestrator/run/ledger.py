"""The step ledger: one row for every step that the run's state contains, with the sample ids of the step.

Rows reach object storage with the checkpoint that contains their step, as Parquet segments that are never changed:
`ledger/00000001-00000200-a1.parquet`. A checkpoint's state lists its segments, so a step that was lost in a crash and
repeated is in the ledger once. `metrics.jsonl` holds the same rows without sample ids, for people and plots.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import ObjectNotFoundError
from data.order.sample_order import Ints
from data.stores.store import Store

METRICS = "metrics.jsonl"


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
        fields = asdict(self)
        del fields["sample_ids"]
        return fields


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


class StepLedger:
    """Writes rows to object storage; owned by the process that writes checkpoints.

    Args:
        step: step of the checkpoint that the attempt continues from.
        segments: segments of that checkpoint.

    Attributes:
        step: newest step written.
        segments: all segments, oldest first.
    """

    def __init__(self, store: Store, attempt: int, step: int, segments: Sequence[str]) -> None:
        self._store, self._attempt = store, attempt
        self.step, self.segments = step, list(segments)
        self._lines: list[bytes] | None = None if step else []  # of metrics.jsonl; None: not read yet

    def write(self, rows: Sequence[StepRow]) -> None:
        """Writes the rows after `step` to a new segment and to metrics.jsonl. May be called again after an error."""
        new = [row for row in rows if row.step > self.step]
        if self._lines is None:
            self._lines = metrics_lines(self._store, self.step)
        lines = [*self._lines, *(json.dumps(row.metrics()).encode() for row in new)]
        if new:
            segment = f"{new[0].step:08d}-{new[-1].step:08d}-a{self._attempt}.parquet"
            columns = {name: [row.metrics()[name] for row in new] for name in new[0].metrics()}
            table = pa.table({**columns, "sample_ids": [row.sample_ids for row in new]})
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd")
            self._store.put(f"ledger/{segment}", sink.getvalue().to_pybytes())
            self.segments, self.step = [*self.segments, segment], new[-1].step
        self._lines = lines
        self._store.put(METRICS, b"".join(line + b"\n" for line in lines))


def metrics_lines(store: Store, last_step: int | None = None) -> list[bytes]:
    """Lines of metrics.jsonl up to `last_step`; none before the first checkpoint."""
    try:
        lines = store.get(METRICS).splitlines()
    except ObjectNotFoundError:
        return []
    return [line for line in lines if last_step is None or json.loads(line)["step"] <= last_step]


def read_segments(store: Store, segments: Sequence[str]) -> Iterator[pa.Table]:
    """Reads the tables of the segments, in step order."""
    for segment in segments:
        yield pq.read_table(pa.BufferReader(store.get(f"ledger/{segment}")))
