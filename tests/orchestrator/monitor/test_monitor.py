"""The monitor over several worker groups: one goodput ledger, the progress of one run, and the decisions on workers."""

from types import SimpleNamespace
from typing import Any

import pytest

from data.stores.patience import Outage
from orchestrator.monitor import state as monitor_state
from orchestrator.monitor.controller_interface import SETTLING_S
from orchestrator.monitor.monitor import Monitor
from orchestrator.policy.failure import FAILURES_ALONE, FIRST_START_S, START_FACTOR, START_S
from orchestrator.policy.hang import LEAST_S, SILENCE_S, Beat, Phase
from orchestrator.policy.scaling import SETTLE_S, Observation, ScalingPolicy
from orchestrator.run.progress import LOG_LINES, GroupStart, LoopRequests
from orchestrator.run.record import DISRUPTIONS
from orchestrator.workers.group_size import PoolAction, StartAction


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Agent:
    """Stand-in for the handle of a snapshot agent; also for the reference that its `free` returns.

    Attributes:
        freed: whether `free` was called.
        is_uploading: whether that call still waits for an upload.
        kept: arguments of the calls of `keep_stacks`.
    """

    def __init__(self, node_id: str) -> None:
        self.node_id, self.free, self.freed, self.is_uploading = node_id, self, False, False
        self.kept: list[dict[str, str]] = []
        self.keep_stacks = SimpleNamespace(remote=self.kept.append)

    def remote(self) -> "Agent":
        self.freed = True
        return self


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(calls: list[Agent], timeout: float) -> tuple[list[Agent], list[Agent]]:
        return [call for call in calls if not call.is_uploading], []

    monkeypatch.setattr(monitor_state.ray, "wait", wait)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def monitor_of(clock: Clock, min_workers: int = 1, max_workers: int = 4, **options: Any) -> Monitor:
    scaling = ScalingPolicy(min_workers, max_workers, micro_batches=8, restart_s=5.0)
    return Monitor(scaling, steps=1000, start_agent=lambda node_id, job: Agent(node_id), now=clock, **options)


def test_seconds_of_two_groups_and_the_time_between_add_up_to_the_wall_clock(clock: Clock) -> None:
    monitor = monitor_of(clock)
    clock.now = 105.0  # the first loop began at 102
    assert monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=3.0) == GroupStart(0, 5.0)
    clock.now = 120.0
    monitor.report(row={"step": 40}, goodput={"startup": 3.0, "training": 15.0})
    clock.now = 121.5  # died a little before
    assert monitor.restart_after_failure("crash", "killed")
    assert monitor.progress().phase == "restarting"
    clock.now = 126.0  # the second loop began at 125
    assert monitor.begin_group(step=38, nodes=["n"] * 2, clock_s=1.0) == GroupStart(40, 26.0)
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
        "the attempt was restored where its first group was"
    )
    summary = progress.disruptions[0].summary()
    assert (summary["cause"], summary["step"], summary["restored_step"], summary["replayed_steps"]) == (
        "crash",
        40,
        38,
        2,
    )
    assert (summary["detection_s"], summary["lost_s"]) == (1.5, 10.0)
    assert "step 38" in progress.log_lines[-1] and "2 steps are replayed" in progress.log_lines[-1]


def test_a_group_that_died_before_its_first_report_is_followed_by_one_that_starts_at_the_same_step(
    clock: Clock,
) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=10, nodes=["n"] * 2, clock_s=0.0)
    assert monitor.restart_after_failure("crash", "killed")
    assert monitor.begin_group(step=10, nodes=["n"] * 1, clock_s=0.0).done == 10
    assert monitor.progress().world_size == 1


def test_the_driver_can_read_why_the_run_was_given_up(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 1, clock_s=0.0)
    assert [monitor.restart_after_failure("error", "boom") for _ in range(3)] == [True, True, False]
    assert "3 times in a row" in monitor.progress().gave_up


def test_a_request_to_stop_is_returned_by_the_next_report(clock: Clock) -> None:
    monitor = monitor_of(clock)
    assert monitor.report(phase="training") == LoopRequests()
    monitor.request_stop()
    assert monitor.report(row={"step": 1}, goodput={}) == LoopRequests(stop=True)


def start(monitor: Monitor, slots: int, total_slots: int, warm_spares: int = 0) -> StartAction | None:
    """The decision while no worker runs."""
    return monitor.decide_start(Observation(workers=0, slots=slots, total_slots=total_slots, warm_spares=warm_spares))


