"""Every use of Ray Train that is not public API, in one place: its controller, with policies and workers of our own.

`tests/orchestrator/workers/test_ray_train.py` holds Ray to it by name. Checked against Ray 2.60.0.

Workers are actors of the controller's own, tied to nodes and kept from group to group (`orchestrator.workers.pool`).
They are in no placement group, and end with a controller that dies. What then is left of placement groups that wait for
nodes (`orchestrator.nodes.requests`) is removed by `cluster.demand.remove_placement_groups`.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, NoopDecision, ResizeDecision
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.ray_nodes import FreeCapacity, find_free_capacity
from orchestrator.nodes.requests import NodeRequests
from orchestrator.workers.pool import GroupSize, WorkerPool, WorkersHung
from orchestrator.workers.pooled_group import PooledGroup, in_this_process, size_here

IDLE_POLL_INTERVAL_S = 0.25
"""Seconds between two looks at a cluster that has too little capacity."""

HOLD_S = (5.0, 15.0)
"""Seconds, drawn between these, for which workers that are too few to begin keep their places."""

NODE_ID_SHOWN = 12
"""Characters of a node's id that tell it from the others."""

FREED_S = 3.0
"""Seconds after which the cluster knows that the places of workers that died are free."""

_logger = logging.getLogger(__name__)


