"""What is stored of a run at its newest checkpoint: its state, and the rows of its ledger."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file

from data.order.sample_order import Ints
from data.stores.store import Store
from orchestrator.run.checkpoint import PROGRESS, fetch_newest
from orchestrator.run.ledger import METRICS_SCHEMA, SAVE_SCHEMA, read_rows
from orchestrator.run.record import RunRecord
from orchestrator.run.state import START

ROWS_SCHEMA = pa.schema([*METRICS_SCHEMA, *SAVE_SCHEMA])
"""Columns of the ledger that are read."""


@dataclass(frozen=True)
class StoredState:
    """A run at its newest checkpoint.

    Attributes:
        saved: state.json of the checkpoint; that of step 0 if there is none.
        counts: (units,) training samples in each unit; None if there is no checkpoint.
        rows: a row for every step, with the columns of ROWS_SCHEMA.
    """

    saved: dict[str, Any]
    counts: Ints | None
    rows: pa.Table


def read_state(store: Store, record: RunRecord | None) -> StoredState:
    """Reads the newest undamaged checkpoint of the run under `store`, and its ledger; see `list_checkpoints`.

    Raises:
        CheckpointDamagedError: there are checkpoints, and every one is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="manta-show-") as scratch:
        fetched = fetch_newest(store, record, (PROGRESS,), Path(scratch))
        counts = load_file(Path(scratch) / PROGRESS)["counts"] if fetched else None
    saved = fetched[1] if fetched else START
    return StoredState(saved, counts, read_rows(store, saved["ledger"], ROWS_SCHEMA, saved.get("ledger_digests", {})))


def world_sizes(rows: pa.Table) -> list[list[int]]:
    """[step, world size] of the first row and of every row where the world size changed."""
    steps, sizes = rows["step"].to_numpy(), rows["world_size"].to_numpy()
    changed = np.flatnonzero(np.diff(sizes, prepend=-1))
    return [[step, size] for step, size in zip(steps[changed].tolist(), sizes[changed].tolist(), strict=True)]
