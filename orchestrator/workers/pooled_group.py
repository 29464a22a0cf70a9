"""Ray Train's worker group, formed of workers from the pool, which outlive it. Uses Ray Train internals."""

from __future__ import annotations

import time
from copy import copy
from typing import Any, NamedTuple, Protocol

import ray
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState
from ray.train.v2._internal.execution.worker_group.worker import Worker
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
from ray.train.v2._internal.util import invoke_context_managers

from cluster.ray_nodes import root_cause
from orchestrator.workers.group_size import GroupSize
from orchestrator.workers.pool import DEATHS, StartTimeoutError, WorkerPool

START_TIMEOUT_S = 60.0
"""Seconds in which workers must be up in slots that were seen to be free; after that, the controller looks again."""


class Losses(NamedTuple):
    """What was lost with a worker group.

    Attributes:
        node_lost: whether a node on which the group had workers is lost, or about to be.
        failed_on: nodes whose workers failed by themselves, not only because others did.
        nodes: all nodes of the group.
    """

    node_lost: bool = False
    failed_on: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()


class PoolOwner(Protocol):
    """What `PooledGroup` needs of the scaling policy in the controller's process."""

    @property
    def pool(self) -> WorkerPool: ...

    @property
    def size(self) -> GroupSize: ...

    def losses(self, error: BaseException) -> Losses:
        """What was lost with the group that ended by `error`."""


pool_owners: list[PoolOwner] = []
"""The scaling policies of this controller's process, newest last.

Ray Train pickles scaling policy, failure policy and worker group class separately. The last two find the first here.
"""


def current_pool_owner() -> PoolOwner:
    """The scaling policy of this controller's process."""
    return pool_owners[-1]


class PooledGroup(WorkerGroup):
    """A worker group whose members come from the pool, and return to it when the group ends."""

    def _start_impl(self, worker_group_state_builder: Any) -> None:
        context, pool = self._worker_group_context, current_pool_owner().pool
        starts: list[Any] = [callback.on_worker_group_start for callback in self._callbacks]
        with invoke_context_managers(starts):
            for callback in self._callbacks:
                callback.before_worker_group_start(context)
            try:
                workers = self._form_group(context)
                self._init_train_context(workers, _NO_ACTOR)
                self._worker_group_state = _PooledState(time.monotonic(), _NO_ACTOR, workers, _NO_ACTOR)
                with pool.joining():
                    for callback in self._callbacks:
                        callback.after_worker_group_start(self)
            except DEATHS as error:
                raise WorkerGroupStartupFailedError("A worker died while its group started.") from error
        current_pool_owner().size.report_start_phase("process_group")
        ray.get([worker.actor.run_train_fn.remote(context.train_fn_ref) for worker in workers])
        for callback in self._callbacks:
            callback.after_worker_group_training_start(self)

    def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: Any) -> None:
        """Like the original, without the controller's handle and the settings of data sets.

        No worker uses these, and unpickling them imports pandas and Ray Data, see `worker.without_ray_data`.
        """
        run = copy(self._train_run_context)
        object.__setattr__(run, "dataset_config", None)  # frozen, and dataclasses.replace would give it another id
        common = {
            "train_run_context": run,
            "synchronization_actor": sync_actor,
            "storage_context": self._storage_context,
            "worker_callbacks": self._worker_callbacks_to_propagate,
            "controller_actor": None,
        }
        initializing = []
        for rank, worker in enumerate(workers):
            own = {name: values[rank] for name, values in train_context_args.items()}
            ranks = worker.distributed_context
            initializing.append(worker.actor.init_train_context.remote(distributed_context=ranks, **common, **own))
        ray.get(initializing)
        self._decorate_worker_log_file_paths(workers)

    def _form_group(self, context: Any) -> list[Worker]:
        """The group's workers by rank, once all are ready."""
        pool = current_pool_owner().pool
        try:
            members = pool.form_group(context.num_workers, START_TIMEOUT_S)
        except StartTimeoutError as error:
            raise WorkerGroupStartupTimeoutError(context.num_workers) from error
        current_pool_owner().size.report_start_phase("processes")
        metadata_of_all = ray.get([member.metadata for member in members])
        workers = [
            Worker(member.actor, metadata, context.resources_per_worker)
            for member, metadata in zip(members, metadata_of_all, strict=True)
        ]
        self._worker_rank_to_replica_group_rank = {rank: rank for rank in range(len(workers))}
        ranked: list[Worker] = self._assign_worker_ranks(workers)
        pool.rank_by([worker.actor for worker in ranked])
        return ranked


_NO_ACTOR: Any = None
"""Takes the place of a placement group, and of the actor of a barrier that no worker uses."""


class _PooledState(WorkerGroupState):
    def shutdown(self) -> None:
        """Does nothing: the workers stay in the pool."""


def timed_out_starting(error: BaseException) -> bool:
    """Whether a worker group did not start because its slots were occupied."""
    return root_cause(error, WorkerGroupStartupTimeoutError) is not None
