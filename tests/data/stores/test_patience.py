"""Patience: growing waits with bounds, one limit for each outage, and few lines about it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from data.errors import StoreAccessError, TransientStoreError
from data.stores import patience as patience_module
from data.stores.patience import FIRST_WAIT_S, JITTER, LONGEST_WAIT_S, TOLD_EVERY_S, Outage, Patience, telling

BUSY = TransientStoreError("The store\nis busy.")


class Clock:
    """A clock that only sleeping moves, in place of the module's `time`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1e9 + self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience_module, "time", clock)
    return clock


def failing(*, until: Callable[[], bool]) -> Callable[[], str]:
    """An operation that fails until a condition holds."""

    def operation() -> str:
        if not until():
            raise BUSY
        return "done"

    return operation


def after(times: int) -> Callable[[], bool]:
    """A condition that holds from its call number `times` + 1 on."""
    calls = iter([False] * times)
    return lambda: next(calls, True)


@pytest.mark.parametrize(("drawn", "share"), [(0.0, 1.0), (1.0, 1 - JITTER)])
def test_waits_double_up_to_the_longest_less_what_is_drawn(
    clock: Clock, drawn: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience_module.random, "random", lambda: drawn)
    assert Patience(1e9, sleep=clock.sleep).call(failing(until=after(9))) == "done"
    doubled = [FIRST_WAIT_S * 2**tries for tries in range(9)]
    assert clock.waits == [share * min(wait, LONGEST_WAIT_S) for wait in doubled] and doubled[-1] > LONGEST_WAIT_S


def test_it_gives_up_at_the_limit_and_not_before(clock: Clock) -> None:
    with pytest.raises(TransientStoreError, match="busy"):
        Patience(100.0, sleep=clock.sleep).call(failing(until=lambda: False))
    assert clock.now == pytest.approx(1100.0), "the last try is at the very end"


def test_without_patience_the_first_failure_is_raised(clock: Clock) -> None:
    with pytest.raises(TransientStoreError):
        Patience(0.0, sleep=clock.sleep).call(failing(until=lambda: False))
    assert clock.waits == []


def test_other_errors_are_raised_at_once(clock: Clock) -> None:
    def refused() -> None:
        raise StoreAccessError("no")

    with pytest.raises(StoreAccessError):
        Patience(100.0, sleep=clock.sleep).call(refused)
    assert clock.waits == []


def test_every_outage_has_the_whole_patience(clock: Clock) -> None:
    patience = Patience(60.0, sleep=clock.sleep)
    for _ in range(3):
        mended_at = clock.now + 50.0
        assert patience.call(failing(until=lambda at=mended_at: clock.now >= at)) == "done"  # type: ignore[misc]
        assert clock.waits[0] <= FIRST_WAIT_S
        clock.waits.clear()


def test_each_failure_is_told_and_the_end_once(clock: Clock) -> None:
    told: list[Outage | None] = []
    patience = Patience(100.0, told.append, sleep=clock.sleep)
    patience.call(failing(until=after(2)))
    patience.call(failing(until=after(0)))
    assert told == [Outage(1e9 + 1000, "The store is busy.", 1e9 + 1100)] * 2 + [None]


def test_the_first_success_is_told_for_those_who_died_in_an_outage(clock: Clock) -> None:
    told: list[Outage | None] = []
    patience = Patience(100.0, told.append, sleep=clock.sleep)
    for _ in range(2):
        patience.call(failing(until=after(0)))
    assert told == [None]


def test_people_read_a_line_a_minute(clock: Clock) -> None:
    lines: list[str] = []
    tell = telling(lines.append, "reading shards")
    tell(None)
    assert lines == [], "nothing has failed"
    since = clock.time()
    for _ in range(30):
        tell(Outage(since, "It is busy.", since + 3600))
        clock.now += 5.0
    assert lines == [
        "reading shards: the store fails now, waiting for it; given up in 3,600 s (store.patience): It is busy.",
        "reading shards: the store fails for 60 s, waiting for it; given up in 3,540 s (store.patience): It is busy.",
        "reading shards: the store fails for 120 s, waiting for it; given up in 3,480 s (store.patience): It is busy.",
    ]
    assert TOLD_EVERY_S == 60
    tell(None)
    assert lines.pop() == "reading shards: the store answers again, after 150 s"
    tell(Outage(clock.time(), "It is busy.", clock.time()))
    assert "fails now" in lines[-1], "the next outage is told at once"
