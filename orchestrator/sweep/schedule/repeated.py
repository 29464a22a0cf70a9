"""Points that are trained with several seeds: another schedule ranks points by the mean of their trials' losses.

The trials of point p are numbered from (p - 1) * repeats + 1, so that a sweep with more points goes on.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import stdev

from orchestrator.sweep.schedule.legs import Decisions, Schedule, Trials, is_lost, loss_at
from orchestrator.sweep.trial_record import TrialRecord


def trials_of(point: int, repeats: int) -> range:
    """Numbers of a point's trials."""
    return range((point - 1) * repeats + 1, point * repeats + 1)


def point_of(trial: int, repeats: int) -> int:
    """Number of a trial's point."""
    return (trial - 1) // repeats + 1


def points_of(trials: Trials, repeats: int) -> Trials:
    """A record for each point that has begun, by the point's number; the trials themselves where `repeats` is 1.

    It is that of the point's first trial, with the mean loss at each step that all of its trials have reported, their
    mean worker-seconds, and the least of their steps. It has failed once one of them has: a mean over the others would
    favour points that diverge now and then.
    """
    if repeats == 1:
        return trials
    points = sorted({point_of(number, repeats) for number in trials})
    return {point: _mean([trials.get(number) for number in trials_of(point, repeats)]) for point in points}


def _mean(trials: list[TrialRecord | None]) -> TrialRecord:
    first = trials[0]
    assert first is not None  # trials begin in the order of their numbers
    statuses = {each.status if each is not None else "pending" for each in trials}
    status = "paused"
    if "failed" in statuses:
        status = "failed"
    elif statuses <= {"finished", "stopped"}:
        status = "finished" if statuses == {"finished"} else "stopped"
    reports = []
    for report in first.reports:
        losses = [loss for each in trials if (loss := loss_at(each, report.step)) is not None]
        if len(losses) == len(trials):
            reports.append(replace(report, loss=sum(losses) / len(losses)))
    begun = [each for each in trials if each is not None]
    worker_s = sum(each.worker_s for each in begun) / len(begun)
    least = replace(first.trial_run, step=min(each.step for each in begun))
    return replace(first, status=status, reports=reports, worker_s=worker_s, trial_runs=[least])


def deviation_of(point: TrialRecord, trials: Trials, repeats: int) -> float | None:
    """Standard deviation (over n - 1) of the losses whose mean is the loss of a point; None where it has one trial."""
    if repeats == 1 or not point.reports:
        return None
    step = point.reports[-1].step
    losses = [loss_at(trials.get(number), step) for number in range(point.number, point.number + repeats)]
    return stdev(loss for loss in losses if loss is not None)


class Repeated:
    """The schedule.

    Args:
        points: the schedule of the points.
        repeats: trials of a point.
    """

    def __init__(self, points: Schedule, repeats: int) -> None:
        self.levels = points.levels
        self._points, self._repeats = points, repeats

    def decide(self, trials: Trials) -> Decisions:
        """See `Schedule`."""
        points = points_of(trials, self._repeats)
        of_points, decisions = self._points.decide(points), Decisions()
        for leg in of_points.legs:
            for number in trials_of(leg.number, self._repeats):
                if loss_at(trials.get(number), leg.until) is None:
                    decisions.legs.append(replace(leg, number=number))
        out = dict(of_points.out) | {
            point: "another trial of its point has failed" for point, record in points.items() if is_lost(record)
        }
        for point, reason in out.items():
            decisions.out |= {
                number: reason for number in trials_of(point, self._repeats) if not is_lost(trials.get(number))
            }
        return replace(of_points, legs=decisions.legs, out=decisions.out)
