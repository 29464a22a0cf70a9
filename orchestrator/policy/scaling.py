"""Decides how many workers a run has. Pure: an observation of the cluster in, a decision out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from orchestrator.config.recipe import RunConfig

SETTLE_S, SETTLE_SHARE, MOST_SETTLE_S = 3.0, 0.25, 30.0
"""Seconds for which free capacity must stay the same before it is used, since nodes come and go in batches; where that
is more, the share of a restart's cost that they are; and the most seconds."""

GROWTH_SHARE = 0.2
"""Largest part of the time that restarts for growing take."""

PREPARE_S, DRAIN_PREPARE_S = 60.0, 5.0
"""Seconds to wait for joining workers to become warm spares before resizing without the missing ones; fewer when nodes
are about to go."""

GAIN_FACTOR = 2.0
"""Growing must save this many times the seconds it costs: the new capacity may be gone again before it has paid off."""

EXPECTED_RESTART_S = 3.0
"""Expected seconds of a worker group's restart, until one has been measured."""


@dataclass(frozen=True)
class Observation:
    """The workers and the cluster as the controller sees them, and the progress that the monitor adds.

    Attributes:
        workers: running workers; 0 where no group runs.
        slots: workers that fit on live nodes which are not about to go, including those that run there.
        total_slots: workers that would fit on these nodes if nothing else used them.
        on_draining: running workers on nodes that are about to go.
        warm_spares: processes on the other nodes that are ready to become workers at once.
        reserved_slots: slots that no worker takes: a run that tokenizes while it trains starves without a CPU for that.
        starting_slots: slots on nodes that are known to be starting.
        members: names of the running workers.
        now: seconds of any clock; from the monitor, like the fields below.
        step_s: seconds that a step takes with these workers; None before one has been measured.
        steps_left: steps to the end of the run.
    """

    workers: int
    slots: int
    total_slots: int = 0
    on_draining: int = 0
    warm_spares: int = 0
    reserved_slots: int = 0
    starting_slots: int = 0
    members: tuple[str, ...] = ()
    now: float = 0.0
    step_s: float | None = None
    steps_left: int = 0

    @property
    def for_workers(self) -> int:
        """Slots that workers may take."""
        return self.slots - self.reserved_slots

    def at(self, now: float, step_s: float | None = None, steps_left: int = 0) -> Observation:
        """The same observation with the clock and the run's progress added."""
        return replace(self, now=now, step_s=step_s, steps_left=steps_left)


@dataclass(frozen=True)
class Noop:
    """Keep the workers as they are."""


@dataclass(frozen=True)
class Start:
    """Start `workers` workers."""

    workers: int
    why: str


@dataclass(frozen=True)
class Wait:
    """Start no workers for now."""

    why: str


@dataclass(frozen=True)
class Prepare:
    """Start `joining_workers` processes as warm spares while the workers train: a start takes longer than a resize."""

    joining_workers: int
    why: str


@dataclass(frozen=True)
class SaveThenResize:
    """Snapshot the state after the current step, end the workers, and start `workers` of them.

    Attributes:
        durably: every node with a copy of the snapshot is about to go: upload it to object storage first.
    """

    workers: int
    why: str
    durably: bool = False


@dataclass(frozen=True)
class Save:
    """Upload the state to object storage, and keep training as long as the nodes last."""

    why: str


