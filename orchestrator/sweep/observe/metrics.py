"""Prometheus metrics of a sweep while `manta tune` runs, as those of a run are: see `orchestrator.observe.metrics`."""

from __future__ import annotations

from collections import Counter

from orchestrator.observe.metrics import Metric, Value
from orchestrator.sweep.summary import SweepSummary
from orchestrator.sweep.trial_record import STATUSES


class LiveSweep(SweepSummary):
    """The summary of a sweep that runs. `legs` is how many legs of trials this attempt has begun."""

    legs: int


def _trials(sweep: LiveSweep) -> Value:
    """Trials by status; all statuses have a sample from the start."""
    return dict.fromkeys(STATUSES, 0.0) | Counter(trial["status"] for trial in sweep["trials"])


SWEEP_METRICS: tuple[Metric[LiveSweep], ...] = (
    Metric("manta_sweep_trials", "Trials of the sweep, by status.", _trials, "status", of="sweep"),
    Metric(
        "manta_sweep_best_loss",
        "Loss of the best trial so far, nats per token.",
        lambda sweep: sweep["best"] and sweep["best"]["loss"],
        of="sweep",
    ),
    Metric("manta_sweep_steps", "Steps that all trials have done.", lambda sweep: sweep["cost"]["steps"], of="sweep"),
    Metric(
        "manta_sweep_steps_of_all",
        "Steps of the trials begun so far, if each ran to its end.",
        lambda sweep: sweep["cost"]["steps_of_all"],
        of="sweep",
    ),
    Metric(
        "manta_sweep_worker_seconds",
        "Seconds of training of all trials, times workers.",
        lambda sweep: sweep["cost"]["worker_s"],
        of="sweep",
    ),
    Metric("manta_sweep_legs", "Legs of trials that this attempt has begun.", lambda sweep: sweep["legs"], of="sweep"),
    Metric(
        "manta_sweep_failures",
        "Failures of trials, also those that were tried again.",
        lambda sweep: sum(trial["failures"] for trial in sweep["trials"]),
        of="sweep",
    ),
)
"""To add a metric, add a row; it belongs into docs/observability.md and the dashboard, too."""
