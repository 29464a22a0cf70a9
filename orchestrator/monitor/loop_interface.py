"""The monitor's interface for training workers: reports of rank 0 in, requests to its loop out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray import cloudpickle

from data.stores.patience import Outage
from orchestrator.monitor.kept_state import not_kept
from orchestrator.monitor.state import MonitorInterface
from orchestrator.policy.hang import Beat
from orchestrator.run.job import TrainJob
from orchestrator.run.progress import RECENT_STEPS, RESTORING, GroupStart, LoopRequests


class LoopInterface(MonitorInterface):
    """Methods that rank 0 calls; where other ranks, snapshot agents or the driver call one, it says so.

    Each worker group has a goodput clock of its own; this adds them up, with the time between two groups.
    """

    @not_kept  # an agent ends with this process, so the call has to be repeated
    def agent_of(self, node_id: str, job: TrainJob, *, dead: Any = None) -> Any:
        """The snapshot agent of a node, started if there is none. Called by every rank, and by the driver.

        Args:
            dead: an agent that has died for good, as all do with the monitor's process.
        """
        state = self._state
        state.job = state.job or cloudpickle.dumps(job)  # type: ignore[no-untyped-call]
        if (before := state.agents.get(node_id)) in (None, dead):
            if before is not None:
                state.end_agent(node_id, before)
            state.agents[node_id] = state.start_agent(node_id, job)
            state.keep()
        return state.agents[node_id]

    @not_kept
    def beat(self, beat: Beat) -> bool:
        """Reports what a worker is doing; returns whether it is to send its stacks. Called by every worker's beacon."""
        return self._state.hangs.hear(beat, self._state.now())

    def begin_group(self, step: int, nodes: Sequence[str], clock_s: float, device: str = "") -> GroupStart:
        """Reports that the group's state is restored to `step`.

        Args:
            nodes: node ids by rank.
            clock_s: age of the group's goodput clock.
            device: name of the device that rank 0 computes on.

        Returns:
            what the group has to know of those before it.
        """
        state, progress, now, world_size = self._state, self._state.progress, self._state.now(), len(nodes)
        progress.device = device
        state.group_nodes = frozenset(nodes)
        state.free_agents()
        state.longest_start_s = max(state.longest_start_s or 0.0, now - state.start_began_at)
        done = max(step, progress.row.get("step", step))  # the newest report may be older than the newest snapshot
        if progress.restored_step is None:
            progress.restored_step = step
        else:
            self._end_disruption(step, world_size, now, now - clock_s)
            state.log(f"step {step}: continuing with {world_size} workers; {done - step} steps are replayed")
        self.report_outage(RESTORING, None)  # those who waited for the store may have died, and others had the state
        progress.phase, progress.world_size = "training", world_size
        state.group_began_at, state.has_reported, state.save_reason = now - clock_s, False, ""
        state.request(pause=False)
        return GroupStart(int(done), now - state.checkpoint_at)

    def _end_disruption(self, step: int, world_size: int, now: float, loop_at: float) -> None:
        """Accounts for the time from the last group's newest report to this group's loop, which began at `loop_at`."""
        state, disruption = self._state, self._state.progress.disruptions[-1]
        state.scaling.restart_s = now - state.start_began_at  # excludes the wait for nodes, if there was one
        state.past_goodput = dict(state.progress.goodput)
        lost = {
            "detection": max(0.0, disruption.ended_at - disruption.last_report_at),
            "restart": max(0.0, loop_at - max(disruption.ended_at, disruption.last_report_at)),
        }
        for cause, seconds in lost.items():
            state.past_goodput[cause] = state.past_goodput.get(cause, 0.0) + seconds
        disruption.restored(step, world_size, now)

    def report(self, **changes: Any) -> LoopRequests:
        """Reports changed fields of `Progress`, where `losses` are added; returns the requests to the loop."""
        state, progress, now = self._state, self._state.progress, self._state.now()
        goodput = changes.pop("goodput", None)
        progress.losses = [*progress.losses, *changes.pop("losses", [])][-RECENT_STEPS:]
        state.evaluations.poll()
        for name, value in changes.items():
            setattr(progress, name, value)
        if goodput is not None:
            state.last_report_at, state.has_reported = now, True
            if progress.disruptions:  # the loop does not know that it is not the first
                goodput["restart"] = goodput.get("restart", 0.0) + goodput.pop("startup", 0.0)
                for disruption in progress.disruptions:  # a second one may have come before the first was over
                    if disruption.step_done(progress.row.get("step", 0), now) and disruption.cause == "resize":
                        state.scaling.restart_s = now - state.start_began_at  # with the first step
            past = state.past_goodput
            causes = sorted(past.keys() | goodput.keys())
            progress.goodput = {cause: past.get(cause, 0.0) + goodput.get(cause, 0.0) for cause in causes}
        return state.requests

    def report_checkpoint(self, step: int, at: float, saved_state: dict[str, Any] | None = None) -> None:
        """Reports a checkpoint of `step`, saved `at`. Called by snapshot agents, and by rank 0 for the restored one.

        Args:
            saved_state: the checkpoint's state.json, where this attempt wrote it.
        """
        state, saved = self._state, self._state.progress.saved
        if saved is None or step >= saved[0]:
            state.progress.saved = step, at
        if saved_state is not None and (state.base is None or step >= state.base["step"]):
            state.base, state.checkpoint_at = saved_state, state.now()

    def report_restored(self, saved_state: dict[str, Any]) -> None:
        """Reports the checkpoint that a group continues from, by its state.json. Called by snapshot agents."""
        self._state.base = saved_state

    @not_kept
    def newest_checkpoint(self) -> dict[str, Any] | None:
        """state.json of the attempt's newest checkpoint, or of the one restored; None before. Called by agents."""
        return self._state.base

    def report_outage(self, doing: str, outage: Outage | None) -> None:
        """Reports that a store fails, or answers again (None). Called by the feeder, snapshot agents and rank 0.

        Args:
            doing: what needs the store.
        """
        self._state.outages.report(doing, outage)
        self._state.request(store_fails=self._state.outages.any)

    def report_evaluation(self, step: int, scores: Mapping[str, Any], averaged: bool) -> None:
        """Reports the scores of an evaluation during training; see `Evaluations.add`."""
        self._state.evaluations.add(step, scores, averaged=averaged)

    def evaluate_in_background(self, job: TrainJob, step: int, weights: Sequence[Any], averaged: bool) -> None:
        """Starts a background evaluation of the weights after `step`.

        Args:
            weights: one element, a reference to the weights; in a sequence, or Ray would resolve it.
        """
        if self._state.evaluations.start(job, step, weights[0], averaged=averaged):
            self._state.request(background=False)

    def is_evaluating(self) -> bool:
        """Whether a background evaluation is running; adds the scores of one that has ended."""
        return self._state.evaluations.poll()

    @not_kept
    def has_evaluated(self, step: int) -> bool:
        """Whether the state after `step` was evaluated in this attempt, or is now."""
        done = (each["step"] for each in self._state.progress.evaluations)
        return step == self._state.evaluations.running_step or step in done

    def report_loss_spike(self, step: int, reason: str, skipped_steps: set[int]) -> None:
        """Reports a loss spike in `step`, after which the group ends.

        Args:
            skipped_steps: steps that this run, earlier attempts included, has skipped so far.
        """
        self._state.loss_spike = step, reason
        self._state.failures.skipped_steps |= skipped_steps

    @not_kept
    def skipped_steps(self) -> set[int]:
        """Steps whose data is skipped. Called by every rank."""
        return self._state.failures.skipped_steps

    def log(self, line: str) -> None:
        """Adds a line to the driver's console. Called by every rank, and by snapshot agents."""
        self._state.log(line)