class ScalingPolicy:
    """Keeps the number of workers between `min_workers` and `max_workers`; never counts nodes that are about to go.

    Args:
        micro_batches: micro-batches in a step; a step takes as long as its busiest worker, so its duration is
            proportional to ceil(micro_batches / workers).
        restart_s: expected seconds of a resize.
    """

    def __init__(self, min_workers: int, max_workers: int, micro_batches: int, restart_s: float) -> None:
        self.min_workers, self.max_workers = min_workers, max_workers
        self.restart_s = restart_s
        self._micro_batches = micro_batches
        self._capacity_since: tuple[int, float] | None = None
        self._growable_since: float | None = None
        self._grew_at = -math.inf
        self._preparing_since: float | None = None
        self._is_leaving = False

    @property
    def most_useful_workers(self) -> int:
        """Workers that the run would use if capacity were unlimited."""
        return self._useful(self.max_workers)

    def when_idle(self, seen: Observation) -> Start | Wait:
        """Decides while no worker runs; each warm spare occupies one of the slots."""
        self._forget_capacity()
        slots = seen.for_workers
        if slots < self.min_workers:
            reserved = f" beside {seen.reserved_slots} reserved for tokenizing" if seen.reserved_slots else ""
            return Wait(
                f"the cluster has slots for {max(0, slots)} workers{reserved}, fewer than "
                f"scaling.min_workers={self.min_workers}"
            )
        numbers = f"{seen.slots} slots, configured for {self.min_workers} to {self.max_workers} workers"
        ready = min(seen.warm_spares, slots)
        if self.min_workers <= ready < self._useful(slots):
            return Start(self._useful(ready), f"{ready} are alive; {numbers}")
        return Start(self._useful(slots), numbers)

    def when_running(self, seen: Observation) -> Noop | Save | Prepare | SaveThenResize:
        """Decides while workers run."""
        if seen.on_draining:
            if not self._is_leaving:
                self._is_leaving, self._preparing_since = True, None
            return self._leave_draining_nodes(seen)
        self._is_leaving = False
        workers = self._useful(seen.for_workers)
        if workers <= seen.workers or seen.step_s is None:
            self._forget_capacity()
            return Noop()
        saved_s = self._saved_s(seen, workers)
        if not self._is_settled(seen, workers) or saved_s < GAIN_FACTOR * self.restart_s:
            return Noop()
        why = (
            f"{seen.slots} slots for {self._settled_s(seen.now):.0f} s; over the remaining {seen.steps_left} steps "
            f"that saves {saved_s:.0f} s, and costs a restart of {self.restart_s:.1f} s"
        )
        wanted = workers - seen.workers
        if seen.warm_spares < wanted and self._preparing_s(seen.now) < PREPARE_S:
            return Prepare(wanted, why)
        workers = self._useful(seen.workers + min(seen.warm_spares, wanted))
        if workers <= seen.workers:
            return Noop()  # no joining worker is ready yet; they may still become so
        self._forget_capacity()
        self._grew_at = seen.now
        return SaveThenResize(workers, why)

    def slower(self, workers_before: int, workers: int) -> float:
        """Factor by which a step takes longer with `workers` workers than with `workers_before`; 1 before any."""
        return self._rounds(workers) / self._rounds(workers_before) if workers_before else 1.0

    def _is_settled(self, seen: Observation, workers: int) -> bool:
        """Whether to grow to `workers` now, as far as time goes: soon more may be there, and a restart would be saved.

        Waiting ends when it has cost as much as the restart that it may save. And between two restarts for growing,
        workers train long enough that these restarts take no more than `GROWTH_SHARE` of the time.
        """
        if self._capacity_since is None or self._capacity_since[0] != workers:
            self._capacity_since = (workers, seen.now)
        if self._growable_since is None:
            self._growable_since = seen.now
        if seen.now - self._grew_at < self.restart_s / GROWTH_SHARE:
            return False
        wait_cost_s = (seen.now - self._growable_since) * (1 - self.slower(seen.workers, workers))
        if wait_cost_s >= self.restart_s:
            return True
        more = self._useful(seen.for_workers + seen.starting_slots)
        settle_s = max(SETTLE_S, min(SETTLE_SHARE * self.restart_s, MOST_SETTLE_S))
        return more <= workers and self._settled_s(seen.now) >= settle_s

    def _settled_s(self, now: float) -> float:
        """Seconds since the free capacity last changed."""
        return now - self._capacity_since[1] if self._capacity_since is not None else 0.0

    def _forget_capacity(self) -> None:
        self._capacity_since = self._growable_since = self._preparing_since = None

    def _leave_draining_nodes(self, seen: Observation) -> Save | Prepare | SaveThenResize:
        """Decides while workers run on nodes that are about to go."""
        self._capacity_since = self._growable_since = None
        slots = seen.for_workers
        why = f"{seen.on_draining} of {seen.workers} workers are on draining nodes; {seen.slots} slots on the others"
        if slots < self.min_workers:
            return Save(f"{why}, fewer than scaling.min_workers={self.min_workers}")
        stay, wanted = seen.workers - seen.on_draining, self._useful(slots)
        ready = min(stay + seen.warm_spares, slots)
        if ready < wanted and self._preparing_s(seen.now) < DRAIN_PREPARE_S:
            return Prepare(wanted - stay, why)
        self._preparing_since = None
        return SaveThenResize(self._useful(max(ready, self.min_workers)), why, durably=stay == 0)

    def _preparing_s(self, now: float) -> float:
        """Seconds since joining workers were first requested; the first call is that request."""
        if self._preparing_since is None:
            self._preparing_since = now
        return now - self._preparing_since

    def unused_slots(self, seen: Observation) -> int:
        """Slots that no worker can use, while workers run."""
        return seen.for_workers - seen.workers - seen.warm_spares if seen.workers >= self.max_workers else 0

    def wanted(self, seen: Observation) -> int:
        """Workers that the run would have if capacity were unlimited, while workers run."""
        most = self.most_useful_workers
        pays = most > seen.workers and self._saved_s(seen, most) >= GAIN_FACTOR * self.restart_s
        return most if pays else seen.workers

    def _saved_s(self, seen: Observation, workers: int) -> float:
        """Seconds by which `workers` workers shorten the remaining steps; infinite before a step has been measured."""
        if seen.step_s is None:
            return math.inf
        return seen.steps_left * seen.step_s * (1 - self.slower(seen.workers, workers))

    def _useful(self, slots: int) -> int:
        """The fewest workers that make a step as short as any number up to `slots` can."""
        most = min(slots, self.max_workers)
        if most <= self.min_workers:
            return max(0, most)
        return max(self.min_workers, -(-self._micro_batches // self._rounds(most)))

    def _rounds(self, workers: int) -> int:
        """Micro-batches of the busiest of `workers` workers."""
        return -(-self._micro_batches // max(1, workers))


def scaling_policy(config: RunConfig) -> ScalingPolicy:
    """Builds the scaling policy for a run's config."""
    scaling = config.scaling
    return ScalingPolicy(
        scaling.effective_min_workers,
        scaling.effective_max_workers,
        config.train.micro_batches_per_step,
        EXPECTED_RESTART_S,
    )
