"""The monitor: one actor a run through which the driver sees the loop and the loop hears the driver.

It outlives worker groups. Each group keeps its own goodput clock; the monitor adds them up and knows the time between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from orchestrator.policy.failure import Cause, Failure, FailurePolicy, GiveUp, Restart, is_hung, start_patience_s
from orchestrator.policy.save_interval import observed_mtbf_s
from orchestrator.policy.scaling import Observation, Prepare, Save, SaveThenResize, ScalingPolicy, Start
from orchestrator.run.job import TrainJob
from orchestrator.run.progress import DECISIONS, EVALUATIONS, RECENT_STEPS, Disruption, LoopRequests, Progress
from orchestrator.workers.pool import PoolAction

SETTLING_S = 2.0
"""Seconds from the beginning within which the cluster may not have its resources back from tokenizing yet."""


class Evaluation(Protocol):
    """One that runs in a process of its own."""

    def scores(self) -> dict[str, float] | None:
        """What came of it; None while it runs. Raises where it failed."""


class Monitor:
    """Body of the actor. Nothing here waits.

    Args:
        scaling: decides on the number of workers.
        steps: length of the run.
        make_agent: starts the `SnapshotAgent` of a node, given the node's id and the job; returns its handle.
        evaluate: starts an evaluation background training, given the job and what `SnapshotAgent.weights` returns; None: the
            workers are always to evaluate themselves.
        now: monotonic clock, seconds.
    """

    def __init__(
        self,
        scaling: ScalingPolicy,
        steps: int,
        make_agent: Callable[[str, TrainJob], Any],
        evaluate: Callable[[TrainJob, Any], Evaluation] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now, self._scaling, self._steps, self._make_agent = now, scaling, steps, make_agent
        self._progress = Progress()
        self._policy = FailurePolicy()
        self._past: dict[str, float] = {}
        self._made_at = self._began_at = self._last_report_at = self._failed_at = self._started_at = now()
        self._longest_start_s: float | None = None
        self._failures = 0
        self._has_reported = False
        self._requests = LoopRequests()
        self._saved_because = self._waiting_for = self._preparing_for = ""
        self._loss_spike = (0, "")
        self._agents: dict[str, Any] = {}
        self._evaluate = evaluate
        self._evaluating: tuple[int, Evaluation] | None = None
        self._averaged = False

    def agent_of(self, node_id: str, job: TrainJob, *, anew: bool = False) -> Any:
        """The agent of a node, started now where there is none; `anew`: the one there was has died."""
        if anew or node_id not in self._agents:
            self._agents[node_id] = self._make_agent(node_id, job)
        return self._agents[node_id]

    def agents(self) -> dict[str, Any]:
        """Handles of all agents by node; those of nodes that are gone are among them."""
        return dict(self._agents)

    def begin_group(self, step: int, nodes: Sequence[str], clock_s: float, device: str = "") -> int:
        """Rank 0, once its state is restored to `step`; `nodes` by rank; its goodput clock is `clock_s` old.

        Args:
            device: what it computes on.

        Returns:
            newest step done by any group before; what lies between is replay.
        """
        progress, now, world_size = self._progress, self._now(), len(nodes)
        progress.device = device
        for node_id in self._agents.keys() - set(nodes):  # a node that is to go waits until nothing runs on it
            self._agents.pop(node_id).free.remote()
        self._longest_start_s = max(self._longest_start_s or 0.0, now - self._started_at)
        done = max(step, progress.row.get("step", step))  # the newest word may be older than the newest snapshot
        if progress.restored_step is None:
            progress.restored_step = step
        else:
            self._past = dict(progress.goodput)
            self._scaling.restart_s = now - self._started_at  # without the wait for nodes, if there was one
            disruption, loop_at = progress.disruptions[-1], now - clock_s
            self._add("detection", max(0.0, disruption.ended_at - disruption.told_at))
            self._add("restart", max(0.0, loop_at - max(disruption.ended_at, disruption.told_at)))
            disruption.begun(step, world_size, now)
            self.log(f"step {step}: going on with {world_size} workers; {done - step} steps are done again")
        progress.phase, progress.world_size = "training", world_size
        self._began_at, self._has_reported, self._saved_because = now - clock_s, False, ""
        self._requests = self._requests._replace(pause=False)
        return int(done)

    def report(self, **changes: Any) -> LoopRequests:
        """Rank 0: fields of Progress that changed; losses are added to those before."""
        progress, now = self._progress, self._now()
        goodput = changes.pop("goodput", None)
        progress.losses = [*progress.losses, *changes.pop("losses", [])][-RECENT_STEPS:]
        self.is_evaluating()
        for name, value in changes.items():
            setattr(progress, name, value)
        if goodput is not None:
            self._last_report_at, self._has_reported = now, True
            if progress.disruptions:  # a loop does not know that it is not the first
                goodput["restart"] = goodput.get("restart", 0.0) + goodput.pop("startup", 0.0)
                for disruption in progress.disruptions:  # one may have come before the last had been got over
                    disruption.stepped(progress.row.get("step", 0), now)
            causes = self._past.keys() | goodput.keys()
            progress.goodput = {cause: self._past.get(cause, 0.0) + goodput.get(cause, 0.0) for cause in sorted(causes)}
        return self._requests

    def evaluated(self, step: int, scores: Mapping[str, Any], averaged: bool) -> None:
        """Rank 0: what an evaluation on the way has found; nothing where nothing is held out.

        Args:
            averaged: whether the weights were the average that the run keeps.
        """
        if not scores:
            return
        evaluations = self._progress.evaluations
        evaluations.append({"step": step, "at": time.time(), **scores})
        if len(evaluations) > EVALUATIONS:
            del evaluations[1:-1:2]
        loss, bits = scores["val_loss"], scores["val_bits_per_byte"]
        whose = " (averaged weights)" if averaged else ""
        bleu = f", BLEU {scores['val_bleu']:.2f}, chrF {scores['val_chrf']:.2f}" if "val_bleu" in scores else ""
        self.log(f"step {step}: held-out loss {loss:.4f}, {bits:.4f} bits per byte{bleu}{whose}")

    def evaluate_in_background(self, job: TrainJob, step: int, weights: Sequence[Any], averaged: bool) -> None:
        """Rank 0: have the one element of `weights`, a reference to those after `step`, evaluated background training."""
        assert self._evaluate is not None, "workers are told to only where it can be done"
        if self.is_evaluating():
            self.log(f"step {step}: not evaluated, the evaluation before it has not ended")
            return
        self._evaluating, self._averaged = (step, self._evaluate(job, weights[0])), averaged
        self._requests = self._requests._replace(background=False)

    def is_evaluating(self) -> bool:
        """Rank 0: whether an evaluation background training has not ended yet; one that has is told of."""
        if self._evaluating is None:
            return False
        step, evaluation = self._evaluating
        try:
            scores = evaluation.scores()
        except Exception as error:  # the node it ran on may be gone; training is not to end with it
            self.log(f"step {step}: the evaluation background training failed: {' '.join(str(error).split())[-200:]}")
            self._evaluating = None
            return False
        if scores is not None:
            self._evaluating = None
            self.evaluated(step, scores, self._averaged)
        return scores is None

    def failed(self, cause: Cause, reason: str) -> bool:
        """Controller: the worker group failed. Returns whether it is to be started again."""
        step = self._progress.row.get("step", self._progress.restored_step or 0)
        return self._decided(self._policy.decide(Failure(step, cause, reason), self._now()), cause)

    def report_loss_spike(self, step: int, reason: str, skipped_steps: set[int]) -> None:
        """Rank 0: the loss has gone report_loss_spike in `step`, and the group ends; the data of `skipped_steps` has been left out."""
        self._loss_spike = step, reason
        self._policy.skipped_steps |= skipped_steps

    def skip_spiked_step(self) -> bool:
        """Controller: the worker group ended because of what `report_loss_spike` told. Returns as `failed` does."""
        return self._decided(self._policy.decide_on_loss_spike(*self._loss_spike), "bad step")

    def skipped_steps(self) -> set[int]:
        """Any rank: steps whose data is left out."""
        return self._policy.skipped_steps

    def paused(self) -> None:
        """Controller: the worker group has kept its state and ended as it was asked to."""
        self._ended("resize")

    def start_timed_out(self) -> None:
        """Controller: the places counted on were not to be had; somebody else has them."""
        self.log("the workers did not start: somebody else has their places")

    def workers_to_start(self, free: int, total: int, ready: int, reserved_slots: int = 0) -> tuple[int, float] | None:
        """Controller: no worker runs, `free` of `total` places for them are free, `ready` have a living one already.

        Args:
            reserved_slots: see `Observation`.

        Returns:
            workers to start, and seconds after which their start is taken to hang; None: none for now.
        """
        now, progress = self._now(), self._progress
        if self.is_evaluating() and free < self._scaling.max_workers:
            assert self._evaluating is not None
            self.log(f"step {self._evaluating[0]}: its evaluation is given up, the workers need its place")
            self._evaluating = None
        # FreeCapacity that is not there may be about to be: at the beginning, tokenizing has it for a moment yet.
        is_first = progress.restored_step is None
        if is_first and free < min(total, self._scaling.max_workers) and now - self._failed_at < SETTLING_S:
            return None
        decision = self._scaling.when_idle(Observation(now, 0, free, warm_spares=ready, reserved_slots=reserved_slots))
        if isinstance(decision, Start):
            self._waiting_for, self._started_at = "", now
            if progress.phase == "waiting":
                progress.phase = "starting" if is_first else "restarting"
            self._decide(f"starting {decision.workers} workers: {decision.why}")
            return decision.workers, start_patience_s(self._longest_start_s)
        if decision.why != self._waiting_for:
            self._waiting_for = decision.why
            self._decide(f"waiting: {decision.why}")
        progress.phase = "waiting"
        return None

    def reached(self, phase: str) -> None:
        """Controller: a phase of the workers' start is over; see `Disruption.phases`."""
        if self._progress.disruptions and self._progress.phase in ("restarting", "waiting"):
            self._progress.disruptions[-1].reached(phase, self._now())

    def seen_running(
        self, workers: int, slots: int, on_draining: int, warm_spares: int, reserved_slots: int = 0
    ) -> PoolAction:
        """Controller: what it sees of the workers and of the cluster; see `GroupSize.when_running`.

        Returns:
            whether workers are to be killed as they hang, how many are to stand by, and for how many nodes should come.
        """
        progress, now = self._progress, self._now()
        row = progress.row if self._has_reported and progress.phase == "training" else {}
        silence_s = now - (self._last_report_at if row else max(self._began_at, self._started_at))
        if progress.phase in ("training", "starting", "restarting") and is_hung(silence_s, row.get("step_s")):
            return PoolAction(f"no step for {silence_s:.0f} s, and one takes {row.get('step_s', 0.0):.2f} s")
        if self._requests.pause or progress.phase != "training" or row.get("world_size") != workers:
            return PoolAction()
        left = self._steps - row["step"]
        seen = Observation(now, workers, slots, on_draining, warm_spares, row["step_s"], left, reserved_slots)
        decision, wanted = self._scaling.when_running(seen), self._scaling.wanted(seen)
        is_room = self._scaling.spare(seen) > 0
        background = self._evaluate is not None and self._evaluating is None and is_room
        self._requests = self._requests._replace(background=background)
        if isinstance(decision, Save) and decision.why != self._saved_because:
            self._saved_because = decision.why
            self._requests = self._requests._replace(saves=self._requests.saves + 1)
            self._decide(f"saving: {decision.why}")
        elif isinstance(decision, SaveThenResize):
            self._preparing_for = ""
            self._requests = self._requests._replace(pause=True, saves=self._requests.saves + decision.durably)
            self._decide(f"from {workers} workers to {decision.workers}: {decision.why}")
        elif isinstance(decision, Prepare):
            if not self._preparing_for:
                self._decide(f"preparing {decision.joining_workers} workers more while {workers} train: {decision.why}")
            self._preparing_for = decision.why
            return PoolAction(warm_spares=decision.joining_workers, wanted=wanted)
        return PoolAction(wanted=wanted)

    def saved(self, step: int, at: float) -> None:
        """A agent, or rank 0 of what it went on from: there is a checkpoint of `step`, from `at`."""
        if self._progress.saved is None or step >= self._progress.saved[0]:
            self._progress.saved = step, at

    def log(self, line: str) -> None:
        """Any rank: a line for the person watching."""
        self._progress.log_lines.append(line)

    def progress(self) -> Progress:
        """Driver: the loop's state."""
        return self._progress

    def request_stop(self) -> None:
        """Driver: save and stop at the next step."""
        self._requests = self._requests._replace(stop=True)

    def _decided(self, decision: Restart | GiveUp, cause: str) -> bool:
        if isinstance(decision, GiveUp):
            self._failed_at = self._now()
            self._progress.gave_up = decision.why
            self._decide(f"giving up: {decision.why}", tell=False)  # the error that ends the run says it
            return False
        self._ended(cause)
        self._decide(f"starting the workers again: {decision.why}")
        return True

    def _decide(self, decision: str, *, tell: bool = True) -> None:
        progress = self._progress
        step = progress.row.get("step", progress.restored_step or 0)
        progress.decisions.append({"at": time.time(), "step": step, "what": decision})
        del progress.decisions[:-DECISIONS]
        if tell:
            self.log(decision)

    def _ended(self, cause: str) -> None:
        self._failed_at = self._now()
        progress = self._progress
        if progress.restored_step is None:
            return  # the first group has not begun: all is start-up still
        progress.phase = "restarting"
        if progress.disruptions and progress.disruptions[-1].restored_step is None:
            return  # a group that failed before it had begun is part of what its start cost
        told_at = max(self._last_report_at, self._began_at)
        step = progress.row.get("step", progress.restored_step)
        if cause != "resize":
            self._failures += 1
            self._requests = self._requests._replace(
                mtbf_s=observed_mtbf_s(self._failed_at - self._made_at, self._failures)
            )
        progress.disruptions.append(Disruption(cause, step, progress.world_size, told_at, self._failed_at, time.time()))

    def _add(self, cause: str, seconds: float) -> None:
        self._past[cause] = self._past.get(cause, 0.0) + seconds
