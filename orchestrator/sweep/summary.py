"""The summary of a sweep in JSON types, built from its records for the live table, `manta show` and the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict, cast

from data.stores.store import Store
from orchestrator.run.fence import liveness
from orchestrator.run.record import LIVE, RunRecord, load_record
from orchestrator.sweep.records import RECORD, TrialBook
from orchestrator.sweep.schedule.choice import schedule_of
from orchestrator.sweep.schedule.legs import Decisions, Schedule, Trials, ranked
from orchestrator.sweep.schedule.milestones import rungs
from orchestrator.sweep.schedule.repeated import deviation_of, points_of
from orchestrator.sweep.schedule.whole import WholeTrials
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.trial_record import TrialRecord


class DomainSummary(TypedDict, total=False):
    """The domain of a searched field: `values` for choice and grid, `low` and `high` for ranges."""

    kind: str
    values: list[Any]
    low: float
    high: float
    log: bool
    when: dict[str, Any] | None


class DonorSummary(TypedDict):
    """The trial from whose state another trial continued, and the step of that state."""

    id: str
    step: int


class TrialSummary(TypedDict):
    """One trial.

    `status` is pending, running, paused, finished (all its steps), stopped (by the scheduler) or failed. `loss` is the
    last reported loss, `curve` has all of them, and `rungs` has the steps at which the scheduler decided on the trial.
    `config` has the searched fields that the trial uses, by dotted name. `parameters` is the size of its model,
    `failures` how often it has failed, tried again or not.
    """

    id: str
    run: str
    status: str
    reason: str
    config: dict[str, Any]
    step: int
    steps: int
    loss: float | None
    curve: list[list[float]]
    rungs: list[int]
    worker_s: float
    started_at: float | None
    ended_at: float | None
    first_step_s: float | None
    workers: int
    parameters: int | None
    failures: int
    from_trial: DonorSummary | None


class BestSummary(TypedDict):
    """The best trial; `recipe` is the path of its recipe, "" where it is not written yet.

    Where points have several trials, it is the first one of the best point; `loss` is their mean, and `deviation` their
    standard deviation.
    """

    id: str
    run: str
    loss: float
    deviation: float | None
    config: dict[str, Any]
    recipe: str


class RungSummary(TypedDict):
    """A step at which trials are compared: trials that reached it, trials stopped there, worker-seconds since the rung
    before."""

    step: int
    trials: int
    stopped: int
    worker_s: float


class CostSummary(TypedDict):
    """`steps_of_all` is the cost of running every trial to its end, and `share` is `steps` divided by it."""

    worker_s: float
    steps: int
    steps_of_all: int
    share: float


class TokenizedSummary(TypedDict):
    """Units of the data: all, those that this sweep tokenized, and those that were cached before."""

    units: int
    tokenized: int
    cached: int


class SweepSummary(TypedDict):
    """A sweep; `status` is running, finished, stopped or died.

    `points` has the means of points of several trials, under the id of the first, see `points_of`; it is empty where
    each point is one trial.
    """

    sweep: str
    status: str
    message: str
    metric: str
    searcher: str
    scheduler: str
    started_at: float
    ended_at: float | None
    space: dict[str, DomainSummary]
    trials: list[TrialSummary]
    points: list[TrialSummary]
    best: BestSummary | None
    rungs: list[RungSummary]
    cost: CostSummary
    tokenized: TokenizedSummary
    attempts: int


def rung_summaries(rungs: Iterable[int], trials: Iterable[TrialSummary]) -> list[RungSummary]:
    """What happened at each rung. The worker-seconds of a trial are divided among the rungs by its steps."""
    summaries: list[RungSummary] = []
    trials, before = list(trials), 0
    for rung in rungs:
        reached = [trial for trial in trials if rung in trial["rungs"]]
        ended = [trial for trial in reached if trial["status"] == "stopped" and trial["rungs"][-1] == rung]
        cost = sum(
            trial["worker_s"] * (min(trial["step"], rung) - before) / trial["step"]
            for trial in trials
            if trial["step"] > before
        )
        summaries.append({"step": rung, "trials": len(reached), "stopped": len(ended), "worker_s": round(cost, 3)})
        before = rung
    return summaries


def cost_summary(trials: Iterable[TrialSummary]) -> CostSummary:
    """The cost of the trials, compared with the cost of running all of them to the end."""
    trials = list(trials)
    steps, of_all = sum(trial["step"] for trial in trials), sum(trial["steps"] for trial in trials)
    return {
        "worker_s": round(sum(trial["worker_s"] for trial in trials), 3),
        "steps": steps,
        "steps_of_all": of_all,
        "share": round(steps / of_all, 4) if of_all else 0.0,
    }


def trial_summary(record: TrialRecord, steps: int) -> TrialSummary:
    """Builds the summary of a trial from its record."""
    trial_run, before = record.trial_run, record.trial_runs[-2] if len(record.trial_runs) > 1 else None
    donor = trial_run.donor if before is not None else None
    curve = [[report.step, report.loss] for report in record.reports if report.loss is not None]
    return {
        "id": record.id,
        "run": trial_run.run,
        "status": record.status,
        "reason": record.reason,
        "config": dict(record.point),
        "step": record.step if donor is None else max(trial_run.step, donor.step),
        "steps": steps,
        "loss": record.loss,
        "curve": curve,
        "rungs": sorted({*record.rungs, *([steps] if record.status == "finished" else [])}),
        "worker_s": round(record.worker_s, 3),
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "first_step_s": record.first_step_s,
        "workers": record.workers,
        "parameters": record.parameters,
        "failures": len(record.failures) + (record.status == "failed"),
        "from_trial": {"id": donor.id, "step": donor.step} if donor is not None else None,
    }


def best_of(trials: Trials, decisions: Decisions, levels: Sequence[int], repeats: int = 1) -> TrialRecord | None:
    """The first of the finalists; where there are none yet, the best at the highest of the levels that one has reached.

    Below the first level, the best of those with the most steps. Points that are not compared are left out.

    Args:
        trials: the records by number.
        decisions, levels: those of the schedule.
        repeats: trials of a point; above 1, the result is the record of a point, see `points_of`.
    """
    by_number = points_of(trials, repeats)
    if decisions.finalists:
        return by_number[decisions.finalists[0]]
    compared = {number: record for number, record in by_number.items() if number <= decisions.compared}
    able = {number: record for number, record in compared.items() if record.status != "failed"}
    for level in reversed(levels):
        if known := ranked(list(able), able, level):
            return able[known[0]]
    reported = [record for record in able.values() if record.loss is not None]
    furthest = max((record.reports[-1].step for record in reported), default=0)
    candidates = [record for record in reported if record.reports[-1].step == furthest]
    return min(candidates, key=lambda record: (record.loss, record.number), default=None)


def describe_sweep(sweep: Sweep, root: Store) -> SweepSummary:
    """Builds the summary of a sweep from its stored records; cheap enough to call while it runs.

    Args:
        root: the storage of the sweep's runs.

    Raises:
        UnknownRunError: the sweep was never started.
    """
    store = root.child(f"sweeps/{sweep.name}")
    record = load_record(store, RECORD, sweep.name)
    lives = liveness(record.last, store, RECORD, mine=True) is not None
    return summary_of(sweep, record, list(TrialBook(store)), lives=lives)


def summary_of(sweep: Sweep, record: RunRecord, book: Sequence[TrialRecord], *, lives: bool = True) -> SweepSummary:
    """Builds the summary of a sweep from these records.

    Args:
        lives: whether the last attempt, if its record does not say how it ended, is alive.
    """
    trials = [trial_summary(trial, sweep.steps) for trial in book]
    schedule: Schedule = schedule_of(sweep)
    by_number = {trial.number: trial for trial in book}
    if "searcher.batch" not in record.result_fields:  # of version 0.2.0, whose rules stopped trials
        schedule = WholeTrials(len(book), schedule.levels)
    repeats = sweep.spec.searcher.repeats
    best, last = best_of(by_number, schedule.decide(by_number), schedule.levels, repeats), record.last
    status = "died" if last.status in LIVE and not lives else last.status
    cost = cost_summary(trials)
    cost["steps"] = sum(trial.step for trial in book)
    cost["share"] = round(cost["steps"] / cost["steps_of_all"], 4) if trials else 0.0
    return {
        "sweep": sweep.name,
        "status": {"preparing": "running", "failed": "died"}.get(status, status),
        "message": last.message,
        "metric": sweep.spec.metric,
        "searcher": sweep.spec.searcher.name,
        "scheduler": sweep.spec.scheduler.name,
        "started_at": record.attempts[0].started_at,
        "ended_at": None if status in LIVE else last.heartbeat_at,
        "space": {name: cast(DomainSummary, domain.summary()) for name, domain in sweep.spec.space.items()},
        "trials": trials,
        "points": [trial_summary(point, sweep.steps) for point in points_of(by_number, repeats).values()]
        if repeats > 1
        else [],
        "best": None
        if best is None or best.loss is None
        else {
            "id": best.id,
            "run": best.trial_run.run,
            "loss": best.loss,
            "deviation": deviation_of(best, by_number, repeats),
            "config": dict(best.point),
            "recipe": record.result.get("recipe", ""),
        },
        "rungs": rung_summaries([*rungs(sweep), sweep.steps] if rungs(sweep) else [], trials),
        "cost": cost,
        "tokenized": record.result.get("tokenized", {"units": 0, "tokenized": 0, "cached": 0}),
        "attempts": len(record.attempts),
    }
