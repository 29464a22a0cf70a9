"""Goodput: the causes always add up to the time that passed."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.run.goodput import CAUSES, GoodputClock, add_up
from orchestrator.run.summary import goodput_of
from tests.orchestrator.run.builders import attempt


class FakeTime:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


causes = st.sampled_from(CAUSES)
moves = st.tuples(st.just("pass"), st.integers(0, 1000))
any_action = st.one_of(
    moves,
    st.tuples(st.just("switch"), causes),
    st.tuples(st.just("enter"), causes),
    st.tuples(st.just("leave"), causes),
)


@given(causes, st.lists(any_action, max_size=60))
def test_every_second_goes_to_the_cause_of_that_moment(first: str, actions: list[tuple[str, object]]) -> None:
    time = FakeTime()
    clock = GoodputClock(first, time)
    expected: dict[str, float] = defaultdict(float)
    stack, current, blocks = [], first, []
    for action, value in actions:
        if action == "pass":
            time.now += value
            expected[current] += value
        elif action == "switch":
            assert clock.switch(value) == current
            current = value
        elif action == "enter":
            blocks.append(clock.during(value))
            blocks[-1].__enter__()
            stack.append(current)
            current = value
        elif blocks:
            blocks.pop().__exit__(None, None, None)
            current = stack.pop()
        seconds = clock.seconds()
        assert sum(seconds.values()) == time.now - 1000
        assert {cause: s for cause, s in seconds.items() if s} == {cause: s for cause, s in expected.items() if s}


def test_a_block_that_raises_restores_the_previous_cause() -> None:
    time = FakeTime()
    clock = GoodputClock("training", time)
    with pytest.raises(ZeroDivisionError), clock.during("checkpoint"):
        time.now += 3
        raise ZeroDivisionError
    time.now += 4
    assert clock.seconds() == {"checkpoint": 3, "training": 4}


def test_returned_seconds_do_not_change_afterwards() -> None:
    time = FakeTime()
    clock = GoodputClock("training", time)
    before = clock.seconds()
    time.now += 5
    clock.seconds()
    assert before == {"training": 0}


@given(st.lists(st.dictionaries(causes, st.integers(0, 1000)), max_size=6))
def test_ledgers_add_up_cause_by_cause(ledgers: list[dict[str, float]]) -> None:
    total = add_up(ledgers)
    assert list(total) == list(CAUSES)
    for cause in CAUSES:
        assert total[cause] == sum(ledger.get(cause, 0) for ledger in ledgers)


def test_an_unknown_cause_raises() -> None:
    with pytest.raises(KeyError, match="lunch"):
        add_up([{"lunch": 1.0}])


@given(st.lists(st.tuples(st.dictionaries(causes, st.integers(1, 100)), st.integers(0, 500)), min_size=1, max_size=5))
def test_attempts_and_the_pauses_between_them_add_up_to_wall_time(lives: list[tuple[dict[str, int], int]]) -> None:
    attempts, now = [], 5000.0
    for number, (goodput, pause) in enumerate(lives, 1):
        age = sum(goodput.values())
        attempts.append(attempt(number, started_at=now, heartbeat_at=now + age, goodput=goodput))
        now += age + pause
    total = goodput_of(tuple(attempts))
    wall = total.pop("wall")
    assert wall == sum(total.values()) == now - lives[-1][1] - 5000
