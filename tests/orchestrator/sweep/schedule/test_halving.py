"""Schedules decide the same, whatever number of trials runs at once, whoever comes first and whenever all is killed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.sweep.schedule.halving import Halving
from orchestrator.sweep.schedule.legs import Schedule
from orchestrator.sweep.schedule.plateau import UntilPlateau
from orchestrator.sweep.schedule.population import Population
from orchestrator.sweep.schedule.repeated import Repeated, point_of, points_of, trials_of
from orchestrator.sweep.summary import best_of
from orchestrator.sweep.trial_record import Donor, Report, TrialRecord, TrialRun

LEVELS = [10, 40, 90]
Losses = Callable[[int, int], float]


@dataclass
class Played:
    """What a simulated sweep did."""

    trials: dict[int, TrialRecord] = field(default_factory=dict)
    finalists: list[int] = field(default_factory=list)
    out: set[int] = field(default_factory=set)
    steps: int = 0
    early: bool = False


def play(
    schedule: Schedule,
    losses: Losses,
    slots: int,
    seed: int = 0,
    kills: int = 0,
    fails: Callable[[int, int], bool] = lambda number, until: False,
) -> Played:
    """Runs legs of random durations on so many slots; at `kills` random moments, all that run are lost."""
    rng, played, running = random.Random(seed), Played(), dict[int, tuple[float, int]]()
    now, events = 0.0, 0
    killed_at = {rng.randrange(1, 30) for _ in range(kills)}
    while True:
        decisions = schedule.decide(played.trials)
        if not decisions.legs:
            break
        for leg in decisions.legs:
            if len(running) < slots and leg.number not in running:
                record = played.trials.setdefault(leg.number, TrialRecord(leg.number, [TrialRun(f"r{leg.number}", {})]))
                record.status = "running"
                if leg.donor is not None and (record.trial_run.donor or Donor("", "", 0, 0)).step != leg.donor_step:
                    donor = Donor(f"t{leg.donor:03d}", "", leg.donor_step, 1)
                    record.trial_runs.append(TrialRun("", {}, donor, leg.donor_step, is_forked=True))
                running[leg.number] = now + rng.expovariate(1.0) * (1 + rng.randrange(3)), leg.until
        assert running, "something can always run"
        number = min(running, key=lambda each: running[each])
        now, until = running.pop(number)
        record, events = played.trials[number], events + 1
        played.steps += until - max([report.step for report in record.reports], default=0)
        if fails(number, until):
            record.end("failed")
        else:
            record.status = "paused"
            record.reports.append(Report(events, until, losses(number, until), 0.0, 0.0, len(record.trial_runs) - 1))
        if events in killed_at:
            running.clear()
    played.finalists, played.out, played.early = decisions.finalists, set(decisions.out), bool(decisions.early)
    return played


def drawn_losses(seed: int) -> Losses:
    """Losses whose ranking changes on the way; some are equal."""
    return lambda number, step: round(random.Random(f"{seed}/{number}/{step}").gauss(5 - step / 30, 0.8), 1)


def halved(trials: int, losses: Losses, factor: float, lost: set[tuple[int, int]] = frozenset()) -> list[int]:  # type: ignore[assignment]
    """Synchronous halving as it is written down: the survivors of each rung, the best of the last one first.

    If none comes to the last rung: who was not needed beyond a rung, those of the highest rung first.
    """
    cohort, left = list(range(1, trials + 1)), list[int]()
    size = trials
    for level, above in zip(LEVELS, [*LEVELS[1:], None], strict=True):
        reached = sorted(
            (number for number in cohort if (number, level) not in lost), key=lambda n: (losses(n, level), n)
        )
        if above is None:
            return reached or left
        size = max(1, int(size // factor))
        cohort = [number for number in reached if (number, above) not in lost][:size]
        left = (reached[reached.index(cohort[-1]) + 1 :] if len(cohort) == size else []) + left
    return []


@settings(max_examples=60)
@given(
    trials=st.integers(1, 30),
    slots=st.sampled_from([1, 2, 4, 16, 40]),
    factor=st.sampled_from([2.0, 3.0, 4.0]),
    eager=st.booleans(),
    kills=st.integers(0, 4),
    seed=st.integers(0, 10_000),
)
def test_the_winner_is_that_of_synchronous_halving(
    trials: int, slots: int, factor: float, eager: bool, kills: int, seed: int
) -> None:
    losses = drawn_losses(seed)
    played = play(Halving(trials, LEVELS, factor, eager=eager), losses, slots, seed, kills)
    assert played.finalists == halved(trials, losses, factor)
    alone = play(Halving(trials, LEVELS, factor), losses, 1)
    if not eager:
        assert played.steps == alone.steps
        assert played.out == alone.out


@settings(max_examples=60)
@given(slots=st.sampled_from([1, 3, 20]), seed=st.integers(0, 10_000))
def test_one_that_fails_makes_room_for_the_next(slots: int, seed: int) -> None:
    losses, draw = drawn_losses(seed), random.Random(seed)
    lost = {(number, level) for number in range(1, 13) for level in LEVELS if draw.random() < 0.25}
    played = play(Halving(12, LEVELS, 3), losses, slots, seed, fails=lambda number, until: (number, until) in lost)
    assert played.finalists == halved(12, losses, 3, lost)


@settings(max_examples=40)
@given(
    slots=st.sampled_from([1, 3, 40]),
    repeats=st.integers(2, 4),
    eager=st.booleans(),
    kills=st.integers(0, 3),
    seed=st.integers(0, 10_000),
)
def test_points_of_several_trials_are_halved_by_their_means(
    slots: int, repeats: int, eager: bool, kills: int, seed: int
) -> None:
    losses, draw = drawn_losses(seed), random.Random(seed)
    lost = {(number, level) for number in range(1, 9 * repeats) for level in LEVELS if draw.random() < 0.08}

    def mean(point: int, step: int) -> float:
        return sum(losses(number, step) for number in trials_of(point, repeats)) / repeats

    lost_points = {(point_of(number, repeats), level) for number, level in lost}
    schedule = Repeated(Halving(9, LEVELS, 3, eager=eager), repeats)
    played = play(schedule, losses, slots, seed, kills, lambda number, until: (number, until) in lost)
    assert played.finalists == halved(9, mean, 3, lost_points)
    points = points_of(played.trials, repeats)
    for point in played.finalists:
        assert points[point].loss == mean(point, points[point].reports[-1].step)


def up_to_plateau(losses: list[float], window: int, by: float) -> int:
    """The number of losses up to the first plateau, as it is defined."""
    for count in range(window + 1, len(losses)):
        if min(losses[: count - window]) - min(losses[count - window : count]) <= by:
            return count
    return len(losses)


@settings(max_examples=60)
@given(
    slots=st.sampled_from([1, 3, 40]),
    window=st.integers(1, 6),
    by=st.sampled_from([0.0, 0.3]),
    eager=st.booleans(),
    kills=st.integers(0, 3),
    seed=st.integers(0, 10_000),
)
def test_a_plateau_ends_a_sweep_after_the_same_trials_however_many_run_at_once(
    slots: int, window: int, by: float, eager: bool, kills: int, seed: int
) -> None:
    losses = drawn_losses(seed)
    count = up_to_plateau([losses(number, LEVELS[0]) for number in range(1, 25)], window, by)
    schedule = UntilPlateau(lambda points: Halving(points, LEVELS, 3, eager=eager), 24, window, by)
    played = play(schedule, losses, slots, seed, kills)
    assert played.finalists == halved(count, losses, 3)
    assert played.early == (count < 24)
    assert set(range(1, count + 1)) <= played.trials.keys()
    if slots == 1 and not kills:
        assert played.trials.keys() == set(range(1, count + 1))


@settings(max_examples=100)
@example(slots=40, window=5, repeats=1, kind={"eager": True}, kills=0, seed=4227)  # what was begun early has failed
@example(slots=40, window=2, repeats=2, kind={"eager": True}, kills=1, seed=7632)
@given(
    slots=st.sampled_from([2, 5, 40]),
    window=st.sampled_from([2, 5, 30]),
    repeats=st.integers(1, 2),
    kind=st.sampled_from([{}, {"eager": True}, {"settles": True}, {"brackets": 2}]),
    kills=st.integers(0, 3),
    seed=st.integers(0, 10_000),
)
def test_where_all_finalists_fail_the_best_is_the_same_however_many_run_at_once(
    slots: int, window: int, repeats: int, kind: dict[str, Any], kills: int, seed: int
) -> None:
    draw = random.Random(seed)
    failing = dict(zip(LEVELS, draw.choice([(0.1, 0.5, 1.0), (0.2, 0.9, 0.9), (0.1, 1.0, 0.0)]), strict=True))
    lost = {(number, level) for number in range(1, 31) for level in LEVELS if draw.random() < failing[level]}
    schedule: Schedule = UntilPlateau(lambda points: Halving(points, LEVELS, 3, **kind), 15, window, 0.1)
    schedule = schedule if repeats == 1 else Repeated(schedule, repeats)

    def best(slots: int, kills: int) -> int | None:
        played = play(schedule, drawn_losses(seed), slots, seed, kills, lambda number, until: (number, until) in lost)
        found = best_of(played.trials, schedule.decide(played.trials), LEVELS, repeats)
        return found and found.number

    assert best(slots, kills) == best(1, 0)


def test_points_that_fail_do_not_improve_and_none_is_no_plateau() -> None:
    schedule = UntilPlateau(lambda points: Halving(points, [90], 2), 8, 2, 0.0)
    assert set(play(schedule, lambda number, step: 1.0, 1, fails=lambda number, until: True).trials) == set(range(1, 9))
    played = play(schedule, lambda number, step: 1.0, 1, fails=lambda number, until: number > 1)
    assert set(played.trials) == {1, 2, 3} and played.finalists == [1] and played.early


def test_sixteen_trials_cost_a_quarter_of_all() -> None:
    played = play(Halving(16, LEVELS, 4), drawn_losses(1), 4)
    assert played.steps == 16 * 10 + 4 * 30 + 1 * 50


@pytest.mark.parametrize("slots", [1, 5, 30])
def test_brackets_are_halved_apart_from_each_other(slots: int) -> None:
    losses = drawn_losses(3)
    schedule = Halving(12, LEVELS, 4, brackets=3)
    played = play(schedule, losses, slots, seed=slots)
    by_bracket = {(number - 1) % 3 for number in played.finalists}
    assert by_bracket == {0, 1, 2}
    assert played.finalists == sorted(played.finalists, key=lambda number: (losses(number, 90), number))
    assert len(played.finalists) == 1 + 1 + 4  # of four trials each that begin at rungs 10, 40 and 90


@pytest.mark.parametrize("slots", [1, 5, 30])
def test_pasha_ends_where_the_ranking_has_settled(slots: int) -> None:
    settled = play(Halving(16, LEVELS, 2, settles=True), lambda number, step: float(number), slots, slots)
    assert settled.finalists == list(range(1, 9))  # those that reached the second rung, in the order of the first
    changing = play(
        Halving(16, LEVELS, 2, settles=True),
        lambda number, step: float(number if step == 10 else -number),
        slots,
        slots,
    )
    assert changing.finalists == [8, 7, 6, 5]


@settings(max_examples=40)
@given(
    trials=st.integers(2, 12), slots=st.sampled_from([1, 3, 12]), kills=st.integers(0, 3), seed=st.integers(0, 10_000)
)
def test_a_population_copies_the_same_states_however_many_run_at_once(
    trials: int, slots: int, kills: int, seed: int
) -> None:
    schedule, losses = Population(trials, [20, 40, 60], 0.25, seed=7), drawn_losses(seed)
    played, alone = play(schedule, losses, slots, seed, kills), play(schedule, losses, 1)

    def donors(each: Played) -> dict[int, list[tuple[str, int]]]:
        return {
            number: [(run.donor.id, run.donor.step) for run in record.trial_runs if run.donor]
            for number, record in each.trials.items()
        }

    assert donors(played) == donors(alone)
    assert played.finalists == alone.finalists
    assert sum(len(each) for each in donors(alone).values()) == 2 * max(1, trials // 4)


def test_a_donor_waits_until_its_state_is_copied() -> None:
    schedule = Population(4, [20, 40], 0.25, seed=1)
    trials = {
        number: TrialRecord(number, [TrialRun("", {})], "paused", reports=[Report(number, 20, float(number), 0.0, 0.0)])
        for number in range(1, 5)
    }
    legs = schedule.decide(trials).legs
    assert [(leg.number, leg.donor) for leg in legs] == [(4, 1), (2, None), (3, None)]
    trials[4].trial_runs.append(TrialRun("", {}, Donor("t001", "", 20, 1), 20))
    assert 1 not in [leg.number for leg in schedule.decide(trials).legs]
    trials[4].trial_run.is_forked = True
    assert [leg.number for leg in schedule.decide(trials).legs] == [4, 1, 2, 3]
