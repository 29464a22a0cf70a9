"""The searchers: compute the point of a trial from its number and the records of the trials before it.

They have no state of their own, so a continued sweep needs nothing but its records.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.sweep.records import TrialRecord
from orchestrator.sweep.space import Domain, Point, Space, counts, draw, grid, in_order
from orchestrator.sweep.spec import Sweep

STARTUP_TRIALS = 6
"""Points that Optuna draws at random before it uses its model."""


def suggest(sweep: Sweep, number: int, known: Sequence[TrialRecord]) -> Point:
    """The point of trial `number`, from 1; `known` are the trials before it."""
    searcher, space = sweep.spec.searcher, sweep.spec.space
    rng = random.Random(f"{searcher.seed}/{number}")
    if number <= len(searcher.points):
        return draw(space, rng, searcher.points[number - 1])
    if searcher.name == "grid":
        return untried(grid(space), known)
    if searcher.name == "random":
        return draw(space, rng)
    return suggest_by_optuna(space, rng.randrange(2**31), known)


def untried(points: Sequence[Point], known: Sequence[TrialRecord]) -> Point:
    """The first of `points` that no trial has; the first point where all are used."""
    tried = [record.trial_runs[0].point for record in known]
    return next((point for point in points if point not in tried), points[0])


def suggest_by_optuna(space: Space, seed: int, known: Sequence[TrialRecord]) -> Point:
    """The next point by Optuna's TPE, given all trials so far, running ones included.

    A stopped trial counts with the losses it reported. A failed trial counts as pruned without a report, which is worse
    than any other, so that TPE avoids its surroundings.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns that constant_liar is experimental
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    states = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.PRUNED}
    for record in known:
        point = record.trial_runs[0].point
        state = states.get(record.status, TrialState.RUNNING)
        reports = {} if record.status == "failed" else {each.step: each.loss for each in record.reports if each.loss}
        if state == TrialState.COMPLETE and not reports:
            continue
        study.add_trial(
            create_trial(
                state=state,
                value=list(reports.values())[-1] if state == TrialState.COMPLETE else None,
                params={name: _to_optuna(space[name], value) for name, value in point.items()},
                distributions={name: _distribution(space[name]) for name in point},
                intermediate_values=reports,
            )
        )
    trial = study.ask()
    point = {}
    for name in in_order(space):  # define-by-run: an unused field is not suggested
        if counts(space[name], point):
            point[name] = _suggest_value(trial, name, space[name])
    return point


def _distribution(domain: Domain) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if domain.values is not None:
        return CategoricalDistribution(tuple(range(len(domain.values))))
    assert domain.bounds is not None
    make: Callable[..., Any] = IntDistribution if domain.integer is not None else FloatDistribution
    return make(*domain.bounds, log=domain.is_log)


def _to_optuna(domain: Domain, value: Any) -> Any:
    """The value in Optuna's distribution: the index of a choice, since its values may be lists."""
    return value if domain.values is None else [*map(_plain, domain.values)].index(_plain(value))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _suggest_value(trial: Any, name: str, domain: Domain) -> Any:
    found = trial._suggest(name, _distribution(domain))
    return found if domain.values is None else domain.values[found]
