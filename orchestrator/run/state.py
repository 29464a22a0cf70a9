"""The state of a run besides its tensors: state.json of the newest checkpoint, and the rows of the steps after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

from orchestrator.policy.loss_spike import WINDOW
from orchestrator.run.ledger import StepRow

START: dict[str, Any] = {
    "step": 0,
    "tokens": 0,
    "step_seconds": (0.0, 0.0),
    "ledger": [],
    "recent_losses": [],
    "skipped_steps": [],
}
"""The fields of state.json that are read, for a run without a checkpoint."""


class StepSeconds(NamedTuple):
    """Total time of the steps that the state contains.

    Attributes:
        wall: seconds, including the wait for data.
        workers: worker-seconds: world size times seconds, summed over steps.
    """

    wall: float = 0.0
    workers: float = 0.0

    def after(self, row: StepRow) -> StepSeconds:
        """The totals with `row` added."""
        return StepSeconds(self.wall + row.step_s, self.workers + row.step_s * row.world_size)


@dataclass(frozen=True)
class RunState:
    """The state of a run after its newest step.

    Attributes:
        saved: state.json of the newest checkpoint, or START.
        rows: ledger rows of the steps after it.
    """

    saved: dict[str, Any]
    rows: Sequence[StepRow] = ()

    @property
    def step(self) -> int:
        """Optimizer updates done."""
        return self.rows[-1].step if self.rows else int(self.saved["step"])

    @property
    def tokens(self) -> int:
        """Target tokens trained on."""
        return self.rows[-1].tokens if self.rows else int(self.saved["tokens"])

    @property
    def step_seconds(self) -> StepSeconds | None:
        """Total time of the steps; None if the checkpoint is of a version that did not record it."""
        saved = self.saved.get("step_seconds")
        return None if saved is None else reduce(StepSeconds.after, self.rows, StepSeconds(*saved))

    @property
    def recent_losses(self) -> list[float]:
        """Losses of the last steps, as many as `LossSpikeDetector` uses."""
        losses = [*self.saved["recent_losses"], *(row.loss for row in self.rows if row.loss is not None)]
        return losses[-WINDOW:]

    @property
    def skipped_steps(self) -> set[int]:
        """Steps whose data was skipped because the loss spiked on it."""
        return {*self.saved["skipped_steps"], *(row.step for row in self.rows if row.loss is None)}
