"""What a rank does when a peer dies: it keeps the state after the last whole step for the next worker group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from data.errors import DiskFullError
from orchestrator.errors import BadLossError
from orchestrator.run.job import PlannedRestart
from orchestrator.run.ledger import StepRow
from orchestrator.snapshots.resume import Node
from orchestrator.train.state import TrainState
from orchestrator.workers.failure_causes import is_torn_connection
from orchestrator.workers.pool import LEAVE_S
from orchestrator.workers.process_group import leave_group

MAX_SAVE_S = LEAVE_S / 2
"""Most seconds a snapshot may take here: the next group waits for it, and the pool kills a worker after LEAVE_S."""


class PeerFailureGuard:
    """Saves a rank's state when a collective fails because a peer died.

    Attributes:
        snapshot_s: seconds that the newest snapshot took.
    """

    def __init__(self, node: Node, state: TrainState) -> None:
        self.snapshot_s = 0.0
        self._node, self._state = node, state
        self._step: int | None = None
        self._unsaved: list[StepRow] = []

    def step_done(self, step: int, unsaved: list[StepRow]) -> None:
        """Records that the state holds `step` updates; no collective can fail between an update and this call.

        Args:
            unsaved: ledger rows that are not in object storage.
        """
        self._step, self._unsaved = step, unsaved

    @contextmanager
    def keeping_state(self) -> Iterator[None]:
        """Writes the state into the node's memory if the block ends because a peer died, so that no step is lost."""
        try:
            yield
        except RuntimeError as error:
            if is_torn_connection(error):
                leave_group()  # first: others may wait for this rank
                self._keep()
            raise

    def _keep(self) -> None:
        memory = self._node.memory
        if self._step is None or self.snapshot_s > MAX_SAVE_S:
            return
        with suppress(DiskFullError), memory.locked():  # of several ranks on a node, the first writes
            if memory.newest()[0] < self._step:
                with memory.writing_locked(self._step, self._unsaved) as folder:
                    self._state.save(folder)


@contextmanager
def leaving_group_on_error() -> Iterator[None]:
    """Leaves the process group if the block raises, so that the peers fail at once instead of at their timeout.

    All ranks raise PlannedRestart and BadLossError together, so after these no peer waits.
    """
    try:
        yield
    except (PlannedRestart, BadLossError):
        raise
    except BaseException:
        leave_group()
        raise
