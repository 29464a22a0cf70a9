"""Every use of Ray Train that is not public API, in one place: its controller, with policies and workers of our own.

`tests/orchestrator/test_ray_train_internals.py` holds Ray to it by name. Checked against Ray 2.60.0.

Workers are actors of the controller's own, tied to nodes and kept from group to group (`orchestrator.worker_pool`).
They are in no placement group, and end with a controller that dies. What then is left of placement groups that wait for
nodes (`orchestrator.node_wait`) is removed by `cluster.demand.remove_gangs`.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from copy import copy
from typing import Any

import ray
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, NoopDecision, ResizeDecision
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState
from ray.train.v2._internal.execution.worker_group.worker import Worker
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
from ray.train.v2._internal.util import invoke_context_managers
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from data.ray_internals import Room, look_for_room, root_cause
from orchestrator.node_wait import NodeWait
from orchestrator.worker_pool import DEATHS, GroupSize, StartTimeoutError, WorkerPool, WorkersHung

IDLE_LOOK_S = 0.25
"""Seconds between two looks at a cluster that has too little room."""

START_TIMEOUT_S = 60.0
"""Seconds in which workers must be up on places that were seen to be free; after that, look again."""

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
        wait: NodeWait,
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
        node_gone = _size_here().has_lost_a_node()
        return FailureDecision.RETRY if self._retry(training_failed_error, node_gone) else FailureDecision.RAISE


class AskedSize(FixedScalingPolicy):
    """What Ray Train's controller asks for a number of workers; it has them ready, too."""

    def __init__(
        self,
        scaling_config: Any,
        size: GroupSize,
        prepare: Callable[[], None],
        own_cluster: bool,
        wait: NodeWait,
        tokenizes: Callable[[], bool],
    ) -> None:
        super().__init__(scaling_config)
        self.size, self._own_cluster, self._wait, self._tokenizes = size, own_cluster, wait, tokenizes
        self._holds_since: float | None = None
        self._patience_s = random.uniform(*HOLD_S)
        self._per_worker = scaling_config._resources_per_worker_not_none
        self.pool = WorkerPool(self._per_worker, prepare)
        self._lost, self._lost_at = Counter[str](), 0.0
        self._seen: Room | None = None
        self._watch: threading.Timer | None = None

    def after_controller_start(self, train_run_context: Any) -> None:
        """In the controller's process: its worker groups have their workers from the pool from now on."""
        TrainController.worker_group_cls = PooledGroup
        _here.append(self)
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
        self._seen = self._room(probe=True)
        return bool(self.pool.group_nodes().keys() - self._seen.total.keys())

    def make_decision_for_non_running_worker_group(self) -> NoopDecision | ResizeDecision:
        """Settle what is left of the last group, and ask for the size of the next."""
        self._stop_watching()
        if self._wait.let_go():
            time.sleep(IDLE_LOOK_S)
            return NoopDecision()
        room, self._seen = self._seen or self._room(probe=True), None
        self.pool.keep(room.total)  # first: who is on a node that is gone would be waited for
        lost = self.pool.leave_group()
        if lost or time.monotonic() - self._lost_at > FREED_S:
            self._lost, self._lost_at = lost, time.monotonic()
        self.size.reached("teardown")
        have = self.pool.nodes()
        # What the dead had is free, though the cluster may not know yet.
        seats = {
            node: min(total, room.free[node] + have[node] + self._lost[node]) for node, total in room.total.items()
        }
        kept_free = self._kept_free(room)
        decision = self.size.when_idle(sum(seats.values()), sum(room.total.values()), self.pool.ready(), kept_free)
        if decision is None:
            self._wait.for_start(sum(seats.values()), sum(have.values()), kept_free)
            self._hold_no_longer()
            time.sleep(IDLE_LOOK_S)  # the controller asks again at once
            return NoopDecision()
        self._holds_since = None
        self._wait.is_over()
        workers, patience_s = decision
        self.pool.fill(workers, seats)
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
        room = self._room()
        standing_by = self.pool.standing_by(room.total)
        have = self.pool.nodes()
        seats = {node: room.free[node] + have[node] for node in room.total}
        on_draining = sum(count for node, count in self.pool.group_nodes().items() if node in room.draining)
        ready = sum(member.is_ready() for member in standing_by)
        kept_free = self._kept_free(room)
        wish = self.size.when_running(self.pool.in_group, sum(seats.values()), on_draining, ready, kept_free)
        if wish.hung:
            where = ", ".join(f"rank {rank} on node {node[:NODE_ID_SHOWN]}" for rank, node in self.pool.kill_silent())
            raise WorkersHung(f"{wish.hung}; killed: {where}")
        if wish.stand_by > len(standing_by):
            self.pool.fill(self.pool.in_group + wish.stand_by, seats)
        if wish.wanted is not None:
            held = sum(have[node] for node in room.total)
            self._wait.for_running(wish.wanted, sum(seats.values()), held, kept_free)
        return NoopDecision()

    def _kept_free(self, room: Room) -> int:
        return int(not room.beside and self._tokenizes())

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

    def _room(self, *, probe: bool = False) -> Room:
        try:
            self._maybe_send_resource_request()
            return look_for_room(self._per_worker, probe=probe)
        except Exception as error:  # the controller does not survive one; what is not seen now is seen later
            _logger.warning("The cluster's state is not to be had: %s", error)
            return Room(Counter(), self.pool.nodes(), frozenset(), beside=1)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def _end(self) -> None:
        self._stop_watching()
        self._wait.end()
        self.pool.end()


