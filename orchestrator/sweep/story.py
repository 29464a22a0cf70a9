"""What there is to say of a sweep, as JSON has it: made of its records, for the live table, `show` and the report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict


class DomainStory(TypedDict, total=False):
    """What a field is searched over; `values` for choice and grid, `low` and `high` for the others."""

    kind: str
    values: list[Any]
    low: float
    high: float
    log: bool
    when: dict[str, Any] | None


class DonorStory(TypedDict):
    """The trial whose state another one went on from, and the step it had then."""

    id: str
    step: int


class TrialStory(TypedDict):
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
    from_trial: DonorStory | None


class BestStory(TypedDict):
    """The winner; `recipe` is the path of its recipe, "" where it has not been written yet."""

    id: str
    run: str
    loss: float
    config: dict[str, Any]
    recipe: str


class RungStory(TypedDict):
    """A step at which trials are compared: how many came so far, how many ended there, what they had cost since the
    rung before."""

    step: int
    trials: int
    stopped: int
    worker_s: float


class CostStory(TypedDict):
    """`share` is `steps` done by `steps_of_all`, what running every trial to its end would take."""

    worker_s: float
    steps: int
    steps_of_all: int
    share: float


class TokenizedStory(TypedDict):
    """Units of the data; how many this sweep has tokenized, each once, and how many had been before."""

    units: int
    tokenized: int
    cached: int


class SweepStory(TypedDict):
    """A sweep; `status` is running, finished, stopped or died."""

    sweep: str
    status: str
    message: str
    metric: str
    searcher: str
    scheduler: str
    started_at: float
    ended_at: float | None
    space: dict[str, DomainStory]
    trials: list[TrialStory]
    best: BestStory | None
    rungs: list[RungStory]
    cost: CostStory
    tokenized: TokenizedStory
    attempts: int


def rung_stories(rungs: Iterable[int], trials: Iterable[TrialStory]) -> list[RungStory]:
    """What happened at each rung; a trial's worker-seconds are shared out by its steps."""
    told: list[RungStory] = []
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


def cost_story(trials: Iterable[TrialStory]) -> CostStory:
    """What the trials have cost beside what all of them to the end would."""
    trials = list(trials)
    steps, of_all = sum(trial["step"] for trial in trials), sum(trial["steps"] for trial in trials)
    return {
        "worker_s": round(sum(trial["worker_s"] for trial in trials), 3),
        "steps": steps,
        "steps_of_all": of_all,
        "share": round(steps / of_all, 4) if of_all else 0.0,
    }
