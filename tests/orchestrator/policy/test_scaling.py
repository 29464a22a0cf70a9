"""Invented clusters in, decisions out, with a clock of the test's own."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy.scaling import (
    DRAIN_PREPARE_S,
    GAIN_FACTOR,
    PREPARE_S,
    SETTLE_S,
    Noop,
    Observation,
    Prepare,
    Save,
    SaveThenResize,
    ScalingPolicy,
    Start,
    Wait,
)


def policy(fewest: int = 2, most: int = 8, micro_batches: int = 16, restart_s: float = 6.0) -> ScalingPolicy:
    return ScalingPolicy(fewest, most, micro_batches, restart_s)


def running(now: float, workers: int, slots: int, **more: object) -> Observation:
    """Newcomers stand by on all slots, where nothing else is said."""
    usual = {"step_s": 1.0, "steps_left": 1000, "warm_spares": max(0, slots - workers)}
    return Observation(now, workers, slots, **{**usual, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(("slots", "workers"), [(2, 2), (3, 3), (8, 8), (100, 8)])
def test_starts_with_what_there_is_between_its_bounds(slots: int, workers: int) -> None:
    decision = policy().when_idle(Observation(0.0, 0, slots))
    assert isinstance(decision, Start) and decision.workers == workers


def test_waits_below_the_minimum_and_says_for_what() -> None:
    decision = policy().when_idle(Observation(0.0, 0, 1))
    assert decision == Wait("the cluster has room for 1 workers, and scaling.min_workers=2")


def test_a_place_that_is_kept_free_is_no_workers() -> None:
    one = policy()
    assert one.when_idle(Observation(0.0, 0, 3, reserved_slots=1)).workers == 2  # type: ignore[union-attr]
    waiting = one.when_idle(Observation(0.0, 0, 2, reserved_slots=1))
    assert isinstance(waiting, Wait) and "room for 1 workers beside the 1 kept free to tokenize with" in waiting.why
    for now in (10.0, 20.0):
        assert one.when_running(running(now, 2, 3, reserved_slots=1)) == Noop()


@pytest.mark.parametrize(
    ("workers", "more", "wanted"),
    [
        (2, {}, 8),
        (7, {}, 8),  # 7 are as fast as 6: it is 8 that would help
        (2, {"step_s": None}, 8),  # nobody knows yet what growing saves
        (2, {"steps_left": 5}, 2),  # it would not pay any more
        (8, {"steps_left": 5}, 8),
    ],
)
def test_nodes_are_wanted_for_as_many_as_would_pay(workers: int, more: dict[str, object], wanted: int) -> None:
    assert policy().wanted(running(0.0, workers, workers, **more)) == wanted


def test_takes_no_worker_that_would_not_shorten_the_step() -> None:
    """Over 6 workers as over 7, the busiest of them has 3 of the 16 micro-batches."""
    decision = policy().when_idle(Observation(0.0, 0, 7))
    assert isinstance(decision, Start) and decision.workers == 6


def test_a_fixed_number_is_taken_as_it_is() -> None:
    decision = policy(fewest=7, most=7).when_idle(Observation(0.0, 0, 9))
    assert isinstance(decision, Start) and decision.workers == 7


def test_grows_once_the_room_has_settled() -> None:
    one = policy()
    assert one.when_running(running(10.0, 2, 4)) == Noop()
    assert one.when_running(running(10.0 + SETTLE_S / 2, 2, 4)) == Noop()
    decision = one.when_running(running(10.0 + SETTLE_S, 2, 4))
    assert isinstance(decision, SaveThenResize) and decision.workers == 4
    assert "saves 500 s" in decision.why and "6.0 s" in decision.why


def test_room_that_flickers_is_never_used() -> None:
    one = policy()
    for now in range(100):
        assert one.when_running(running(float(now), 2, 4 if now % 2 else 2)) == Noop()


def test_room_that_still_grows_is_waited_for() -> None:
    one = policy()
    for now, slots in ((0.0, 4), (2.0, 6), (4.0, 8)):
        assert one.when_running(running(now, 2, slots)) == Noop()
    decision = one.when_running(running(4.0 + SETTLE_S, 2, 8))
    assert isinstance(decision, SaveThenResize) and decision.workers == 8


@pytest.mark.parametrize(("steps_left", "grows"), [(23, False), (25, True)])
def test_the_gain_over_what_is_left_must_outweigh_the_restart(steps_left: int, grows: bool) -> None:
    """Twice the workers halve what is left; at least twice 6 s must be saved."""
    one = policy()
    one.when_running(running(0.0, 2, 4, steps_left=steps_left))
    decision = one.when_running(running(SETTLE_S, 2, 4, steps_left=steps_left))
    assert isinstance(decision, SaveThenResize) == grows


def test_growing_waits_for_newcomers_to_stand_by_while_the_others_train() -> None:
    one = policy()
    one.when_running(running(0.0, 2, 4, warm_spares=0))
    for warm_spares in (0, 1):
        decision = one.when_running(running(SETTLE_S, 2, 4, warm_spares=warm_spares))
        assert isinstance(decision, Prepare) and decision.joining_workers == 2
    assert one.when_running(running(SETTLE_S + 1, 2, 4, warm_spares=2)).workers == 4  # type: ignore[union-attr]


def test_newcomers_that_do_not_come_up_are_not_waited_for_for_ever() -> None:
    one = policy()
    one.when_running(running(0.0, 2, 4, warm_spares=1))
    assert isinstance(one.when_running(running(SETTLE_S, 2, 4, warm_spares=1)), Prepare)
    decision = one.when_running(running(SETTLE_S + PREPARE_S, 2, 4, warm_spares=1))
    assert isinstance(decision, SaveThenResize) and decision.workers == 3


@pytest.mark.parametrize(("ready", "workers"), [(0, 8), (1, 8), (2, 2), (5, 4), (8, 8)])
def test_survivors_go_on_by_themselves_where_they_are_enough(ready: int, workers: int) -> None:
    """Five would not shorten the steps of four; and one is fewer than the minimum, so all are started."""
    decision = policy().when_idle(Observation(0.0, 0, 8, warm_spares=ready))
    assert isinstance(decision, Start) and decision.workers == workers


def test_nodes_about_to_go_are_left_when_newcomers_stand_by_or_a_few_seconds_later() -> None:
    """Two of three are on nodes about to go, and there is room for four."""
    one = policy()
    seen = {"on_draining": 2, "warm_spares": 0}
    decision = one.when_running(running(0.0, 3, 4, **seen))
    assert isinstance(decision, Prepare) and decision.joining_workers == 3
    assert one.when_running(running(1.0, 3, 4, **{**seen, "warm_spares": 3})).workers == 4  # type: ignore[union-attr]
    one.when_running(running(10.0, 3, 4, **seen))
    late = one.when_running(running(10.0 + DRAIN_PREPARE_S, 3, 4, **{**seen, "warm_spares": 1}))
    assert isinstance(late, SaveThenResize) and late.workers == 2


def test_nodes_about_to_go_are_left_at_once_whatever_it_costs() -> None:
    decision = policy().when_running(running(0.0, 4, 3, on_draining=1, steps_left=1, step_s=None))
    assert isinstance(decision, SaveThenResize) and decision.workers == 3
    assert "1 of 4 workers" in decision.why


@pytest.mark.parametrize(("on_draining", "durably"), [(1, False), (3, False), (4, True)])
def test_what_only_nodes_about_to_go_remember_is_saved_durably(on_draining: int, durably: bool) -> None:
    decision = policy().when_running(running(0.0, 4, 4, on_draining=on_draining, warm_spares=on_draining))
    assert isinstance(decision, SaveThenResize) and decision.durably == durably


def test_with_nowhere_to_go_on_it_saves_and_goes_on_where_it_is() -> None:
    decision = policy().when_running(running(0.0, 4, 1, on_draining=4))
    assert isinstance(decision, Save) and "scaling.min_workers=2" in decision.why


def test_nothing_is_decided_before_a_step_was_measured() -> None:
    one = policy()
    for now in range(10):
        assert one.when_running(running(float(now), 2, 8, step_s=None)) == Noop()


@given(
    fewest=st.integers(1, 40),
    extra=st.integers(0, 40),
    micro_batches=st.integers(1, 100),
    slots=st.lists(st.integers(0, 90), min_size=1, max_size=60),
    step_s=st.floats(0.001, 100),
    steps_left=st.integers(0, 100_000),
)
def test_every_decision_keeps_the_bounds_and_pays(
    fewest: int, extra: int, micro_batches: int, slots: list[int], step_s: float, steps_left: int
) -> None:
    """Over any course of a cluster: never outside the bounds, never more workers than fit, never a growth at a loss."""
    one = ScalingPolicy(fewest, fewest + extra, micro_batches, restart_s=5.0)
    workers = 0
    for number, room in enumerate(slots):
        if workers == 0:
            started = one.when_idle(Observation(2.0 * number, 0, room))
            assert isinstance(started, Wait) == (room < fewest)
            workers = started.workers if isinstance(started, Start) else 0
            assert workers == 0 or fewest <= workers <= min(room, fewest + extra)
            continue
        seen = Observation(2.0 * number, workers, room, 0, max(0, room - workers), step_s, steps_left)
        decision = one.when_running(seen)
        if isinstance(decision, SaveThenResize):
            assert workers < decision.workers <= min(room, fewest + extra)
            before, after = (math.ceil(micro_batches / each) for each in (workers, decision.workers))
            assert steps_left * step_s * (1 - after / before) >= GAIN_FACTOR * 5.0
            workers = decision.workers
