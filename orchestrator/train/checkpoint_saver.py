"""CheckpointSaver: when rank 0 saves a checkpoint, and the uploads by its node's snapshot agent, one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import ray

from cluster.ray_nodes import root_cause
from data.errors import MantaError, TransientStoreError
from data.stores.patience import Patience
from orchestrator.errors import SnapshotGoneError
from orchestrator.policy.save_interval import FIRST_SAVE_S, save_cost_s, save_interval_s
from orchestrator.run.job import TrainJob
from orchestrator.snapshots.resume import Node
from orchestrator.workers.beacon import answer_of


class CheckpointSaver:
    """Uploads snapshots as checkpoints while the loop continues.

    A save that fails because the store does not answer is tried again with a newer snapshot, after a growing wait, for
    as long as `store.patience` allows; meanwhile training continues.

    Args:
        saved_step: step of the newest checkpoint; 0 where there is none.

    Attributes:
        agent: the node's snapshot agent.
        saved_step: step of the newest checkpoint that is known to be in the store.
        stall_s: seconds the loop stood still for the newest snapshot; part of what a save costs.
    """

    def __init__(self, job: TrainJob, node: Node, saved_step: int) -> None:
        self.agent = node.agent
        self.saved_step = saved_step
        self.stall_s = 0.0
        self._job = job
        self._began_at = time.monotonic()
        self._upload_s: float | None = None
        self._requests_served = 0
        self._upload: ray.ObjectRef[int] | None = None
        self._patience = Patience(
            job.config.store.patience, partial(job.monitor.report_outage.remote, "saving checkpoints")
        )
        self._deaths = Patience(job.config.store.patience)
        self._retry_at: float | None = None

    def count_from(self, checkpoint_age_s: float) -> None:
        """Sets when the newest checkpoint was saved: intervals are counted from there, not from the group's begin."""
        self._began_at = time.monotonic() - checkpoint_age_s

    def is_requested(self, saves: int) -> bool:
        """Whether the monitor, which has asked for `saves` checkpoints so far, waits for one that is not begun."""
        return saves > self._requests_served

    def is_due(self, step: int, mtbf_s: float) -> bool:
        """Whether the recipe's `checkpoint.every_steps`, `every_s` or the best interval asks for a save after `step`.

        Args:
            mtbf_s: mean time between failures, which sets the best interval.
        """
        if self._retry_at is not None:
            return time.monotonic() >= self._retry_at
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
            wait_s = self._finish()
            self._retry_at = None if wait_s is None else time.monotonic() + wait_s
        return self._upload is not None

    def start(self, step: int, saves: int) -> None:
        """Starts the upload of the snapshot of `step`; serves all `saves` requests made so far."""
        self._began_at = time.monotonic()
        self._requests_served = saves
        self._upload = self.agent.handle.save.remote(step)

    def save_and_wait(
        self, step: int, saves: int, *, tries: int | None = None, failed: Callable[[], object] = lambda: None
    ) -> None:
        """Returns once the checkpoint of `step`, whose snapshot is in the node's memory, is in the store.

        Args:
            tries: most tries; None: as many as `store.patience` allows.
            failed: called after each try that failed.

        Raises:
            TransientStoreError: the store did not answer.
            FencedError, MantaError: see `SnapshotAgent.save`.
        """
        self._finish()
        tried = 0
        while self.saved_step != step:
            if tried == tries:
                raise TransientStoreError(
                    f"The checkpoint of step {step} could not be written in {tries} tries; the store does not answer."
                )
            self.start(step, saves)
            wait_s = self._finish()
            tried += 1
            if wait_s is not None:
                failed()
                if tried != tries:
                    time.sleep(wait_s)

    def _interval_s(self, mtbf_s: float) -> float:
        """Seconds between two saves where the recipe does not say."""
        if self._upload_s is None:
            return FIRST_SAVE_S
        return save_interval_s(save_cost_s(self.stall_s, self._upload_s), mtbf_s, self._upload_s)

    def _finish(self) -> float | None:
        """Waits for the running upload, if there is one; returns the seconds to wait before the next try if it failed.

        Raises:
            MantaError: the upload failed in a way that a retry does not mend, or for as long as `store.patience`.
        """
        if self._upload is None:
            return None
        upload, self._upload = self._upload, None
        try:
            self.saved_step = answer_of(self.agent.handle, upload)
            self._upload_s = time.monotonic() - self._began_at
            self._patience.succeeded()
            self._deaths.succeeded()
            return None
        except ray.exceptions.RayActorError:
            self.agent.replace()
            return self._deaths.failed(TransientStoreError("The process that uploads checkpoints dies of it."))
        except MantaError as error:
            gone = root_cause(error, SnapshotGoneError)
            if isinstance(gone, SnapshotGoneError):
                return self._deaths.failed(TransientStoreError(str(gone)))
            transient = root_cause(error, TransientStoreError)
            if not isinstance(transient, TransientStoreError):
                raise
            return self._patience.failed(transient)
