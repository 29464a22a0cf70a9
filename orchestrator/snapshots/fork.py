"""Forks a run: copies a donor's checkpoint, and its ledger and metrics up to that step, into a new run.

A sweep continues one trial from the state of another by it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from data.stores.store import Store
from orchestrator.run.checkpoint import STATE, CheckpointName, fetch_checkpoint, list_checkpoints, write_checkpoint
from orchestrator.run.ledger import LEDGER
from orchestrator.run.metrics_file import METRICS, metrics_lines


def fork(donor: Store, name: CheckpointName, child: Store) -> None:
    """Copies the donor's checkpoint `name` into the run under `child`, unless the child has a checkpoint already.

    The ledger segments and metrics of the steps before are copied too, so that the child's samples can be audited like
    those of any run. The checkpoint's manifest is written last, so an interrupted fork is done again.

    Raises:
        CheckpointDamagedError: the files of the donor's checkpoint are not those its manifest names.
    """
    if list_checkpoints(child):
        return
    own = CheckpointName(name.step, 0)  # the child's attempts count from 1
    with tempfile.TemporaryDirectory(prefix="manta-fork-") as scratch:
        folder = Path(scratch)
        state = fetch_checkpoint(donor, name, None, folder)
        for segment in state["ledger"]:
            copied = folder / segment
            donor.get_file(f"{LEDGER}{segment}", copied)
            child.put_file(f"{LEDGER}{segment}", copied)
            copied.unlink()
        child.put(METRICS, b"".join(metrics_lines(child, state["ledger"], digests=state.get("ledger_digests", {}))))
        (folder / STATE).write_text(json.dumps(state))
        write_checkpoint(child, own, state, folder, before_commit=lambda: None)
