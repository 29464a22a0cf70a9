"""Reports a live attempt to the metrics and to all trackers; the driver calls one object."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

from data.stores.store import Store
from orchestrator.config.result_fields import flatten, resolved
from orchestrator.observe.event_files import HeldOutEvents
from orchestrator.observe.metrics import METRICS, RayMetrics
from orchestrator.observe.tracker import Point, Tracked, Tracker
from orchestrator.observe.trackers import FLUSH_S, Tracking, trackers
from orchestrator.run.progress import Progress
from orchestrator.run.record import Attempt, RunRecord
from orchestrator.run.run import Run
from orchestrator.run.summary import LiveSummary, goodput_of, live_summary

REPORT_INTERVAL_S = 1.0
"""Seconds between two reports. The driver may poll the loop more often than that."""

_NOT_VALUES = ("step", "at")
"""Fields of rows and evaluations that are not metrics."""


class Observer:
    """Reports an attempt to metrics and trackers. Never raises: problems are logged. Waits only in `close`.

    Args:
        log: takes a line for the console.
        now: monotonic clock, seconds.
    """

    def __init__(self, run: Run, log: Callable[[str], object], now: Callable[[], float] = time.monotonic) -> None:
        self._run, self._log, self._now = run, log, now
        self._last_report_at = -REPORT_INTERVAL_S
        self._metrics: RayMetrics[LiveSummary] | None = RayMetrics(METRICS)
        self._tracking: list[Tracking] = []
        self._step, self._evaluated_at = 0, float("-inf")
        self._has_begun = self._is_closed = self._has_failed = False

    def follow(self, attempts: tuple[Attempt, ...], progress: Progress, *, now: bool = False) -> None:
        """Reports the attempts of the run, the last of which is live, and the progress of its loop.

        Args:
            now: report even if the last report is less than REPORT_INTERVAL_S old.
        """
        if self._now() - self._last_report_at < REPORT_INTERVAL_S and not now:
            return
        self._last_report_at = self._now()
        try:
            self._report(attempts, progress)
        except Exception as error:  # such as a thread that cannot start; a run does not end because of it
            if not self._has_failed:
                self._log(f"metrics and trackers do not get everything: {type(error).__name__}: {error}")
            self._has_failed = True

    def _report(self, attempts: tuple[Attempt, ...], progress: Progress) -> None:
        self._set_metrics(attempts, progress)
        if not self._has_begun and progress.restored_step is not None:
            self._has_begun, self._step = True, progress.restored_step
            run = tracked(self._run, progress.restored_step)
            self._tracking = [Tracking(tracker, run) for tracker in self._trackers()]
        for tracking in self._tracking:
            self._track(tracking, progress)
        self._step = max(self._step, progress.row.get("step", 0))
        self._evaluated_at = max((found["at"] for found in progress.evaluations), default=self._evaluated_at)
        self._log_problems()

    def close(self, status: str, result: dict[str, Any] | None = None) -> None:
        """Ends the reports; returns within FLUSH_S. Further calls do nothing.

        Args:
            status: "finished", "stopped" or "failed".
            result: result of the loop, with the scores of the final evaluation.
        """
        if self._is_closed:
            return
        self._is_closed = True
        deadline = time.monotonic() + FLUSH_S
        scores = scores_of(result or {})
        for tracking in self._tracking:
            if scores:
                tracking.log_evaluation(Point((result or {})["step"], time.time(), scores), final=True)
        for tracking in self._tracking:
            tracking.close(status, deadline)
        self._log_problems()

    def _trackers(self) -> list[Tracker]:
        observe = self._run.config.observe
        return [*([HeldOutEvents(self._run.store)] if observe.tensorboard else []), *trackers(observe)]

    def _track(self, tracking: Tracking, progress: Progress) -> None:
        if new := new_points(progress, self._step):
            tracking.log(new)
        for found in progress.evaluations:
            if found["at"] <= self._evaluated_at:
                continue
            tracking.log_evaluation(Point(int(found["step"]), found["at"], scores_of(found)))

    def _set_metrics(self, attempts: tuple[Attempt, ...], progress: Progress) -> None:
        if self._metrics is None:
            return
        try:
            self._metrics.set(live_summary(self._run.config, attempts, progress, goodput_of(attempts)))
        except Exception as error:  # a failure of Ray's metrics agent must not end the run
            self._metrics = None
            self._log(f"metrics are no longer set: {type(error).__name__}: {error}")

    def _log_problems(self) -> None:
        for tracking in self._tracking:
            for problem in tracking.problems():
                self._log(problem)


def new_points(progress: Progress, logged: int) -> list[Point]:
    """Points of the steps after `logged`: all values of the newest step, and the loss of the steps before it."""
    row = progress.row
    if not row:
        return []
    losses = {step: loss for step, loss in progress.losses if logged < step < row["step"]}
    points = [Point(step, row["at"], {"loss": loss}) for step, loss in sorted(losses.items())]
    values = {name: value for name, value in row.items() if name not in _NOT_VALUES}
    return [*points, Point(row["step"], row["at"], values)] if row["step"] > logged else points


def tracked(run: Run, step: int) -> Tracked:
    """Builds the description of the run that trackers receive."""
    url, parameters = run.store.url_of(""), flatten(resolved(run.config))
    return Tracked(tracking_id(run.store, run.record), run.config.run, url, step, parameters, run.group)


def tracking_id(store: Store, record: RunRecord) -> str:
    """The id of a run or a sweep for trackers, see `Tracked`."""
    return hashlib.sha256(f"{store.url_of('')} {record.created_at}".encode()).hexdigest()[:16]


def scores_of(found: dict[str, Any]) -> dict[str, float]:
    """Scores of an evaluation by name, such as `loss`, `perplexity`, `bits_per_byte`, `bleu` and `chrf`."""
    return {
        name.removeprefix("val_"): float(value)
        for name, value in found.items()
        if name not in _NOT_VALUES and isinstance(value, int | float)
    }
