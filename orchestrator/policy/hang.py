"""Decides whether workers hang, from what each reports about itself. Pure: reports and times in, decisions out.

Every worker's process sends a beat every second from a thread of its own, whatever its training thread does. So
there are two kinds of hang. A worker that sends no beats is stopped, starved or cut off; that is found within
`SILENCE_S` in every phase. If all send beats and none makes progress, the limit depends on what they are doing: it is a
multiple of the longest time without progress that the phase has taken in this run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

Phase = Literal[
    "idle",
    "created",
    "starting",
    "joining",
    "restoring",
    "waiting for data",
    "first step",
    "step",
    "compiling",
    "snapshot",
    "saving",
    "evaluation",
]
"""What a worker is doing; "idle" outside of a group, and after its training function has ended.

"created" is told by the process that started the worker: its process is there, and has not sent a beat of its own yet.
"""

PHASES = get_args(Phase)

LEAST_S: dict[str, float] = {
    "joining": 30.0,
    "restoring": 60.0,
    "waiting for data": 120.0,
    "first step": 30.0,
    "step": 15.0,
    "compiling": 120.0,
    "snapshot": 60.0,
    "saving": 60.0,
    "evaluation": 60.0,
}
"""Seconds without progress that are no hang, by phase; in the other phases, workers only hang by sending no beats."""

HANG_FACTOR, CREATED_FACTOR = 5.0, 3.0
"""Multiples of the longest time without progress in a phase so far that is no hang either; and of the longest time to a
first beat, and between two beats of a start, where a mistake costs no more than another process."""

FIRST_S = 900.0
"""Seconds without progress that are no hang in a phase that has not been measured yet: the first step may compile."""

MOST_PATIENCE = 4
"""Factor by which limits grow at most: each hang doubles that of its phase, since the limit may have been too short."""

SILENCE_S, CREATED_SILENCE_S, STARTING_SILENCE_S, MOST_SILENCE_S = 6.0, 12.0, 30.0, 60.0
"""Seconds without a beat that are no hang; before a process's first one, and in a start if one was measured; while a
process imports its modules, if none was; and at most, if beats come unevenly."""

BEAT_S, BEATS_PER_S = 1.0, 100.0
"""Seconds between two beats of a worker, and the most beats of all workers in a second."""

STANDSTILL_S = 5.0
"""Seconds without any call after which the policy's own process stood still, and beats wait to be read."""

FORGET_S = 3600.0
"""Seconds after which a worker that sent no beat is forgotten."""

NODE_ID_SHOWN = 12
"""Leading characters of a node's id that messages show."""

_NEED_STORE = ("restoring", "waiting for data", "saving", "evaluation")


def beat_interval_s(workers: int) -> float:
    """Seconds between two beats of each of `workers` workers."""
    return max(BEAT_S, workers / BEATS_PER_S)


class Beat(NamedTuple):
    """What a worker reports about itself.

    Attributes:
        worker: name of the worker's process.
        node: id of its node.
        rank: its rank; None outside of a group.
        group: number of groups that it has joined so far.
        phase: what it is doing.
        marks: number of times that it has made progress; only compared with that of the beat before.
        age_s: seconds since it last made progress.
        interval_s: seconds to the next beat.
        stacks: stacks of its threads, where `HangPolicy.hear` asked for them; else "".
    """

    worker: str
    node: str
    rank: int | None
    group: int
    phase: Phase
    marks: int
    age_s: float
    interval_s: float
    stacks: str = ""

    @property
    def who(self) -> str:
        """The worker in a message."""
        where = f"on node {self.node[:NODE_ID_SHOWN]}"
        return f"a worker {where}" if self.rank is None else f"rank {self.rank} {where}"

    def told(self) -> str:
        """What the worker is doing, with its stacks."""
        return f"{self.who}: {self.phase}, no progress for {self.age_s:.0f} s\n\n{self.stacks}"


class Hang(NamedTuple):
    """A hang.

    Attributes:
        why: what is known about it, for the log, with the numbers behind the decision.
        workers: names of the workers to kill.
    """

    why: str
    workers: tuple[str, ...]


_NO_LIMIT: tuple[float, float, Phase] = 0.0, math.inf, "idle"


