"""What rank 0 alone does in the training loop: it reports to the monitor, and decides when state is kept and saved.

`OtherRank` has the same methods for the other ranks, so that the loop need not ask which rank it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import ray

from data.errors import DiskFullError, TransientStoreError
from orchestrator.policy.stragglers import StragglerWatch
from orchestrator.run.goodput import GoodputClock
from orchestrator.run.job import TrainJob
from orchestrator.run.ledger import StepRow
from orchestrator.run.progress import GroupStart, LoopRequests
from orchestrator.run.state import RunState
from orchestrator.snapshots.clock import SnapshotClock
from orchestrator.snapshots.resume import Node
from orchestrator.train.checkpoint_saver import CheckpointSaver
from orchestrator.train.step_sync import StepDirective
from orchestrator.workers.beacon import mark

LEAVING_SAVE_TRIES = 3
"""Tries of a save for which nodes that are about to leave wait."""

EVALUATION_TIMEOUT_S, POLL_INTERVAL_S = 600.0, 0.2
"""Most seconds to wait for a background evaluation at the end of the run, and seconds between two polls."""


class RankZero:
    """Reports to the monitor and turns its requests into directives for all ranks.

    Args:
        restored: state that the worker group starts from.
        clock: seconds by cause, reported with the progress.
    """

    def __init__(self, job: TrainJob, node: Node, restored: RunState, clock: GoodputClock) -> None:
        self._job, self._node, self._clock = job, node, clock
        self._reply: ray.ObjectRef[LoopRequests] | None = None
        self._requests = LoopRequests()
        self._row: StepRow | None = None
        self._unreported: list[tuple[int, float | None]] = []
        self._last_report_at = -math.inf
        self._saver = CheckpointSaver(job, node, int(restored.saved["step"]))
        self._checkpoint_at: float | None = restored.saved.get("saved_at")
        self._step_seconds = restored.step_seconds
        self._saves_now = self._evaluates_in_background = False
        self._done = 0
        self._snapshots, self._stragglers = SnapshotClock(), StragglerWatch()

    def begin(self, step: int, device: str) -> int:
        """Reports that the worker group starts from `step`.

        Args:
            device: name of the device that rank 0 computes on.

        Returns:
            newest step that any earlier group has done; steps up to it are replayed.
        """
        clock_s = sum(self._clock.seconds().values())
        if self._checkpoint_at is not None:
            self._job.monitor.report_checkpoint.remote(self._saver.saved_step, self._checkpoint_at)
        start: GroupStart = ray.get(self._job.monitor.begin_group.remote(step, self._node.nodes, clock_s, device))
        self._done = start.done
        self._saver.count_from(start.checkpoint_age_s)
        return max(self._done, self._job.done_before)

    def directive(self, step: int) -> StepDirective:
        """Decides what all ranks do after the run's `step`th step, which they are computing now.

        Raises:
            MantaError: the last save failed for good.
        """
        self._receive_requests()
        requests, saver = self._requests, self._saver
        stop, pause = requests.stop, requests.pause
        busy = saver.is_saving()
        is_wanted = saver.is_requested(requests.saves) or saver.is_due(step, requests.mtbf_s)
        self._saves_now = not busy and not pause and is_wanted
        is_last = stop or step == self._job.until
        step_s = self._row.step_s if self._row is not None else 0.0
        background = requests.background and not stop and not pause and self._job.config.evaluates_after(step)
        self._evaluates_in_background = background
        # A checkpoint, a restart and a background evaluation read a snapshot, so one is taken whatever it costs.
        snapshot = self._snapshots.is_due(step_s) or self._saves_now or pause or is_last or background
        return StepDirective(stop, snapshot, pause, background, saver.saved_step)

    def report(self, **progress: Any) -> None:
        """Sends fields of `Progress`, with the newest step and losses, to the monitor. Does not wait."""
        if self._row is not None:
            progress |= {"row": self._row.metrics(), "goodput": self._clock.seconds(), "losses": self._unreported}
            progress["step_seconds"] = self._step_seconds
            self._unreported = []
        self._reply = self._job.monitor.report.remote(**progress)
        self._last_report_at = time.monotonic()

    def report_waiting(self) -> None:
        """Reports that the next step's data has not come, so that the driver does not take the loop for hung."""
        self._receive_requests()
        self._clock.switch("store_wait" if self._requests.store_fails else "data_wait")
        self.report(phase="waiting for data")

    def report_scores(self, step: int, scores: dict[str, Any]) -> None:
        """Reports an evaluation of the state after `step`. Does not wait."""
        self._job.monitor.report_evaluation.remote(step, scores, self._job.config.train.ema_decay is not None)

    def report_loss_spike(self, step: int, reason: str, skipped_steps: set[int]) -> None:
        """Reports that the loss spiked in `step`; returns once the monitor has it."""
        ray.get(self._job.monitor.report_loss_spike.remote(step, reason, skipped_steps))

    def report_result(self, result: dict[str, Any]) -> None:
        """Reports what the loop ended with; returns once the monitor has it."""
        ray.get(self._job.monitor.report.remote(phase="done", result=result, goodput=self._clock.seconds()))

    def step_done(self, row: StepRow, seconds: Sequence[float]) -> None:
        """Records a step and reports it, at most once in `report_every_s`; a group's first and first new step at once.

        Args:
            seconds: what a micro-batch took, by rank.
        """
        is_first, self._row = self._row is None, row
        if self._step_seconds is not None:
            self._step_seconds = self._step_seconds.after(row)
        self._unreported.append((row.step, row.loss))
        is_new = row.step == self._done + 1  # the end of a restart's cost, so it is reported at once
        if is_first or is_new or time.monotonic() - self._last_report_at >= self._job.report_every_s:
            self.report(phase="training")
        for rank, factor in self._stragglers.add_step(seconds):
            self._log(
                f"step {row.step}: rank {rank} on node {self._node.nodes[rank]} is a straggler: "
                f"a micro-batch takes it {factor:.1f} times as long as the others"
            )

    def snapshot_taken(self, step: int, cost_s: float, problem: DiskFullError | None) -> None:
        """Uses the snapshot of `step`: starts a save and a background evaluation where `directive` decided on them.

        Args:
            cost_s: seconds that all ranks stood still for the snapshot.
            problem: why there is no snapshot; None where there is one.

        Raises:
            DiskFullError: there is no snapshot, and a save needs it.
        """
        self._snapshots.taken(cost_s)
        self._saver.stall_s = cost_s
        if self._saves_now:
            if problem is not None:
                raise problem
            self._saver.start(step, self._requests.saves)
        if self._evaluates_in_background and problem is not None:
            self._log(f"step {step}: not evaluated. {problem}")
        elif self._evaluates_in_background:
            weights = self._saver.agent.handle.weights.remote(step)
            averaged = self._job.config.train.ema_decay is not None
            self._job.monitor.evaluate_in_background.remote(self._job, step, [weights], averaged)
            # A reply that is under way was sent before the monitor got this call, and would ask for another evaluation.
            self._requests, self._reply = self._requests._replace(background=False), None

    def before_pause(self, step: int) -> None:
        """Reports the pause; where the memory of all nodes is about to go, saves a checkpoint of `step` first."""
        self.report(phase="saving")
        if self._saver.is_requested(self._requests.saves):
            try:
                self._saver.save_and_wait(step, self._requests.saves, tries=LEAVING_SAVE_TRIES)
            except TransientStoreError as error:
                self._log(f"step {step}: {error} The run continues from a snapshot in memory, if one survives.")

    def save_and_wait(self, step: int) -> None:
        """Returns once the checkpoint of `step` is in the store; see `CheckpointSaver.save_and_wait`.

        From a try that failed on, the time counts as that of an outage, and is reported, in case that it takes hours.
        """

        def failed() -> None:
            self._clock.switch("store_wait")
            self.report(phase="saving")

        self._saver.save_and_wait(step, self._requests.saves, failed=failed)

    def wait_for_evaluation(self) -> None:
        """Waits until no background evaluation is running, at most EVALUATION_TIMEOUT_S."""
        deadline = time.monotonic() + EVALUATION_TIMEOUT_S
        while ray.get(self._job.monitor.is_evaluating.remote()):
            if time.monotonic() > deadline:
                self._log(f"a background evaluation has not ended within {EVALUATION_TIMEOUT_S:.0f} s of the last step")
                return
            mark()
            time.sleep(POLL_INTERVAL_S)

    def _receive_requests(self) -> None:
        """Takes the monitor's reply to the newest report, if it has come. Does not wait."""
        if self._reply is not None and ray.wait([self._reply], timeout=0)[0]:
            self._requests = ray.get(self._reply)
            self._reply = None

    def _log(self, line: str) -> None:
        self._job.monitor.log.remote(line)


