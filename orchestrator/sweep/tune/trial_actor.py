"""The actor of Ray Tune that runs trials, on the head node, which is never a spot node.

It is a class of Tune and not a function. Tune calls `stop` and waits for it, so that a stopped trial ends its run as
Ctrl-C does and releases workers, actors and node memory. The thread of a function would not be stopped.
"""

from __future__ import annotations

import os
from typing import Any

import ray.tune

from orchestrator.sweep.trial import Assignment, Trial, TrialContext
from orchestrator.workers.warm import WarmWorkers

RESULT_S = 1.0
"""Seconds between two results for Tune while there is nothing to report."""


class TrialFailed(Exception):
    """A leg of a trial failed, as the result before has told."""


class TrialDriver(ray.tune.Trainable):
    """The trial's actor. `step` waits for the next report, at most RESULT_S."""

    _step: int
    _has_failed = False

    def setup(self, config: dict[str, Any], context: TrialContext | None = None) -> None:
        """Takes the assignment; training starts with the first `step`."""
        assert context is not None
        os.environ.update(context.environment)
        self._context, self._warm = context, WarmWorkers()
        self._take(config["assignment"])

    def step(self) -> dict[str, Any]:
        """Returns the next report, with `step` and `loss`, or only the progress where there is no report.

        Raises:
            TrialFailed: the leg has failed. Tune then ends this process, in which something of the run may be left.
        """
        if self._has_failed:
            raise TrialFailed(self._trial.assignment.id)
        result = self._trial.next_result(RESULT_S)
        if result.get("status") == "failed":  # first the reason, which Tune would not pass on
            self._has_failed, result["done"] = True, False
        self._step = result.get("step", self._step)
        return result

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next assignment, in the same process."""
        self._trial.stop()
        self._take(new_config["assignment"])
        return True

    def _take(self, assignment: Assignment) -> None:
        self._trial = Trial(self._context, assignment, self._warm)
        self._step = assignment.reported

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Names the checkpoint in object storage, for Tune's own state; no tensors pass through Tune."""
        assignment = self._trial.assignment
        return {"run": assignment.run, "step": self._step}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Does nothing: a run continues from its own newest checkpoint, and a donor is in the assignment."""

    def cleanup(self) -> None:
        """Saves and ends the run, and releases its resources."""
        self._trial.stop()
        self._warm.end()
