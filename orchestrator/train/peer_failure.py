"""What a rank does when a peer dies: it has the state after the last whole step, and keeps it for the next group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from data.errors import DiskFullError
from model.optim.weight_average import WeightAverage
from orchestrator.run.ledger import StepRow
from orchestrator.snapshots.resume import Node
from orchestrator.snapshots.tensors import save_state
from orchestrator.workers.pool import LEAVE_S
from orchestrator.workers.process_group import is_torn_connection, leave_group

MAX_SAVE_S = LEAVE_S / 2
"""Seconds a snapshot may take where the next group waits for it; it would take longer to be given up and killed."""


class PeerFailureGuard:
    """A rank of which a peer may die.

    Attributes:
        step: updates that the state holds; no collective fails between one and the next.
        unsaved: rows of the ledger that are not in object storage.
        cost_s: seconds that the newest snapshot took.
    """

    def __init__(
        self, node: Node, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
    ) -> None:
        self._node, self._model, self._optimizer, self._average = node, model, optimizer, average
        self.step: int | None = None
        self.unsaved: list[StepRow] = []
        self.cost_s = 0.0

    @contextmanager
    def keeping_its_state(self) -> Iterator[None]:
        """Where the block ends because a peer is gone, have the state in the node's memory, so that no step is lost."""
        try:
            yield
        except RuntimeError as error:
            if is_torn_connection(error):
                leave_group()  # first: others may wait for this rank
                self._keep()
            raise

    def _keep(self) -> None:
        memory = self._node.memory
        if self.step is None or self.cost_s > MAX_SAVE_S:
            return
        with suppress(DiskFullError), memory.alone():  # of several ranks on a node, one does
            if memory.newest()[0] < self.step:
                with memory.writing_alone(self.step, self.unsaved) as folder:
                    save_state(folder, self._model, self._optimizer, self._average)