class OtherRank:
    """A rank that is not rank 0: has RankZero's methods, which do nothing and ask for nothing."""

    def begin(self, step: int, device: str) -> int:
        """Returns 0: which steps are replayed matters to rank 0's goodput alone."""
        return 0

    def directive(self, step: int) -> StepDirective:
        """An empty directive: StepSync adds the ranks' directives up, and rank 0's counts."""
        return StepDirective()

    def report(self, **progress: Any) -> None:
        """Does nothing."""

    def report_waiting(self) -> None:
        """Does nothing."""

    def report_scores(self, step: int, scores: dict[str, Any]) -> None:
        """Does nothing."""

    def report_loss_spike(self, step: int, reason: str, skipped_steps: set[int]) -> None:
        """Does nothing."""

    def report_result(self, result: dict[str, Any]) -> None:
        """Does nothing."""

    def step_done(self, row: StepRow, seconds: Sequence[float]) -> None:
        """Does nothing."""

    def snapshot_taken(self, step: int, cost_s: float, problem: DiskFullError | None) -> None:
        """Does nothing."""

    def before_pause(self, step: int) -> None:
        """Does nothing."""

    def save_and_wait(self, step: int) -> None:
        """Does nothing."""

    def wait_for_evaluation(self) -> None:
        """Does nothing."""
