"""How an actor goes on after its process has died: Ray starts it again, and the monitor has its state in a file.

The file is replaced after every call that changes the state, before the caller gets its answer. A caller whose answer
was lost repeats the call under the same id of Ray's, and gets the answer that the state already accounts for. So no
call counts twice, and none is lost.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import cloudpickle

STARTS_PER_HOUR = 60
"""Starts of an actor within an hour that a run survives; an actor that dies more often will die again."""

FOREVER = {"max_restarts": -1, "max_task_retries": -1}
"""Ray's options of an actor that is started again whenever it dies, and whose calls are then repeated."""

ANSWERS = 64
"""Newest answers that are kept: those that may not have arrived when the process died."""

_Class = TypeVar("_Class")
_Method = TypeVar("_Method", bound=Callable[..., Any])


def not_kept(method: _Method) -> _Method:
    """Marks a method of the monitor that changes nothing which must outlive the process."""
    method.is_kept = False  # type: ignore[attr-defined]
    return method


def keeping_state(cls: type[_Class]) -> type[_Class]:
    """Makes the public methods of an actor's class, those of its bases included, keep its state; see `KeptState.once`.

    Instances have an attribute `_kept`; None: nothing is kept.
    """
    for name in dir(cls):
        method = getattr(cls, name)
        if not name.startswith("_") and callable(method) and getattr(method, "is_kept", True):
            setattr(cls, name, _keeping(method))
    return cls


def _keeping(method: _Method) -> _Method:
    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._kept is None:
            return method(self, *args, **kwargs)
        return self._kept.once(call_id(), lambda: method(self, *args, **kwargs))

    return call  # type: ignore[return-value]


def call_id() -> str:
    """Identifies the actor's current call: the same when Ray repeats it."""
    return str(ray.get_runtime_context().get_task_id())


class KeptState:
    """Keeps a state in a file.

    Args:
        path: the file.
        fields: returns the state, as a dictionary that can be pickled.
        log: takes a line where the file cannot be written.
    """

    def __init__(self, path: Path, fields: Callable[[], dict[str, Any]], log: Callable[[str], object]) -> None:
        self._path, self._fields, self._log = path, fields, log
        self._answers: OrderedDict[str, Any] = OrderedDict()
        self._is_running = self._is_failing = False

    def load(self) -> dict[str, Any] | None:
        """The state of a process that has died; None where this is the first one."""
        try:
            state, self._answers = cloudpickle.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        return dict(state)

    def once(self, call: str, run: Callable[[], Any]) -> Any:
        """Runs a call and keeps the state after it; a call that the state accounts for is only answered.

        Args:
            call: identifies it.
        """
        if self._is_running:  # a method that another one calls
            return run()
        if call not in self._answers:
            self._is_running = True
            try:
                self._answers[call] = run()
            finally:
                self._is_running = False
            while len(self._answers) > ANSWERS:
                self._answers.popitem(last=False)
            self.save()
        return self._answers[call]

    def save(self) -> None:
        """Keeps the state; where that fails, tells so and goes on."""
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(cloudpickle.dumps((self._fields(), self._answers)))  # type: ignore[no-untyped-call]
            os.replace(new, self._path)
            self._is_failing = False
        except Exception as error:  # such as a full disk; the run goes on
            if not self._is_failing:
                self._log(f"the monitor cannot keep its state, and would forget what happens now if it died: {error}")
            self._is_failing = True


def count_start(path: Path, now: float | None = None) -> int:
    """Counts a start of the actor of this process; returns how many there were within the last hour.

    An error in an actor's constructor is final: Ray does not start it again.

    Args:
        path: file that the actor's processes share.
        now: seconds since the epoch; default: the current time.

    Raises:
        RuntimeError: there were too many starts within an hour.
    """
    now = time.time() if now is None else now
    before = [float(line) for line in path.read_text().split()] if path.exists() else []
    starts = [*(at for at in before if 0 <= now - at < 3600), now]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(str, starts)))
    if len(starts) > STARTS_PER_HOUR:
        raise RuntimeError(f"It died {len(starts) - 1} times within an hour, and is not started again.")
    return len(starts)
