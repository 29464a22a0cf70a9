"""Everyone who is told of an attempt at a run while it goes on, behind one object that the driver calls."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

from orchestrator.config.result_fields import flatten, resolved
from orchestrator.observe.event_files import HeldOutEvents
from orchestrator.observe.metrics import RayMetrics
from orchestrator.observe.tracker import Point, Tracked, Tracker
from orchestrator.observe.trackers import FLUSH_S, Tracking, trackers
from orchestrator.run.progress import Progress
from orchestrator.run.record import Attempt
from orchestrator.run.run import Run
from orchestrator.run.summary import ledger_of_seconds, live_summary

TELL_EVERY_S = 1.0
"""Seconds from one time that anybody is told to the next; who polls a loop more often does not want that watched."""

_NOT_SCORES = ("step", "at")


class Observer:
    """Never waits but in `close`, and never raises: whatever goes wrong here is a line for the person watching.

    Args:
        tell: takes such a line.
        now: monotonic clock, seconds.
    """

    def __init__(self, run: Run, tell: Callable[[str], object], now: Callable[[], float] = time.monotonic) -> None:
        self._run, self._tell, self._now = run, tell, now
        self._last_report_at = -TELL_EVERY_S
        self._metrics: RayMetrics | None = RayMetrics()
        self._tracking: list[Tracking] = []
        self._step, self._evaluated_at = 0, float("-inf")
        self._has_begun = self._is_closed = False

    def follow(self, attempts: tuple[Attempt, ...], progress: Progress, *, now: bool = False) -> None:
        """The attempts of the run, of which the last goes on, and its loop.

        Args:
            now: whether this is to be told at once, as at the end.
        """
        if self._now() - self._last_report_at < TELL_EVERY_S and not now:
            return
        self._last_report_at = self._now()
        self._set_metrics(attempts, progress)
        if not self._has_begun and progress.restored_step is not None:
            self._has_begun, self._step = True, progress.restored_step
            run = tracked(self._run, progress.restored_step)
            self._tracking = [Tracking(tracker, run) for tracker in self._trackers()]
        for tracking in self._tracking:
            self._log(tracking, progress)
        self._step = max(self._step, progress.row.get("step", 0))
        self._evaluated_at = max((found["at"] for found in progress.evaluations), default=self._evaluated_at)
        self._tell_problems()

    def close(self, status: str, result: dict[str, Any] | None = None) -> None:
        """The attempt has ended; returns within FLUSH_S. Further calls do nothing.

        Args:
            status: "finished", "stopped" or "failed".
            result: what a run that has finished ended with, see `held_out`.
        """
        if self._is_closed:
            return
        self._is_closed = True
        deadline = time.monotonic() + FLUSH_S
        scores = scores_of(result or {})
        for tracking in self._tracking:
            if scores:
                tracking.evaluated(Point((result or {})["step"], time.time(), scores), final=True)
        for tracking in self._tracking:
            tracking.close(status, deadline)
        self._tell_problems()

    def _trackers(self) -> list[Tracker]:
        observe = self._run.config.observe
        return [*([HeldOutEvents(self._run.store)] if observe.tensorboard else []), *trackers(observe)]

    def _log(self, tracking: Tracking, progress: Progress) -> None:
        if new := new_points(progress, self._step):
            tracking.log(new)
        for found in progress.evaluations:
            if found["at"] <= self._evaluated_at:
                continue
            tracking.evaluated(Point(int(found["step"]), found["at"], scores_of(found)))

    def _set_metrics(self, attempts: tuple[Attempt, ...], progress: Progress) -> None:
        if self._metrics is None:
            return
        try:
            self._metrics.set(live_summary(self._run.config, attempts, progress, ledger_of_seconds(attempts)))
        except Exception as error:  # Ray's to explain, and no reason to end a run
            self._metrics = None
            self._tell(f"metrics are not set any more: {type(error).__name__}: {error}")

    def _tell_problems(self) -> None:
        for tracking in self._tracking:
            for problem in tracking.problems():
                self._tell(problem)


def new_points(progress: Progress, told: int) -> list[Point]:
    """The steps after `told`, once each: of the newest all that is known, of those before it the loss."""
    row = progress.row
    if not row:
        return []
    losses = {step: loss for step, loss in progress.losses if told < step < row["step"]}
    points = [Point(step, row["at"], {"loss": loss}) for step, loss in sorted(losses.items())]
    values = {name: value for name, value in row.items() if name not in _NOT_SCORES}
    return [*points, Point(row["step"], row["at"], values)] if row["step"] > told else points


def tracked(run: Run, step: int) -> Tracked:
    """The run as trackers know it."""
    url = run.store.url_of("")
    digest = hashlib.sha256(f"{url} {run.record.created_at}".encode()).hexdigest()[:16]
    return Tracked(digest, run.config.run, url, step, flatten(resolved(run.config)))


def scores_of(found: dict[str, Any]) -> dict[str, float]:
    """Numbers that an evaluation found, by name: `loss`, `perplexity`, `bits_per_byte`, `bleu`, `chrf`."""
    return {
        name.removeprefix("val_"): float(value)
        for name, value in found.items()
        if name not in _NOT_SCORES and isinstance(value, int | float)
    }
