"""WatchedClock: a goodput clock that also tells the worker's beacon what the loop is doing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from orchestrator.policy.hang import Phase
from orchestrator.run.goodput import GoodputClock
from orchestrator.workers.beacon import mark

_STEP_CAUSES = ("training", "replay", "compile")

_PHASES: dict[str, Phase] = {
    "startup": "restoring",
    "data_wait": "waiting for data",
    "store_wait": "waiting for data",
    "training": "step",
    "replay": "step",
    "compile": "compiling",
    "snapshot": "snapshot",
    "checkpoint": "saving",
    "evaluation": "evaluation",
}
"""What the loop is doing, by the cause that its time is counted under."""

_T = TypeVar("_T")


class WatchedClock(GoodputClock):
    """A clock of one worker group's loop; each change of its cause is progress of this rank."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self._had_a_step = False
        mark(_PHASES[cause])

    def switch(self, cause: str) -> str:
        """See `GoodputClock.switch`."""
        previous = super().switch(cause)
        if cause != previous:  # the same cause is set again wherever the seconds are read
            self._had_a_step |= previous in _STEP_CAUSES and cause not in _STEP_CAUSES
            mark("first step" if cause in _STEP_CAUSES and not self._had_a_step else _PHASES[cause])
        return previous


def each_marked(items: Iterable[_T]) -> Iterator[_T]:
    """The same items; each that is done with is progress of this rank."""
    for item in items:
        yield item
        mark()


@contextmanager
def counting_compilations(clock: GoodputClock, *, compiles: bool) -> Iterator[None]:
    """Counts the time in which the model is compiled, again after the first step too, as such.

    Args:
        compiles: whether it ever is; if not, the compiler is not imported.
    """
    if not compiles:
        yield
        return
    from torch._dynamo.callback import CallbackArgs, callback_handler

    before: list[str] = []

    def began(_: CallbackArgs) -> None:
        before.append(clock.switch("compile"))

    def ended(_: CallbackArgs) -> None:
        clock.switch(before.pop())

    callback_handler.register_start_callback(began)
    callback_handler.register_end_callback(ended)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(began)
        callback_handler.remove_end_callback(ended)
