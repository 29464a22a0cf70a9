"""The process of a training worker: Ray Train's own worker, which can be a member of one group after another.

What imports this module must not pay for Ray Train: the worker's process does, and for less of it than it comes with.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

POLL_INTERVAL_S = 0.01
"""Seconds between two looks whether the training thread has ended."""

_LEFT_OUT = ("pandas", "ray.data")
"""What Ray Train imports for the sake of names in annotations: 60 MB and 0.4 s in every worker, for nothing."""


class TrainingWorker:
    """Body of the actor: what Ray Train's controller asks of its `RayTrainWorker`, and leaving a group alive."""

    def __init__(self) -> None:
        with without_ray_data():
            from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
        worker: Any = RayTrainWorker
        self._worker = worker()
        self._is_in_group = False

    def warm_up(self, prepare: Callable[[], None]) -> None:
        """Do what can be done before there is a group to join."""
        prepare()

    def leave(self, patience_s: float) -> bool:
        """Get out of the group it is in; returns whether its training thread has ended within `patience_s`."""
        if not self._is_in_group:
            return True
        from ray.train.v2._internal.execution import context

        from orchestrator.workers.process_group import leave_group

        leave_group()  # else the thread might wait for the others
        runner = context.get_train_context().execution_context.training_thread_runner
        deadline = time.monotonic() + patience_s
        while runner.is_running():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_INTERVAL_S)
        # The thread's error holds its frames, and they hold the model.
        context.set_train_context(None)
        self._is_in_group = False
        gc.collect()
        return True

    def get_metadata(self) -> Any:
        """Where it is."""
        return self._worker.get_metadata()

    def init_train_context(self, **context: Any) -> None:
        """Its place in the group it joins."""
        self._worker.init_train_context(**context)
        self._is_in_group = True

    def run_train_fn(self, train_fn: Any) -> None:
        """Start the training function in a thread."""
        self._worker.run_train_fn(train_fn)

    def poll_status(self) -> Any:
        """How the training function does."""
        return self._worker.poll_status()

    def execute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function here."""
        return function(*args, **kwargs)


@contextmanager
def without_ray_data() -> Iterator[None]:
    """What is imported inside the block finds stand-ins for Ray Data and pandas, unless they are there already.

    A stand-in has an empty class for every name. After the block, whoever imports the real ones gets them.
    """
    stand_ins = {name: _stand_in(name) for name in _LEFT_OUT if name not in sys.modules}
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
    module.__spec__, module.__path__ = spec, []  # a package, whose submodules are not to be found
    return module
