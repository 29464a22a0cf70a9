"""A run that begins with another run's state: the donor's checkpoint, and what its ledger says of the steps before."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from data.store import Store
from orchestrator.checkpoint import (
    STATE,
    CheckpointName,
    fetch_checkpoint,
    list_checkpoints,
    write_checkpoint,
)
from orchestrator.ledger import METRICS, metrics_lines


def fork(donor: Store, name: CheckpointName, heir: Store) -> None:
    """Give the run under `heir` the donor's checkpoint `name` as its own, unless it has one already.

    The ledger segments and metrics of the steps before come along, so that the heir's samples can be audited like any
    run's. The checkpoint's manifest is written last: a fork that was cut off is done again.

    Raises:
        CheckpointDamagedError: the donor's checkpoint is not what was saved.
    """
    if list_checkpoints(heir):
        return
    own = CheckpointName(name.step, 0)  # the heir's attempts count from 1
    with tempfile.TemporaryDirectory(prefix="manta-fork-") as scratch:
        folder = Path(scratch)
        state = fetch_checkpoint(donor, name, None, folder)
        for segment in state["ledger"]:
            heir.put(f"ledger/{segment}", donor.get(f"ledger/{segment}"))
        heir.put(METRICS, b"".join(line + b"\n" for line in metrics_lines(donor, name.step)))
        (folder / STATE).write_text(json.dumps(state))
        write_checkpoint(heir, own, state, folder, before_commit=lambda: None)