def running(
    monitor: Monitor, workers: int, slots: int, on_draining: int = 0, warm_spares: int | None = None
) -> PoolAction:
    """The decision while workers run; by default, there is a warm spare in every free slot."""
    if warm_spares is None:
        warm_spares = max(0, slots - workers + on_draining)
    return monitor.decide_running(
        Observation(workers=workers, slots=slots, on_draining=on_draining, warm_spares=warm_spares)
    )


def trained(monitor: Monitor, world_size: int, step: int = 100) -> LoopRequests:
    return monitor.report(row={"step": step, "step_s": 0.5, "world_size": world_size}, goodput={"training": 1.0})


@pytest.mark.parametrize("phase", ["training", "evaluating", "waiting for data"])
def test_free_capacity_that_stays_leads_to_one_resize(phase: str, clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    assert trained(monitor, 2) == LoopRequests()
    for _ in range(3):
        monitor.report(phase=phase)
        running(monitor, workers=2, slots=4)
        clock.now += SETTLE_S
    assert trained(monitor, 2) == LoopRequests(pause=True)
    assert sum("from 2 workers to 4" in line for line in monitor.progress().log_lines) == 1
    monitor.report_planned_restart()
    assert start(monitor, slots=4, total_slots=4, warm_spares=0) == StartAction(4, START_S)
    monitor.begin_group(step=101, nodes=["n"] * 4, clock_s=0.0)
    assert trained(monitor, 4) == LoopRequests()


def test_reports_of_an_earlier_group_lead_to_no_decision(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 4, clock_s=0.0)
    trained(monitor, 4)
    monitor.restart_after_failure("crash", "killed")
    running(monitor, workers=2, slots=2, on_draining=2)  # still in flight when the group failed
    monitor.begin_group(step=100, nodes=["n"] * 2, clock_s=0.0)
    running(monitor, workers=2, slots=2, on_draining=1)  # the newest row is that of four workers
    assert not monitor.report(phase="training").pause


def test_the_first_start_waits_a_moment_for_capacity_that_tokenizing_holds(clock: Clock) -> None:
    monitor = monitor_of(clock)
    assert start(monitor, slots=1, total_slots=2, warm_spares=0) is None
    clock.now += SETTLING_S
    assert start(monitor, slots=1, total_slots=2, warm_spares=0) == StartAction(1, FIRST_START_S)


def test_workers_that_are_alive_restart_at_once_and_others_join_later(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 4, clock_s=0.0)
    trained(monitor, 4)
    monitor.restart_after_failure("crash", "killed")
    assert start(monitor, slots=4, total_slots=4, warm_spares=3) == StartAction(3, START_S)
    monitor.begin_group(step=100, nodes=["n"] * 3, clock_s=0.0)
    trained(monitor, 3)
    running(monitor, workers=3, slots=4, warm_spares=0)
    clock.now += SETTLE_S
    assert running(monitor, workers=3, slots=4, warm_spares=0) == PoolAction(warm_spares=1, wanted=4)
    assert not trained(monitor, 3).pause
    assert running(monitor, workers=3, slots=4, warm_spares=1) == PoolAction(wanted=4)
    assert trained(monitor, 3).pause
    assert sum("preparing 1 more workers" in line for line in monitor.progress().log_lines) == 1


def test_the_phases_of_a_restart_add_up_to_its_duration(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.report_start_phase("teardown")  # of the first start: no disruption
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2, step=7)
    monitor.restart_after_failure("node", "gone")
    for phase, took_s in (("teardown", 0.5), ("teardown", 1.0), ("placement", 0.1), ("processes", 3.0)):
        clock.now += took_s  # twice, since there was no capacity at first
        monitor.report_start_phase(phase)
    clock.now += 0.2
    monitor.report_start_phase("process_group")
    clock.now += 0.3
    monitor.begin_group(step=5, nodes=["n"] * 1, clock_s=0.0)
    clock.now += 1.0
    trained(monitor, 1, step=8)
    summary = monitor.progress().disruptions[0].summary()
    assert summary["phases"] == pytest.approx(
        {"teardown": 1.5, "placement": 0.1, "processes": 3.0, "process_group": 0.2, "state": 0.3, "first_step": 1.0}
    )
    assert summary["lost_s"] == pytest.approx(sum(summary["phases"].values()))


def test_waiting_for_nodes_does_not_count_as_the_cost_of_a_restart(clock: Clock) -> None:
    """After half an hour below the minimum, growing by four costs the six seconds that starting took."""
    monitor = monitor_of(clock, min_workers=2)
    assert start(monitor, slots=2, total_slots=2, warm_spares=0) == StartAction(2, FIRST_START_S)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2)
    monitor.restart_after_failure("crash", "killed")
    clock.now += 5
    assert start(monitor, slots=1, total_slots=1, warm_spares=0) is None
    clock.now += 1800
    assert start(monitor, slots=2, total_slots=2, warm_spares=0) == StartAction(2, START_S)
    clock.now += 6
    monitor.begin_group(step=100, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2)
    for _ in range(3):
        running(monitor, workers=2, slots=4)
        clock.now += SETTLE_S
    assert trained(monitor, 2).pause