class HangPolicy:
    """Keeps the newest beat of every worker, and the longest time without progress in each phase."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[Beat, float]] = {}
        self._longest_s: dict[str, float] = {}
        self._longest_gap_s = 0.0
        self._longest_gap_of_start_s: float | None = None
        self._gaps_of_starts: dict[str, float] = {}
        self._hangs = Counter[str]()
        self._suspected: frozenset[str] = frozenset()
        self._called_at: float | None = None

    def __getstate__(self) -> dict[str, object]:
        """What outlives this process: the measured times; workers send new beats soon."""
        return vars(self) | {"_newest": {}, "_suspected": frozenset(), "_gaps_of_starts": {}}

    def hear(self, beat: Beat, now: float) -> bool:
        """Adds a worker's newest beat; returns whether the worker is to send its stacks, too.

        Args:
            now: seconds of any clock.
        """
        self._account_for_standstill(now)
        if beat.worker in self._newest:
            before, at = self._newest[beat.worker]
            if beat.phase == "created":
                return False
            if before.phase == "created":
                self._longest_s["created"] = max(self._longest_s.get("created", 0.0), now - at)
            elif before.phase == "starting":
                self._measure_start(beat, now - at)
            else:
                self._longest_gap_s = max(self._longest_gap_s, now - at)
            if beat.marks == before.marks:
                beat = beat._replace(stacks=beat.stacks or before.stacks)
            elif beat.group == before.group and beat.phase != "idle":  # else a peer that failed kept it waiting
                self._measure(before)
        self._newest[beat.worker] = beat, now
        return beat.worker in self._suspected and not beat.stacks

    def expect_group(self, slower: float, now: float) -> None:
        """Prepares for a new group.

        Args:
            slower: factor by which its steps take longer than those of the group before, because it has fewer workers.
        """
        for phase in ("first step", "step"):
            if phase in self._longest_s:
                self._longest_s[phase] *= max(1.0, slower)
        self._newest = {worker: each for worker, each in self._newest.items() if now - each[1] < FORGET_S}
        self._gaps_of_starts = {
            worker: gap_s for worker, gap_s in self._gaps_of_starts.items() if worker in self._newest
        }

    def nodes(self, now: float) -> set[str]:
        """Nodes with workers, in a group or not, that are not silent."""
        return {beat.node for beat, at in self._newest.values() if now - at <= self._silence_s(beat)}

    def judge(self, workers: Sequence[str], now: float, *, store_fails: bool = False) -> Hang | None:
        """Decides whether the group of these workers hangs.

        Args:
            workers: names of the group's workers.
            store_fails: a store that the run needs does not answer, so phases that need it may take any time.
        """
        self._account_for_standstill(now)
        newest = [self._newest[worker] for worker in workers if worker in self._newest]
        silence_s = [(now - at, self._silence_s(beat), beat) for beat, at in newest]
        silent = [(age_s, beat) for age_s, limit_s, beat in silence_s if age_s > limit_s]
        self._suspected = frozenset()
        if silent:
            self._hangs.update({beat.phase for _, beat in silent if beat.phase in ("created", "starting")})
            why = "; ".join(f"{beat.who} has not answered for {age_s:.0f} s ({beat.phase})" for age_s, beat in silent)
            return Hang(why, tuple(beat.worker for _, beat in silent))
        idle_s, limit_s, phase = self._idle_time(newest, now, store_fails) if len(newest) == len(workers) else _NO_LIMIT
        if idle_s <= limit_s:
            if idle_s > limit_s / 2 or any(age_s > most_s / 2 for age_s, most_s, _ in silence_s):
                self._suspected = frozenset(workers)
            return None
        longest_s = self._longest_s.get(phase)
        measured = "not measured before" if longest_s is None else f"which took at most {longest_s:.1f} s so far"
        self._hangs[phase] += 1
        ranks = _ranks_by_phase(beat for beat, _ in newest)
        why = f"no worker has made progress for {idle_s:.0f} s ({ranks}); the limit for {phase!r}, {measured}, "
        return Hang(f"{why}is {limit_s:.0f} s", tuple(workers))

    def with_stacks(self, hang: Hang, workers: Iterable[str]) -> list[Beat]:
        """The newest beats of those of these workers that have sent stacks; those that hang come last."""
        beats = [self._newest[worker][0] for worker in workers if worker in self._newest]
        return sorted((beat for beat in beats if beat.stacks), key=lambda beat: beat.worker in hang.workers)

    def _idle_time(
        self, newest: Sequence[tuple[Beat, float]], now: float, store_fails: bool
    ) -> tuple[float, float, Phase]:
        """Seconds since any of the workers made progress, how many are no hang, and the phase that sets this limit."""
        working = [(beat, at) for beat, at in newest if beat.phase != "idle"]
        phases = {beat.phase for beat, _ in working}
        if (
            not phases
            or not phases.isdisjoint(("created", "starting"))
            or (store_fails and not phases.isdisjoint(_NEED_STORE))
        ):
            return _NO_LIMIT
        if phases == {"waiting for data"}:  # tokenizing may take any time; but once one has the data, all soon have
            return _NO_LIMIT
        phase = max(phases, key=self._limit_s)
        return min(now - at + beat.age_s for beat, at in working), self._limit_s(phase), phase

    def _measure(self, last: Beat) -> None:
        """Takes into account how long a worker was in a phase without progress, as its last beat in it told."""
        if last.phase != "idle" and last.age_s <= self._limit_s(last.phase):  # else a store that fails kept it waiting
            self._longest_s[last.phase] = max(self._longest_s.get(last.phase, 0.0), last.age_s)

    def _measure_start(self, beat: Beat, gap_s: float) -> None:
        """Takes into account how far apart the beats of a start were: imports hold the interpreter's lock for long."""
        longest_s = max(self._gaps_of_starts.pop(beat.worker, 0.0), gap_s)
        if beat.phase == "starting":
            self._gaps_of_starts[beat.worker] = longest_s
        else:  # only now it is known what a whole one takes
            self._longest_gap_of_start_s = max(self._longest_gap_of_start_s or 0.0, longest_s)

    def _limit_s(self, phase: Phase) -> float:
        """Seconds without progress in this phase that are no hang."""
        if phase == "waiting for data":  # how long all waited says nothing about how long one waits after the others
            return LEAST_S[phase]
        longest_s = self._longest_s.get(phase)
        limit_s = FIRST_S if longest_s is None else max(LEAST_S.get(phase, 0.0), HANG_FACTOR * longest_s)
        return limit_s * self._patience(phase)

    def _patience(self, phase: Phase) -> int:
        return min(MOST_PATIENCE, 1 << self._hangs[phase])

    def _silence_s(self, beat: Beat) -> float:
        """Seconds without a beat, after this one, that are no hang."""
        if beat.phase == "created":
            longest_s = self._longest_s.get("created", 0.0)
            return max(CREATED_SILENCE_S, CREATED_FACTOR * longest_s) * self._patience("created")
        if beat.phase == "starting" and (gap_s := self._longest_gap_of_start_s) is not None:
            measured_s = max(CREATED_SILENCE_S, CREATED_FACTOR * gap_s) * self._patience("starting")
            return min(measured_s, MOST_SILENCE_S)
        least_s = STARTING_SILENCE_S if beat.phase == "starting" else SILENCE_S
        return max(least_s, 3 * beat.interval_s, min(2 * self._longest_gap_s, MOST_SILENCE_S))

    def _account_for_standstill(self, now: float) -> None:
        """Counts no silence for a time in which this process stood still."""
        if self._called_at is not None and (away_s := now - self._called_at) > STANDSTILL_S:
            self._newest = {worker: (beat, at + away_s) for worker, (beat, at) in self._newest.items()}
        self._called_at = now


def _ranks_by_phase(beats: Iterable[Beat]) -> str:
    """What the ranks are doing: "ranks 0, 2: step; rank 1: snapshot". Names at most eight ranks of a phase."""
    ranks: dict[str, list[str]] = {}
    for beat in sorted(beats, key=lambda each: each.rank or 0):
        ranks.setdefault(beat.phase, []).append(str(beat.rank))
    return "; ".join(
        f"rank{'s' * (len(numbers) > 1)} {', '.join(numbers[:8])}{', ...' * (len(numbers) > 8)}: {phase}"
        for phase, numbers in ranks.items()
    )
