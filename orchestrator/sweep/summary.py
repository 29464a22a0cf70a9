"""What there is to say of a sweep, as JSON has it: made of its records, for the live table, `show` and the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict, cast

from data.stores.store import Store
from orchestrator.run.fence import liveness
from orchestrator.run.record import LIVE, RunRecord, load_record
from orchestrator.sweep.milestones import rungs
from orchestrator.sweep.records import RECORD, TrialBook, TrialRecord
from orchestrator.sweep.spec import Sweep


class DomainSummary(TypedDict, total=False):
    """What a field is searched over; `values` for choice and grid, `low` and `high` for the others."""

    kind: str
    values: list[Any]
    low: float
    high: float
    log: bool
    when: dict[str, Any] | None


class DonorSummary(TypedDict):
    """The trial whose state another one went on from, and the step it had then."""

    id: str
    step: int


class TrialSummary(TypedDict):
    """One trial.

    `status` is pending, running, finished (all its steps), stopped (by the scheduler) or failed. `loss` is the last
    reported one; `curve` all of them; `rungs` the steps at which the scheduler looked at it. `config` has the fields of
    the space that count for it, by dotted name.
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
    from_trial: DonorSummary | None


class BestSummary(TypedDict):
    """The winner; `recipe` is the path of its recipe, "" where it has not been written yet."""

    id: str
    run: str
    loss: float
    config: dict[str, Any]
    recipe: str


class RungSummary(TypedDict):
    """A step at which trials are compared: how many came so far, how many ended there, what they had cost since the
    rung before."""

    step: int
    trials: int
    stopped: int
    worker_s: float


class CostSummary(TypedDict):
    """`share` is `steps` done by `steps_of_all`, what running every trial to its end would take."""

    worker_s: float
    steps: int
    steps_of_all: int
    share: float


class TokenizedSummary(TypedDict):
    """Units of the data; how many this sweep has tokenized, each once, and how many had been before."""

    units: int
    tokenized: int
    cached: int


class SweepSummary(TypedDict):
    """A sweep; `status` is running, finished, stopped or died."""

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
    best: BestSummary | None
    rungs: list[RungSummary]
    cost: CostSummary
    tokenized: TokenizedSummary
    attempts: int


def rung_summaries(rungs: Iterable[int], trials: Iterable[TrialSummary]) -> list[RungSummary]:
    """What happened at each rung; a trial's worker-seconds are shared out by its steps."""
    told: list[RungSummary] = []
    trials, before = list(trials), 0
    for rung in rungs:
        came = [trial for trial in trials if rung in trial["rungs"]]
        ended = [trial for trial in came if trial["status"] == "stopped" and trial["rungs"][-1] == rung]
        cost = sum(
            trial["worker_s"] * (min(trial["step"], rung) - before) / trial["step"]
            for trial in trials
            if trial["step"] > before
        )
        told.append({"step": rung, "trials": len(came), "stopped": len(ended), "worker_s": round(cost, 3)})
        before = rung
    return told


def cost_summary(trials: Iterable[TrialSummary]) -> CostSummary:
    """What the trials have cost beside what all of them to the end would."""
    trials = list(trials)
    steps, of_all = sum(trial["step"] for trial in trials), sum(trial["steps"] for trial in trials)
    return {
        "worker_s": round(sum(trial["worker_s"] for trial in trials), 3),
        "steps": steps,
        "steps_of_all": of_all,
        "share": round(steps / of_all, 4) if of_all else 0.0,
    }


def trial_summary(record: TrialRecord, steps: int) -> TrialSummary:
    """A trial as its record tells it."""
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
        "from_trial": {"id": donor.id, "step": donor.step} if donor is not None else None,
    }


def best_of(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """The finished trial of the least loss; where none has finished, the one of those that came furthest."""
    reported = [record for record in trials if record.loss is not None and record.status != "failed"]
    finished = [record for record in reported if record.status == "finished"]
    furthest = max((record.reports[-1].step for record in reported), default=0)
    candidates = finished or [record for record in reported if record.reports[-1].step == furthest]
    return min(candidates, key=lambda record: (record.loss, record.number), default=None)


def describe_sweep(sweep: Sweep, root: Store) -> SweepSummary:
    """Everything there is to say of a sweep, out of its records; cheap enough to be asked for while it runs.

    Args:
        root: the storage of its runs.

    Raises:
        UnknownRunError: it was never started.
    """
    store = root.child(f"sweeps/{sweep.name}")
    return summary_of(sweep, load_record(store, RECORD), list(TrialBook(store)))


def summary_of(sweep: Sweep, record: RunRecord, book: Sequence[TrialRecord]) -> SweepSummary:
    """The summary of a sweep with these records."""
    trials = [trial_summary(trial, sweep.steps) for trial in book]
    best, last = best_of(book), record.last
    status = "died" if last.status in LIVE and liveness(last, mine=True) is None else last.status
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
        "best": None
        if best is None or best.loss is None
        else {
            "id": best.id,
            "run": best.trial_run.run,
            "loss": best.loss,
            "config": dict(best.point),
            "recipe": record.result.get("recipe", ""),
        },
        "rungs": rung_summaries([*rungs(sweep), sweep.steps] if rungs(sweep) else [], trials),
        "cost": cost,
        "tokenized": record.result.get("tokenized", {"units": 0, "tokenized": 0, "cached": 0}),
        "attempts": len(record.attempts),
    }
