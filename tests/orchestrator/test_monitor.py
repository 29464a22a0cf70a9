"""What the monitor makes of several worker groups' words: one ledger of seconds, one run's progress."""

import pytest

from orchestrator.monitor import Monitor


class Clock:
    """A monotonic clock that stands still unless told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_seconds_of_two_groups_and_the_time_between_add_up_to_the_wall_clock(clock: Clock) -> None:
    monitor = Monitor(clock)
    clock.now = 105.0  # the first loop began at 102
    assert monitor.begin_group(step=0, world_size=2, clock_s=3.0) == 0
    clock.now = 120.0
    monitor.report(row={"step": 40}, goodput={"startup": 3.0, "training": 15.0})
    clock.now = 121.5  # died a little before
    assert monitor.failed(is_death=True, reason="killed")
    assert monitor.progress().phase == "restarting"
    clock.now = 126.0  # the second loop began at 125
    assert monitor.begin_group(step=38, world_size=2, clock_s=1.0) == 40
    clock.now = 130.0
    monitor.report(row={"step": 45}, goodput={"startup": 1.5, "replay": 1.0, "training": 2.5})

    progress = monitor.progress()
    assert progress.goodput == {
        "startup": 3.0,
        "training": 17.5,
        "detection": 1.5,
        "restart": pytest.approx(3.5 + 1.5),
        "replay": 1.0,
    }
    assert sum(progress.goodput.values()) == pytest.approx(130.0 - 102.0)
    assert (progress.restored_step, progress.restarts) == (0, 1), "the attempt went on from where its first group did"
    assert "step 38" in progress.notes[-1] and "2 steps are done again" in progress.notes[-1]


def test_a_group_that_died_before_it_told_anything_is_followed_by_one_that_does_all_again(clock: Clock) -> None:
    monitor = Monitor(clock)
    monitor.begin_group(step=10, world_size=2, clock_s=0.0)
    assert monitor.failed(is_death=True, reason="killed")
    assert monitor.begin_group(step=10, world_size=1, clock_s=0.0) == 10
    assert monitor.progress().world_size == 1


def test_why_it_is_not_tried_again_is_kept_for_the_driver(clock: Clock) -> None:
    monitor = Monitor(clock)
    monitor.begin_group(step=0, world_size=1, clock_s=0.0)
    assert [monitor.failed(is_death=False, reason="boom") for _ in range(3)] == [True, True, False]
    assert "3 times in a row" in monitor.progress().gave_up


def test_a_request_to_stop_is_heard_by_whoever_reports_next(clock: Clock) -> None:
    monitor = Monitor(clock)
    assert not monitor.report(phase="training")
    monitor.request_stop()
    assert monitor.report(row={"step": 1}, goodput={})
