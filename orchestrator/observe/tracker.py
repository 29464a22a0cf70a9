"""What a tracker is: told of a run's steps and evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True)
class Tracked:
    """A run as trackers know it.

    Attributes:
        id: the same in every attempt at it, and for no other run.
        step: that the attempt goes on from.
        parameters: resolved config by dotted name, without keys.
    """

    id: str
    name: str
    url: str
    step: int
    parameters: Mapping[str, Any]


class Tracker(Protocol):
    """Where a run is told to. Called from one thread; whatever it raises ends the tracking."""

    name: str

    def begin(self, run: Tracked) -> None:
        """Begin the run there, or go on with it."""

    def log(self, points: Sequence[Point]) -> None:
        """Steps of training in order; later calls have later ones, but where a new attempt does steps again."""

    def evaluated(self, point: Point, *, final: bool) -> None:
        """An evaluation on the held-out set; of an earlier step, where it ran beside training."""

    def finish(self, status: str) -> None:
        """The attempt has ended: "finished", "stopped" or "failed"."""


class Point(NamedTuple):
    """What is known of a step.

    Attributes:
        at: seconds since the epoch.
        values: by name; those that are None are left out.
    """

    step: int
    at: float
    values: Mapping[str, float | None]
