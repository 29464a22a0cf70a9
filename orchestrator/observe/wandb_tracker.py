"""The run in Weights & Biases: one run there, whatever the number of attempts, by an id that follows from it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.observe import WandbConfig
from orchestrator.observe.tracker import Point, Tracked

FOLDER = Path(".manta")
"""Where it keeps its files, in a folder `wandb`, unless WANDB_DIR says otherwise."""

_UPLOAD_S = 10.0
"""Seconds that the end of a run waits for what is not sent yet; `wandb sync` sends the rest."""


class WandbTracker:
    """See `orchestrator.observe.trackers.Tracker`. Nothing is sent but what is told here: no source, no arguments."""

    name = "Weights & Biases"

    def __init__(self, config: WandbConfig) -> None:
        self._config = config
        self._run: Any = None

    def begin(self, run: Tracked) -> None:
        """Begin it there, or go on with it."""
        import wandb

        folder = os.environ.get("WANDB_DIR") or FOLDER
        Path(folder).mkdir(parents=True, exist_ok=True)
        # The command line may hold keys, and the environment is nobody's business.
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
            resume="allow",
            dir=str(folder),
            config={**run.parameters, "manta.url": run.url},
            allow_val_change=True,
            settings=settings,
        )
        # By the run's own steps: of steps that are done again W&B would refuse its own.
        for prefix in ("train", "held_out"):
            self._run.define_metric(f"{prefix}/step")
            self._run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")

    def log(self, points: Sequence[Point]) -> None:
        """Their values, under `train`."""
        for point in points:
            self._log("train", point)

    def evaluated(self, point: Point, *, final: bool) -> None:
        """Its values, under `held_out`; those at the end in the summary, too."""
        self._log("held_out", point)
        if final:
            self._run.summary.update({f"final/{name}": value for name, value in point.values.items()})

    def finish(self, status: str) -> None:
        """End it there; a later attempt goes on with it."""
        self._run.finish(exit_code=0 if status == "finished" else 1)

    def _log(self, prefix: str, point: Point) -> None:
        values = {f"{prefix}/{name}": value for name, value in point.values.items() if value is not None}
        self._run.log({f"{prefix}/step": point.step, **values})
