"""Ray Train's controller with our own scaling policy, failure policy and workers.

With `pooled_group` and `worker` beside it, and `cluster.ray_nodes.address_and_port`, this is every use of Ray Train
that is not public API. `tests/orchestrator/workers/test_ray_train.py` checks Ray for it; checked against 2.60.0.

Workers are actors that the controller owns, tied to nodes and kept from group to group (`orchestrator.workers.pool`).
They are in no placement group, and end with a controller that dies. Placement groups that wait for nodes
(`orchestrator.nodes.requests`) outlive it; `cluster.demand.remove_placement_groups` removes them.
"""

from __future__ import annotations

import asyncio
import logging
import random
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

from cluster.ray_nodes import FreeCapacity, find_free_capacity, root_cause
from orchestrator.nodes.requests import NodeRequests
from orchestrator.nodes.starting import StartingNodes
from orchestrator.policy.scaling import Observation
from orchestrator.workers.beacon import SendBeat
from orchestrator.workers.failure_causes import failed_ranks
from orchestrator.workers.group_size import GroupSize
from orchestrator.workers.pool import WorkerPool, WorkersHung
from orchestrator.workers.pooled_group import Losses, PooledGroup, current_pool_owner, pool_owners
from orchestrator.workers.start_watch import StartWatch
from orchestrator.workers.warm import WarmWorkers

IDLE_POLL_INTERVAL_S = 0.25
"""Seconds between two polls of a cluster that has too little capacity."""

HOLD_S = (5.0, 15.0)
"""Bounds of the random number of seconds for which workers that are too few to start keep their slots."""

FREED_S = 3.0
"""Seconds after which the cluster's state shows the slots of dead workers as free."""

_logger = logging.getLogger(__name__)


