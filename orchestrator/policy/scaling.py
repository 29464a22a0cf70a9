"""How many workers a run has: what is seen of the cluster in, decisions out. Pure: no clock of its own, no Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.config.recipe import RunConfig

SETTLE_S = 3.0
"""Seconds for which more room must have been there before it is used: machines come and go in bunches."""

PREPARE_S, DRAIN_PREPARE_S = 60.0, 5.0
"""Seconds that joining_workers may take to stand by before those that do must do; less where nodes are about to go."""

GAIN_FACTOR = 2.0
"""Growing must save this many times the seconds it costs: the room may be gone again before it has paid."""

EXPECTED_RESTART_S = 3.0
"""Seconds that starting a worker group again is taken to cost, until one has been measured."""


@dataclass(frozen=True)
class Observation:
    """What is known when a decision is made.

    Attributes:
        now: seconds of any clock.
        workers: workers that run; 0 where none do.
        slots: workers that fit on nodes which are alive and not about to go, those that run there included.
        on_draining: workers that run on nodes about to go.
        warm_spares: processes on the other nodes that are ready to become workers at once.
        step_s: seconds of a step as it is; None where none has been measured.
        steps_left: steps to the end of the run.
        reserved_slots: slots that no worker takes: without a CPU to tokenize with, a run that tokenizes on the way starves.
    """

    now: float
    workers: int
    slots: int
    on_draining: int = 0
    warm_spares: int = 0
    step_s: float | None = None
    steps_left: int = 0
    reserved_slots: int = 0

    @property
    def for_workers(self) -> int:
        """Slots that workers may take."""
        return self.slots - self.reserved_slots


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
class Prepare:
    """Have `joining_workers` processes stand by while the workers go on: starting one takes longer than a resize."""

    joining_workers: int
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
    """

    def __init__(self, min_workers: int, max_workers: int, micro_batches: int, restart_s: float) -> None:
        self.min_workers, self.max_workers = min_workers, max_workers
        self.restart_s = restart_s
        self._micro_batches = micro_batches
        self._room_since: tuple[int, float] | None = None
        self._preparing_since: float | None = None
        self._is_leaving = False

    @property
    def most_useful_workers(self) -> int:
        """Workers that it would have if there were room for any number."""
        return self._useful(self.max_workers)

    def when_idle(self, seen: Observation) -> Start | Wait:
        """What to do where no worker runs; those standing by are on as many of the slots."""
        self._room_since = self._preparing_since = None
        slots = seen.for_workers
        if slots < self.min_workers:
            kept = f" beside the {seen.reserved_slots} kept free to tokenize with" if seen.reserved_slots else ""
            return Wait(
                f"the cluster has room for {max(0, slots)} workers{kept}, and scaling.min_workers={self.min_workers}"
            )
        asked = f"room for {seen.slots}, asked for {self.min_workers} to {self.max_workers}"
        ready = min(seen.warm_spares, slots)
        if self.min_workers <= ready < self._useful(slots):
            return Start(self._useful(ready), f"{ready} are alive; {asked}")
        return Start(self._useful(slots), asked)

    def when_running(self, seen: Observation) -> Noop | Save | Prepare | SaveThenResize:
        """What to do while workers run."""
        if seen.on_draining:
            if not self._is_leaving:
                self._is_leaving, self._preparing_since = True, None
            return self._away(seen)
        self._is_leaving = False
        workers = self._useful(seen.for_workers)
        if workers <= seen.workers or seen.step_s is None:
            self._room_since = self._preparing_since = None
            return Noop()
        if self._room_since is None or self._room_since[0] != workers:
            self._room_since = (workers, seen.now)
        settled_s = seen.now - self._room_since[1]
        saved_s = self._saved_s(seen, workers)
        if settled_s < SETTLE_S or saved_s < GAIN_FACTOR * self.restart_s:
            return Noop()
        why = (
            f"room for {seen.slots} for {settled_s:.0f} s; over the {seen.steps_left} steps left that saves "
            f"{saved_s:.0f} s, and costs a restart of {self.restart_s:.1f} s"
        )
        wanted = workers - seen.workers
        if seen.warm_spares < wanted and self._preparing_s(seen.now) < PREPARE_S:
            return Prepare(wanted, why)
        workers = self._useful(seen.workers + min(seen.warm_spares, wanted))
        if workers <= seen.workers:
            return Noop()  # the joining_workers do not come up; they may yet
        self._room_since = self._preparing_since = None
        return SaveThenResize(workers, why)

    def _away(self, seen: Observation) -> Save | Prepare | SaveThenResize:
        """What to do where workers are on nodes about to go."""
        self._room_since = None
        slots = seen.for_workers
        why = f"{seen.on_draining} of {seen.workers} workers are on nodes about to go; room for {seen.slots}"
        if slots < self.min_workers:
            return Save(f"{why}, and scaling.min_workers={self.min_workers}")
        stay, wanted = seen.workers - seen.on_draining, self._useful(slots)
        ready = min(stay + seen.warm_spares, slots)
        if ready < wanted and self._preparing_s(seen.now) < DRAIN_PREPARE_S:
            return Prepare(wanted - stay, why)
        self._preparing_since = None
        return SaveThenResize(self._useful(max(ready, self.min_workers)), why, durably=stay == 0)

    def _preparing_s(self, now: float) -> float:
        """Seconds since joining_workers were first asked for; asks for them."""
        if self._preparing_since is None:
            self._preparing_since = now
        return now - self._preparing_since

    def spare(self, seen: Observation) -> int:
        """Slots that no worker can use, while workers run."""
        return seen.for_workers - seen.workers - seen.warm_spares if seen.workers >= self.max_workers else 0

    def wanted(self, seen: Observation) -> int:
        """Workers that it would have if there were room for any number, while some run."""
        most = self.most_useful_workers
        pays = most > seen.workers and self._saved_s(seen, most) >= GAIN_FACTOR * self.restart_s
        return most if pays else seen.workers

    def _saved_s(self, seen: Observation, workers: int) -> float:
        """Seconds that the steps left take less with so many workers; no end of them before a step was measured."""
        if seen.step_s is None:
            return math.inf
        return seen.steps_left * seen.step_s * (1 - self._rounds(workers) / self._rounds(seen.workers))

    def _useful(self, slots: int) -> int:
        """Workers that make a step as short as `slots` can, and no more of them than that takes."""
        most = min(slots, self.max_workers)
        if most <= self.min_workers:
            return max(0, most)
        return max(self.min_workers, -(-self._micro_batches // self._rounds(most)))

    def _rounds(self, workers: int) -> int:
        """Micro-batches of the busiest of so many workers."""
        return -(-self._micro_batches // max(1, workers))


def scaling_policy(config: RunConfig) -> ScalingPolicy:
    """That of a run."""
    scaling = config.scaling
    return ScalingPolicy(
        scaling.effective_min_workers,
        scaling.effective_max_workers,
        config.train.micro_batches_per_step,
        EXPECTED_RESTART_S,
    )
