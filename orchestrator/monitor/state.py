"""The state of the monitor, which its three interfaces share: for the loop, the controller and the driver."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray import cloudpickle

from orchestrator.monitor.evaluations import Evaluations, StartEvaluation
from orchestrator.monitor.outages import Outages
from orchestrator.policy.failure import FailurePolicy
from orchestrator.policy.hang import HangPolicy
from orchestrator.policy.scaling import ScalingPolicy
from orchestrator.run.job import TrainJob
from orchestrator.run.progress import LoopRequests, Progress

StartAgent = Callable[[str, TrainJob], Any]
"""Starts the `SnapshotAgent` of a node, given the node's id and the job; returns its handle."""

EndAgent = Callable[[str, Any], object]
"""Ends it, given the node's id and the handle."""


_NOT_KEPT = (
    *("now", "start_agent", "end_agent", "start_evaluation", "keep"),
    *("agents", "leaving", "evaluations", "outages"),
)
"""Attributes that a restarted monitor makes anew; the actors among them end with the process that started them."""


class MonitorState:
    """What the monitor knows of the run. Times are seconds of the monotonic clock `now`.

    Attributes:
        progress: the run's state as the driver reads it.
        requests: requests to the loop, which reads them with every report.
        scaling, failures, hangs: the policies.
        steps: length of the run.
        keep: keeps the state now, see `kept_state`; calls that are marked as `not_kept` need it.
        agents: handles of the snapshot agents by node.
        group_nodes: nodes of the newest group.
        job: what agents are started with, pickled; None before the first.
        evaluations: scores so far, and the evaluation that runs in the background.
        made_at: when the monitor started.
        group_began_at: when the running group's goodput clock started.
        start_began_at: when the newest start of workers was decided.
        last_report_at: when the loop last reported its goodput.
        failed_at: when the newest end of a worker group became known.
        longest_start_s: longest time from the decision to start workers to their restored state; None before any.
        past_goodput: goodput by cause of all groups before the running one.
        has_reported: whether the running group has reported its goodput.
        failure_count: ends of groups that were not planned.
        base: state.json of the checkpoint that snapshots continue from; None before the first group.
        checkpoint_at: when this attempt's newest checkpoint was saved; before the first, when the attempt began.
        leaving: agents of nodes without workers, each with its last call, by node: they end once nothing of theirs is
            uploaded.
        outages: of the stores.
        loss_spike: step and description of the newest loss spike.
        wait_reason, save_reason, prepare_reason: the newest logged reason to wait, save or prepare, to log each once.
    """

    def __init__(
        self,
        scaling: ScalingPolicy,
        steps: int,
        start_agent: StartAgent,
        start_evaluation: StartEvaluation | None,
        now: Callable[[], float],
        end_agent: EndAgent | None = None,
    ) -> None:
        self.end_agent = end_agent or (lambda node, agent: None)
        self.now, self.scaling, self.steps = now, scaling, steps
        self.start_agent, self.start_evaluation = start_agent, start_evaluation
        self.keep: Callable[[], object] = lambda: None
        self.progress, self.requests, self.failures = Progress(), LoopRequests(), FailurePolicy()
        self.hangs = HangPolicy()
        self.agents: dict[str, Any] = {}
        self.group_nodes = frozenset[str]()
        self.evaluations = Evaluations(self.progress.evaluations, self.log, start_evaluation)
        self.made_at = self.group_began_at = self.start_began_at = self.last_report_at = self.failed_at = now()
        self.checkpoint_at = self.made_at
        self.base: dict[str, Any] | None = None
        self.job: bytes | None = None
        self.leaving: dict[str, tuple[Any, Any]] = {}
        self.outages = Outages(self.progress.outages, self.log)
        self.longest_start_s: float | None = None
        self.past_goodput: dict[str, float] = {}
        self.has_reported = False
        self.failure_count = 0
        self.loss_spike = (0, "")
        self.wait_reason = self.save_reason = self.prepare_reason = ""

    @property
    def newest_step(self) -> int:
        """Newest step that any group completed, or the one that the first group was restored to."""
        return int(self.progress.row.get("step", self.progress.restored_step or 0))

    def log(self, line: str) -> None:
        """Adds a line to the driver's console."""
        self.progress.log(line)

    def kept(self) -> dict[str, Any]:
        """What outlives the monitor's process; see `restore`."""
        fields = {name: value for name, value in vars(self).items() if name not in _NOT_KEPT}
        return fields | {"nodes": (*self.agents, *self.leaving), "evaluating": self.evaluations.running_step}

    def restore(self, kept: dict[str, Any]) -> None:
        """Takes over what the process before kept, and starts the agents again, which ended with it."""
        nodes, evaluating = kept.pop("nodes"), kept.pop("evaluating")
        vars(self).update(kept)
        self.evaluations = Evaluations(self.progress.evaluations, self.log, self.start_evaluation)
        self.outages = Outages(self.progress.outages, self.log)
        self.log("the monitor died, and has been started again where it was")
        if evaluating is not None:
            self.log(f"step {evaluating}: the background evaluation was lost with it")
        if self.job is not None:
            job = cloudpickle.loads(self.job)
            self.agents = {node: self.start_agent(node, job) for node in nodes}

    def free_agents(self) -> None:
        """Ends the agents of nodes where no worker is: an autoscaler removes a node only when nothing runs on it."""
        for node_id in self.agents.keys() - self.group_nodes - self.hangs.nodes(self.now()):
            agent = self.agents.pop(node_id)
            self.leaving[node_id] = agent.free.remote(), agent
        self.forget_agents_that_left()

    def forget_agents_that_left(self) -> None:
        """Drops the handles of agents whose last call has ended; the last handle ends the process."""
        for node, (call, agent) in list(self.leaving.items()):
            if ray.wait([call], timeout=0)[0]:
                self.end_agent(node, agent)
                del self.leaving[node]

    def end_agents(self) -> None:
        """Ends all agents."""
        for node, agent in (*self.agents.items(), *((node, agent) for node, (_, agent) in self.leaving.items())):
            self.end_agent(node, agent)

    def request(self, **changes: Any) -> None:
        """Changes fields of `requests`."""
        self.requests = self.requests._replace(**changes)

    def record_decision(self, decision: str, *, log: bool = True) -> None:
        """Adds a decision to the run's record, and by default to the console."""
        self.progress.add_decision({"at": time.time(), "step": self.newest_step, "what": decision})
        if log:
            self.log(decision)


class MonitorInterface:
    """Base of the monitor's interfaces: methods of the actor, over one shared state."""

    def __init__(self, state: MonitorState) -> None:
        self._state = state
