"""What a run says while it waits for nodes: not at once, not twice, and again after a while."""

from __future__ import annotations

import pytest

from orchestrator.nodes.watch import PATIENCE_S, REPEAT_S, NodeWatch


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_wait_is_told_of_when_it_lasts_when_it_changes_and_now_and_then(clock: Clock) -> None:
    told: list[str] = []
    watch = NodeWatch(told.append, clock)
    for now, why in [
        (0, "none up"),
        (PATIENCE_S - 1, "none up"),
        (PATIENCE_S, "none up"),
        (PATIENCE_S + 2, "none up"),
        (PATIENCE_S + 4, "one up"),
        (PATIENCE_S + 5 + REPEAT_S, "one up"),
    ]:
        clock.now = now
        watch.saw(True, why)
    assert told == [
        "waiting for nodes for 3 s: none up",
        "waiting for nodes for 7 s: one up",
        "waiting for nodes for 38 s: one up",
    ]


def test_a_wait_that_is_over_begins_anew(clock: Clock) -> None:
    told: list[str] = []
    watch = NodeWatch(told.append, clock)
    for waiting in (True, False, True):
        watch.saw(waiting, "none up")
        clock.now += PATIENCE_S + 1
    assert told == []
    watch.saw(True, "none up")
    assert told == ["waiting for nodes for 4 s: none up"]


def test_nothing_is_said_while_nothing_is_needed(clock: Clock) -> None:
    told: list[str] = []
    watch = NodeWatch(told.append, clock)
    watch.need = None
    for _ in range(3):
        watch.saw(True, "none up")
        clock.now += REPEAT_S
    assert told == []
