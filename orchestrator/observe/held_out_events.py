"""TensorBoard's files of evaluations, written by the driver, which alone sees those that ran beside training."""

from __future__ import annotations

from collections.abc import Sequence

from data.store import Store
from orchestrator.observe.event_files import HELD_OUT, Point, evaluation_key, event_file
from orchestrator.observe.trackers import Tracked


class HeldOutEvents:
    """See `orchestrator.observe.trackers.Tracker`. A file an evaluation: one done again replaces the one before."""

    name = "TensorBoard's folder"

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(self, run: Tracked) -> None:
        """Remove what was found after the step that is gone on from: the run comes there again."""
        for found in list(self._store.list(HELD_OUT)):
            if found.key > evaluation_key(run.step, final=True):
                self._store.delete(found.key)

    def log(self, points: Sequence[Point]) -> None:
        """Nothing: steps have files of their own, see `TrainingEvents`."""

    def evaluated(self, point: Point, *, final: bool) -> None:
        """Write it."""
        self._store.put(evaluation_key(point.step, final=final), event_file([point]))

    def finish(self, status: str) -> None:
        """Nothing: all is written."""
