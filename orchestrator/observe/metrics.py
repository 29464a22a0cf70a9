"""Prometheus metrics of a run: the table of metrics, and the gauges that Ray's metrics agent exports.

All are gauges that describe the whole run, earlier attempts included, so a new driver continues the same curves. They
are no counters: a repeated step lowers `manta_step`, and seconds may move from one cause of goodput to another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_args

from orchestrator.policy.failure import Cause
from orchestrator.run.goodput import CAUSES
from orchestrator.run.progress import PHASES
from orchestrator.run.summary import LiveSummary

WIRE_PREFIX = "ray_"
"""Prefix that Ray adds to every name."""

_RESTARTS = (*get_args(Cause), "bad step", "resize")

Value = float | None | Mapping[str, float]

Summary = TypeVar("Summary", bound=Mapping[str, Any])


@dataclass(frozen=True)
class Metric(Generic[Summary]):
    """A row of the table.

    Attributes:
        name: name without Ray's prefix.
        help: meaning and unit.
        value: computes the value from a summary; None if not known. If the metric has a label, values by label.
        label: name of a label besides `of`.
        of: label that every sample has, "run" or "sweep"; also the field of the summary with its value.
    """

    name: str
    help: str
    value: Callable[[Summary], Value]
    label: str | None = None
    of: str = "run"

    @property
    def wire_name(self) -> str:
        """Name that Prometheus sees."""
        return WIRE_PREFIX + self.name

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all its labels."""
        return (self.of,) if self.label is None else (self.of, self.label)

    def samples(self, summary: Summary) -> Iterator[tuple[dict[str, str], float]]:
        """Labels and value of every known and finite sample."""
        value = self.value(summary)
        by_label: Mapping[Any, Any] = value if isinstance(value, Mapping) else {None: value}
        for label, number in by_label.items():
            if number is not None and math.isfinite(number):
                own = {} if self.label is None else {self.label: label}
                yield {self.of: summary[self.of], **own}, float(number)


def _goodput(summary: LiveSummary) -> Value:
    return {cause: summary["goodput"].get(f"{cause}_s", 0.0) for cause in CAUSES}


def _restarts(summary: LiveSummary) -> Value:
    # List all causes from the start: Prometheus sees no increase in a series that begins with its first event.
    return dict.fromkeys(_RESTARTS, 0) | summary["restart_counts"]


def _phase(summary: LiveSummary) -> Value:
    return {phase: float(phase == summary["phase"]) for phase in PHASES}


METRICS: tuple[Metric[LiveSummary], ...] = (
    Metric("manta_step", "Optimizer updates in the run's state.", lambda run: run["step"]),
    Metric("manta_steps", "Optimizer updates in the whole run.", lambda run: run["steps"]),
    Metric("manta_tokens", "Target tokens trained on.", lambda run: run["tokens"]),
    Metric("manta_loss", "Training loss of the newest step, nats per token.", lambda run: run["loss"]["train"]),
    Metric("manta_held_out_loss", "Loss of the newest evaluation, nats per token.", lambda run: run["loss"]["val"]),
    Metric("manta_learning_rate", "Learning rate of the newest step.", lambda run: run["lr"]),
    Metric("manta_grad_norm", "Norm of the newest step's gradient before clipping.", lambda run: run["grad_norm"]),
    Metric("manta_world_size", "Training workers; 0 while there are none.", lambda run: run["world_size"]),
    Metric(
        "manta_tokens_per_second",
        "Target tokens per second of step time, mean over the run.",
        lambda run: run["tokens_per_s"],
    ),
    Metric(
        "manta_model_flops_per_second",
        "Model FLOPs per second of step time of all workers, mean over the run.",
        lambda run: run["model_flops_per_s"],
    ),
    Metric("manta_mfu", "Model FLOP utilization, mean over the run, from 0 to 1.", lambda run: run["mfu"]),
    Metric("manta_flops_per_token", "Model FLOPs per target token.", lambda run: run["flops_per_token"]),
    Metric("manta_peak_flops", "Peak FLOPs per second of one worker's device.", lambda run: run["peak_flops"]),
    Metric("manta_goodput_seconds", "Seconds of the run by cause; they add up to its age.", _goodput, "cause"),
    Metric("manta_restarts", "Restarts and resizes of the worker group, by cause.", _restarts, "cause"),
    Metric("manta_attempts", "Commands that have worked on the run.", lambda run: run["attempts"]),
    Metric(
        "manta_checkpoint_step",
        "Step of the newest checkpoint.",
        lambda run: run["checkpoint"] and run["checkpoint"]["step"],
    ),
    Metric(
        "manta_checkpoint_timestamp_seconds",
        "When the newest checkpoint was saved, in seconds since the epoch.",
        lambda run: run["checkpoint"] and run["checkpoint"]["saved_at"],
    ),
    Metric("manta_phase", "1 for the current phase of the run, 0 for all others.", _phase, "phase"),
)
"""To add a metric, add a row; if its value is new, also a field of `LiveSummary`."""


class RayMetrics(Generic[Summary]):
    """Sets metrics as Ray gauges, about 3 microseconds each. Needs a process that has joined Ray."""

    def __init__(self, metrics: Sequence[Metric[Summary]]) -> None:
        from ray.util.metrics import Gauge

        self._metrics = metrics
        self._gauges = {metric.name: Gauge(metric.name, metric.help, metric.labels) for metric in metrics}

    def set(self, summary: Summary) -> None:
        """Sets all known values; a value that is no longer known keeps its last one."""
        for metric in self._metrics:
            for labels, value in metric.samples(summary):
                self._gauges[metric.name].set(value, labels)