class WorkerGroupTrainer(DataParallelTrainer):
    """Ray Train V2's trainer without a framework or data sets; takes the arguments of `TorchTrainer`, and those below.

    The public TorchTrainer imports torch in driver and controller. Its callback for data sets starts an actor and
    imports Ray Data in every worker, even without data sets: seconds and megabytes, for a run with a feeder of its own.

    The hooks are called in the controller's process, so they must be picklable.

    Args:
        own_cluster: the cluster ends with this process: no one else uses it, and it does not grow.
        node_requests: requests nodes for the workers.
        retry: hook; given the error of a worker group and what was lost with it, whether to restart it.
        size: hook; decides how many workers there are.
        prepare, send: see `WorkerPool`.
        tokenizes: hook; whether a CPU beside the workers is needed for tokenizing.
        warm: where workers wait between two runs of this process, in which the controller then runs, too; None: the
            controller is an actor, whose workers end with it.
    """

    def __init__(
        self,
        *args: Any,
        own_cluster: bool,
        node_requests: NodeRequests,
        retry: Callable[[BaseException, Losses], bool],
        size: GroupSize,
        prepare: Callable[[], None],
        send: SendBeat,
        tokenizes: Callable[[], bool],
        warm: WarmWorkers | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._scaling = PoolScalingPolicy(
            self.scaling_config, size, prepare, send, own_cluster, node_requests, tokenizes, warm
        )
        self._retry, self._is_here = retry, warm is not None

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        controller["scaling_policy"] = self._scaling
        controller["failure_policy"] = RetryHookPolicy(controller["failure_policy"].failure_config, self._retry)
        if not self._is_here:
            return super()._initialize_and_run_controller(**controller)
        here = TrainController(**controller)
        try:
            asyncio.run(here.run())  # type: ignore[no-untyped-call]
            return here.get_result()
        finally:
            self._scaling.end()  # where the controller could not


class RetryHookPolicy(FailurePolicy):
    """Failure policy that leaves the decision to the `retry` hook."""

    def __init__(self, failure_config: Any, retry: Callable[[BaseException, Losses], bool]) -> None:
        super().__init__(failure_config)
        self._retry = retry

    def make_decision(self, training_failed_error: BaseException) -> FailureDecision:
        """Decides whether the worker group is started again after this error."""
        error, owner = training_failed_error, current_pool_owner()
        if (hung := owner.pool.pop_hung()) and root_cause(error, WorkersHung) is None:  # killed while they started
            error = WorkersHung(hung)
            error.__cause__ = training_failed_error
        return FailureDecision.RETRY if self._retry(error, owner.losses(error)) else FailureDecision.RAISE


class PoolScalingPolicy(FixedScalingPolicy):
    """Scaling policy that leaves the number of workers to the `size` hook, and keeps the worker pool at that size."""

    def __init__(
        self,
        scaling_config: Any,
        size: GroupSize,
        prepare: Callable[[], None],
        send: SendBeat,
        own_cluster: bool,
        node_requests: NodeRequests,
        tokenizes: Callable[[], bool],
        warm: WarmWorkers | None,
    ) -> None:
        super().__init__(scaling_config)
        self.size, self._own_cluster = size, own_cluster
        self._node_requests, self._tokenizes = node_requests, tokenizes
        self._holding_since: float | None = None
        self._hold_s = random.uniform(*HOLD_S)
        self._per_worker = scaling_config._resources_per_worker_not_none
        self._warm = warm
        make = WorkerPool if warm is None else warm.take
        self.pool = make(self._per_worker, prepare, send, scaling_config.num_workers)
        self._starting = StartingNodes(self._per_worker)
        self._lost, self._lost_at = Counter[str](), 0.0
        self._probed: FreeCapacity | None = None
        self._start_watch: StartWatch | None = None
        self._has_ended = False

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called in the controller's process: makes its worker groups take their workers from the pool."""
        TrainController.worker_group_cls = PooledGroup
        pool_owners.append(self)
        if not self._own_cluster:  # registers with Ray's autoscaling coordinator
            super().after_controller_start(train_run_context)

    async def before_controller_shutdown(self) -> None:
        """Ends the pool after a run that ended by itself."""
        self.end()
        await super().before_controller_shutdown()  # type: ignore[no-untyped-call]

    def before_controller_abort(self) -> None:
        """Ends the pool after a run that was aborted."""
        self.end()
        super().before_controller_abort()  # type: ignore[no-untyped-call]

    def losses(self, error: BaseException) -> Losses:
        """What was lost with the group that ended by `error`."""
        self._probed = self._capacity(probe=True)
        nodes = self.pool.group_nodes().keys()
        failed_on = self.pool.failed_on | self.pool.nodes_of(failed_ranks(error))
        return Losses(bool(nodes - self._probed.total.keys()), frozenset(failed_on), frozenset(nodes))

    def make_decision_for_non_running_worker_group(self) -> NoopDecision | ResizeDecision:
        """Takes the workers out of their last group, and starts the next group if the hook says so."""
        self._stop_watch()
        if self._node_requests.release():
            time.sleep(IDLE_POLL_INTERVAL_S)
            return NoopDecision()
        capacity, self._probed = self._probed or self._capacity(probe=True), None
        self.pool.keep(capacity.total)  # first: leave_group would wait for workers on lost nodes
        lost = self.pool.leave_group()
        if lost or time.monotonic() - self._lost_at > FREED_S:
            self._lost, self._lost_at = lost, time.monotonic()
        self.size.report_start_phase("teardown")
        have = self.pool.nodes()
        # Slots of dead workers are free, though the cluster's state may not show it yet.
        slots = {
            node: min(total, capacity.free[node] + have[node] + self._lost[node])
            for node, total in capacity.total.items()
        }
        seen = Observation(
            workers=0,
            slots=sum(slots.values()),
            total_slots=sum(capacity.total.values()),
            warm_spares=self.pool.ready(),
            reserved_slots=self._reserved_slots(capacity),
        )
        start = self.size.when_idle(seen)
        if start is None:
            self._node_requests.for_start(seen.slots, sum(have.values()), seen.reserved_slots)
            self._release_held_slots()
            time.sleep(IDLE_POLL_INTERVAL_S)  # the controller calls again at once
            return NoopDecision()
        self._holding_since = None
        self._node_requests.end_start()
        self.pool.fill(start.workers, slots, start.avoid)
        self.size.report_start_phase("placement")
        self._start_watch = StartWatch(self.pool, self.size, start)
        self._start_watch.start()
        return ResizeDecision(num_workers=start.workers, resources_per_worker=self._per_worker)

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> NoopDecision:
        """Passes an observation to the hook, and does what its answer says; a resize begins with the end of the group.

        Raises:
            WorkersHung: workers hung, and have been killed.
        """
        self._stop_watch()
        self._lost.clear()
        capacity = self._capacity()
        warm_spares = self.pool.warm_spares(capacity.total)
        have = self.pool.nodes()
        slots = {node: capacity.free[node] + have[node] for node in capacity.total}
        could_grow = not self._own_cluster and sum(slots.values()) > self.pool.group_size
        seen = Observation(
            workers=self.pool.group_size,
            slots=sum(slots.values()),
            total_slots=sum(capacity.total.values()),
            on_draining=sum(count for node, count in self.pool.group_nodes().items() if node in capacity.draining),
            warm_spares=sum(member.is_ready() for member in warm_spares),
            reserved_slots=self._reserved_slots(capacity),
            starting_slots=self._starting.slots() if could_grow else 0,
            members=self.pool.names(),
        )
        action = self.size.when_running(seen)
        if action.hung is not None and (killed := self.pool.kill(action.hung)):
            raise WorkersHung(killed)
        if action.warm_spares > len(warm_spares):
            self.pool.fill(self.pool.group_size + action.warm_spares, slots, action.avoid)
        if action.wanted is not None:
            held = sum(have[node] for node in capacity.total)
            self._node_requests.for_running(action.wanted, seen.slots, held, seen.reserved_slots)
        return NoopDecision()

    def _reserved_slots(self, capacity: FreeCapacity) -> int:
        """One slot for tokenizing, where it needs a CPU and there is none beside the slots."""
        return int(not capacity.spare_cpus and self._tokenizes())

    def _release_held_slots(self) -> None:
        """Kills workers that have waited long for the others of their group.

        Two runs that each hold slots which the other needs would wait forever. The waits are random, so one gives up
        first.
        """
        now = time.monotonic()
        if not self.pool.nodes():
            self._holding_since = None
        elif self._holding_since is None:
            self._holding_since = now
        elif now - self._holding_since >= self._hold_s:
            self.pool.keep(())
            self._holding_since, self._hold_s = None, random.uniform(*HOLD_S)

    def _get_num_workers_for_resource_request(self) -> int:
        # Slots of live workers only: a request beyond the cluster's limits gets no nodes at all, see cluster.demand.
        return sum(self.pool.nodes().values())

    def _maybe_send_resource_request(self) -> None:
        if not self._own_cluster:
            super()._maybe_send_resource_request()  # type: ignore[no-untyped-call]

    def _capacity(self, *, probe: bool = False) -> FreeCapacity:
        try:
            self._maybe_send_resource_request()
            return find_free_capacity(self._per_worker, probe=probe)
        except Exception as error:  # the controller would not survive it, and the next call may succeed
            _logger.warning("The cluster's state cannot be read: %s", error)
            return FreeCapacity(Counter(), self.pool.nodes(), frozenset(), spare_cpus=1)

    def _stop_watch(self) -> None:
        if self._start_watch is not None:
            self._start_watch.stop()

    def end(self) -> None:
        """Ends the workers, or lets them wait for the next run of this process. Further calls do nothing."""
        if self._has_ended:
            return
        self._has_ended = True
        self._stop_watch()
        self._node_requests.end()
        if self._warm is None:
            self.pool.end()
        else:
            self._warm.keep(self._per_worker, self.pool)
