"""The hang policy on invented workers, with a clock of the test's own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from orchestrator.policy.hang import (
    BEATS_PER_S,
    CREATED_SILENCE_S,
    FIRST_S,
    HANG_FACTOR,
    LEAST_S,
    MOST_PATIENCE,
    PHASES,
    SILENCE_S,
    STARTING_SILENCE_S,
    Beat,
    Hang,
    HangPolicy,
    Phase,
    beat_interval_s,
)


class Group:
    """Workers that each send a beat every second, except those that are stopped."""

    def __init__(self, workers: int = 2) -> None:
        self.policy, self.now = HangPolicy(), 1000.0
        self.names = [f"w{rank}" for rank in range(workers)]
        self.group = 1
        self.phases: dict[str, Phase] = dict.fromkeys(self.names, "idle")
        self.marks = dict.fromkeys(self.names, 0)
        self.marked_at = dict.fromkeys(self.names, self.now)
        self.stopped: set[str] = set()
        self.asked: set[str] = set()

    def mark(self, phase: Phase, workers: Sequence[str] | None = None) -> None:
        for name in workers or self.names:
            self.phases[name], self.marked_at[name] = phase, self.now
            self.marks[name] += 1

    def wait(self, seconds: float, *, store_fails: bool = False) -> Hang | None:
        """Lets time pass, up to the first hang."""
        for _ in range(int(seconds)):
            self.now += 1.0
            for rank, name in enumerate(self.names):
                if name not in self.stopped:
                    beat = Beat(
                        name,
                        f"node-{rank}",
                        rank,
                        self.group,
                        self.phases[name],
                        self.marks[name],
                        self.now - self.marked_at[name],
                        1,
                    )
                    if self.policy.hear(beat, self.now):
                        self.asked.add(name)
                        self.policy.hear(beat._replace(stacks=f"stacks of {name}"), self.now)
            hang = self.policy.judge(self.names, self.now, store_fails=store_fails)
            if hang is not None:
                return hang
        return None

    def measured(self, phase: Phase, seconds: float) -> None:
        """All workers were in this phase for so long."""
        self.mark(phase)
        assert self.wait(seconds) is None
        self.mark(phase)
        assert self.wait(1) is None


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase != "created"])
def test_a_worker_that_is_stopped_is_found_within_seconds_in_every_phase(phase: Phase) -> None:
    group = Group(3)
    group.mark(phase)
    assert group.wait(5) is None
    group.stopped.add("w1")
    began = group.now
    hang = group.wait(FIRST_S)
    assert hang is not None and hang.workers == ("w1",)
    assert group.now - began <= (STARTING_SILENCE_S if phase == "starting" else SILENCE_S) + 1
    assert f"rank 1 on node node-1 has not answered for {group.now - began:.0f} s ({phase})" in hang.why


def test_a_long_call_is_no_hang_in_a_phase_that_was_not_measured_before_or_that_usually_takes_long() -> None:
    for phase, least_s in LEAST_S.items():
        if phase == "waiting for data":
            continue
        group = Group()
        group.mark(phase)  # type: ignore[arg-type]
        assert group.wait(FIRST_S) is None, phase
        assert group.wait(1) is not None, phase
        group = Group()
        group.measured(phase, 40)  # type: ignore[arg-type]
        group.mark(phase)  # type: ignore[arg-type]
        assert group.wait(max(least_s, HANG_FACTOR * 39)) is None, phase
        hang = group.wait(HANG_FACTOR + 1)
        assert hang is not None and hang.workers == ("w0", "w1"), phase
        assert f"ranks 0, 1: {phase}" in hang.why and f"for {phase!r}, which took at most 40.0 s so far" in hang.why


def test_the_first_step_of_a_group_that_restarts_has_the_limit_that_the_first_group_measured() -> None:
    group = Group()
    for phase in ("joining", "restoring", "first step"):
        group.measured(phase, 5)  # type: ignore[arg-type]
    for phase, limit_s in (("joining", 30), ("restoring", 60), ("first step", 30)):
        again = Group()
        again.policy, again.now = group.policy, group.now
        again.mark(phase)  # type: ignore[arg-type]
        assert again.wait(limit_s) is None and again.wait(1) is not None, phase
        group.now = again.now


def test_fewer_workers_take_longer_for_a_step() -> None:
    group = Group()
    group.measured("step", 10)
    group.policy.expect_group(4.0, group.now)
    group.mark("step")
    assert group.wait(HANG_FACTOR * 40) is None and group.wait(1) is not None


def test_ranks_that_wait_for_one_that_is_busy_do_not_hang() -> None:
    """The first rank of a node writes a snapshot; the others wait in their next step."""
    group = Group(3)
    group.measured("step", 1)
    group.measured("snapshot", 10)
    group.mark("step")
    group.mark("snapshot", ["w0"])
    assert group.wait(LEAST_S["snapshot"]) is None
    hang = group.wait(1)
    assert hang is not None and "rank 0: snapshot; ranks 1, 2: step" in hang.why


def test_progress_of_one_rank_is_progress_of_the_group() -> None:
    group = Group()
    group.measured("evaluation", 1)
    group.mark("evaluation")
    for _ in range(5):
        assert group.wait(LEAST_S["evaluation"] - 1) is None
        group.mark("evaluation", ["w1"])


def test_data_may_take_any_time_until_one_rank_has_it() -> None:
    group = Group()
    group.measured("step", 1)
    group.measured("waiting for data", 1)
    group.mark("waiting for data")
    assert group.wait(10 * FIRST_S) is None
    group.mark("step", ["w0"])
    assert group.wait(LEAST_S["waiting for data"]) is None
    assert group.wait(1) is not None


def test_a_store_that_fails_excuses_what_needs_it() -> None:
    for phase, excused in (("saving", True), ("restoring", True), ("evaluation", True), ("step", False)):
        group = Group()
        group.measured(phase, 1)  # type: ignore[arg-type]
        group.mark(phase)  # type: ignore[arg-type]
        assert (group.wait(2 * FIRST_S, store_fails=True) is None) == excused, phase


def test_a_hang_doubles_the_limit_of_its_phase_so_that_one_too_short_does_not_end_the_run() -> None:
    group = Group()
    group.measured("snapshot", 1)
    limits = []
    for _ in range(4):
        group.mark("snapshot")
        group.group += 1
        began = group.now
        assert group.wait(FIRST_S) is not None
        limits.append(group.now - began - 1)
    least_s = LEAST_S["snapshot"]
    assert limits == [least_s, 2 * least_s, MOST_PATIENCE * least_s, MOST_PATIENCE * least_s]


def test_stacks_are_asked_for_before_the_limit_and_kept_from_those_that_answer() -> None:
    group = Group(3)
    group.measured("step", 1)
    group.mark("step")
    assert group.wait(2) is None and group.asked == set()
    group.stopped.add("w1")
    hang = group.wait(FIRST_S)
    assert hang is not None and group.asked == {"w0", "w2"}
    assert [beat.stacks for beat in group.policy.with_stacks(hang, group.names)] == ["stacks of w0", "stacks of w2"]
    assert "rank 2 on node node-2: step" in group.policy.with_stacks(hang, group.names)[1].told()
    group.stopped.clear()
    group.mark("step")
    group.wait(1)
    assert group.policy.with_stacks(hang, group.names) == [], "of an earlier hang"


def test_time_in_which_the_policy_itself_stood_still_is_no_silence() -> None:
    group = Group()
    group.mark("step")
    assert group.wait(3) is None
    group.now += 3600.0  # a machine was suspended
    assert group.policy.judge(group.names, group.now) is None
    group.stopped.add("w1")
    assert group.wait(2 * SILENCE_S) is not None, "and silence after that is found"


def test_workers_that_sent_nothing_yet_are_not_judged() -> None:
    group = Group()
    group.measured("step", 1)
    group.mark("step")
    group.wait(1)
    group.names.append("w2")
    group.phases["w2"], group.marks["w2"], group.marked_at["w2"] = "starting", 0, group.now
    group.stopped.add("w2")
    assert group.wait(FIRST_S) is None, "its slot may not be free yet"


def created(worker: str) -> Beat:
    """What the process tells that has started a worker."""
    return Beat(worker, "node-0", None, 0, "created", 0, 0.0, 1)


def test_a_process_that_stops_before_its_first_beat_is_found_and_the_next_has_more_time() -> None:
    group, found_after_s = Group(1), []
    group.names.append("w1")
    group.phases["w1"], group.marks["w1"], group.marked_at["w1"] = "starting", 0, group.now
    group.stopped.add("w1")
    for _ in range(2):
        group.policy.expect_group(1.0, group.now)
        group.policy._newest.pop("w1", None)  # a worker has its name once
        group.policy.hear(created("w1"), group.now)
        began = group.now
        hang = group.wait(FIRST_S)
        assert hang is not None and hang.workers == ("w1",) and "(created)" in hang.why
        found_after_s.append(group.now - began)
    assert found_after_s == [CREATED_SILENCE_S + 1, 2 * CREATED_SILENCE_S + 1]


@pytest.mark.parametrize(("slowest_s", "found_after_s"), [(1, CREATED_SILENCE_S + 1), (8, 3 * 8 + 1)])
def test_once_a_start_was_measured_a_worker_that_stops_in_one_is_found_sooner(
    slowest_s: int, found_after_s: float
) -> None:
    group = Group(2)
    group.mark("starting")
    assert group.wait(2) is None
    group.stopped.update(group.names)  # imports hold the interpreter's lock
    assert group.wait(slowest_s - 1) is None
    group.stopped.clear()
    assert group.wait(1) is None
    group.mark("idle")
    assert group.wait(2) is None
    group.mark("starting", ["w1"])
    assert group.wait(1) is None
    group.stopped.add("w1")
    began = group.now
    hang = group.wait(FIRST_S)
    assert hang is not None and hang.workers == ("w1",) and "(starting)" in hang.why
    assert group.now - began == found_after_s


def test_a_start_that_has_only_begun_says_nothing_about_the_imports_to_come() -> None:
    group = Group(2)
    group.mark("starting")
    assert group.wait(5) is None
    group.stopped.update(group.names)
    assert group.wait(STARTING_SILENCE_S) is None


def test_processes_that_are_slow_to_send_their_first_beat_are_given_longer() -> None:
    group = Group(2)
    group.phases.update(dict.fromkeys(group.names, "starting"))
    group.stopped.update(group.names)
    for name in group.names:
        group.policy.hear(created(name), group.now)
    assert group.wait(10) is None
    group.stopped.remove("w0")
    assert group.wait(20) is None, "the first took 11 s, so others may take three times as long"
    assert group.policy.hear(created("w0"), group.now) is False
    assert group.wait(1) is None, "and it is not in this phase again"
    assert group.wait(10) is not None


@pytest.mark.parametrize("workers", [1, 10, 1024, 10_000])
def test_the_monitor_gets_a_bounded_number_of_beats(workers: int) -> None:
    assert workers / beat_interval_s(workers) <= BEATS_PER_S
    group = Group(1)
    beat = Beat("w0", "n", 0, 1, "step", 1, 0.0, beat_interval_s(workers))
    group.policy.hear(beat, group.now)
    assert group.policy.judge(["w0"], group.now + 2 * beat.interval_s) is None, "one beat may be late"
