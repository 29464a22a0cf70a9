"""Experiment trackers of a run: the table of those that a recipe can turn on, and the thread that each works in.

A tracker that raises is told of, and tried again. A run neither ends nor waits because of a tracker.
"""

from __future__ import annotations

import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import InputError, install_command
from orchestrator.config.observe import ObserveConfig
from orchestrator.observe.mlflow_tracker import MlflowTracker
from orchestrator.observe.tracker import Point, Tracked, Tracker
from orchestrator.observe.wandb_tracker import WandbTracker

QUEUED = 4096
"""Most messages that wait for a tracker; further ones are dropped."""

FLUSH_S = 15.0
"""Seconds that a tracker has at the end of a run to log the waiting messages."""


FIRST_WAIT_S, LONGEST_WAIT_S, LAST_TRY_S = 1.0, 60.0, 3.0
"""Seconds before the second try of a message, and most between two; seconds at the end for a tracker that fails."""


@dataclass(frozen=True)
class TrackerKind:
    """A tracker that a recipe can turn on.

    Attributes:
        section: section of `observe` with its settings; also the name of its package and of the extra to install.
        field: field of the section that turns it on; null: off.
        make: makes the tracker, given the section. The package is imported later, in the tracker's thread.
    """

    section: str
    field: str
    make: Callable[[Any], Tracker]

    def setting(self, observe: ObserveConfig) -> str | None:
        """Value of the field that turns it on."""
        value: str | None = getattr(getattr(observe, self.section), self.field)
        return value


TRACKERS = (
    TrackerKind("mlflow", "tracking_uri", MlflowTracker),
    TrackerKind("wandb", "project", WandbTracker),
)


def trackers(observe: ObserveConfig) -> list[Tracker]:
    """Makes the trackers that the recipe turns on."""
    return [kind.make(getattr(observe, kind.section)) for kind in TRACKERS if kind.setting(observe) is not None]


def refuse_missing_packages(observe: ObserveConfig) -> None:
    """Checks that the package of every tracker that is turned on is installed.

    Raises:
        InputError: a package is missing.
    """
    for kind in TRACKERS:
        setting, package = kind.setting(observe), kind.section
        if setting is not None and importlib.util.find_spec(package) is None:
            raise InputError(
                f"observe.{package}.{kind.field} = {setting}: the package {package} is not installed here. Install it "
                f"with {install_command(package)}, or remove observe.{package} from the recipe."
            )


class Tracking:
    """A tracker at work in a thread of its own, which takes messages from a queue.

    A message that fails is tried again, with growing waits, until the run ends: servers come back, and runs that begin
    together may meet in a new database.
    """

    def __init__(self, tracker: Tracker, run: Tracked) -> None:
        self._tracker = tracker
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUED)
        self._problems: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._is_full = False
        self._failing_since: float | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracker-{tracker.name}", daemon=True)
        self._put(lambda: tracker.begin(run))
        self._thread.start()

    def log(self, points: Sequence[Point]) -> None:
        """See `Tracker.log`; does not wait."""
        self._put(lambda: self._tracker.log(points))

    def log_evaluation(self, point: Point, *, final: bool = False) -> None:
        """See `Tracker.log_evaluation`; does not wait."""
        self._put(lambda: self._tracker.log_evaluation(point, final=final))

    def close(self, status: str, deadline: float) -> None:
        """Finishes; waits for the queued messages until `deadline` by the monotonic clock, or shortly if it fails."""
        self._put(lambda: self._tracker.finish(status))
        self._put(None)
        self._closing.set()
        if self._failing_since is not None:
            deadline = min(deadline, time.monotonic() + LAST_TRY_S)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._problems.put(f"{self._tracker.name} is too slow: the last metrics were not logged there.")

    def problems(self) -> list[str]:
        """Problems since the last call, one line each."""
        found = []
        while not self._problems.empty():
            found.append(self._problems.get())
        return found

    def _put(self, message: Callable[[], None] | None) -> None:
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            if not self._is_full:
                self._is_full = True
                self._problems.put(f"{self._tracker.name} is slower than the run: some metrics are not logged there.")

    def _work(self) -> None:
        while (message := self._queue.get()) is not None:
            if not self._deliver(message):
                self._problems.put(f"{self._tracker.name} still fails: the last metrics were not logged there.")
                return

    def _deliver(self, message: Callable[[], None]) -> bool:
        """Tries a message until it succeeds; returns False if it fails once the run has ended."""
        wait_s = FIRST_WAIT_S
        while True:
            is_last = self._closing.is_set()
            try:
                message()
            except BaseException as error:  # a tracker's failure, of whatever kind, must not end the run
                if self._failing_since is None:
                    self._failing_since = time.monotonic()
                    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                    self._problems.put(f"{self._tracker.name} fails, and is tried again until the run ends: {reason}")
                if is_last:
                    return False
                self._closing.wait(wait_s)
                wait_s = min(LONGEST_WAIT_S, 2 * wait_s)
            else:
                if self._failing_since is not None:
                    seconds = time.monotonic() - self._failing_since
                    self._problems.put(f"{self._tracker.name} works again, after {seconds:,.0f} s.")
                    self._failing_since = None
                return True
