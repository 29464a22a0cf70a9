"""Ray for one command: started when it is needed, ended with it; nodes are requested as soon as workers will be."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Self

from cluster.demand import TaskDemand
from cluster.local.ray import joins_cluster, ray_cluster
from orchestrator.config.recipe import RunConfig
from orchestrator.policy.scaling import scaling_policy


class RayWhenNeeded:
    """Ray, started at most once and ended with the block.

    Called, it returns when Ray runs. `begin` only sets out, so that other things can be waited for meanwhile.

    Args:
        trains: workers will be started, and may have nodes come for them from the beginning.
    """

    def __init__(self, config: RunConfig, tell: Callable[[str], None], *, trains: bool = False) -> None:
        self._scaling, self._tell, self._trains = config.scaling, tell, trains
        self._of_use = scaling_policy(config).most_useful_workers
        self._stack, self._lock, self._started = ExitStack(), threading.Lock(), False
        self._ended = threading.Event()
        self._task_demand: TaskDemand | None = None

    def __call__(self) -> None:
        with self._lock:
            if not self._started:
                self._tell("ray: starting")
                workers = self._scaling.effective_max_workers
                # Tokenizing gets CPUs of its own: Ray Train reserves first, and Ray Data would starve on what is left.
                num_cpus = workers * self._scaling.cpus_per_worker + (os.cpu_count() or 1)
                num_gpus = workers * self._scaling.gpus_per_worker if self._scaling.on_gpu else 0
                self._stack.enter_context(ray_cluster(num_cpus, num_gpus))
                self._started = True
                if joins_cluster() and self._trains:
                    from cluster.ray_nodes import quiet_driver  # imports Ray

                    quiet_driver()  # of tasks that wait for nodes Ray says that they never will have any
                    self._task_demand = TaskDemand(self._scaling.per_worker)
                    self._task_demand.want(self._of_use)

    def begin(self) -> None:
        """Start in the background; what goes wrong there is found again, and said, by the call that needs Ray."""

        def start_quietly() -> None:
            with suppress(Exception):
                self()
            self._ended.wait()  # Ray's processes die with the thread that started them

        threading.Thread(target=start_quietly, name="start-ray", daemon=True).start()

    def workers_request_nodes(self) -> None:
        """The workers' own controller asks for nodes from now on."""
        if self._task_demand is not None:
            self._task_demand.want(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stack.close()
        self._ended.set()
