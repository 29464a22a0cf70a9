"""Ray for the duration of one command: started when it is needed; requests nodes for workers from the start."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Self

from cluster.demand import TaskDemand
from cluster.local.ray import joins_cluster, ray_cluster
from orchestrator.config.recipe import RunConfig
from orchestrator.policy.scaling import scaling_policy


class RaySession:
    """Ray, started at most once, and ended with the block.

    A call returns when Ray runs. `begin` starts it in the background instead.

    Args:
        trains: the command will start workers; request nodes for them as soon as Ray runs.
    """

    def __init__(self, config: RunConfig, log: Callable[[str], None], *, trains: bool = False) -> None:
        self._scaling, self._log, self._trains = config.scaling, log, trains
        self._useful_workers = scaling_policy(config).most_useful_workers
        self._stack, self._lock, self._started = ExitStack(), threading.Lock(), False
        self._task_demand: TaskDemand | None = None

    def __call__(self) -> None:
        with self._lock:
            if not self._started:
                self._log("ray: starting")
                workers = self._scaling.effective_max_workers
                # CPUs of its own for tokenizing: Ray Train reserves CPUs first, and Ray Data would starve on the rest.
                num_cpus = workers * self._scaling.cpus_per_worker + (os.cpu_count() or 1)
                num_gpus = math.ceil(workers * self._scaling.gpus_per_worker) if self._scaling.on_gpu else 0
                self._stack.enter_context(ray_cluster(num_cpus, num_gpus))
                self._started = True
                if joins_cluster() and self._trains:
                    from cluster.ray_nodes import quiet_driver  # imports Ray

                    quiet_driver()  # Ray warns that tasks which wait for nodes can never be scheduled
                    self._task_demand = TaskDemand(self._scaling.per_worker)
                    self._task_demand.request(self._useful_workers)

    def begin(self) -> None:
        """Starts Ray in the background; the call that needs Ray runs into an error of this again, and raises it."""

        def start_quietly() -> None:
            with suppress(Exception):
                self()

        threading.Thread(target=start_quietly, name="start-ray", daemon=True).start()

    def workers_request_nodes(self) -> None:
        """Withdraws the request for nodes: from now on, the workers' controller requests them."""
        if self._task_demand is not None:
            self._task_demand.request(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stack.close()
