"""The interface of experiment trackers: what they receive of a run, and the methods they implement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from orchestrator.run.run import Group


@dataclass(frozen=True)
class Tracked:
    """A run as trackers see it, or a sweep.

    Attributes:
        id: the same in every attempt at the run, and different for every other run.
        name: the recipe's `run`.
        url: where the run is stored.
        step: step that the attempt continues from.
        parameters: resolved config by dotted name, without secret keys.
        group: the sweep that the run is a trial of; a sweep's own group is itself.
        labels: what is told of the run besides, and may change.
    """

    id: str
    name: str
    url: str
    step: int
    parameters: Mapping[str, Any]
    group: Group | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_sweep(self) -> bool:
        """Whether this is a sweep, and not one of its trials."""
        return self.group is not None and self.group.id == self.id


class Point(NamedTuple):
    """Values at one step.

    Attributes:
        at: seconds since the epoch.
        values: values by name; None where a value is not known.
    """

    step: int
    at: float
    values: Mapping[str, float | None]


class Tracker(Protocol):
    """A place where a run's metrics are logged. Called from one thread; a call that raises is repeated."""

    name: str

    def begin(self, run: Tracked) -> None:
        """Creates the run there, or continues it."""

    def log(self, points: Sequence[Point]) -> None:
        """Logs training steps, in order. Steps that a new attempt repeats are logged again."""

    def log_evaluation(self, point: Point, *, final: bool) -> None:
        """Logs an evaluation on the held-out set; a background evaluation arrives after later training steps."""

    def finish(self, status: str) -> None:
        """Ends the attempt there, with "finished", "stopped" or "failed"."""
