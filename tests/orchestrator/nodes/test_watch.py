"""Log lines while a run waits for nodes: not at once, not twice, and again after a while."""

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


def test_a_wait_is_logged_when_it_lasts_when_its_reason_changes_and_regularly(clock: Clock) -> None:
    lines: list[str] = []
    watch = NodeWatch(lines.append, clock)
    for now, why in [
        (0, "none up"),
        (PATIENCE_S - 1, "none up"),
        (PATIENCE_S, "none up"),
        (PATIENCE_S + 2, "none up"),
        (PATIENCE_S + 4, "one up"),
        (PATIENCE_S + 5 + REPEAT_S, "one up"),
    ]:
        clock.now = now
        watch.observe(True, why)
    assert lines == [
        "waiting for nodes for 3 s: none up",
        "waiting for nodes for 7 s: one up",
        "waiting for nodes for 38 s: one up",
    ]


def test_a_new_wait_is_timed_from_its_own_beginning(clock: Clock) -> None:
    lines: list[str] = []
    watch = NodeWatch(lines.append, clock)
    for waiting in (True, False, True):
        watch.observe(waiting, "none up")
        clock.now += PATIENCE_S + 1
    assert lines == []
    watch.observe(True, "none up")
    assert lines == ["waiting for nodes for 4 s: none up"]


def test_nothing_is_logged_while_nothing_is_needed(clock: Clock) -> None:
    lines: list[str] = []
    watch = NodeWatch(lines.append, clock)
    watch.need = None
    for _ in range(3):
        watch.observe(True, "none up")
        clock.now += REPEAT_S
    assert lines == []
