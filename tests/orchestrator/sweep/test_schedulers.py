"""Tune's schedulers on top of the records: a continued sweep decides as an undisturbed one."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.stores.local import LocalStore
from orchestrator.sweep.coordinator import TrialCoordinator
from orchestrator.sweep.milestones import rungs
from orchestrator.sweep.records import TrialBook
from orchestrator.sweep.schedulers import RecordedScheduler
from orchestrator.sweep.spec import Sweep
from tests.orchestrator.sweep.test_policies import sweep_of


class _Unlimited:
    """A cluster with slots for every trial."""

    def total(self) -> int:
        return 100

    def request(self, trials: int, min_workers: int) -> None:
        pass

    def cancel(self, run: str) -> None:
        pass


def coordinator_of(sweep: Sweep, folder: Path) -> TrialCoordinator:
    return TrialCoordinator(sweep, TrialBook(LocalStore(str(folder))), _Unlimited())  # type: ignore[arg-type]


def play(sweep: Sweep, folder: Path, cut: set[int]) -> dict[str, tuple[str, list[int], float | None]]:
    """Runs trials in turns, one milestone at a time. After the numbers of events in `cut`, everything but the records
    is lost and rebuilt."""
    events = 0
    coordinator = coordinator_of(sweep, folder)
    scheduler = RecordedScheduler(coordinator)
    running: dict[str, Any] = {}
    at: dict[str, int] = {}
    steps = [*rungs(sweep), sweep.steps]
    draw = random.Random(5)
    losses = {f"t{number:03d}": draw.uniform(1, 5) for number in range(1, 40)}
    while coordinator.remaining or running:
        if coordinator.remaining and len(running) < 3:
            assignment = coordinator.next_assignment()
            assert assignment is not None
            running[assignment.id] = SimpleNamespace(config={"trial": assignment.id})
            at[assignment.id] = sum(step <= assignment.reported for step in steps)
            scheduler.on_trial_add(None, running[assignment.id])
        name = sorted(running, key=lambda each: (at[each], each))[0]
        step = steps[at[name]]
        result = {"at_step": step, "step": step, "loss": losses[name] / step, "worker_s": 1.0}
        decision = scheduler.on_trial_result(None, running[name], result)
        at[name] += 1
        events += 1
        if decision == "STOP" or step == sweep.steps:
            result |= {"done": True, "status": "finished", "reason": ""}
            scheduler.on_trial_complete(None, running.pop(name), result)
        if events in cut:
            coordinator, running = coordinator_of(sweep, folder), {}
            scheduler = RecordedScheduler(coordinator)
    return {record.id: (record.status, record.rungs, record.loss) for record in coordinator.book}


@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_an_interrupted_sweep_decides_as_an_undisturbed_one(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = sweep_of(
        tmp_path, scheduler={"name": name, "grace_steps": 9}, searcher={"name": "random", "trials": 15, "seed": 2}
    )
    alone = play(sweep, tmp_path / "alone", set())
    statuses = [status for status, _, _ in alone.values()]
    assert set(statuses) == {"finished", "stopped"}
    assert len(alone) == 15
    for cut in ({1}, {7}, {3, 11, 17}):
        disturbed = play(sweep, tmp_path / f"cut-{min(cut)}-{len(cut)}", cut)
        assert disturbed.keys() == alone.keys()
        assert disturbed == alone


def test_the_median_rule_stops_worse_trials_and_gets_all_reports_replayed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = sweep_of(tmp_path, scheduler={"name": "median", "grace_steps": 10, "min_trials": 2})
    coordinator = coordinator_of(sweep, tmp_path / "records")
    scheduler = RecordedScheduler(coordinator)
    for loss in (1.0, 2.0, 3.0):
        assignment = coordinator.next_assignment()
        assert assignment is not None
        here = SimpleNamespace(config={"trial": assignment.id})
        scheduler.on_trial_add(None, here)
        for step in (20, 100):
            assert scheduler.on_trial_result(None, here, {"step": step, "loss": loss, "at_step": step}) == (
                "STOP" if loss == 3.0 and step == 20 else "CONTINUE"
            )
            if loss == 3.0:
                break
        scheduler.on_trial_complete(None, here, {"status": "finished", "reason": ""})
    again = coordinator_of(sweep, tmp_path / "records")
    scheduler = RecordedScheduler(again)
    assignment = again.next_assignment()
    assert assignment is not None
    here = SimpleNamespace(config={"trial": assignment.id})
    scheduler.on_trial_add(None, here)
    assert scheduler.on_trial_result(None, here, {"step": 20, "loss": 2.5, "at_step": 20}) == "STOP"


def test_a_decision_that_was_not_carried_out_is_carried_out_later(tmp_path: Path, monkeypatch: Any) -> None:
    """The report was kept, and the process died before the trial was marked as stopped."""
    monkeypatch.chdir(tmp_path)
    sweep = sweep_of(tmp_path, scheduler={"name": "asha", "grace_steps": 9}, searcher={"name": "random", "trials": 2})
    coordinator = coordinator_of(sweep, tmp_path / "records")
    RecordedScheduler(coordinator)
    for loss in (1.0, 2.0):
        assignment = coordinator.next_assignment()
        assert assignment is not None
        coordinator.book.report(coordinator.book[assignment.id], 9, loss, 1.0, 0)
    again = coordinator_of(sweep, tmp_path / "records")
    RecordedScheduler(again)
    assert [record.status for record in again.book] == ["running", "stopped"]
    assert "not among the best one in 4" in again.book["t002"].reason
    assert again.remaining == 1


def test_a_trial_whose_process_died_is_recorded_and_releases_its_share(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = sweep_of(tmp_path, searcher={"name": "random", "trials": 2})
    coordinator = coordinator_of(sweep, tmp_path / "records")
    assignment = coordinator.next_assignment()
    assert assignment is not None
    coordinator.record_death(assignment.id, "killed")
    assert coordinator.book[assignment.id].status == "failed"
    assert [record.reason for record in TrialBook(LocalStore(str(tmp_path / "records")))] == ["killed"]
    assert coordinator.remaining == 1
