"""CheckpointSaver: when rank 0 saves a checkpoint, and the uploads by its node's snapshot agent, one at a time."""

from __future__ import annotations

import time
from typing import Any

import ray

from cluster.ray_nodes import root_cause
from data.errors import MantaError, TransientStoreError
from orchestrator.policy.save_interval import FIRST_SAVE_S, save_cost_s, save_interval_s
from orchestrator.run.job import TrainJob
from orchestrator.snapshots.resume import Node

SAVE_TRIES = 3
"""Consecutive saves that may fail because the store does not answer, before the run ends."""


class CheckpointSaver:
    """Uploads snapshots as checkpoints while the loop continues.

    Args:
        saved_step: step of the newest checkpoint; 0 where there is none.

    Attributes:
        agent: handle of the node's `SnapshotAgent`.
        saved_step: step of the newest checkpoint that is known to be in the store.
        stall_s: seconds the loop stood still for the newest snapshot; part of what a save costs.
    """

    def __init__(self, job: TrainJob, node: Node, saved_step: int) -> None:
        self.agent: Any = node.agent
        self.saved_step = saved_step
        self.stall_s = 0.0
        self._job, self._node_id = job, node.node_id
        self._began_at = time.monotonic()
        self._upload_s: float | None = None
        self._requests_served = 0
        self._upload: ray.ObjectRef[int] | None = None
        self._failures = 0

    def is_requested(self, saves: int) -> bool:
        """Whether the monitor, which has asked for `saves` checkpoints so far, waits for one that is not begun."""
        return saves > self._requests_served

    def is_due(self, step: int, mtbf_s: float) -> bool:
        """Whether the recipe's `checkpoint.every_steps`, `every_s` or the best interval asks for a save after `step`.

        Args:
            mtbf_s: mean time between failures, which sets the best interval.
        """
        checkpoint = self._job.config.checkpoint
        if checkpoint.every_steps is not None:
            return step % checkpoint.every_steps == 0
        every_s = checkpoint.every_s or self._interval_s(mtbf_s)
        return time.monotonic() - self._began_at >= every_s

    def is_saving(self) -> bool:
        """Whether an upload is running. Where the store is slower than the interval, the next save is skipped.

        Raises:
            FencedError, MantaError: see `_finish`.
        """
        if self._upload is not None and ray.wait([self._upload], timeout=0)[0]:
            self._finish()
        return self._upload is not None

    def start(self, step: int, saves: int) -> None:
        """Starts the upload of the snapshot of `step`; serves all `saves` requests made so far."""
        self._began_at = time.monotonic()
        self._requests_served = saves
        self._upload = self.agent.save.remote(step)

    def save_and_wait(self, step: int, saves: int) -> None:
        """Returns once the checkpoint of `step`, whose snapshot is in the node's memory, is in the store.

        Raises:
            TransientStoreError: the store did not answer, `SAVE_TRIES` times.
            FencedError, MantaError: see `SnapshotAgent.save`.
        """
        for _ in range(SAVE_TRIES):
            self._finish()
            if self.saved_step == step:
                return
            self.start(step, saves)
        self._finish()
        if self.saved_step != step:
            raise TransientStoreError(
                f"The checkpoint of step {step} could not be written in {SAVE_TRIES} tries; the store does not answer."
            )

    def _interval_s(self, mtbf_s: float) -> float:
        """Seconds between two saves where the recipe does not say."""
        if self._upload_s is None:
            return FIRST_SAVE_S
        return save_interval_s(save_cost_s(self.stall_s, self._upload_s), mtbf_s, self._upload_s)

    def _finish(self) -> None:
        """Waits for the running upload, if there is one.

        Raises:
            MantaError: the upload failed in a way that a retry does not mend, or `SAVE_TRIES` times.
        """
        if self._upload is None:
            return
        upload, self._upload = self._upload, None
        try:
            self.saved_step, self._failures = ray.get(upload), 0
            self._upload_s = time.monotonic() - self._began_at
            return
        except ray.exceptions.RayActorError:
            self.agent = ray.get(self._job.monitor.agent_of.remote(self._node_id, self._job, replace=True))
            ray.get(self.agent.open_memory.remote(0))  # finds the snapshots that are there
            problem: MantaError = TransientStoreError("The process that uploads checkpoints died.")
        except MantaError as error:
            transient = root_cause(error, TransientStoreError)
            if not isinstance(transient, MantaError):
                raise
            problem = transient
        self._failures += 1
        if self._failures >= SAVE_TRIES:
            raise problem
        self._job.monitor.log.remote(
            f"checkpoint not saved: {problem} Training continues; try {self._failures} of {SAVE_TRIES}."
        )
