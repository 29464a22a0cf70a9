"""The schedule that a sweep's recipe asks for. A module of its own, though short: the schedules know no recipe."""

from __future__ import annotations

from functools import partial

from orchestrator.sweep.schedule.halving import Halving
from orchestrator.sweep.schedule.legs import Schedule
from orchestrator.sweep.schedule.milestones import rungs
from orchestrator.sweep.schedule.plateau import UntilPlateau
from orchestrator.sweep.schedule.population import Population
from orchestrator.sweep.schedule.repeated import Repeated
from orchestrator.sweep.schedule.whole import WholeTrials
from orchestrator.sweep.spec import Sweep

STOPPING = ("asha-stopping", "median")
"""Schedulers that stop trials while they run, by a rule of Ray Tune; what they decide depends on who comes first."""


def schedule_of(sweep: Sweep) -> Schedule:
    """Builds the schedule."""
    plateau, repeats = sweep.spec.plateau, sweep.spec.searcher.repeats
    schedule = _of_points(sweep, sweep.points)
    if plateau.trials is not None:
        schedule = UntilPlateau(partial(_of_points, sweep), sweep.points, plateau.trials, plateau.by)
    return schedule if repeats == 1 else Repeated(schedule, repeats)


def _of_points(sweep: Sweep, points: int) -> Schedule:
    scheduler, levels = sweep.spec.scheduler, [*rungs(sweep), sweep.steps]
    if scheduler.name == "pbt":
        return Population(points, levels, scheduler.quantile, sweep.spec.searcher.seed)
    if scheduler.name in ("none", *STOPPING):
        return WholeTrials(points, levels)
    return Halving(
        points,
        levels,
        scheduler.factor,
        brackets=scheduler.brackets if scheduler.name == "hyperband" else 1,
        eager=scheduler.name == "asha",
        settles=scheduler.name == "pasha",
    )