class WorkerGroupTrainer(DataParallelTrainer):
    """Ray Train V2's trainer with neither a framework nor data sets; takes what `TorchTrainer` takes, and more.

    The public one, TorchTrainer, imports torch in driver and controller. Its callback for data sets starts an actor and
    imports Ray Data in every worker, also where there are none: seconds and megabytes, for a run with its own feeder.

    Args:
        own_cluster: the cluster ends with this process: nobody else is there, and no nodes come.
        wait: how the workers have nodes come for them.
        retry: asked whether a worker group that failed with this error is started again; its second argument is
            whether a node with workers has gone. Picklable, since the controller asks it in its own process.
        size: asked how many workers there are to be; picklable likewise.
        prepare: see `WorkerPool`.
        tokenizes: asked whether a CPU beside the workers is needed to tokenize with; picklable likewise.
    """

    def __init__(
        self,
        *args: Any,
        own_cluster: bool,
        wait: NodeRequests,
        retry: Callable[[BaseException, bool], bool],
        size: GroupSize,
        prepare: Callable[[], None],
        tokenizes: Callable[[], bool],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._asked = AskedSize(self.scaling_config, size, prepare, own_cluster, wait, tokenizes)
        self._retry = retry

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        controller["scaling_policy"] = self._asked
        controller["failure_policy"] = AskedPolicy(controller["failure_policy"].failure_config, self._retry)
        return super()._initialize_and_run_controller(**controller)


class AskedPolicy(FailurePolicy):
    """What Ray Train's controller asks when a worker group fails."""

    def __init__(self, failure_config: Any, retry: Callable[[BaseException, bool], bool]) -> None:
        super().__init__(failure_config)
        self._retry = retry

    def make_decision(self, training_failed_error: BaseException) -> FailureDecision:
        """Ask `retry`."""
        node_gone = size_here().has_lost_a_node()
        return FailureDecision.RETRY if self._retry(training_failed_error, node_gone) else FailureDecision.RAISE


class AskedSize(FixedScalingPolicy):
    """What Ray Train's controller asks for a number of workers; it has them ready, too."""

    def __init__(
        self,
        scaling_config: Any,
        size: GroupSize,
        prepare: Callable[[], None],
        own_cluster: bool,
        wait: NodeRequests,
        tokenizes: Callable[[], bool],
    ) -> None:
        super().__init__(scaling_config)
        self.size, self._own_cluster, self._wait, self._tokenizes = size, own_cluster, wait, tokenizes
        self._holds_since: float | None = None
        self._patience_s = random.uniform(*HOLD_S)
        self._per_worker = scaling_config._resources_per_worker_not_none
        self.pool = WorkerPool(self._per_worker, prepare)
        self._lost, self._lost_at = Counter[str](), 0.0
        self._seen: FreeCapacity | None = None
        self._watch: threading.Timer | None = None

    def after_controller_start(self, train_run_context: Any) -> None:
        """In the controller's process: its worker groups have their workers from the pool from now on."""
        TrainController.worker_group_cls = PooledGroup
        in_this_process.append(self)
        if not self._own_cluster:  # tells Ray's coordinator of the workers' places; none yet
            super().after_controller_start(train_run_context)

    async def before_controller_shutdown(self) -> None:
        """The run is over."""
        self._end()
        await super().before_controller_shutdown()  # type: ignore[no-untyped-call]

    def before_controller_abort(self) -> None:
        """The run is over, too."""
        self._end()
        super().before_controller_abort()  # type: ignore[no-untyped-call]

    def has_lost_a_node(self) -> bool:
        """Whether a node on which the group had workers is gone, or about to be."""
        self._seen = self._capacity(probe=True)
        return bool(self.pool.group_nodes().keys() - self._seen.total.keys())

    def make_decision_for_non_running_worker_group(self) -> NoopDecision | ResizeDecision:
        """Settle what is left of the last group, and ask for the size of the next."""
        self._stop_watching()
        if self._wait.release():
            time.sleep(IDLE_POLL_INTERVAL_S)
            return NoopDecision()
        capacity, self._seen = self._seen or self._capacity(probe=True), None
        self.pool.keep(capacity.total)  # first: who is on a node that is gone would be waited for
        lost = self.pool.leave_group()
        if lost or time.monotonic() - self._lost_at > FREED_S:
            self._lost, self._lost_at = lost, time.monotonic()
        self.size.reached("teardown")
        have = self.pool.nodes()
        # What the dead had is free, though the cluster may not know yet.
        slots = {
            node: min(total, capacity.free[node] + have[node] + self._lost[node])
            for node, total in capacity.total.items()
        }
        reserved_slots = self._reserved_slots(capacity)
        decision = self.size.when_idle(
            sum(slots.values()), sum(capacity.total.values()), self.pool.ready(), reserved_slots
        )
        if decision is None:
            self._wait.for_start(sum(slots.values()), sum(have.values()), reserved_slots)
            self._hold_no_longer()
            time.sleep(IDLE_POLL_INTERVAL_S)  # the controller asks again at once
            return NoopDecision()
        self._holds_since = None
        self._wait.is_over()
        workers, patience_s = decision
        self.pool.fill(workers, slots)
        self.size.reached("placement")
        # The controller waits for a group that starts, however long, and asks nothing meanwhile.
        self._watch = threading.Timer(patience_s, self.pool.end, [f"They have not started in {patience_s:.0f} s"])
        self._watch.daemon = True
        self._watch.start()
        return ResizeDecision(num_workers=workers, resources_per_worker=self._per_worker)

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> NoopDecision:
        """Tell what is seen, and do what is wished for.

        Raises:
            WorkersHung: workers did, and have been killed.
        """
        self._stop_watching()
        self._lost.clear()
        capacity = self._capacity()
        warm_spares = self.pool.warm_spares(capacity.total)
        have = self.pool.nodes()
        slots = {node: capacity.free[node] + have[node] for node in capacity.total}
        on_draining = sum(count for node, count in self.pool.group_nodes().items() if node in capacity.draining)
        ready = sum(member.is_ready() for member in warm_spares)
        reserved_slots = self._reserved_slots(capacity)
        action = self.size.when_running(self.pool.in_group, sum(slots.values()), on_draining, ready, reserved_slots)
        if action.hung:
            where = ", ".join(f"rank {rank} on node {node[:NODE_ID_SHOWN]}" for rank, node in self.pool.kill_silent())
            raise WorkersHung(f"{action.hung}; killed: {where}")
        if action.warm_spares > len(warm_spares):
            self.pool.fill(self.pool.in_group + action.warm_spares, slots)
        if action.wanted is not None:
            held = sum(have[node] for node in capacity.total)
            self._wait.for_running(action.wanted, sum(slots.values()), held, reserved_slots)
        return NoopDecision()

    def _reserved_slots(self, capacity: FreeCapacity) -> int:
        return int(not capacity.beside and self._tokenizes())

    def _hold_no_longer(self) -> None:
        """Let workers go that have waited for others for long: two runs that each hold what the other needs would wait
        for ever. One of them is the first to give in, as their patience differs."""
        now = time.monotonic()
        if not self.pool.nodes():
            self._holds_since = None
        elif self._holds_since is None:
            self._holds_since = now
        elif now - self._holds_since >= self._patience_s:
            self.pool.keep(())
            self._holds_since, self._patience_s = None, random.uniform(*HOLD_S)

    def _get_num_workers_for_resource_request(self) -> int:
        # Only places that workers have: a request for more than there may be keeps nodes from all, see cluster.demand.
        return sum(self.pool.nodes().values())

    def _maybe_send_resource_request(self) -> None:
        if not self._own_cluster:
            super()._maybe_send_resource_request()  # type: ignore[no-untyped-call]

    def _capacity(self, *, probe: bool = False) -> FreeCapacity:
        try:
            self._maybe_send_resource_request()
            return find_free_capacity(self._per_worker, probe=probe)
        except Exception as error:  # the controller does not survive one; what is not seen now is seen later
            _logger.warning("The cluster's state is not to be had: %s", error)
            return FreeCapacity(Counter(), self.pool.nodes(), frozenset(), beside=1)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def _end(self) -> None:
        self._stop_watching()
        self._wait.end()
        self.pool.end()
