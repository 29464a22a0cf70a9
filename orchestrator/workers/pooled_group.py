"""Ray Train's worker group, made of workers that are there already and stay when it ends."""

from __future__ import annotations

import time
from copy import copy
from typing import Any, Protocol

import ray
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState
from ray.train.v2._internal.execution.worker_group.worker import Worker
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
from ray.train.v2._internal.util import invoke_context_managers

from cluster.ray_nodes import root_cause
from orchestrator.workers.pool import DEATHS, GroupSize, StartTimeoutError, WorkerPool

START_TIMEOUT_S = 60.0
"""Seconds in which workers must be up on places that were seen to be free; after that, look again."""


class HasWorkers(Protocol):
    """What the worker group of a controller's process needs of the scaling policy there."""

    @property
    def pool(self) -> WorkerPool: ...

    @property
    def size(self) -> GroupSize: ...

    def has_lost_a_node(self) -> bool:
        """Whether a node on which the group had workers is gone, or about to be."""


in_this_process: list[HasWorkers] = []
"""In a controller's process, what it asks: its parts are pickled apart from each other, and meet here again."""


def size_here() -> HasWorkers:
    """The scaling policy of this controller's process."""
    return in_this_process[-1]


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
        size_here().size.reached("process_group")
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
        pool = size_here().pool
        try:
            members = pool.enlist(context.num_workers, START_TIMEOUT_S)
        except StartTimeoutError as error:
            raise WorkerGroupStartupTimeoutError(context.num_workers) from error
        size_here().size.reached("processes")
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
