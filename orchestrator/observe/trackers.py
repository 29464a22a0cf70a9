"""Trackers of experiments beside the run's own folder: each told in a thread of its own, and never waited for.

A tracker that fails is told of once and left alone from then on: a run does not end, or wait, for who watches it.
"""

from __future__ import annotations

import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Sequence

from data.errors import InputError
from data.extras import installing
from orchestrator.config.observe import ObserveConfig
from orchestrator.observe.tracker import Point, Tracked, Tracker

QUEUED = 4096
"""Messages that may wait for a tracker; of more, the newest are lost."""

FLUSH_S = 15.0
"""Seconds that a tracker has at the end of a run for what waits."""


class Tracking:
    """A tracker at work."""

    def __init__(self, tracker: Tracker, run: Tracked) -> None:
        self._tracker = tracker
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUED)
        self._problems: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failed = self._full = False
        self._thread = threading.Thread(target=self._work, name=f"tracker-{tracker.name}", daemon=True)
        self._put(lambda: tracker.begin(run))
        self._thread.start()

    def log(self, points: Sequence[Point]) -> None:
        """See `Tracker.log`; does not wait."""
        self._put(lambda: self._tracker.log(points))

    def evaluated(self, point: Point, *, final: bool = False) -> None:
        """See `Tracker.evaluated`; does not wait."""
        self._put(lambda: self._tracker.evaluated(point, final=final))

    def close(self, status: str, deadline: float) -> None:
        """Finish, and wait for what is left to tell until `deadline` by the monotonic clock."""
        self._put(lambda: self._tracker.finish(status))
        self._put(None)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._problems.put(f"{self._tracker.name} has not been told all: it takes too long to answer.")

    def problems(self) -> list[str]:
        """What has gone wrong since this was asked last, for the person watching."""
        found = []
        while not self._problems.empty():
            found.append(self._problems.get())
        return found

    def _put(self, message: Callable[[], None] | None) -> None:
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            if not self._full:
                self._full = True
                self._problems.put(f"{self._tracker.name} is slower than the run: some of it is not told there.")

    def _work(self) -> None:
        while (message := self._queue.get()) is not None:
            if self._failed:
                continue
            try:
                message()
            except BaseException as error:  # whatever it is, it is not the run's to end with
                self._failed = True
                said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                self._problems.put(f"{self._tracker.name} is not told of the run any more: {said}")


def refuse_missing_packages(observe: ObserveConfig) -> None:
    """Raises InputError if a tracker is asked for and its package is not installed."""
    asked = {"mlflow": observe.mlflow.tracking_uri, "wandb": observe.wandb.project}
    for package, where in asked.items():
        if where is not None and importlib.util.find_spec(package) is None:
            field = "tracking_uri" if package == "mlflow" else "project"
            raise InputError(
                f"observe.{package}.{field} = {where}: the package {package} is not installed here. Install it with "
                f"{installing(package)}, or leave observe.{package} out."
            )


def trackers(observe: ObserveConfig) -> list[Tracker]:
    """The trackers that the recipe asks for; their packages are imported by their threads."""
    found: list[Tracker] = []
    if observe.mlflow.tracking_uri is not None:
        from orchestrator.observe.mlflow_tracker import MlflowTracker

        found.append(MlflowTracker(observe.mlflow.tracking_uri, observe.mlflow.experiment))
    if observe.wandb.project is not None:
        from orchestrator.observe.wandb_tracker import WandbTracker

        found.append(WandbTracker(observe.wandb))
    return found