def test_each_reason_to_wait_is_logged_once(clock: Clock) -> None:
    monitor = monitor_of(clock, min_workers=3)
    clock.now += 10
    for slots in (1, 1, 2, 2):
        assert start(monitor, slots=slots, total_slots=slots, warm_spares=0) is None
    waiting = [line for line in monitor.progress().log_lines if "waiting" in line]
    assert len(waiting) == 2 and monitor.progress().phase == "waiting"
    assert start(monitor, slots=3, total_slots=3, warm_spares=0) == StartAction(3, FIRST_START_S)


def test_the_time_of_a_failed_start_belongs_to_the_disruption_before(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2, step=7)
    clock.now += 1
    monitor.restart_after_failure("node", "gone")
    clock.now += 6
    monitor.restart_after_failure("crash", "killed before it had begun")
    clock.now += 5
    monitor.begin_group(step=5, nodes=["n"] * 1, clock_s=0.0)
    assert [each.summary()["detection_s"] for each in monitor.progress().disruptions] == [1.0]
    monitor.report(goodput={})
    assert monitor.progress().goodput == {"training": 1.0, "detection": 1.0, "restart": 11.0}


def test_workers_on_draining_nodes_only_are_saved_and_started_elsewhere(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2)
    running(monitor, workers=2, slots=2, on_draining=2)
    assert trained(monitor, 2) == LoopRequests(pause=True, saves=1)


def test_workers_without_other_slots_are_saved_once_and_keep_training(clock: Clock) -> None:
    monitor = monitor_of(clock, min_workers=2)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2)
    for _ in range(3):
        running(monitor, workers=2, slots=1, on_draining=1)
    assert trained(monitor, 2) == LoopRequests(saves=1)


WORKERS = ("w0", "w1")


def beat(
    monitor: Monitor, clock: Clock, seconds: int, phases: tuple[Phase, Phase], *, stopped: int | None = None
) -> Any:
    """Two workers send a beat a second, but for a stopped one, and make no progress; returns the first hang found."""
    began = clock.now
    while clock.now < began + seconds:
        clock.now += 1
        for rank, worker in enumerate(WORKERS):
            if rank != stopped:
                told = Beat(worker, f"node-{rank}", rank, 1, phases[rank], int(began), clock.now - began, 1.0)
                if monitor.beat(told):
                    assert not monitor.beat(told._replace(stacks=f"stacks of {worker}"))
        hang = monitor.decide_running(Observation(workers=2, slots=2, members=WORKERS)).hung
        if hang is not None:
            return hang
    return None


def test_a_stopped_worker_hangs_and_the_stacks_of_the_others_are_kept_in_the_runs_folder(clock: Clock) -> None:
    monitor = monitor_of(clock)
    agents = [monitor.agent_of(node, JOB) for node in ("node-0", "node-1")]
    monitor.begin_group(step=0, nodes=["node-0", "node-1"], clock_s=0.0)
    assert beat(monitor, clock, 3, ("evaluation", "evaluation")) is None
    hang = beat(monitor, clock, int(2 * SILENCE_S), ("evaluation", "evaluation"), stopped=1)
    assert hang.workers == ("w1",)
    why, _, stacks = hang.why.partition("; stacks: ")
    assert why == f"rank 1 on node node-1 has not answered for {SILENCE_S + 1:.0f} s (evaluation)"
    assert stacks.startswith("hangs/") and stacks.endswith("Z-0.txt")
    [[kept], []] = [agent.kept for agent in agents]
    assert kept.keys() == {stacks} and kept[stacks].startswith(why) and kept[stacks].endswith("stacks of w0")
    assert monitor.restart_after_failure("hang", hang.why)
    assert stacks in monitor.progress().decisions[-1]["what"]


