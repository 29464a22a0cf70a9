"""How many workers a run has: what is seen of the cluster in, decisions out. Pure: no clock of its own, no Ray."""

from __future__ import annotations

from dataclasses import dataclass

SETTLE_S = 3.0
"""Seconds for which more room must have been there before it is used: machines come and go in bunches."""

GAIN_FACTOR = 2.0
"""Growing must save this many times the seconds it costs: the room may be gone again before it has paid."""


@dataclass(frozen=True)
class Situation:
    """What is known when a decision is made.

    Attributes:
        now: seconds of any clock.
        workers: workers that run; 0 where none do.
        slots: workers that fit on nodes which are alive and not about to go, those that run there included.
        on_draining: workers that run on nodes about to go.
        step_s: seconds of a step as it is; None where none has been measured.
        steps_left: steps to the end of the run.
    """

    now: float
    workers: int
    slots: int
    on_draining: int = 0
    step_s: float | None = None
    steps_left: int = 0


@dataclass(frozen=True)
class Noop:
    """Go on as it is."""


@dataclass(frozen=True)
class Start:
    """Start `workers` workers."""

    workers: int
    why: str


@dataclass(frozen=True)
class Wait:
    """Start none for now."""

    why: str


@dataclass(frozen=True)
class SaveThenResize:
    """Keep the state of the step being done in memory, end the workers, and start `workers` of them.

    Attributes:
        durably: all memory it can be kept in is about to go: have it in object storage first.
    """

    workers: int
    why: str
    durably: bool = False


@dataclass(frozen=True)
class Save:
    """Have the state in object storage, and go on as it is as long as it lasts."""

    why: str


class ScalingPolicy:
    """Between `min_workers` and `max_workers`; never counts nodes that are about to go.

    Args:
        micro_batches: micro-batches in a step; a step takes as long as its busiest worker, so its time goes with
            ceil(micro_batches / workers).
        restart_s: seconds that a change of size is expected to cost.
        kept_free: places that no worker takes: without a CPU to tokenize with, a run that tokenizes on the way starves.
    """

    def __init__(
        self, min_workers: int, max_workers: int, micro_batches: int, restart_s: float, kept_free: int = 0
    ) -> None:
        self.min_workers, self.max_workers = min_workers, max_workers
        self._kept_free = kept_free
        self.restart_s = restart_s
        self._micro_batches = micro_batches
        self._room_since: tuple[int, float] | None = None

    def when_idle(self, seen: Situation) -> Start | Wait:
        """What to do where no worker runs."""
        self._room_since = None
        slots = seen.slots - self._kept_free
        workers = self._useful(slots)
        if slots < self.min_workers:
            kept = f" beside the {self._kept_free} kept free to tokenize with" if self._kept_free else ""
            return Wait(
                f"the cluster has room for {max(0, slots)} workers{kept}, and scaling.min_workers={self.min_workers}"
            )
        return Start(workers, f"room for {seen.slots}, asked for {self.min_workers} to {self.max_workers}")

    def when_running(self, seen: Situation) -> Noop | Save | SaveThenResize:
        """What to do while workers run."""
        slots = seen.slots - self._kept_free
        workers = self._useful(slots)
        if seen.on_draining:
            self._room_since = None
            why = f"{seen.on_draining} of {seen.workers} workers are on nodes about to go; room for {seen.slots}"
            if slots < self.min_workers:
                return Save(f"{why}, and scaling.min_workers={self.min_workers}")
            return SaveThenResize(workers, why, durably=seen.on_draining == seen.workers)
        if workers <= seen.workers or seen.step_s is None:
            self._room_since = None
            return Noop()
        if self._room_since is None or self._room_since[0] != workers:
            self._room_since = (workers, seen.now)
        settled_s = seen.now - self._room_since[1]
        saved_s = seen.steps_left * seen.step_s * (1 - self._rounds(workers) / self._rounds(seen.workers))
        if settled_s < SETTLE_S or saved_s < GAIN_FACTOR * self.restart_s:
            return Noop()
        self._room_since = None
        return SaveThenResize(
            workers,
            f"room for {seen.slots} for {settled_s:.0f} s; over the {seen.steps_left} steps left that saves "
            f"{saved_s:.0f} s, and costs a restart of {self.restart_s:.1f} s",
        )

    def _useful(self, slots: int) -> int:
        """Workers that make a step as short as `slots` can, and no more of them than that takes."""
        most = min(slots, self.max_workers)
        if most <= self.min_workers:
            return max(0, most)
        return max(self.min_workers, -(-self._micro_batches // self._rounds(most)))

    def _rounds(self, workers: int) -> int:
        """Micro-batches of the busiest of so many workers."""
        return -(-self._micro_batches // max(1, workers))
