"""What decides how many workers there are, and what it answers. The pool does as it is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from orchestrator.policy.hang import Hang
from orchestrator.policy.scaling import Observation


class StartAction(NamedTuple):
    """What the pool should do while no worker runs.

    Attributes:
        workers: workers to start.
        timeout_s: seconds after which the start counts as hung.
        avoid: ids of nodes on which new workers are started only where no other node has room.
    """

    workers: int
    timeout_s: float
    avoid: frozenset[str] = frozenset()


class PoolAction(NamedTuple):
    """What the pool should do with the running workers.

    Attributes:
        hung: the workers' hang; None where they do not hang.
        warm_spares: workers to keep ready to join.
        wanted: workers to request nodes for, as far as there are too few; None: leave the requests as they are.
        avoid: see `StartAction`.
    """

    hung: Hang | None = None
    warm_spares: int = 0
    wanted: int | None = None
    avoid: frozenset[str] = frozenset()


class GroupSize(Protocol):
    """Decides how many workers there are; called in the controller's process. Picklable."""

    def when_idle(self, seen: Observation) -> StartAction | None:
        """Decides while no worker runs; `seen.warm_spares` of the slots have a live worker. None: start none yet."""

    def when_running(self, seen: Observation) -> PoolAction:
        """Decides while workers run."""

    def while_starting(self, workers: Sequence[str]) -> Hang | None:
        """Decides whether a start of these workers hangs. Called in a thread of its own, and may wait."""

    def report_start_phase(self, phase: str) -> None:
        """Reports the end of a phase of a start: "teardown", "placement", "processes" or "process_group"."""
