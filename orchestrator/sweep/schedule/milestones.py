"""The steps at which trials report (milestones) and at which they are compared (rungs). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

from orchestrator.sweep.spec import Sweep

GRACE_SHARE, PBT_SHARE, REPORTS = 9, 12, 16
"""Defaults as parts of a run: steps before the first rung, steps between two rungs of pbt, steps between reports."""


def grace_steps(sweep: Sweep) -> int:
    """Steps before which no trial is stopped; for pbt, steps between two rungs."""
    scheduler = sweep.spec.scheduler
    share = PBT_SHARE if scheduler.name == "pbt" else GRACE_SHARE
    return scheduler.grace_steps or max(1, sweep.steps // share)


def rungs(sweep: Sweep) -> list[int]:
    """Steps before the last one at which trials are compared; empty where they are compared at every report."""
    scheduler, grace = sweep.spec.scheduler, grace_steps(sweep)
    if scheduler.name in ("none", "median"):
        return []
    if scheduler.name == "pbt":
        grace = _evaluated(sweep, [grace])[0]
        return list(range(grace, sweep.steps, grace))
    powers = takewhile(lambda step: step < sweep.steps, (grace * scheduler.factor**power for power in range(64)))
    return sorted({step for step in _evaluated(sweep, (int(-(-each // 1)) for each in powers)) if step < sweep.steps})


def _evaluated(sweep: Sweep, steps: Iterable[int]) -> list[int]:
    """The steps, for val_loss each moved up to the next one after which a trial is evaluated."""
    every = sweep.base.eval.every_steps if sweep.spec.metric == "val_loss" else 1
    return [-(-step // every) * every if every else step for step in steps]


def milestones(sweep: Sweep) -> list[int]:
    """Steps after which a trial reports, the last step included."""
    if sweep.spec.metric == "val_loss":
        every = sweep.base.eval.every_steps
        return [*(range(every, sweep.steps, every) if every else ()), sweep.steps]
    every = sweep.spec.report_every or max(1, sweep.steps // REPORTS)
    return sorted({*range(every, sweep.steps, every), *rungs(sweep), sweep.steps})


def mean_loss(losses: Mapping[int, float | None], step: int, window: int) -> float | None:
    """Mean of the known losses of the `window` steps up to `step`; None where none is known."""
    known = [loss for at in range(step - window + 1, step + 1) if (loss := losses.get(at)) is not None]
    return sum(known) / len(known) if known else None


def due(milestones_left: Sequence[int], step: int) -> list[int]:
    """The milestones that are reached at `step`."""
    return [milestone for milestone in milestones_left if milestone <= step]
