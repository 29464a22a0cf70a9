"""A monitor that is killed and started again: it goes on where it was, and no call counts twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.stores.patience import Outage
from orchestrator.monitor import kept_state
from orchestrator.monitor.kept_state import STARTS_PER_HOUR, count_start
from orchestrator.monitor.monitor import Monitor
from orchestrator.policy.scaling import Observation, ScalingPolicy
from orchestrator.run.progress import Progress

JOB: Any = "job"


class Agent:
    """Stand-in for the handle of a snapshot agent, and for the reference that `free` returns."""

    def __init__(self, node_id: str) -> None:
        self.node_id, self.free = node_id, self

    def remote(self) -> Agent:
        return self


class Evaluation:
    """An evaluation that never ends."""

    def __init__(self, job: Any, weights: Any) -> None: ...

    def scores(self) -> None: ...

    def cancel(self) -> None: ...


def start_agent(node_id: str, job: Any) -> Agent:
    assert job == JOB
    return Agent(node_id)


class Actor:
    """The monitor's actor: `kill` ends its process, and the next call starts it again, as Ray does.

    Attributes:
        now: of the clock, which all processes of a machine share.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._calls = 0
        self._monitor: Monitor | None = None
        self.now = 100.0
        monkeypatch.setattr(kept_state, "call_id", lambda: str(self._calls))
        monkeypatch.setattr("orchestrator.monitor.state.ray.wait", lambda calls, timeout: ([], calls))

    def kill(self) -> None:
        self._monitor = None

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self._calls += 1
        return self.repeat(method, *args, **kwargs)

    def repeat(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The newest call again, as Ray does where its answer was lost."""
        return getattr(self.monitor, method)(*args, **kwargs)

    @property
    def monitor(self) -> Monitor:
        if self._monitor is None:
            scaling = ScalingPolicy(1, 4, micro_batches=8, restart_s=5.0)
            self._monitor = Monitor(scaling, 1000, start_agent, Evaluation, lambda: self.now, folder=self._folder)
        return self._monitor

    @property
    def progress(self) -> Progress:
        return self.monitor.progress()


@pytest.fixture
def actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Actor:
    return Actor(tmp_path / "actors", monkeypatch)


CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("agent_of", ("a", JOB), {}),
    ("agent_of", ("b", JOB), {}),
    ("report_restored", ({"step": 0},), {}),
    ("decide_start", (Observation(workers=0, slots=2, total_slots=2),), {}),
    ("begin_group", (0, ["a", "b"], 1.0, "cpu"), {}),
    (
        "report",
        (),
        {"row": {"step": 10, "step_s": 0.5, "world_size": 2}, "goodput": {"training": 5.0}, "losses": [[1]]},
    ),
    ("report_checkpoint", (10, 1000.0, {"step": 10}), {}),
    ("report_evaluation", (10, {"val_loss": 1.0, "val_bits_per_byte": 0.5}, False), {}),
    ("report_outage", ("saving checkpoints", Outage(1.0, "busy", 2.0)), {}),
    ("report_loss_spike", (11, "nan", set()), {}),
    ("restart_after_loss_spike", (), {}),
    ("report_start_phase", ("teardown",), {}),
    ("begin_group", (8, ["a"], 1.0, "cpu"), {}),
    ("log", ("a line",), {}),
    ("request_stop", (), {}),
    ("restart_after_failure", ("crash", "killed"), {}),
]


def played(actor: Actor, *, killed_after: int = -1, repeats: bool = False) -> dict[str, Any]:
    """Plays CALLS, a second after the other; returns what the monitor knows then.

    Args:
        killed_after: the process is killed after this call.
        repeats: before the answer to that call arrived, so it is repeated.
    """
    for number, (method, args, kwargs) in enumerate(CALLS):
        actor.now += 1
        answer = actor.call(method, *args, **kwargs)
        if number == killed_after:
            actor.kill()
            if repeats and method != "agent_of":
                assert actor.repeat(method, *args, **kwargs) == answer
    known = actor.monitor._state.kept()
    del known["job"]
    return known


def without_times(known: dict[str, Any]) -> str:
    """For comparison: without seconds since the epoch, and without what a restarted monitor tells about itself."""
    progress: Progress = known["progress"]
    progress.logged, untold = 0, ("the monitor died", "the store fails for")
    progress.log_lines[:] = [line for line in progress.log_lines if not any(each in line for each in untold)]
    for entry in (*progress.decisions, *progress.evaluations, *progress.disruptions):
        if isinstance(entry, dict):
            entry.pop("at")
        else:
            entry.at = 0.0
    return repr([(name, getattr(value, "__dict__", value)) for name, value in sorted(known.items())])


@pytest.mark.parametrize("repeats", [False, True], ids=["answered", "answer lost"])
def test_whenever_it_is_killed_the_monitor_knows_the_same_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeats: bool
) -> None:
    undisturbed = without_times(played(Actor(tmp_path / "alone", monkeypatch)))
    for number, (method, _, _) in enumerate(CALLS):
        actor = Actor(tmp_path / str(number), monkeypatch)
        known = played(actor, killed_after=number, repeats=repeats)
        assert without_times(known) == undisturbed, f"killed after {method}"


def test_a_restarted_monitor_starts_the_agents_again_which_ended_with_it(actor: Actor) -> None:
    before = {node: actor.call("agent_of", node, JOB) for node in ("a", "b", "left")}
    actor.call("begin_group", 0, ["a", "b"], 0.0)
    actor.kill()
    after = actor.monitor.agents()
    assert after.keys() == before.keys(), "that of the node without workers, too: its memory has to be freed"
    assert all(after[node] is not before[node] for node in after)
    again = actor.call("agent_of", "a", JOB, dead=before["a"])
    assert again is after["a"], "whoever has the handle of a dead one gets its successor"


def test_a_background_evaluation_ends_with_the_process_and_nobody_waits_for_it(actor: Actor) -> None:
    actor.call("evaluate_in_background", JOB, 10, ["weights"], False)
    assert actor.call("is_evaluating")
    actor.kill()
    assert not actor.call("is_evaluating")
    assert "step 10: the background evaluation was lost with it" in actor.progress.log_lines


def test_an_outage_that_goes_on_is_still_one_after_a_restart(actor: Actor) -> None:
    actor.call("report_outage", "saving checkpoints", Outage(1.0, "busy", 2.0))
    actor.kill()
    actor.call("report_outage", "saving checkpoints", Outage(1.0, "away", 2.0))
    assert actor.call("report").store_fails
    actor.call("report_outage", "saving checkpoints", None)
    [outage] = actor.progress.outages
    assert outage["problem"] == "away" and outage["until"] is not None and not actor.call("report").store_fails


def test_a_state_that_cannot_be_kept_is_told_once_and_ends_nothing(actor: Actor, tmp_path: Path) -> None:
    actor.call("log", "first")
    (tmp_path / "actors" / "monitor.new").mkdir()  # where the next state would be written
    for line in ("second", "third"):
        actor.call("log", line)
    lines = actor.progress.log_lines
    assert [line for line in lines if "cannot keep its state" not in line] == ["first", "second", "third"]
    assert len(lines) == 4


def test_an_actor_that_dies_all_the_time_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "actors" / "feeder.starts"
    assert [count_start(path, now=float(number)) for number in range(STARTS_PER_HOUR)] == [
        *range(1, STARTS_PER_HOUR + 1)
    ]
    with pytest.raises(RuntimeError, match=f"died {STARTS_PER_HOUR} times within an hour"):
        count_start(path, now=100.0)
    assert count_start(path, now=2 * 3600.0) == 1
