"""What the monitor makes of several worker groups' words: one ledger of seconds, one run's progress."""

from typing import Any

import pytest

from orchestrator.driver.monitor import SETTLING_S, Monitor
from orchestrator.policy.failure import FIRST_START_S, FIRST_STEP_S, HANG_S, START_FACTOR, START_S
from orchestrator.policy.scaling import SETTLE_S, ScalingPolicy
from orchestrator.run.progress import LoopRequests
from orchestrator.workers.pool import PoolAction


class Clock:
    """A monotonic clock that stands still unless told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Agent:
    """Handle of a agent."""

    def __init__(self, node_id: str) -> None:
        self.node_id, self.free, self.freed = node_id, self, False

    def remote(self) -> None:
        self.freed = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def monitor_of(clock: Clock, fewest: int = 1, most: int = 4) -> Monitor:
    scaling = ScalingPolicy(fewest, most, micro_batches=8, restart_s=5.0)
    return Monitor(scaling, steps=1000, make_agent=lambda node_id, job: Agent(node_id), now=clock)


def test_seconds_of_two_groups_and_the_time_between_add_up_to_the_wall_clock(clock: Clock) -> None:
    monitor = monitor_of(clock)
    clock.now = 105.0  # the first loop began at 102
    assert monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=3.0) == 0
    clock.now = 120.0
    monitor.report(row={"step": 40}, goodput={"startup": 3.0, "training": 15.0})
    clock.now = 121.5  # died a little before
    assert monitor.failed("crash", "killed")
    assert monitor.progress().phase == "restarting"
    clock.now = 126.0  # the second loop began at 125
    assert monitor.begin_group(step=38, nodes=["n"] * 2, clock_s=1.0) == 40
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
    assert (progress.restored_step, len(progress.disruptions)) == (0, 1), (
        "the attempt went on from where its first group did"
    )
    summary = progress.disruptions[0].summary()
    assert (summary["cause"], summary["step"], summary["restored_step"], summary["replayed_steps"]) == (
        "crash",
        40,
        38,
        2,
    )
    assert (summary["detection_s"], summary["lost_s"]) == (1.5, 10.0)
    assert "step 38" in progress.log_lines[-1] and "2 steps are done again" in progress.log_lines[-1]


def test_a_group_that_died_before_it_told_anything_is_followed_by_one_that_does_all_again(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=10, nodes=["n"] * 2, clock_s=0.0)
    assert monitor.failed("crash", "killed")
    assert monitor.begin_group(step=10, nodes=["n"] * 1, clock_s=0.0) == 10
    assert monitor.progress().world_size == 1


def test_why_it_is_not_tried_again_is_kept_for_the_driver(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 1, clock_s=0.0)
    assert [monitor.failed("error", "boom") for _ in range(3)] == [True, True, False]
    assert "3 times in a row" in monitor.progress().gave_up


def test_a_request_to_stop_is_heard_by_whoever_reports_next(clock: Clock) -> None:
    monitor = monitor_of(clock)
    assert monitor.report(phase="training") == LoopRequests()
    monitor.request_stop()
    assert monitor.report(row={"step": 1}, goodput={}) == LoopRequests(stop=True)


def seen(monitor: Monitor, workers: int, slots: int, on_draining: int) -> PoolAction:
    """What the controller is told where joining_workers stand by on all slots."""
    return monitor.seen_running(workers, slots, on_draining, warm_spares=max(0, slots - workers + on_draining))


def trained(monitor: Monitor, world_size: int, step: int = 100) -> LoopRequests:
    return monitor.report(row={"step": step, "step_s": 0.5, "world_size": world_size}, goodput={"training": 1.0})


def test_room_that_stays_is_grown_into_once(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    assert trained(monitor, 2) == LoopRequests()
    for _ in range(3):
        seen(monitor, workers=2, slots=4, on_draining=0)
        clock.now += SETTLE_S
    assert trained(monitor, 2) == LoopRequests(pause=True)
    assert sum("from 2 workers to 4" in line for line in monitor.progress().notes) == 1
    monitor.paused()
    assert monitor.workers_to_start(free=4, total=4, ready=0) == (4, START_S)
    monitor.begin_group(step=101, nodes=["n"] * 4, clock_s=0.0)
    assert trained(monitor, 4) == LoopRequests()


def test_nothing_is_decided_on_what_a_group_before_has_told(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 4, clock_s=0.0)
    trained(monitor, 4)
    monitor.failed("crash", "killed")
    seen(monitor, workers=2, slots=2, on_draining=2)  # still in flight when the group failed
    monitor.begin_group(step=100, nodes=["n"] * 2, clock_s=0.0)
    seen(monitor, workers=2, slots=2, on_draining=1)  # the newest row is that of four workers
    assert not monitor.report(phase="training").pause


def test_places_that_tokenizing_holds_are_waited_for_a_moment(clock: Clock) -> None:
    monitor = monitor_of(clock)
    assert monitor.workers_to_start(free=1, total=2, ready=0) is None
    clock.now += SETTLING_S
    assert monitor.workers_to_start(free=1, total=2, ready=0) == (1, FIRST_START_S)


def test_survivors_go_on_at_once_and_are_joined_by_newcomers_later(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 4, clock_s=0.0)
    trained(monitor, 4)
    monitor.failed("crash", "killed")
    assert monitor.workers_to_start(free=4, total=4, ready=3) == (3, START_S)
    monitor.begin_group(step=100, nodes=["n"] * 3, clock_s=0.0)
    trained(monitor, 3)
    monitor.seen_running(workers=3, slots=4, on_draining=0, warm_spares=0)
    clock.now += SETTLE_S
    assert monitor.seen_running(workers=3, slots=4, on_draining=0, warm_spares=0) == PoolAction(warm_spares=1, wanted=4)
    assert not trained(monitor, 3).pause
    assert monitor.seen_running(workers=3, slots=4, on_draining=0, warm_spares=1) == PoolAction(wanted=4)
    assert trained(monitor, 3).pause
    assert sum("preparing 1 workers" in line for line in monitor.progress().notes) == 1


def test_the_phases_of_a_restart_add_up_to_what_it_took(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.reached("teardown")  # of the first start: no disruption
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2, step=7)
    monitor.failed("node", "gone")
    for phase, took_s in (("teardown", 0.5), ("teardown", 1.0), ("placement", 0.1), ("processes", 3.0)):
        clock.now += took_s  # asked twice, since there was no room at first
        monitor.reached(phase)
    clock.now += 0.2
    monitor.reached("process_group")
    clock.now += 0.3
    monitor.begin_group(step=5, nodes=["n"] * 1, clock_s=0.0)
    clock.now += 1.0
    trained(monitor, 1, step=8)
    summary = monitor.progress().disruptions[0].summary()
    assert summary["phases"] == pytest.approx(
        {"teardown": 1.5, "placement": 0.1, "processes": 3.0, "process_group": 0.2, "state": 0.3, "first_step": 1.0}
    )
    assert summary["lost_s"] == pytest.approx(sum(summary["phases"].values()))


def test_waiting_for_nodes_is_not_taken_for_the_cost_of_a_restart(clock: Clock) -> None:
    """After half an hour below the minimum, growing by four costs the six seconds that starting took."""
    monitor = monitor_of(clock, fewest=2)
    assert monitor.workers_to_start(free=2, total=2, ready=0) == (2, FIRST_START_S)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2)
    monitor.failed("crash", "killed")
    clock.now += 5
    assert monitor.workers_to_start(free=1, total=1, ready=0) is None
    clock.now += 1800
    assert monitor.workers_to_start(free=2, total=2, ready=0) == (2, START_S)
    clock.now += 6
    monitor.begin_group(step=100, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2)
    for _ in range(3):
        seen(monitor, workers=2, slots=4, on_draining=0)
        clock.now += SETTLE_S
    assert trained(monitor, 2).pause


def test_what_is_waited_for_is_said_once(clock: Clock) -> None:
    monitor = monitor_of(clock, fewest=3)
    clock.now += 10
    for slots in (1, 1, 2, 2):
        assert monitor.workers_to_start(free=slots, total=slots, ready=0) is None
    waiting = [line for line in monitor.progress().notes if "waiting" in line]
    assert len(waiting) == 2 and monitor.progress().phase == "waiting"
    assert monitor.workers_to_start(free=3, total=3, ready=0) == (3, FIRST_START_S)


def test_a_start_that_fails_is_part_of_what_the_disruption_before_it_costs(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2, step=7)
    clock.now += 1
    monitor.failed("node", "gone")
    clock.now += 6
    monitor.failed("crash", "killed before it had begun")
    clock.now += 5
    monitor.begin_group(step=5, nodes=["n"] * 1, clock_s=0.0)
    assert [each.summary()["detection_s"] for each in monitor.progress().disruptions] == [1.0]
    monitor.report(goodput={})
    assert monitor.progress().goodput == {"training": 1.0, "detection": 1.0, "restart": 11.0}


def test_workers_on_nodes_that_all_go_are_saved_and_started_elsewhere(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2)
    seen(monitor, workers=2, slots=2, on_draining=2)
    assert trained(monitor, 2) == LoopRequests(pause=True, saves=1)


def test_workers_that_have_nowhere_else_to_go_are_saved_once_and_go_on(clock: Clock) -> None:
    monitor = monitor_of(clock, fewest=2)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2)
    for _ in range(3):
        seen(monitor, workers=2, slots=1, on_draining=1)
    assert trained(monitor, 2) == LoopRequests(saves=1)


def test_a_loop_that_says_nothing_for_many_times_its_usual_hangs(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    clock.now += FIRST_STEP_S
    assert seen(monitor, workers=2, slots=2, on_draining=0) == PoolAction(), "the first step may compile"
    trained(monitor, 2)
    clock.now += HANG_S
    assert seen(monitor, workers=2, slots=2, on_draining=0).hung == ""
    clock.now += 0.1
    assert seen(monitor, workers=2, slots=2, on_draining=0).hung == "no step for 15 s, and one takes 0.50 s"
    monitor.report(phase="waiting for data", goodput={})
    clock.now += 10 * HANG_S
    assert seen(monitor, workers=2, slots=2, on_draining=0) == PoolAction(), "the workers are not to blame"


def test_a_step_on_which_the_loss_goes_astray_is_left_out_once(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2, step=30)
    monitor.report_loss_spike(31, "loss=nan in step 31", set())
    assert monitor.skip_spiked_step() and monitor.skipped_steps() == {31}
    monitor.begin_group(step=29, nodes=["n"] * 2, clock_s=0.0)
    monitor.report_loss_spike(50, "loss=nan in step 50", {31})
    assert not monitor.skip_spiked_step()
    assert "has been left out before" in monitor.progress().gave_up


def test_what_an_earlier_attempt_left_out_counts(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=40, nodes=["n"] * 2, clock_s=0.0)
    monitor.report_loss_spike(50, "loss=nan in step 50", {31})
    assert not monitor.skip_spiked_step()


def test_a_node_has_one_keeper_until_it_dies(clock: Clock) -> None:
    monitor = monitor_of(clock)
    first = monitor.agent_of("a", None)
    assert monitor.agent_of("a", None) is first and monitor.agent_of("b", None) is not first
    again = monitor.agent_of("a", None, anew=True)
    assert again is not first and monitor.agents() == {"a": again, "b": monitor.agent_of("b", None)}


def test_the_loop_hears_how_often_groups_fail(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    before = trained(monitor, 2).mtbf_s
    monitor.paused()
    monitor.begin_group(step=100, nodes=["n"] * 4, clock_s=0.0)
    assert trained(monitor, 4).mtbf_s == before, "a planned restart is no failure"
    monitor.failed("node", "gone")
    monitor.begin_group(step=100, nodes=["n"] * 3, clock_s=0.0)
    assert trained(monitor, 3).mtbf_s == pytest.approx(before / 2)


def test_a_start_hangs_if_it_takes_many_times_as_long_as_any_before(clock: Clock) -> None:
    monitor = monitor_of(clock)
    assert monitor.workers_to_start(free=4, total=4, ready=0) == (4, FIRST_START_S)
    clock.now += 20
    monitor.begin_group(step=0, nodes=["n"] * 4, clock_s=0.0)
    monitor.failed("crash", "killed")
    assert monitor.workers_to_start(free=4, total=4, ready=0) == (4, START_FACTOR * 20)


def test_a_group_that_was_started_and_never_begins_hangs(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 4, clock_s=0.0)
    trained(monitor, 4)
    monitor.failed("crash", "killed")
    clock.now += 2 * FIRST_STEP_S
    monitor.workers_to_start(free=4, total=4, ready=0)
    assert seen(monitor, workers=4, slots=4, on_draining=0) == PoolAction(), (
        "the wait for room is not the workers' fault"
    )
    clock.now += FIRST_STEP_S + 1
    assert "no step for" in seen(monitor, workers=4, slots=4, on_draining=0).hung


def test_nodes_that_are_no_longer_used_are_let_go(clock: Clock) -> None:
    monitor = monitor_of(clock)
    kept, left = monitor.agent_of("kept", None), monitor.agent_of("left", None)
    monitor.begin_group(step=0, nodes=["kept", "kept"], clock_s=0.0)
    assert monitor.agents() == {"kept": kept} and (kept.freed, left.freed) == (False, True)


def test_a_second_end_before_the_first_was_got_over_costs_both_their_time(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2, step=50)
    for _ in range(2):
        clock.now += 5
        monitor.failed("node", "gone")
        monitor.begin_group(step=40, nodes=["n"] * 2, clock_s=0.0)
    clock.now += 5
    trained(monitor, 2, step=51)
    assert [each.lost_s for each in monitor.progress().disruptions] == [15.0, 10.0]


JOB: Any = None  # handed on, never looked at


class Beside:
    """An evaluation that ends when it is told to."""

    def __init__(self, job: object, weights: object) -> None:
        self.weights = weights
        self.outcome: dict[str, float] | Exception | None = None

    def scores(self) -> dict[str, float] | None:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_the_newest_checkpoint_and_the_device_are_known(clock: Clock) -> None:
    monitor = monitor_of(clock)
    assert monitor.progress().saved is None
    monitor.saved(20, 1020.0)
    monitor.begin_group(20, ["n"], 0.0, "NVIDIA L4")
    assert monitor.progress().device == "NVIDIA L4"
    monitor.saved(40, 1040.0)
    monitor.saved(20, 1020.0)  # another group begins: its word of what it went on from is older
    assert monitor.progress().saved == (40, 1040.0)


class TestEvaluationBesideTraining:
    def _monitor(self, clock: Clock) -> tuple[Monitor, list[Beside]]:
        begun: list[Beside] = []

        def evaluate(job: object, weights: object) -> Beside:
            begun.append(Beside(job, weights))
            return begun[-1]

        scaling = ScalingPolicy(1, 2, micro_batches=8, restart_s=5.0)
        monitor = Monitor(scaling, 1000, lambda node_id, job: Agent(node_id), evaluate, now=clock)
        monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=1.0)
        trained(monitor, 2)
        return monitor, begun

    def test_it_is_offered_where_a_place_is_left_that_no_worker_can_use(self, clock: Clock) -> None:
        monitor, _ = self._monitor(clock)
        assert not trained(monitor, 2).background
        for slots, is_room in ((2, False), (3, True), (2, False)):
            monitor.seen_running(2, slots, 0, warm_spares=0)
            assert trained(monitor, 2).background is is_room
        assert not trained(monitor_of(clock), 2).background, "nobody is there to do it"

    def test_one_at_a_time_and_its_scores_are_told_when_they_are_there(self, clock: Clock) -> None:
        monitor, begun = self._monitor(clock)
        monitor.seen_running(2, 3, 0, warm_spares=0)
        monitor.evaluate_in_background(JOB, 100, ["weights"], averaged=False)
        assert begun[0].weights == "weights" and monitor.is_evaluating()
        monitor.seen_running(2, 3, 0, warm_spares=0)
        assert not trained(monitor, 2).background
        begun[0].outcome = {"val_loss": 2.0, "val_bits_per_byte": 1.5}
        trained(monitor, 2, step=150)
        assert not monitor.is_evaluating()
        [kept] = monitor.progress().evaluations
        at = kept.pop("at")
        assert kept == {"step": 100, "val_loss": 2.0, "val_bits_per_byte": 1.5} and at > 0
        assert monitor.progress().notes[-1] == "step 100: held-out loss 2.0000, 1.5000 bits per byte"
        monitor.seen_running(2, 3, 0, warm_spares=0)
        assert trained(monitor, 2).background

    def test_scores_of_translations_are_told_too(self, clock: Clock) -> None:
        monitor, _ = self._monitor(clock)
        scores = {"val_loss": 2.0, "val_bits_per_byte": 1.5, "val_bleu": 12.345, "val_chrf": 30.0}
        monitor.evaluated(7, scores, averaged=True)
        told = "step 7: held-out loss 2.0000, 1.5000 bits per byte, BLEU 12.35, chrF 30.00 (averaged weights)"
        assert monitor.progress().notes[-1] == told

    def test_one_that_fails_is_told_of_and_training_goes_on(self, clock: Clock) -> None:
        monitor, begun = self._monitor(clock)
        monitor.evaluate_in_background(JOB, 100, ["weights"], averaged=False)
        begun[0].outcome = RuntimeError("its node\nis gone")
        assert not monitor.is_evaluating() and monitor.progress().evaluations == []
        assert monitor.progress().notes[-1].endswith("the evaluation background training failed: its node is gone")

    def test_nobody_is_asked_twice_at_once(self, clock: Clock) -> None:
        monitor, begun = self._monitor(clock)
        monitor.evaluate_in_background(JOB, 100, ["weights"], averaged=True)
        monitor.evaluate_in_background(JOB, 101, ["weights"], averaged=True)
        assert len(begun) == 1 and monitor.progress().notes[-1].startswith("step 101: not evaluated")
        begun[0].outcome = {"val_loss": 2.0, "val_bits_per_byte": 1.5}
        assert not monitor.is_evaluating()
        assert monitor.progress().notes[-1].endswith("(averaged weights)")

    def test_workers_that_are_started_again_get_its_place(self, clock: Clock) -> None:
        monitor, begun = self._monitor(clock)
        monitor.evaluate_in_background(JOB, 100, ["weights"], averaged=False)
        monitor.failed("node", "gone")
        assert monitor.workers_to_start(free=2, total=3, ready=0) is not None
        assert monitor.is_evaluating(), "there is room for both"
        monitor.workers_to_start(free=1, total=3, ready=0)
        assert not monitor.is_evaluating() and "given up" in "".join(monitor.progress().notes)
        assert begun[0].outcome is None

    def test_nothing_held_out_is_nothing_to_tell(self, clock: Clock) -> None:
        monitor, begun = self._monitor(clock)
        monitor.evaluate_in_background(JOB, 100, ["weights"], averaged=False)
        begun[0].outcome = {}
        assert not monitor.is_evaluating() and monitor.progress().evaluations == []
