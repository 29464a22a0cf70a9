"""What a run goes on from beside the tensors: its newest checkpoint's state, and the rows of the steps after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.ledger import StepRow
from orchestrator.loss_watch import WINDOW

START: dict[str, Any] = {"step": 0, "tokens": 0, "ledger": [], "recent_losses": [], "bad_steps": []}
"""state.json of a run without a checkpoint, as far as anything is read from it."""


@dataclass(frozen=True)
class RunState:
    """The state after a step.

    Attributes:
        saved: state.json of the newest checkpoint, or START.
        rows: ledger rows of the steps after it.
    """

    saved: dict[str, Any]
    rows: Sequence[StepRow] = ()

    @property
    def step(self) -> int:
        """Steps done."""
        return self.rows[-1].step if self.rows else int(self.saved["step"])

    @property
    def tokens(self) -> int:
        """Target tokens trained on."""
        return self.rows[-1].tokens if self.rows else int(self.saved["tokens"])

    @property
    def recent_losses(self) -> list[float]:
        """Losses of the last steps, as many as `LossWatch` looks at."""
        losses = [*self.saved["recent_losses"], *(row.loss for row in self.rows if row.loss is not None)]
        return losses[-WINDOW:]

    @property
    def bad_steps(self) -> set[int]:
        """Steps whose data was left out because the loss went astray on them."""
        return {*self.saved["bad_steps"], *(row.step for row in self.rows if row.loss is None)}
