"""The beacon of a worker's process: a thread that tells the monitor every few seconds what the worker is doing.

The training thread marks its progress here. Whatever it does, a long write, a compilation, a collective that waits for
other ranks, the thread goes on telling, so silence means that the process itself stands still. See
`orchestrator.policy.hang`.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray

from cluster.answers import ANSWER_S
from orchestrator.policy.hang import Beat, Phase, beat_interval_s
from orchestrator.workers.collectives import newest_collectives

SendBeat = Callable[[Beat], bool]
"""Sends a beat; returns whether to send the stacks, too. Picklable."""

STACKS_CHARS = 20_000
"""Most characters of stacks in a beat."""


class Beacon:
    """Sends beats until the process ends.

    Args:
        worker: name of the worker.
        send: sends a beat.
        workers: largest number of workers that send beats at the same time.
    """

    def __init__(self, worker: str, send: SendBeat, workers: int) -> None:
        self._worker, self._send = worker, send
        self._node = str(ray.get_runtime_context().get_node_id())
        self._rank: int | None = None
        self._group = 0
        self._most_s = self._interval_s = beat_interval_s(workers)
        self._mark: tuple[Phase, float, int] = "starting", time.monotonic(), 0

    def start(self) -> None:
        """Starts the thread."""
        threading.Thread(target=self._run, name="beacon", daemon=True).start()

    def adopt(self, send: SendBeat, workers: int) -> None:
        """The worker belongs to another run; see the class."""
        self._send, self._most_s = send, beat_interval_s(workers)
        self.leave()

    def join(self, rank: int, world_size: int) -> None:
        """The worker joins a group."""
        self._rank, self._interval_s = rank, beat_interval_s(world_size)
        self._group += 1
        self.mark("joining")

    def leave(self) -> None:
        """The worker is in no group."""
        self._rank, self._interval_s = None, self._most_s
        self.mark("idle")

    def mark(self, phase: Phase | None = None) -> None:
        """Records progress; `phase` is what the worker does from now on, by default what it did before."""
        before, _, marks = self._mark
        self._mark = phase or before, time.monotonic(), marks + 1

    def beat(self, stacks: str = "") -> Beat:
        """The beat to send now."""
        phase, since, marks = self._mark
        age_s = time.monotonic() - since
        group = self._group
        return Beat(self._worker, self._node, self._rank, group, phase, marks, age_s, self._interval_s, stacks)

    def _run(self) -> None:
        while True:
            with suppress(Exception):  # the monitor may be away for a while
                if self._send(self.beat()):
                    self._send(self.beat(stacks := stacks_of_threads()))
                    if collectives := newest_collectives():  # afterwards: a device that hangs may not answer
                        self._send(self.beat(f"{collectives}\n{stacks}"))
            time.sleep(self._interval_s)


_beacon: Beacon | None = None
"""The beacon of this process; None where it is no worker of the pool."""


def start_beacon(worker: str, send: SendBeat, workers: int) -> Beacon:
    """Starts this process's beacon; see `Beacon`."""
    global _beacon
    _beacon = Beacon(worker, send, workers)
    _beacon.start()
    return _beacon


def mark(phase: Phase | None = None) -> None:
    """Records progress of this process's training thread; see `Beacon.mark`. Without a beacon, does nothing."""
    if _beacon is not None:
        _beacon.mark(phase)


def answer_of(actor: Any, call: ray.ObjectRef[Any]) -> Any:
    """`ray.get(call)`, for a call that may take long; it counts as progress that the actor answers other calls.

    Args:
        actor: handle of a `SnapshotAgent`, whose methods run concurrently.
    """
    ping: ray.ObjectRef[Any] | None = None
    while not ray.wait([call], timeout=ANSWER_S)[0]:
        if ping is not None and ray.wait([ping], timeout=0)[0]:
            mark()
            ping = None
        ping = ping or actor.newest.remote()
    return ray.get(call)


def stacks_of_threads() -> str:
    """Stacks of all threads of this process but the calling one, innermost call last; the longest come first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = [
        f"Thread {names.get(ident, ident)!r}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    ]
    return "\n".join(sorted(stacks, key=len, reverse=True))[:STACKS_CHARS]
