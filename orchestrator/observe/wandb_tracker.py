"""Logs a run to Weights & Biases: one W&B run for all attempts, under an id derived from the run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.observe import WandbConfig
from orchestrator.observe.tracker import Point, Tracked

FOLDER = Path(".manta")
"""Parent of W&B's folder `wandb`, unless WANDB_DIR is set."""

_UPLOAD_S = 10.0
"""Seconds that the end of a run waits for the upload; `wandb sync` uploads the rest."""


class WandbTracker:
    """A tracker, see `orchestrator.observe.tracker.Tracker`. Sends only config and metrics: no source, no arguments."""

    name = "Weights & Biases"

    def __init__(self, config: WandbConfig) -> None:
        self._config = config
        self._run: Any = None
        self._prefix = "train"

    def begin(self, run: Tracked) -> None:
        """Creates the W&B run, or continues it."""
        import wandb

        self._prefix = "sweep" if run.is_sweep else "train"
        folder = os.environ.get("WANDB_DIR") or FOLDER
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Command line and environment may hold keys, so W&B must not upload them.
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            finish_timeout=_UPLOAD_S,
        )
        self._run = wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            mode=self._config.mode,
            id=run.id,
            name=run.name,
            group=run.group.name if run.group else None,
            job_type="sweep" if run.is_sweep else "trial" if run.group else None,
            resume="allow",
            dir=str(folder),
            config={**run.parameters, "manta.url": run.url, **run.labels},
            allow_val_change=True,
            settings=settings,
        )
        # Use the run's steps as x-axis: W&B's own step may not go back, and a new attempt repeats steps.
        for prefix in (self._prefix, "held_out"):
            self._run.define_metric(f"{prefix}/step")
            self._run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")

    def log(self, points: Sequence[Point]) -> None:
        """Logs the values under `train/`, those of a sweep under `sweep/`."""
        for point in points:
            self._log(self._prefix, point)

    def log_evaluation(self, point: Point, *, final: bool) -> None:
        """Logs the values under `held_out/`; those of the final evaluation also in the W&B summary."""
        self._log("held_out", point)
        if final:
            self._run.summary.update({f"final/{name}": value for name, value in point.values.items()})

    def finish(self, status: str) -> None:
        """Ends the W&B run; a later attempt continues it."""
        self._run.finish(exit_code=0 if status == "finished" else 1)

    def _log(self, prefix: str, point: Point) -> None:
        values = {f"{prefix}/{name}": value for name, value in point.values.items() if value is not None}
        self._run.log({f"{prefix}/step": point.step, **values})