def test_a_group_in_which_no_rank_makes_progress_hangs_unless_its_store_fails(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    for _ in range(2):
        assert beat(monitor, clock, 1, ("saving", "saving")) is None
    monitor.report_outage("saving checkpoints", Outage(10.0, "busy", 20.0))
    assert beat(monitor, clock, int(2 * LEAST_S["saving"]), ("saving", "saving")) is None
    monitor.report_outage("saving checkpoints", None)
    assert beat(monitor, clock, 1, ("saving", "saving")) is None, "how long that took is no measure"
    hang = beat(monitor, clock, int(2 * LEAST_S["saving"]), ("saving", "saving"))
    assert hang.workers == WORKERS and "ranks 0, 1: saving" in hang.why
    assert "stacks:" not in hang.why, "no node has an agent"


def test_a_worker_that_is_stopped_while_its_group_starts_is_found(clock: Clock) -> None:
    monitor = monitor_of(clock)
    assert beat(monitor, clock, 2, ("joining", "joining")) is None
    for _ in range(int(SILENCE_S)):
        clock.now += 1
        assert monitor.decide_starting(WORKERS) is None
    clock.now += 1
    assert monitor.decide_starting(WORKERS).workers == WORKERS  # type: ignore[union-attr]


def test_a_node_whose_workers_fail_alone_is_named_and_new_workers_avoid_it(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["a", "b", "b"], clock_s=0.0)
    for step in range(FAILURES_ALONE):
        trained(monitor, 3, step=step + 1)
        monitor.restart_after_failure("crash", "killed", frozenset({"b"}), frozenset({"a", "b"}))
    assert "Workers on node b failed 2 times in a row" in monitor.progress().log_lines[-1]
    assert monitor.decide_start(Observation(workers=0, slots=3, total_slots=3)) == (3, START_S, {"b"})
    monitor.begin_group(step=2, nodes=["a", "b"], clock_s=0.0)
    trained(monitor, 2, step=9)
    running(monitor, workers=2, slots=4, warm_spares=0)
    clock.now += SETTLE_S
    assert running(monitor, workers=2, slots=4, warm_spares=0).avoid == {"b"}


def test_one_step_with_a_loss_spike_is_skipped_and_a_second_ends_the_run(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2, step=30)
    monitor.report_loss_spike(31, "loss=nan in step 31", set())
    assert monitor.restart_after_loss_spike() and monitor.skipped_steps() == {31}
    monitor.begin_group(step=29, nodes=["n"] * 2, clock_s=0.0)
    monitor.report_loss_spike(50, "loss=nan in step 50", {31})
    assert not monitor.restart_after_loss_spike()
    assert "has already skipped the data of 1 step" in monitor.progress().gave_up


def test_steps_that_an_earlier_attempt_skipped_count(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=40, nodes=["n"] * 2, clock_s=0.0)
    monitor.report_loss_spike(50, "loss=nan in step 50", {31})
    assert not monitor.restart_after_loss_spike()


def test_a_node_has_one_snapshot_agent_until_that_dies(clock: Clock) -> None:
    monitor = monitor_of(clock)
    first = monitor.agent_of("a", None)
    assert monitor.agent_of("a", None) is first and monitor.agent_of("b", None) is not first
    again = monitor.agent_of("a", None, dead=first)
    assert again is not first and monitor.agents() == {"a": again, "b": monitor.agent_of("b", None)}
    assert monitor.agent_of("a", None, dead=first) is again, "another rank has had it replaced"


def test_the_loop_receives_the_mean_time_between_failures(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    before = trained(monitor, 2).mtbf_s
    monitor.report_planned_restart()
    monitor.begin_group(step=100, nodes=["n"] * 4, clock_s=0.0)
    assert trained(monitor, 4).mtbf_s == before, "a planned restart is no failure"
    monitor.restart_after_failure("node", "gone")
    monitor.begin_group(step=100, nodes=["n"] * 3, clock_s=0.0)
    assert trained(monitor, 3).mtbf_s == pytest.approx(before / 2)


def test_the_timeout_of_a_start_is_a_multiple_of_the_longest_before(clock: Clock) -> None:
    monitor = monitor_of(clock)
    assert start(monitor, slots=4, total_slots=4, warm_spares=0) == StartAction(4, FIRST_START_S)
    clock.now += 20
    monitor.begin_group(step=0, nodes=["n"] * 4, clock_s=0.0)
    monitor.restart_after_failure("crash", "killed")
    assert start(monitor, slots=4, total_slots=4, warm_spares=0) == StartAction(4, START_FACTOR * 20)


def test_memory_of_nodes_without_workers_is_freed(clock: Clock) -> None:
    monitor = monitor_of(clock)
    kept, left = monitor.agent_of("kept", None), monitor.agent_of("left", None)
    monitor.begin_group(step=0, nodes=["kept", "kept"], clock_s=0.0)
    assert monitor.agents() == {"kept": kept} and (kept.freed, left.freed) == (False, True)


def test_the_agent_of_a_node_with_a_spare_worker_stays_until_that_has_gone(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.agent_of("kept", None)
    monitor.beat(Beat("spare", "other", None, 0, "starting", 0, 0.0, 1.0))
    spares = monitor.agent_of("other", None)
    monitor.begin_group(step=0, nodes=["kept"], clock_s=0.0)
    monitor.beat(Beat("spare", "other", None, 0, "idle", 1, 0.0, 1.0))
    running(monitor, slots=2, workers=1)
    assert not spares.freed
    clock.now += 2 * SILENCE_S
    running(monitor, slots=2, workers=1)
    assert spares.freed and monitor.agents().keys() == {"kept"}


def test_agents_stay_while_the_workers_of_their_nodes_start(clock: Clock) -> None:
    monitor = monitor_of(clock)
    early = monitor.agent_of("n", None)
    running(monitor, slots=1, workers=1)  # the controller knows of the group before its loop has begun
    assert not early.freed and monitor.agents().keys() == {"n"}
    monitor.begin_group(step=0, nodes=["n"], clock_s=0.0)
    monitor.report_planned_restart()
    next_node = monitor.agent_of("next", None)
    running(monitor, slots=1, workers=1)
    assert not next_node.freed


def test_an_agent_that_has_a_successor_is_ended(clock: Clock) -> None:
    ended = []
    monitor = monitor_of(clock, end_agent=lambda node, agent: ended.append(agent))
    dead = monitor.agent_of("n", None)
    assert monitor.agent_of("n", None) is dead and ended == []
    assert monitor.agent_of("n", None, dead=dead) is not dead and ended == [dead]


def test_a_monitor_whose_process_goes_on_ends_its_agents(clock: Clock) -> None:
    ended = []
    monitor = monitor_of(clock, end_agent=lambda node, agent: ended.append((node, agent)))
    left, stays = monitor.agent_of("left", None), monitor.agent_of("stays", None)
    left.is_uploading = True
    monitor.begin_group(step=0, nodes=["stays"], clock_s=0.0)
    assert ended == []
    monitor.close()
    assert sorted(ended) == [("left", left), ("stays", stays)]


def test_the_agent_of_a_node_without_workers_lives_until_its_upload_has_ended(clock: Clock) -> None:
    monitor = monitor_of(clock)
    left = monitor.agent_of("left", None)
    left.is_uploading = True
    for _ in range(2):
        monitor.begin_group(step=0, nodes=["n"], clock_s=0.0)
        monitor.report_planned_restart()
        assert monitor._state.leaving == {"left": (left, left)}, "the last handle ends the process"
    left.is_uploading = False
    monitor.begin_group(step=0, nodes=["n"], clock_s=0.0)
    assert monitor._state.leaving == {}


def test_the_age_of_the_newest_checkpoint_goes_on_over_a_change_of_the_group(clock: Clock) -> None:
    monitor = monitor_of(clock)
    clock.now += 100
    assert monitor.begin_group(step=0, nodes=["n"], clock_s=0.0).checkpoint_age_s == 100
    monitor.report_checkpoint(20, 1020.0, {"step": 20})
    for _ in range(2):
        clock.now += 300
        monitor.report_planned_restart()
        age_s = monitor.begin_group(step=30, nodes=["n"], clock_s=0.0).checkpoint_age_s
        monitor.report_checkpoint(20, 1020.0)  # rank 0 reports the one it was restored from; it is not newer for that
    assert age_s == 600


def test_groups_continue_from_the_newest_checkpoint(clock: Clock) -> None:
    monitor = monitor_of(clock)
    assert monitor.newest_checkpoint() is None
    monitor.report_restored({"step": 10})
    assert monitor.newest_checkpoint() == {"step": 10}
    monitor.report_checkpoint(30, 1030.0, {"step": 30})
    monitor.report_checkpoint(20, 1020.0, {"step": 20})
    assert monitor.newest_checkpoint() == {"step": 30}
    monitor.report_restored({"step": 20})  # that of step 30 is damaged
    assert monitor.newest_checkpoint() == {"step": 20}


def test_the_loop_knows_that_a_store_fails(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    monitor.report_outage("saving checkpoints", Outage(10.0, "busy", 20.0))
    assert trained(monitor, 2).store_fails
    assert [each["doing"] for each in monitor.progress().outages] == ["saving checkpoints"]
    monitor.report_outage("saving checkpoints", None)
    assert not trained(monitor, 2).store_fails


def test_a_second_failure_before_a_new_step_counts_for_both_disruptions(clock: Clock) -> None:
    monitor = monitor_of(clock)
    monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=0.0)
    trained(monitor, 2, step=50)
    for _ in range(2):
        clock.now += 5
        monitor.restart_after_failure("node", "gone")
        monitor.begin_group(step=40, nodes=["n"] * 2, clock_s=0.0)
    clock.now += 5
    trained(monitor, 2, step=51)
    assert [each.lost_s for each in monitor.progress().disruptions] == [15.0, 10.0]


JOB: Any = None  # passed on, never read


class FakeEvaluation:
    """An evaluation that ends when a test sets its outcome."""

    def __init__(self, job: object, weights: object) -> None:
        self.weights = weights
        self.outcome: dict[str, float] | Exception | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def scores(self) -> dict[str, float] | None:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_progress_has_the_newest_checkpoint_and_the_device(clock: Clock) -> None:
    monitor = monitor_of(clock)
    assert monitor.progress().saved is None
    monitor.report_checkpoint(20, 1020.0)
    monitor.begin_group(20, ["n"], 0.0, "NVIDIA L4")
    assert monitor.progress().device == "NVIDIA L4"
    monitor.report_checkpoint(40, 1040.0)
    monitor.report_checkpoint(20, 1020.0)  # another group begins, restored from an older one
    assert monitor.progress().saved == (40, 1040.0)


def test_the_driver_gets_the_lines_that_it_does_not_have(clock: Clock) -> None:
    monitor = monitor_of(clock)
    for number in range(LOG_LINES + 5):
        monitor.log(f"line {number}")
    newest = [f"line {number}" for number in range(5, LOG_LINES + 5)]
    assert (monitor.progress().log_lines, monitor.progress().logged) == (newest, LOG_LINES + 5)
    assert monitor.progress(LOG_LINES + 3).log_lines == newest[-2:]
    assert monitor.progress(LOG_LINES + 5).log_lines == monitor.progress(LOG_LINES + 9).log_lines == []
    assert monitor.progress(2).log_lines == newest, "the others are not kept"


def test_disruptions_of_months_are_counted_and_the_newest_are_kept(clock: Clock) -> None:
    monitor = monitor_of(clock)
    for step in range(DISRUPTIONS + 7):
        monitor.begin_group(step, ["n"] * 2, clock_s=0.0)
        monitor.report(row={"step": step}, goodput={})
        clock.now += 3600.0
        assert monitor.restart_after_failure("crash" if step else "node", "killed")
    progress = monitor.progress()
    assert [each.step for each in progress.disruptions] == list(range(7, DISRUPTIONS + 7))
    assert progress.restart_counts == {"node": 1, "crash": DISRUPTIONS + 6}


class TestBackgroundEvaluation:
    def _monitor(self, clock: Clock) -> tuple[Monitor, list[FakeEvaluation]]:
        begun: list[FakeEvaluation] = []

        def evaluate(job: object, weights: object) -> FakeEvaluation:
            begun.append(FakeEvaluation(job, weights))
            return begun[-1]

        scaling = ScalingPolicy(1, 2, micro_batches=8, restart_s=5.0)
        monitor = Monitor(scaling, 1000, lambda node_id, job: Agent(node_id), evaluate, now=clock)
        monitor.begin_group(step=0, nodes=["n"] * 2, clock_s=1.0)
        trained(monitor, 2)
        return monitor, begun

    def test_it_is_offered_while_a_slot_is_free_that_no_worker_can_use(self, clock: Clock) -> None:
        monitor, _ = self._monitor(clock)
        assert not trained(monitor, 2).background
        for slots, is_room in ((2, False), (3, True), (2, False)):
            running(monitor, workers=2, slots=slots, warm_spares=0)
            assert trained(monitor, 2).background is is_room
        assert not trained(monitor_of(clock), 2).background, "this run has no background evaluation"

    def test_one_runs_at_a_time_and_its_scores_are_added_when_it_ends(self, clock: Clock) -> None:
        monitor, begun = self._monitor(clock)
        running(monitor, workers=2, slots=3, warm_spares=0)
        monitor.evaluate_in_background(JOB, 100, ["weights"], averaged=False)
        assert begun[0].weights == "weights" and monitor.is_evaluating()
        running(monitor, workers=2, slots=3, warm_spares=0)
        assert not trained(monitor, 2).background
        begun[0].outcome = {"val_loss": 2.0, "val_bits_per_byte": 1.5}
        trained(monitor, 2, step=150)
        assert not monitor.is_evaluating()
        [kept] = monitor.progress().evaluations
        at = kept.pop("at")
        assert kept == {"step": 100, "val_loss": 2.0, "val_bits_per_byte": 1.5} and at > 0
        assert monitor.progress().log_lines[-1] == "step 100: held-out loss 2.0000, 1.5000 bits per byte"
        running(monitor, workers=2, slots=3, warm_spares=0)
        assert trained(monitor, 2).background

    def test_scores_of_translations_are_logged_too(self, clock: Clock) -> None:
        monitor, _ = self._monitor(clock)
        scores = {"val_loss": 2.0, "val_bits_per_byte": 1.5, "val_bleu": 12.345, "val_chrf": 30.0}
        monitor.report_evaluation(7, scores, averaged=True)
        line = "step 7: held-out loss 2.0000, 1.5000 bits per byte, BLEU 12.35, chrF 30.00 (averaged weights)"
        assert monitor.progress().log_lines[-1] == line

    def test_one_that_fails_is_logged_and_training_continues(self, clock: Clock) -> None:
        monitor, begun = self._monitor(clock)
        monitor.evaluate_in_background(JOB, 100, ["weights"], averaged=False)
        begun[0].outcome = RuntimeError("its node\nis gone")
        assert not monitor.is_evaluating() and monitor.progress().evaluations == []
        assert monitor.progress().log_lines[-1].endswith("the background evaluation failed: its node is gone")

    def test_a_second_one_is_not_started_while_one_runs(self, clock: Clock) -> None:
        monitor, begun = self._monitor(clock)
        monitor.evaluate_in_background(JOB, 100, ["weights"], averaged=True)
        monitor.evaluate_in_background(JOB, 101, ["weights"], averaged=True)
        assert len(begun) == 1 and monitor.progress().log_lines[-1].startswith("step 101: not evaluated")
        begun[0].outcome = {"val_loss": 2.0, "val_bits_per_byte": 1.5}
        assert not monitor.is_evaluating()
        assert monitor.progress().log_lines[-1].endswith("(averaged weights)")

    def test_it_is_cancelled_when_starting_workers_need_its_slot(self, clock: Clock) -> None:
        monitor, begun = self._monitor(clock)
        monitor.evaluate_in_background(JOB, 100, ["weights"], averaged=False)
        monitor.restart_after_failure("node", "gone")
        assert start(monitor, slots=2, total_slots=3, warm_spares=0) is not None
        assert monitor.is_evaluating() and not begun[0].is_cancelled, "there are slots for both"
        start(monitor, slots=1, total_slots=3, warm_spares=0)
        assert not monitor.is_evaluating() and "cancelled" in "".join(monitor.progress().log_lines)
        assert begun[0].is_cancelled, "its process may still compute for minutes"

    def test_without_held_out_data_nothing_is_added(self, clock: Clock) -> None:
        monitor, begun = self._monitor(clock)
        monitor.evaluate_in_background(JOB, 100, ["weights"], averaged=False)
        begun[0].outcome = {}
        assert not monitor.is_evaluating() and monitor.progress().evaluations == []
