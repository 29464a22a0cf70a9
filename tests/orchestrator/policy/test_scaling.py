"""The scaling policy on invented clusters, with a clock of the test's own."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy.scaling import (
    DRAIN_PREPARE_S,
    GAIN_FACTOR,
    GROWTH_SHARE,
    MOST_SETTLE_S,
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


def policy(
    min_workers: int = 2, max_workers: int = 8, micro_batches: int = 16, restart_s: float = 6.0
) -> ScalingPolicy:
    return ScalingPolicy(min_workers, max_workers, micro_batches, restart_s)


def idle(slots: int, warm_spares: int = 0, reserved_slots: int = 0) -> Observation:
    return Observation(workers=0, slots=slots, warm_spares=warm_spares, reserved_slots=reserved_slots)


def running(now: float, workers: int, slots: int, **more: object) -> Observation:
    """By default, there is a warm spare in every free slot."""
    usual = {"step_s": 1.0, "steps_left": 1000, "warm_spares": max(0, slots - workers)}
    return Observation(workers=workers, slots=slots, now=now, **usual | more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("slots", "workers"), [(2, 2), (3, 3), (8, 8), (100, 8)])
def test_starts_with_the_slots_there_are_within_its_bounds(slots: int, workers: int) -> None:
    decision = policy().when_idle(idle(slots))
    assert isinstance(decision, Start) and decision.workers == workers


def test_waits_below_the_minimum_and_states_the_numbers() -> None:
    decision = policy().when_idle(idle(1))
    assert decision == Wait("the cluster has slots for 1 workers, fewer than scaling.min_workers=2")


def test_no_worker_takes_a_reserved_slot() -> None:
    one = policy()
    assert one.when_idle(idle(3, reserved_slots=1)).workers == 2  # type: ignore[union-attr]
    waiting = one.when_idle(idle(2, reserved_slots=1))
    assert isinstance(waiting, Wait) and "slots for 1 workers beside 1 reserved for tokenizing" in waiting.why
    for now in (10.0, 20.0):
        assert one.when_running(running(now, 2, 3, reserved_slots=1)) == Noop()


@pytest.mark.parametrize(
    ("workers", "more", "wanted"),
    [
        (2, {}, 8),
        (7, {}, 8),  # 7 are as fast as 6; 8 are faster
        (2, {"step_s": None}, 8),  # it is not known yet what growing saves
        (2, {"steps_left": 5}, 2),  # it would no longer pay off
        (8, {"steps_left": 5}, 8),
    ],
)
def test_wants_as_many_workers_as_pay_off(workers: int, more: dict[str, object], wanted: int) -> None:
    assert policy().wanted(running(0.0, workers, workers, **more)) == wanted


def test_starts_no_worker_that_would_not_shorten_the_step() -> None:
    """With 6 workers as with 7, the busiest one has 3 of the 16 micro-batches."""
    decision = policy().when_idle(idle(7))
    assert isinstance(decision, Start) and decision.workers == 6


def test_a_fixed_number_is_not_reduced() -> None:
    decision = policy(min_workers=7, max_workers=7).when_idle(idle(9))
    assert isinstance(decision, Start) and decision.workers == 7


def test_grows_when_the_capacity_has_settled() -> None:
    one = policy()
    assert one.when_running(running(10.0, 2, 4)) == Noop()
    assert one.when_running(running(10.0 + SETTLE_S / 2, 2, 4)) == Noop()
    decision = one.when_running(running(10.0 + SETTLE_S, 2, 4))
    assert isinstance(decision, SaveThenResize) and decision.workers == 4
    assert "saves 500 s" in decision.why and "6.0 s" in decision.why


def test_capacity_that_comes_and_goes_is_never_used() -> None:
    one = policy()
    for now in range(100):
        assert one.when_running(running(float(now), 2, 4 if now % 2 else 2)) == Noop()


def test_waits_while_the_capacity_still_grows() -> None:
    one = policy()
    for now, slots in ((0.0, 4), (2.0, 6), (4.0, 8)):
        assert one.when_running(running(now, 2, slots)) == Noop()
    decision = one.when_running(running(4.0 + SETTLE_S, 2, 8))
    assert isinstance(decision, SaveThenResize) and decision.workers == 8


@pytest.mark.parametrize(("steps_left", "grows"), [(23, False), (25, True)])
def test_the_gain_over_the_remaining_steps_must_outweigh_the_restart(steps_left: int, grows: bool) -> None:
    """Twice the workers halve the remaining time; growing must save at least twice 6 s."""
    one = policy()
    one.when_running(running(0.0, 2, 4, steps_left=steps_left))
    decision = one.when_running(running(SETTLE_S, 2, 4, steps_left=steps_left))
    assert isinstance(decision, SaveThenResize) == grows


def test_growing_waits_for_warm_spares_while_the_others_train() -> None:
    one = policy()
    one.when_running(running(0.0, 2, 4, warm_spares=0))
    for warm_spares in (0, 1):
        decision = one.when_running(running(SETTLE_S, 2, 4, warm_spares=warm_spares))
        assert isinstance(decision, Prepare) and decision.joining_workers == 2
    assert one.when_running(running(SETTLE_S + 1, 2, 4, warm_spares=2)).workers == 4  # type: ignore[union-attr]


def test_the_wait_for_warm_spares_ends() -> None:
    one = policy()
    one.when_running(running(0.0, 2, 4, warm_spares=1))
    assert isinstance(one.when_running(running(SETTLE_S, 2, 4, warm_spares=1)), Prepare)
    decision = one.when_running(running(SETTLE_S + PREPARE_S, 2, 4, warm_spares=1))
    assert isinstance(decision, SaveThenResize) and decision.workers == 3


@pytest.mark.parametrize(("ready", "workers"), [(0, 8), (1, 8), (2, 2), (5, 4), (8, 8)])
def test_live_workers_restart_by_themselves_if_they_are_enough(ready: int, workers: int) -> None:
    """Five are no faster than four; one is fewer than the minimum, so all are started."""
    decision = policy().when_idle(idle(8, warm_spares=ready))
    assert isinstance(decision, Start) and decision.workers == workers


def test_draining_nodes_are_left_when_warm_spares_are_ready_or_a_few_seconds_later() -> None:
    """Two of three are on draining nodes, and there are slots for four."""
    one = policy()
    seen = {"on_draining": 2, "warm_spares": 0}
    decision = one.when_running(running(0.0, 3, 4, **seen))
    assert isinstance(decision, Prepare) and decision.joining_workers == 3
    assert one.when_running(running(1.0, 3, 4, **{**seen, "warm_spares": 3})).workers == 4  # type: ignore[union-attr]
    one.when_running(running(10.0, 3, 4, **seen))
    late = one.when_running(running(10.0 + DRAIN_PREPARE_S, 3, 4, **{**seen, "warm_spares": 1}))
    assert isinstance(late, SaveThenResize) and late.workers == 2


def test_draining_nodes_are_left_at_once_whatever_it_costs() -> None:
    decision = policy().when_running(running(0.0, 4, 3, on_draining=1, steps_left=1, step_s=None))
    assert isinstance(decision, SaveThenResize) and decision.workers == 3
    assert "1 of 4 workers are on draining nodes" in decision.why


@pytest.mark.parametrize(("on_draining", "durably"), [(1, False), (3, False), (4, True)])
def test_a_snapshot_on_draining_nodes_only_is_saved_durably(on_draining: int, durably: bool) -> None:
    decision = policy().when_running(running(0.0, 4, 4, on_draining=on_draining, warm_spares=on_draining))
    assert isinstance(decision, SaveThenResize) and decision.durably == durably


def test_without_other_slots_it_saves_and_keeps_training() -> None:
    decision = policy().when_running(running(0.0, 4, 1, on_draining=4))
    assert isinstance(decision, Save) and "scaling.min_workers=2" in decision.why


def test_nothing_is_decided_before_a_step_was_measured() -> None:
    one = policy()
    for now in range(10):
        assert one.when_running(running(float(now), 2, 8, step_s=None)) == Noop()


@given(
    min_workers=st.integers(1, 40),
    extra=st.integers(0, 40),
    micro_batches=st.integers(1, 100),
    slots=st.lists(st.integers(0, 90), min_size=1, max_size=60),
    step_s=st.floats(0.001, 100),
    steps_left=st.integers(0, 100_000),
)
def test_every_decision_keeps_the_bounds_and_pays_off(
    min_workers: int, extra: int, micro_batches: int, slots: list[int], step_s: float, steps_left: int
) -> None:
    """Over any cluster history: never outside the bounds, never more workers than fit, never a growth at a loss."""
    one = ScalingPolicy(min_workers, min_workers + extra, micro_batches, restart_s=5.0)
    workers = 0
    for number, free in enumerate(slots):
        if workers == 0:
            started = one.when_idle(idle(free))
            assert isinstance(started, Wait) == (free < min_workers)
            workers = started.workers if isinstance(started, Start) else 0
            assert workers == 0 or min_workers <= workers <= min(free, min_workers + extra)
            continue
        seen = running(2.0 * number, workers, free, step_s=step_s, steps_left=steps_left)
        decision = one.when_running(seen)
        if isinstance(decision, SaveThenResize):
            assert workers < decision.workers <= min(free, min_workers + extra)
            before, after = (math.ceil(micro_batches / each) for each in (workers, decision.workers))
            assert steps_left * step_s * (1 - after / before) >= GAIN_FACTOR * 5.0
            workers = decision.workers


@pytest.mark.parametrize(("restart_s", "settle_s"), [(4.0, SETTLE_S), (40.0, 10.0), (400.0, MOST_SETTLE_S)])
def test_capacity_must_settle_for_longer_where_a_restart_costs_more(restart_s: float, settle_s: float) -> None:
    one = policy(restart_s=restart_s)
    assert one.when_running(running(100.0, 2, 4, steps_left=10**6)) == Noop()
    assert one.when_running(running(100.0 + settle_s - 0.1, 2, 4, steps_left=10**6)) == Noop()
    assert isinstance(one.when_running(running(100.0 + settle_s, 2, 4, steps_left=10**6)), SaveThenResize)


def test_growth_waits_for_nodes_that_are_starting_until_that_has_cost_as_much_as_a_restart() -> None:
    """Twice the workers: each second of waiting costs half a second, and the restart 6 s."""
    one = policy(restart_s=6.0)
    for now in range(12):
        assert one.when_running(running(float(now), 2, 4, starting_slots=4)) == Noop()
    assert isinstance(one.when_running(running(12.0, 2, 4, starting_slots=4)), SaveThenResize)


def test_nodes_that_are_starting_and_would_not_help_are_not_waited_for() -> None:
    one = policy(max_workers=4)
    one.when_running(running(0.0, 2, 4, starting_slots=4))
    assert isinstance(one.when_running(running(SETTLE_S, 2, 4, starting_slots=4)), SaveThenResize)


@pytest.mark.parametrize("restart_s", [3.0, 40.0, 120.0])
@pytest.mark.parametrize("every_s", [2, 5, 15, 60])
def test_growing_takes_a_bounded_share_of_the_time_however_often_nodes_come(restart_s: float, every_s: int) -> None:
    """A node comes every few seconds for an hour. Compared with the run that never grows, and with free restarts."""
    nodes, end = 3600 // every_s, 7200
    one = policy(min_workers=1, max_workers=nodes, micro_batches=100 * nodes, restart_s=restart_s)
    workers, busy_until, standing_still, restarts, done = 1, 0.0, 0, 0, 0.0
    for now in range(end):
        slots = min(nodes, 1 + now // every_s)
        if now < busy_until:
            standing_still += 1
            continue
        done += workers
        decision = one.when_running(running(float(now), workers, slots, steps_left=10**6))
        if isinstance(decision, SaveThenResize):
            workers, busy_until, restarts = decision.workers, now + restart_s, restarts + 1
            one.when_idle(idle(slots))
    assert workers == nodes
    assert standing_still <= GROWTH_SHARE * end
    free = sum(min(nodes, 1 + now // every_s) for now in range(end))
    assert done >= (0.95 - GROWTH_SHARE) * free, f"{done / free:.2f}, with {restarts} restarts"
