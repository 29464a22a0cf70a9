"""A run that begins with another run's state: the donor's checkpoint, and what its ledger says of the steps before."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from data.stores.store import Store
from orchestrator.run.checkpoint import STATE, CheckpointName, fetch_checkpoint, list_checkpoints, write_checkpoint
from orchestrator.run.ledger import METRICS, metrics_lines


def fork(donor: Store, name: CheckpointName, child: Store) -> None:
    """Give the run under `child` the donor's checkpoint `name` as its own, unless it has one already.

    The ledger segments and metrics of the steps before come along, so that the child's samples can be audited like any
    run's. The checkpoint's manifest is written last: a fork that was cut off is done again.

    Raises:
        CheckpointDamagedError: the donor's checkpoint is not what was saved.
    """
    if list_checkpoints(child):
        return
    own = CheckpointName(name.step, 0)  # the child's attempts count from 1
    with tempfile.TemporaryDirectory(prefix="manta-fork-") as scratch:
        folder = Path(scratch)
        state = fetch_checkpoint(donor, name, None, folder)
        for segment in state["ledger"]:
            child.put(f"ledger/{segment}", donor.get(f"ledger/{segment}"))
        child.put(METRICS, b"".join(line + b"\n" for line in metrics_lines(donor, name.step)))
        (folder / STATE).write_text(json.dumps(state))
        write_checkpoint(child, own, state, folder, before_commit=lambda: None)
