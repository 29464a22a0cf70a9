"""The step ledger: a row for every step the run's state contains, and the sample ids that step trained on.

Rows reach object storage with the checkpoint that contains their step, as Parquet segments that are never changed:
`ledger/00000001-00000200-a1.parquet`. A checkpoint's state lists its segments, so a step that was lost in a crash and
done again is in the ledger once. `metrics.jsonl` is the same rows without sample ids, for people and plots.
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
        step: optimizer updates applied once this one was.
        loss: mean over the step's target tokens, nats; None where the step's data was left out, as `grad_norm`.
        tokens: target tokens trained on since step 0.
        at: when it was done, seconds since the epoch.
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
    """Keep rows in a file: their metrics as JSON, then their sample ids, both as numpy has arrays.

    Not as a table: making one imports pandas, which training workers do without.
    """
    metrics = json.dumps([row.metrics() for row in rows]).encode()
    with path.open("wb") as file:
        np.save(file, np.frombuffer(metrics, np.uint8))
        np.save(file, np.array([row.sample_ids for row in rows], np.int64))


def load_rows(path: Path) -> list[StepRow]:
    """The rows that `save_rows` has kept."""
    with path.open("rb") as file:
        metrics = json.loads(np.load(file, allow_pickle=False).tobytes())
        ids = np.load(file, allow_pickle=False)
    return [StepRow(**row, sample_ids=its) for row, its in zip(metrics, ids, strict=True)]


class StepLedger:
    """Brings rows to object storage; kept by whoever writes checkpoints.

    Args:
        step: that of the checkpoint gone on from.
        segments: those of that checkpoint.

    Attributes:
        step: newest step written.
        segments: all written, oldest first.
    """

    def __init__(self, store: Store, attempt: int, step: int, segments: Sequence[str]) -> None:
        self._store, self._attempt = store, attempt
        self.step, self.segments = step, list(segments)
        self._lines = metrics_lines(store, step) if step else []

    def write(self, rows: Sequence[StepRow]) -> None:
        """Put those of `rows` that are not there yet into a new segment and into metrics.jsonl; may be tried again."""
        new = [row for row in rows if row.step > self.step]
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
    """Lines of metrics.jsonl, up to `last_step`."""
    try:
        lines = store.get(METRICS).splitlines()
    except ObjectNotFoundError:
        return []
    return [line for line in lines if last_step is None or json.loads(line)["step"] <= last_step]


def read_segments(store: Store, segments: Sequence[str]) -> Iterator[pa.Table]:
    """The tables of the segments, in step order."""
    for segment in segments:
        yield pq.read_table(pa.BufferReader(store.get(f"ledger/{segment}")))
