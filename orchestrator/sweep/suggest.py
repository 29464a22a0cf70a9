"""The searchers: compute the point of a trial from its number and the results of the trials before it.

They have no state of their own, so a continued sweep needs nothing but its records.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from orchestrator.sweep.space import Domain, Point, Space, counts, draw, in_order, on_the_grid, plain
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.trial_record import DRAWN

STARTUP_TRIALS = 6
"""Points that Optuna draws at random before it uses its model."""


class Result(NamedTuple):
    """What a searcher may know of a trial; `loss` is None while it is not known."""

    point: Point
    loss: float | None = None
    has_failed: bool = False


def suggest(sweep: Sweep, number: int, known: Sequence[Result], given: int = DRAWN, redraw: int = 0) -> Point:
    """Point `number`, from 1.

    Args:
        known: the points before it.
        given: index of the given point to try.
        redraw: how often a point was drawn for this trial before, and refused.
    """
    searcher, space = sweep.spec.searcher, sweep.spec.space
    rng = random.Random(f"{searcher.seed}/{number}/{redraw}" if redraw else f"{searcher.seed}/{number}")
    if searcher.name == "grid":
        return untried(sweep.grid, known) if given == DRAWN else on_the_grid(space, sweep.given_points[given])
    if given != DRAWN:
        return draw(space, rng, sweep.given_points[given])
    if searcher.name == "random":
        return draw(space, rng)
    return suggest_by_optuna(space, rng.randrange(2**31), known)


def untried(points: Sequence[Point], known: Sequence[Result]) -> Point:
    """The first of `points` that no trial has; the first point where all are used."""
    tried = {plain(result.point) for result in known}
    return next((point for point in points if plain(point) not in tried), points[0])


def suggest_by_optuna(space: Space, seed: int, known: Sequence[Result]) -> Point:
    """The next point by Optuna's TPE, given all trials so far, running ones included.

    A failed trial counts as worse than any other, so that TPE avoids its surroundings. Fields are drawn together where
    they are used together (Optuna's `multivariate` and `group`), since the best learning rate is another one for each
    optimizer.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns that these options are experimental
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True, multivariate=True, group=True
        )
    study = optuna.create_study(sampler=sampler)
    for point, loss, has_failed in known:
        state = TrialState.PRUNED if has_failed else TrialState.RUNNING if loss is None else TrialState.COMPLETE
        study.add_trial(
            create_trial(
                state=state,
                value=loss if state == TrialState.COMPLETE else None,
                params={name: _to_optuna(space[name], value) for name, value in point.items()},
                distributions={name: _distribution(space[name]) for name in point},
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
    return value if domain.values is None else [*map(plain, domain.values)].index(plain(value))


def _suggest_value(trial: Any, name: str, domain: Domain) -> Any:
    found = trial._suggest(name, _distribution(domain))
    return found if domain.values is None else domain.values[found]
