"""A run that goes on, as `manta show --json` would tell it were its newest step saved: what it is observed by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.monitor import Progress
from orchestrator.observe.utilization import peak_of, utilization
from orchestrator.run_record import Attempt
from orchestrator.run_state import StepSeconds


def live_story(
    config: RunConfig, attempts: Sequence[Attempt], progress: Progress, goodput: Mapping[str, float]
) -> dict[str, Any]:
    """What there is to say of the run now. Names that `manta show --json` has, too, mean the same.

    Args:
        attempts: of the run; the last is the one that goes on.
        goodput: seconds by cause over all attempts.
    """
    row, last, result = progress.row, attempts[-1], progress.result or {}
    evaluated = progress.evaluations[-1]["val_loss"] if progress.evaluations else None
    seconds = progress.step_seconds or StepSeconds()
    peak = peak_of((attempt.device for attempt in attempts), config.train.precision, config.observe.peak_flops)
    used = utilization(last.flops_per_token, row.get("tokens", 0), *seconds, peak)
    return {
        "run": config.run,
        "phase": last.phase,
        "attempts": len(attempts),
        "disruptions": [each for attempt in attempts for each in attempt.disruptions],
        "step": row.get("step", progress.restored_step),
        "steps": config.train.steps,
        "tokens": row.get("tokens"),
        "loss": {"train": row.get("loss"), "val": result.get("val_loss", evaluated)},
        "lr": row.get("lr"),
        "grad_norm": row.get("grad_norm"),
        "world_size": last.world_size,
        "tokens_per_s": row["tokens"] / seconds.wall if row and seconds.wall else None,
        "flops_per_token": last.flops_per_token,
        "peak_flops": peak,
        "model_flops_per_s": used.model_flops_per_s,
        "mfu": used.mfu,
        "goodput": {f"{cause}_s": value for cause, value in goodput.items()},
        "checkpoint": progress.saved and {"step": progress.saved[0], "saved_at": progress.saved[1]},
    }
