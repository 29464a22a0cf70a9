"""The monitor's interface for Ray Train's controller: decides on restarts and on the number of workers."""

from __future__ import annotations

import time
from collections.abc import Sequence

from orchestrator.monitor.kept_state import not_kept
from orchestrator.monitor.state import MonitorInterface
from orchestrator.policy.failure import Cause, Failure, GiveUp, Restart, start_timeout_s
from orchestrator.policy.hang import Hang
from orchestrator.policy.save_interval import observed_mtbf_s
from orchestrator.policy.scaling import Noop, Observation, Prepare, Save, SaveThenResize, Start
from orchestrator.run.progress import Disruption
from orchestrator.workers.group_size import PoolAction, StartAction

SETTLING_S = 2.0
"""Seconds from the beginning within which the cluster may not have its resources back from tokenizing yet."""

STEPPING = ("training", "waiting for data", "evaluating")
"""Phases between steps, after which a run can change its size: an evaluation may take most of the time."""


class ControllerInterface(MonitorInterface):
    """Methods that the controller's hooks call, see `orchestrator.workers.hooks`: policies decide, this records."""

    def restart_after_failure(
        self, cause: Cause, reason: str, failed_on: frozenset[str] = frozenset(), nodes: frozenset[str] = frozenset()
    ) -> bool:
        """Reports an unplanned end of the worker group, see `Failure`; returns whether to start it again."""
        state = self._state
        decision = state.failures.decide(Failure(state.newest_step, cause, reason, failed_on, nodes), state.now())
        return self._restarts(decision, cause)

    def restart_after_loss_spike(self) -> bool:
        """Reports that the worker group ended after `report_loss_spike`; returns whether to start it again."""
        return self._restarts(self._state.failures.decide_on_loss_spike(*self._state.loss_spike), "bad step")

    def report_planned_restart(self) -> None:
        """Reports that the worker group ended as requested, its state in memory."""
        self._end_group("resize")

    def report_start_timeout(self) -> None:
        """Reports that workers could not start in their slots."""
        self._state.log("the workers did not start in time: something else occupies their slots")

    def report_start_phase(self, phase: str) -> None:
        """Reports that a phase of the workers' start is over; see `Disruption.phases`."""
        progress = self._state.progress
        if progress.disruptions and progress.phase in ("restarting", "waiting"):
            progress.disruptions[-1].end_phase(phase, self._state.now())

    def decide_start(self, seen: Observation) -> StartAction | None:
        """Decides while no worker runs; None: start none for now."""
        state, progress, now = self._state, self._state.progress, self._state.now()
        most = state.scaling.max_workers
        if state.evaluations.poll() and seen.slots < most:
            state.evaluations.cancel()
        # At the beginning, tokenizing may hold capacity for a moment longer.
        is_first = progress.restored_step is None
        if is_first and seen.slots < min(seen.total_slots, most) and now - state.failed_at < SETTLING_S:
            return None
        decision = state.scaling.when_idle(seen.at(now))
        if isinstance(decision, Start):
            state.wait_reason, state.start_began_at = "", now
            if progress.phase == "waiting":
                progress.phase = "starting" if is_first else "restarting"
            state.hangs.expect_group(state.scaling.slower(progress.world_size, decision.workers), now)
            state.record_decision(f"starting {decision.workers} workers: {decision.why}")
            return StartAction(decision.workers, start_timeout_s(state.longest_start_s), state.failures.avoided)
        if decision.why != state.wait_reason:
            state.wait_reason = decision.why
            state.record_decision(f"waiting: {decision.why}")
        progress.phase = "waiting"
        return None

    def decide_running(self, seen: Observation) -> PoolAction:
        """Decides while workers run: whether they hang, the number of warm spares, and the nodes to request."""
        state, progress, now = self._state, self._state.progress, self._state.now()
        is_stepping = progress.phase in STEPPING
        if is_stepping:  # else workers on other nodes may be about to join
            state.free_agents()
        row = progress.row if state.has_reported and is_stepping else {}
        if (hang := self._judge(seen.members)) is not None:
            return PoolAction(hung=hang)
        if state.requests.pause or not is_stepping or row.get("world_size") != seen.workers:
            return PoolAction()
        seen = seen.at(now, row.get("step_s"), state.steps - row["step"])
        decision, wanted = state.scaling.when_running(seen), state.scaling.wanted(seen)
        state.request(background=state.evaluations.is_idle and state.scaling.unused_slots(seen) > 0)
        self._request_of_loop(seen, decision)
        if isinstance(decision, Prepare):
            return PoolAction(None, decision.joining_workers, wanted, state.failures.avoided)
        return PoolAction(wanted=wanted)

    @not_kept
    def decide_starting(self, workers: Sequence[str]) -> Hang | None:
        """Decides while these workers start: whether the start hangs."""
        return self._judge(workers)

    def _judge(self, workers: Sequence[str]) -> Hang | None:
        """Whether the workers hang; if so, the stacks of those that answer are written into the run's folder."""
        state = self._state
        hang = state.hangs.judge(workers, state.now(), store_fails=state.outages.any)
        if hang is None:
            return None
        beats = state.hangs.with_stacks(hang, workers)
        agent = next((state.agents[beat.node] for beat in beats if beat.node in state.agents), None)
        if agent is None:
            return hang
        prefix = f"hangs/{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        names = [f"{prefix}-{beat.worker if beat.rank is None else beat.rank}.txt" for beat in beats]
        texts = {name: f"{hang.why}\n\n{beat.told()}" for name, beat in zip(names, beats, strict=True)}
        agent.keep_stacks.remote(texts)
        return hang._replace(why=f"{hang.why}; stacks: {names[0] if len(names) == 1 else f'{prefix}-*.txt'}")

    def _request_of_loop(self, seen: Observation, decision: Noop | Save | Prepare | SaveThenResize) -> None:
        """Passes a decision on to the loop, and records it, the first time that it is made."""
        state = self._state
        if isinstance(decision, Save) and decision.why != state.save_reason:
            state.save_reason = decision.why
            state.request(saves=state.requests.saves + 1)
            state.record_decision(f"saving: {decision.why}")
        elif isinstance(decision, SaveThenResize):
            state.prepare_reason = ""
            state.request(pause=True, saves=state.requests.saves + decision.durably)
            state.record_decision(f"from {seen.workers} workers to {decision.workers}: {decision.why}")
        elif isinstance(decision, Prepare):
            if not state.prepare_reason:
                state.record_decision(
                    f"preparing {decision.joining_workers} more workers while {seen.workers} train: {decision.why}"
                )
            state.prepare_reason = decision.why

    def _restarts(self, decision: Restart | GiveUp, cause: str) -> bool:
        """Records a decision about a group that ended because of `cause`; returns whether it is started again."""
        state = self._state
        if isinstance(decision, GiveUp):
            state.failed_at = state.now()
            state.progress.gave_up = decision.why
            state.record_decision(f"giving up: {decision.why}", log=False)  # the error that ends the run says it
            return False
        self._end_group(cause)
        state.record_decision(f"starting the workers again: {decision.why}")
        return True

    def _end_group(self, cause: str) -> None:
        """Begins a disruption, if the group that ended had begun."""
        state, progress = self._state, self._state.progress
        state.failed_at = state.now()
        if progress.restored_step is None:
            return  # no group has begun yet: all time so far is start-up
        progress.phase = "restarting"
        if progress.disruptions and progress.disruptions[-1].restored_step is None:
            return  # the group failed before it had begun: its time belongs to the disruption before
        if cause != "resize":
            state.failure_count += 1
            state.request(mtbf_s=observed_mtbf_s(state.failed_at - state.made_at, state.failure_count))
        progress.add_disruption(
            Disruption(
                cause=cause,
                step=state.newest_step,
                workers=progress.world_size,
                last_report_at=max(state.last_report_at, state.group_began_at),
                ended_at=state.failed_at,
                at=time.time(),
            )
        )
