"""What rank 0 does for the run background training: word to the driver, and when state is kept and saved."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import ray

from cluster.ray_nodes import root_cause
from data.errors import DiskFullError, MantaError, TransientStoreError
from orchestrator.policy.save_interval import FIRST_SAVE_S, save_cost_s, save_interval_s
from orchestrator.policy.stragglers import StragglerWatch
from orchestrator.run.goodput import GoodputClock
from orchestrator.run.job import TrainJob
from orchestrator.run.ledger import StepRow
from orchestrator.run.progress import LoopRequests
from orchestrator.run.state import RunState
from orchestrator.snapshots.resume import Node
from orchestrator.snapshots.store import SnapshotClock
from orchestrator.train.step_sync import StepDirective

SAVE_TRIES = 3
"""Checkpoints in a row that may fail because the store does not answer, before the run ends."""

EVALUATION_S, POLL_INTERVAL_S = 600.0, 0.2
"""Seconds to wait for an evaluation background training at the end of the run, and from one look to the next."""


class RankZero:
    """Rank 0's books. Checkpoints are uploaded by the node's agent, one at a time, while the loop goes on."""

    def __init__(self, job: TrainJob, node: Node, restored: RunState, clock: GoodputClock) -> None:
        self._job, self._node, self._agent, self._clock = job, node, node.agent, clock
        self._reply: ray.ObjectRef[LoopRequests] | None = None
        self._requests = LoopRequests()
        self._row: StepRow | None = None
        self._untold: list[tuple[int, float | None]] = []
        self._last_report_at = -math.inf
        self._saved_step = int(restored.saved["step"])
        self._checkpoint_at: float | None = restored.saved.get("saved_at")
        self._step_seconds = restored.step_seconds
        self._saved_at = time.monotonic()
        self._stall_s = 0.0
        self._upload_s: float | None = None
        self._saves_done = 0
        self._save_now = self._beside = False
        self._saving: ray.ObjectRef[int] | None = None
        self._failures, self._done = 0, 0
        self._snapshots, self._stragglers = SnapshotClock(), StragglerWatch()

    def begin(self, step: int, device: str = "") -> int:
        """Tell the driver that the group goes on from `step`; returns the newest step done by any group before.

        Args:
            device: name of what rank 0 computes on.
        """
        clock_s = sum(self._clock.seconds().values())
        if self._checkpoint_at is not None:
            self._job.monitor.saved.remote(self._saved_step, self._checkpoint_at)
        self._done = ray.get(self._job.monitor.begin_group.remote(step, self._node.nodes, clock_s, device))
        return max(self._done, self._job.done_before)

    def directive(self, step: int) -> StepDirective:
        """What all ranks are told with the step that is just being done, the run's `step`th.

        Raises:
            MantaError: what the last save could not get over.
        """
        self._hear()
        stop, pause = self._requests.stop, self._requests.pause
        busy = self._is_saving()
        self._save_now = not busy and not pause and (self._is_save_wanted or self._is_due(step))
        is_last = stop or step == self._job.config.train.steps
        step_s = self._row.step_s if self._row is not None else 0.0
        # What is to be saved or gone on from is kept in memory first, whatever that costs.
        snapshot = self._snapshots.is_due(step_s) or self._save_now or pause or is_last
        self._beside = self._requests.background and not stop and not pause and self._job.config.evaluates_after(step)
        return StepDirective(stop, snapshot or self._beside, pause, self._beside, self._saved_step)

    def tell(self, **progress: Any) -> None:
        """Fields of `Progress` for the driver, background the newest step; does not wait."""
        if self._row is not None:
            progress |= {"row": self._row.metrics(), "goodput": self._clock.seconds(), "losses": self._untold}
            progress["step_seconds"] = self._step_seconds
            self._untold = []
        self._reply = self._job.monitor.report.remote(**progress)
        self._last_report_at = time.monotonic()

    def log(self, line: str) -> None:
        """A line for whoever watches."""
        self._job.monitor.log.remote(line)

    def waiting(self) -> None:
        """The next step's data is not there yet; the driver is to know that nobody hangs."""
        self.tell(phase="waiting for data")

    def step_done(self, row: StepRow, seconds: Sequence[float]) -> None:
        """Book a step, of which a micro-batch took each rank `seconds`."""
        is_first, self._row = self._row is None, row
        if self._step_seconds is not None:
            self._step_seconds = self._step_seconds.after(row)
        self._untold.append((row.step, row.loss))
        is_new = row.step == self._done + 1  # what a restart has cost ends here
        if is_first or is_new or time.monotonic() - self._last_report_at >= self._job.report_every_s:
            self.tell(phase="training")
        for rank, factor in self._stragglers.note(seconds):
            self.log(
                f"step {row.step}: rank {rank} on node {self._node.nodes[rank]} is a straggler: "
                f"a micro-batch takes it {factor:.1f} times as long as the others"
            )

    def snapshot_taken(self, step: int, cost_s: float, problem: DiskFullError | None) -> None:
        """All ranks stood still for `cost_s` seconds to keep the state after `step` in memory; saved, where it is time.

        Raises:
            DiskFullError: it could not be kept, and was to be saved.
        """
        self._snapshots.taken(cost_s)
        self._stall_s = cost_s
        if self._save_now:
            if problem is not None:
                raise problem
            self._start_saving(step)
        if self._beside and problem is not None:
            self.log(f"step {step}: not evaluated. {problem}")
        elif self._beside:
            weights, averaged = self._agent.weights.remote(step), self._job.config.train.ema_decay is not None
            self._job.monitor.evaluate_in_background.remote(self._job, step, [weights], averaged)
            # What is on its way from the monitor was said before it was asked.
            self._requests, self._reply = self._requests._replace(background=False), None

    def wait_for_evaluation(self) -> None:
        """Wait for one background training that has not ended, at most EVALUATION_S."""
        deadline = time.monotonic() + EVALUATION_S
        while ray.get(self._job.monitor.is_evaluating.remote()):
            if time.monotonic() > deadline:
                self.log(f"an evaluation background training has not ended within {EVALUATION_S:.0f} s of its end")
                return
            time.sleep(POLL_INTERVAL_S)

    def before_pause(self, step: int) -> None:
        """The group is about to end; its state is in memory, and where all that memory is about to go, saved too."""
        self.tell(phase="saving")
        if self._is_save_wanted:
            try:
                self.save_and_wait(step)
            except TransientStoreError as error:
                self.log(f"step {step}: {error} Going on from memory, where any is left.")

    def save_and_wait(self, step: int) -> None:
        """Have a checkpoint of `step`, which is in the node's memory, in the store when this returns.

        Raises:
            FencedError, MantaError: see `SnapshotAgent.save`.
        """
        for _ in range(SAVE_TRIES):
            self._finish_saving()
            if self._saved_step == step:
                return
            self._start_saving(step)
        self._finish_saving()
        if self._saved_step != step:
            raise TransientStoreError(
                f"The checkpoint of step {step} could not be written in {SAVE_TRIES} tries; the store does not answer."
            )

    def _hear(self) -> None:
        """Take in what the driver has answered to the newest word it has answered; never waits."""
        if self._reply is not None and ray.wait([self._reply], timeout=0)[0]:
            self._requests = ray.get(self._reply)
            self._reply = None

    @property
    def _is_save_wanted(self) -> bool:
        return self._requests.saves > self._saves_done

    def _is_due(self, step: int) -> bool:
        checkpoint = self._job.config.checkpoint
        if checkpoint.every_steps is not None:
            return step % checkpoint.every_steps == 0
        every_s = checkpoint.every_s or self._interval_s()
        return time.monotonic() - self._saved_at >= every_s

    def _interval_s(self) -> float:
        """Seconds from one save to the next where the recipe leaves it open."""
        if self._upload_s is None:
            return FIRST_SAVE_S
        cost_s = save_cost_s(self._stall_s, self._upload_s)
        return save_interval_s(cost_s, self._requests.mtbf_s, self._upload_s)

    def _is_saving(self) -> bool:
        """Whether a save is on its way; where the store is slower than the interval, the next is skipped."""
        if self._saving is not None and ray.wait([self._saving], timeout=0)[0]:
            self._finish_saving()
        return self._saving is not None

    def _start_saving(self, step: int) -> None:
        self._saved_at = time.monotonic()
        self._saves_done = self._requests.saves
        self._saving = self._agent.save.remote(step)

    def _finish_saving(self) -> None:
        """Wait for the save on its way, if there is one, and raise what it could not get over."""
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        try:
            self._saved_step, self._failures = ray.get(saving), 0
            self._upload_s = time.monotonic() - self._saved_at
            return
        except ray.exceptions.RayActorError:
            self._agent = ray.get(self._job.monitor.agent_of.remote(self._node.node_id, self._job, anew=True))
            ray.get(self._agent.open_memory.remote(0))  # finds what there is
            problem: MantaError = TransientStoreError("The process that uploads checkpoints died.")
        except MantaError as error:
            transient = root_cause(error, TransientStoreError)
            if not isinstance(transient, MantaError):
                raise
            problem = transient
        self._failures += 1
        if self._failures >= SAVE_TRIES:
            raise problem
        self.log(f"checkpoint not saved, {problem} Training goes on; try {self._failures} of {SAVE_TRIES}.")
