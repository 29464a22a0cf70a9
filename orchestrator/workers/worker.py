"""The process of a training worker: Ray Train's own worker, which can join one worker group after another.

Importing this module does not import Ray Train. The worker's process does, without Ray Data and pandas.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from orchestrator.workers.beacon import SendBeat, start_beacon

POLL_INTERVAL_S = 0.01
"""Seconds between two checks whether the training thread has ended."""

_REPLACED = ("pandas", "ray.data")
"""Modules that Ray Train imports for names in annotations only: 60 MB and 0.4 s in every worker."""


class TrainingWorker:
    """Body of the actor: the methods of `RayTrainWorker` that Ray Train's controller calls, and leaving a group.

    Args:
        name: of this worker, unlike that of any other of the run.
        send, workers: see `Beacon`.
    """

    def __init__(self, name: str, send: SendBeat, workers: int) -> None:
        self._beacon = start_beacon(name, send, workers)
        with without_ray_data():
            from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
        worker: Any = RayTrainWorker
        self._worker = worker()
        self._is_in_group = False

    def warm_up(self, prepare: Callable[[], None]) -> None:
        """Runs `prepare`, before the worker joins a group."""
        prepare()
        self._beacon.leave()

    def adopt(self, prepare: Callable[[], None], send: SendBeat, workers: int) -> None:
        """Belongs to another run from now on; see `warm_up` and `Beacon`."""
        self._beacon.adopt(send, workers)
        self.warm_up(prepare)

    def leave(self, timeout_s: float) -> bool:
        """Leaves the group, if the worker is in one; returns whether its training thread ended within `timeout_s`."""
        if not self._is_in_group:
            self._beacon.leave()
            return True
        from ray.train.v2._internal.execution import context

        from orchestrator.workers.process_group import leave_group

        leave_group()  # else the thread might keep waiting for its peers
        runner = context.get_train_context().execution_context.training_thread_runner
        deadline = time.monotonic() + timeout_s
        while runner.is_running():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_INTERVAL_S)
        # The thread's error references its frames, and these reference the model.
        context.set_train_context(None)
        self._is_in_group = False
        self._beacon.leave()
        gc.collect()
        return_freed_memory()
        return True

    def get_metadata(self) -> Any:
        """The worker's node, process and accelerators."""
        return self._worker.get_metadata()

    def init_train_context(self, **context: Any) -> None:
        """Joins a group: sets the worker's rank and the run's context."""
        ranks = context["distributed_context"]
        self._beacon.join(ranks.world_rank, ranks.world_size)
        self._worker.init_train_context(**context)
        self._is_in_group = True

    def run_train_fn(self, train_fn: Any) -> None:
        """Starts the training function in a thread."""
        self._worker.run_train_fn(train_fn)

    def poll_status(self) -> Any:
        """State of the training function."""
        return self._worker.poll_status()

    def execute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function in this process."""
        return function(*args, **kwargs)


def return_freed_memory() -> None:
    """Gives memory that is free back to the machine.

    Every group trains in a thread of its own, for which glibc keeps what was freed: 40 MB each for a small model, up to
    eight times a core.
    """
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def without_ray_data() -> Iterator[None]:
    """Imports inside the block get stand-ins for Ray Data and pandas, unless these are imported already.

    A stand-in has an empty class for every name. After the block, imports get the real modules.
    """
    stand_ins = {name: _stand_in(name) for name in _REPLACED if name not in sys.modules}
    sys.modules.update(stand_ins)
    if "ray.data" in stand_ins:
        ray.data = stand_ins["ray.data"]  # type: ignore[attr-defined, unused-ignore]
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        if "ray.data" in stand_ins and vars(ray).get("data") is stand_ins["ray.data"]:
            del ray.data  # type: ignore[attr-defined, unused-ignore]


def _stand_in(name: str) -> types.ModuleType:
    class StandIn(types.ModuleType):
        def __getattr__(self, attribute: str) -> type:
            if attribute.startswith("__"):
                raise AttributeError(attribute)
            empty = type(attribute, (), {})
            setattr(self, attribute, empty)
            return empty

    module, spec = StandIn(name), importlib.util.find_spec(name)
    assert spec is not None, f"{name} is not installed"
    module.__spec__, module.__path__ = spec, []  # a package without submodules
    return module
