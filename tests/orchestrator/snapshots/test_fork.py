"""A fork has the donor's checkpoint, the ledger up to it, and the metrics."""

from __future__ import annotations

import json
from pathlib import Path

from data.stores.local import LocalStore
from orchestrator.run.checkpoint import MODEL, CheckpointName, list_checkpoints, write_checkpoint
from orchestrator.run.ledger import MERGED, StepLedger, read_rows
from orchestrator.run.metrics_file import METRICS
from orchestrator.snapshots.fork import fork
from tests.orchestrator.run.builders import step_row


def test_a_fork_has_the_steps_up_to_the_donor_s_checkpoint(tmp_path: Path) -> None:
    """The donor has gone on, merged segments of its ledger, and has not written all rows to its metrics."""
    donor, child = LocalStore(str(tmp_path / "donor")), LocalStore(str(tmp_path / "child"))
    ledger = StepLedger(donor, 2, 0, [])
    for step in range(1, MERGED + 3):
        ledger.write([step_row(step)])
        ledger.merge()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / MODEL).write_bytes(b"weights")
    name, state = CheckpointName(ledger.step, 2), {"step": ledger.step, "ledger": ledger.segments}
    write_checkpoint(donor, name, state, tmp_path / "snapshot", before_commit=lambda: None)
    donor.put(METRICS, b'{"step": 1}\n')
    ledger.write([step_row(ledger.step + 1)])

    fork(donor, name, child)
    steps = list(range(1, MERGED + 3))
    assert list_checkpoints(child) == [CheckpointName(MERGED + 2, 0)]
    assert read_rows(child, state["ledger"])["step"].to_pylist() == steps
    assert [json.loads(line)["step"] for line in child.get(METRICS).splitlines()] == steps
    files = {info.key.rpartition("/")[2] for info in child.list("checkpoints/")}
    assert files == {MODEL, "state.json", "manifest.json"}
