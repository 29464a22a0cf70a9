"""Reports a live sweep to the metrics, to the trackers and to TensorBoard; the sweep calls one object."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data.errors import MantaError
from data.stores.store import Store
from orchestrator.config.result_fields import flatten
from orchestrator.errors import FencedError
from orchestrator.observe.metrics import RayMetrics
from orchestrator.observe.observer import tracking_id
from orchestrator.observe.tracker import Point, Tracked
from orchestrator.observe.trackers import FLUSH_S, Tracking, trackers
from orchestrator.run.record import LIVE, RunRecord, load_record
from orchestrator.run.run import Group
from orchestrator.sweep.coordinator import TrialCoordinator
from orchestrator.sweep.observe.hparams import HparamsFiles
from orchestrator.sweep.observe.metrics import SWEEP_METRICS, LiveSweep
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.summary import SweepSummary, summary_of
from orchestrator.sweep.trial_record import ENDED

BEST_LABEL = "manta.best"
"""Label of trials that are, or were, the best of a sweep that has ended: "true" or "false"."""


HPARAMS_INTERVAL_S = 30.0
"""Seconds between two writes of TensorBoard's files."""


class SweepObserver:
    """Reports the sweep. Problems are logged, and end nothing.

    Waits in `close`, and at most every HPARAMS_INTERVAL_S for the store to which TensorBoard's files are written.

    Args:
        root: the storage of the sweep's runs.
        record: the sweep's record, with the best trial of earlier attempts.
        log: takes a line for the console.
        now: monotonic clock, seconds.
    """

    def __init__(
        self,
        coordinator: TrialCoordinator,
        root: Store,
        record: RunRecord,
        log: Callable[[str], object],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._coordinator, self._sweep, self._root, self._log = coordinator, coordinator.sweep, root, log
        self._record, store = record, root.child(f"sweeps/{coordinator.sweep.name}")
        self._tracked = tracked_sweep(self._sweep, store, record)
        observe = self._sweep.base.observe
        self._tracking = [Tracking(tracker, self._tracked) for tracker in trackers(observe)]
        self._hparams = HparamsFiles(store) if observe.tensorboard else None
        self._metrics: RayMetrics[LiveSweep] | None = RayMetrics(SWEEP_METRICS)
        self._logged: tuple[str, int] | None = None
        self._now, self._hparams_at, self._is_failing = now, -HPARAMS_INTERVAL_S, False

    @property
    def group(self) -> Group:
        """The sweep, as its trials tell trackers of it."""
        assert self._tracked.group is not None
        return self._tracked.group

    def summary(self) -> SweepSummary:
        """The sweep now."""
        return summary_of(self._sweep, self._record, list(self._coordinator.book))

    def follow(self, summary: SweepSummary, *, at_end: bool = False) -> None:
        """Reports the sweep; called about once a second, and at its end."""
        self._set_metrics(summary)
        self._write_hparams(summary, at_end)
        best = summary["best"]
        ended = sum(trial["status"] in ENDED for trial in summary["trials"])
        if self._logged != (logged := (best["id"] if best else "", ended)):
            self._logged, cost = logged, summary["cost"]
            values = {"trials_ended": float(ended), "worker_s": cost["worker_s"]}
            values |= {"best_loss": best["loss"], "best_trial": float(best["id"][1:])} if best else {}
            for tracking in self._tracking:
                tracking.log([Point(cost["steps"], time.time(), values)])
        self._log_problems(self._tracking)

    def close(self, status: str) -> None:
        """Reports the end, "finished", "stopped" or "failed", and marks the best trial; returns within 2 FLUSH_S."""
        summary = self.summary()
        if status != "failed":  # then it may be the store that has failed
            self.follow(summary, at_end=True)
        self._finish(self._tracking, status, time.monotonic() + FLUSH_S)
        best = summary["best"]
        if status != "finished" or best is None or not self._tracking:
            return
        earlier, deadline = self._record.result.get("best_run"), time.monotonic() + FLUSH_S
        marks = ({earlier: "false"} if earlier else {}) | {best["run"]: "true"}
        for run, mark in marks.items():  # one after the other: W&B has one run in a process
            store = self._root.child(f"runs/{run}")
            try:
                record = load_record(store)
            except MantaError as error:
                self._log(f"trackers are not told whether trial {run} is the best: {error}")
                continue
            id_, ended = tracking_id(store, record), record.last.status
            told = Tracked(id_, run, store.url_of(""), 0, {}, self.group, {BEST_LABEL: mark})
            marking = [Tracking(tracker, told) for tracker in trackers(self._sweep.base.observe)]
            self._finish(marking, "stopped" if ended in LIVE else ended, deadline)

    def _finish(self, tracking: list[Tracking], status: str, deadline: float) -> None:
        for each in tracking:
            each.close(status, deadline)
        self._log_problems(tracking)

    def _set_metrics(self, summary: SweepSummary) -> None:
        if self._metrics is None:
            return
        try:
            self._metrics.set({**summary, "legs": self._coordinator.legs})
        except Exception as error:  # a failure of Ray's metrics agent must not end the sweep
            self._metrics = None
            self._log(f"metrics of the sweep are no longer set: {type(error).__name__}: {error}")

    def _write_hparams(self, summary: SweepSummary, at_end: bool) -> None:
        is_recent = self._now() - self._hparams_at < HPARAMS_INTERVAL_S
        if self._hparams is None or (is_recent and (self._is_failing or not at_end)):
            return
        try:
            self._hparams.follow(summary)
            self._is_failing = False
        except Exception as error:  # tried again
            if not self._is_failing:
                self._log(f"TensorBoard's files of the sweep are not all written: {type(error).__name__}: {error}")
            self._is_failing = True
        self._hparams_at = self._now()

    def _log_problems(self, tracking: list[Tracking]) -> None:
        for each in tracking:
            for problem in each.problems():
                self._log(problem)


def tracked_sweep(sweep: Sweep, store: Store, record: RunRecord) -> Tracked:
    """Builds the description of the sweep that trackers receive."""
    id_ = tracking_id(store, record)
    told = {"searcher", "scheduler", "metric"}
    spec = sweep.spec.model_dump(mode="json", by_alias=True, exclude_none=True, include=told)
    space = {f"space.{name}": str(domain.summary()) for name, domain in sweep.spec.space.items()}
    return Tracked(id_, sweep.name, store.url_of(""), 0, flatten(spec) | space, Group(id_, sweep.name))


@contextmanager
def observing(
    coordinator: TrialCoordinator, root: Store, record: RunRecord, log: Callable[[str], object]
) -> Iterator[SweepObserver]:
    """Inside the block the sweep is observed; its end is reported after it. Needs a process that has joined Ray.

    Nothing is reported at the end of an attempt that is fenced: the sweep is another's now, in the trackers, too.
    """
    observer = SweepObserver(coordinator, root, record, log)
    try:
        yield observer
    except FencedError:
        raise
    except BaseException:
        observer.close("failed")
        raise
    observer.close("stopped" if coordinator.interrupted else "finished")