_here: list[AskedSize] = []
"""In a controller's process, what it asks: its parts are pickled apart from each other, and meet here again."""


def _size_here() -> AskedSize:
    return _here[-1]


class PooledGroup(WorkerGroup):
    """A worker group of workers that are there already, and stay when it ends."""

    def _start_impl(self, worker_group_state_builder: Any) -> None:
        context, nobody = self._worker_group_context, _NOBODY
        starts: list[Any] = [callback.on_worker_group_start for callback in self._callbacks]
        with invoke_context_managers(starts):
            for callback in self._callbacks:
                callback.before_worker_group_start(context)
            try:
                workers = self._enlisted(context)
                self._init_train_context(workers, nobody)
                self._worker_group_state = _KeptState(time.monotonic(), nobody, workers, nobody)
                for callback in self._callbacks:
                    callback.after_worker_group_start(self)
            except DEATHS as error:
                raise WorkerGroupStartupFailedError("A worker died while its group started.") from error
        _size_here().size.reached("process_group")
        ray.get([worker.actor.run_train_fn.remote(context.train_fn_ref) for worker in workers])
        for callback in self._callbacks:
            callback.after_worker_group_training_start(self)

    def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: Any) -> None:
        """As the original, without the controller's handle and the settings of data sets.

        Nobody asks for them, and reading them takes pandas and Ray Data, see `training_worker.without_ray_data`.
        """
        run = copy(self._train_run_context)
        object.__setattr__(run, "dataset_config", None)  # it is frozen, and a replaced one would have another id
        same = {
            "train_run_context": run,
            "synchronization_actor": sync_actor,
            "storage_context": self._storage_context,
            "worker_callbacks": self._worker_callbacks_to_propagate,
            "controller_actor": None,
        }
        initializing = []
        for rank, worker in enumerate(workers):
            its = {name: values[rank] for name, values in train_context_args.items()}
            place = worker.distributed_context
            initializing.append(worker.actor.init_train_context.remote(distributed_context=place, **same, **its))
        ray.get(initializing)
        self._decorate_worker_log_file_paths(workers)

    def _enlisted(self, context: Any) -> list[Worker]:
        pool = _size_here().pool
        try:
            members = pool.enlist(context.num_workers, START_TIMEOUT_S)
        except StartTimeoutError as error:
            raise WorkerGroupStartupTimeoutError(context.num_workers) from error
        _size_here().size.reached("processes")
        found = ray.get([member.metadata for member in members])
        workers = [
            Worker(member.actor, metadata, context.resources_per_worker)
            for member, metadata in zip(members, found, strict=True)
        ]
        self._worker_rank_to_replica_group_rank = {rank: rank for rank in range(len(workers))}
        ranked: list[Worker] = self._assign_worker_ranks(workers)
        pool.rank_by([worker.actor for worker in ranked])
        return ranked


_NOBODY: Any = None
"""In place of a placement group, and of an actor for a barrier that nobody comes to."""


class _KeptState(WorkerGroupState):
    def shutdown(self) -> None:
        """The workers stay."""


def timed_out_starting(error: BaseException) -> bool:
    """Whether a worker group was not started because its places were not to be had."""
    return root_cause(error, WorkerGroupStartupTimeoutError) is not None
