"""The run as Prometheus metrics, handed to Ray's metrics agent on the driver's node: one table, and what sets it.

All are gauges: each says how the run stands, earlier attempts included, so that a new driver goes on where the last one
was. A step that is done again counts back, and what one cause of goodput was given may turn out to be another's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from orchestrator.policy.failure import Cause
from orchestrator.run.goodput import CAUSES

WIRE_PREFIX = "ray_"
"""What Ray puts before every name."""

PHASES = (
    "starting",
    "waiting",
    "training",
    "waiting for data",
    "evaluating",
    "saving",
    "restarting",
    "done",
)
"""See `Progress.phase`."""

_RESTARTS = (*get_args(Cause), "bad step", "resize")

Summary = Mapping[str, Any]

Value = float | None | Mapping[str, float]


@dataclass(frozen=True)
class Metric:
    """One of the table.

    Attributes:
        name: without Ray's prefix.
        help: what it says, with its unit.
        value: from a summary, see `live_summary`; None where it is not known. By label where there is one.
        label: beside `run`.
    """

    name: str
    help: str
    value: Callable[[Summary], Value]
    label: str | None = None

    @property
    def wire_name(self) -> str:
        """As Prometheus reads it."""
        return WIRE_PREFIX + self.name

    def samples(self, summary: Summary) -> Iterator[tuple[dict[str, str], float]]:
        """Labels and value of what is known and finite."""
        value = self.value(summary)
        by_label: Mapping[Any, Any] = value if isinstance(value, Mapping) else {None: value}
        for label, number in by_label.items():
            if number is not None and math.isfinite(number):
                own = {} if self.label is None else {self.label: label}
                yield {"run": summary["run"], **own}, float(number)


def _field(name: str) -> Callable[[Summary], Value]:
    return lambda summary: summary.get(name)


def _of_checkpoint(name: str) -> Callable[[Summary], Value]:
    return lambda summary: (summary.get("checkpoint") or {}).get(name)


def _goodput(summary: Summary) -> Value:
    return {cause: summary["goodput"].get(f"{cause}_s", 0.0) for cause in CAUSES}


def _restarts(summary: Summary) -> Value:
    # All causes from the beginning: what comes from nowhere is no increase to Prometheus.
    return dict.fromkeys(_RESTARTS, 0) | Counter(each["cause"] for each in summary["disruptions"])


def _phase(summary: Summary) -> Value:
    return {phase: float(phase == summary["phase"]) for phase in PHASES}


METRICS = (
    Metric("manta_step", "Optimizer updates in the run's state.", _field("step")),
    Metric("manta_steps", "Optimizer updates in the whole run.", _field("steps")),
    Metric("manta_tokens", "Target tokens trained on.", _field("tokens")),
    Metric("manta_loss", "Training loss of the newest step, nats a token.", lambda summary: summary["loss"]["train"]),
    Metric(
        "manta_held_out_loss", "Loss of the newest evaluation, nats a token.", lambda summary: summary["loss"]["val"]
    ),
    Metric("manta_learning_rate", "Learning rate of the newest step.", _field("lr")),
    Metric("manta_grad_norm", "Norm of the newest step's gradient before clipping.", _field("grad_norm")),
    Metric("manta_world_size", "Training workers; 0 while there are none.", _field("world_size")),
    Metric("manta_tokens_per_second", "Target tokens a second of step time, mean of the run.", _field("tokens_per_s")),
    Metric(
        "manta_model_flops_per_second",
        "Model FLOPs a second of step time over all workers, mean of the run.",
        _field("model_flops_per_s"),
    ),
    Metric(
        "manta_mfu", "Model FLOP utilization, mean of the run: 1 is what the devices can do at most.", _field("mfu")
    ),
    Metric("manta_flops_per_token", "Model FLOPs for a target token.", _field("flops_per_token")),
    Metric("manta_peak_flops", "FLOPs a second that a worker's device can do at most.", _field("peak_flops")),
    Metric("manta_goodput_seconds", "Seconds of the run's life by cause; they add up to its age.", _goodput, "cause"),
    Metric("manta_restarts", "Ends of the worker group before the run's own, by cause.", _restarts, "cause"),
    Metric("manta_attempts", "Commands that have worked on the run.", _field("attempts")),
    Metric("manta_checkpoint_step", "Step of the newest checkpoint.", _of_checkpoint("step")),
    Metric(
        "manta_checkpoint_timestamp_seconds",
        "When the newest checkpoint was saved, in seconds since the epoch.",
        _of_checkpoint("saved_at"),
    ),
    Metric("manta_phase", "1 for what the run is at, 0 for all else.", _phase, "phase"),
)


class RayMetrics:
    """Sets the table's metrics in this process, which has joined Ray; about 3 microseconds each."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {
            metric.name: Gauge(metric.name, metric.help, ("run", *([metric.label] if metric.label else [])))
            for metric in METRICS
        }

    def set(self, summary: Summary) -> None:
        """Set what is known; what is not known any more stays as it was."""
        for metric in METRICS:
            for labels, value in metric.samples(summary):
                self._gauges[metric.name].set(value, labels)
