"""What Ray Tune calls, on top of the records: a continued sweep decides as one that was left alone."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from data.errors import DiskFullError, MantaError, StoreAccessError, TransientStoreError
from data.stores.local import LocalStore
from orchestrator.errors import BadLossError, RecipeError, WorkerDiedError
from orchestrator.sweep.coordinator import TrialCoordinator
from orchestrator.sweep.records import TrialBook
from orchestrator.sweep.schedule.legs import Leg, loss_at
from orchestrator.sweep.schedule.repeated import deviation_of, point_of, trials_of
from orchestrator.sweep.spec import PlateauConfig, Sweep
from orchestrator.sweep.summary import best_of
from orchestrator.sweep.trial import Assignment, is_final
from orchestrator.sweep.trial_record import TrialRecord
from orchestrator.sweep.tune.adapters import CoordinatorSearcher, RecordingScheduler
from tests.orchestrator.sweep.test_policies import sweep_of

Outcome = dict[str, tuple[str, list[int], float | None]]


class _Slots:
    """A cluster with so many slots."""

    def __init__(self, slots: int) -> None:
        self.slots, self.asked = slots, 0

    def total(self) -> int:
        return self.slots

    def request(self, trials: int, min_workers: int) -> None:
        self.asked = trials

    def cancel(self, run: str) -> None:
        pass


def coordinator_of(sweep: Sweep, folder: Path, slots: int = 100) -> TrialCoordinator:
    return TrialCoordinator(sweep, TrialBook(LocalStore(str(folder))), _Slots(slots))  # type: ignore[arg-type]


def begin(coordinator: TrialCoordinator, scheduler: RecordingScheduler) -> tuple[Any, Assignment] | None:
    """The next leg, as Tune sees it."""
    assignment = coordinator.next_assignment()
    if assignment is None:
        return None
    trial = SimpleNamespace(config={"trial": assignment.id})
    scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
    return trial, assignment


def report(scheduler: RecordingScheduler, trial: Any, step: int, loss: float | None, **more: Any) -> str:
    return scheduler.on_trial_result(
        None, trial, {"at_step": step, "step": step, "loss": loss, "worker_s": 1.0, **more}
    )


def end(scheduler: RecordingScheduler, trial: Any, **result: Any) -> None:
    scheduler.on_trial_complete(None, trial, {"done": True, "reason": "", **result})


def best_of_book(coordinator: TrialCoordinator) -> TrialRecord | None:
    book, repeats = coordinator.book.by_number, coordinator.sweep.spec.searcher.repeats
    return best_of(book, coordinator.decisions, coordinator.levels, repeats)


def play(sweep: Sweep, folder: Path, cut: set[int], slots: int = 3) -> tuple[Outcome, TrialRecord | None]:
    """Runs legs, the shortest first. After the numbers of events in `cut`, all but the records is lost and rebuilt."""
    events, cut = 0, set(cut)
    coordinator = coordinator_of(sweep, folder, slots)
    scheduler = RecordingScheduler(coordinator)
    running: dict[str, tuple[Any, Assignment]] = {}
    draw = random.Random(5)
    losses = {f"t{number:03d}": draw.uniform(1, 5) for number in range(1, 40)}
    while not coordinator.is_settled:
        while begun := begin(coordinator, scheduler):
            running[begun[1].id] = begun
        trial, assignment = running.pop(min(running, key=lambda name: (running[name][1].until, name)))
        for step in coordinator.levels:
            if assignment.reported < step <= assignment.until:
                decision = report(scheduler, trial, step, losses[assignment.id] / step)
                events += 1
                if decision == "STOP" or events in cut:
                    break
        else:
            decision = "CONTINUE"
        if events in cut:
            cut.remove(events)
            coordinator, running = coordinator_of(sweep, folder, slots), {}
            scheduler = RecordingScheduler(coordinator)
        else:
            end(scheduler, trial, status="stopped" if decision == "STOP" else "done")
    coordinator.record_outs()
    outcome = {record.id: (record.status, record.rungs, record.loss) for record in coordinator.book}
    return outcome, best_of_book(coordinator)


@pytest.mark.parametrize("name", ["halving", "asha", "hyperband", "pasha", "pbt", "none", "asha-stopping"])
def test_an_interrupted_sweep_decides_as_one_that_was_left_alone(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    trials = 6 if name == "pbt" else 15  # pbt has many more legs
    searcher = {"name": "random", "trials": trials, "seed": 2}
    sweep = sweep_of(tmp_path, scheduler={"name": name, "grace_steps": 9}, searcher=searcher)
    slots = 1 if name == "asha-stopping" else 3  # where the order of reports counts, it has to be the same
    alone, best = play(sweep, tmp_path / "alone", set(), slots)
    assert len(alone) == trials and best is not None
    assert ("stopped" in {status for status, _, _ in alone.values()}) == (name not in ("pbt", "none"))
    for cut in ({1}, {7}, {3, 11, 17}):
        disturbed, same = play(sweep, tmp_path / f"cut-{min(cut)}-{len(cut)}", cut, slots)
        assert same is not None and (same.id, same.loss) == (best.id, best.loss)
        if name != "asha":  # it may have trained others in advance
            assert disturbed == alone
    if name != "asha-stopping":
        for slots in (1, 16):
            assert (found := play(sweep, tmp_path / f"slots-{slots}", set(), slots)[1]) and found.id == best.id


@pytest.mark.parametrize("name", ["none", "asha", "hyperband"])
def test_the_best_point_is_that_of_the_least_mean_over_its_seeds(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    searcher = {"name": "optuna", "trials": 11, "repeats": 3, "seed": 2, "batch": 2}
    sweep = sweep_of(tmp_path, scheduler={"name": name, "grace_steps": 9}, searcher=searcher)
    alone, best = play(sweep, tmp_path / "alone", set(), slots=1)
    assert len(alone) == 33 and best is not None and best.loss is not None
    book = TrialBook(LocalStore(str(tmp_path / "alone")))
    mine = [book.by_number[number] for number in trials_of(point_of(best.number, 3), 3)]
    losses = [loss for record in mine if (loss := loss_at(record, best.reports[-1].step)) is not None]
    assert [record.point for record in mine] == [best.point] * 3
    assert best.loss == pytest.approx(sum(losses) / 3)
    assert deviation_of(best, book.by_number, 3) == pytest.approx(stdev(losses))
    for slots, cut in ((1, {4}), (3, {2, 9, 20}), (40, set[int]())):
        disturbed, same = play(sweep, tmp_path / f"{slots}-{len(cut)}", cut, slots)
        assert same is not None and (same.id, same.loss) == (best.id, best.loss)
        if name != "asha":
            assert disturbed == alone


@pytest.mark.parametrize(("name", "repeats"), [("none", 1), ("none", 2), ("asha", 1), ("halving", 2)])
def test_a_sweep_ends_at_a_plateau_with_the_same_best(
    tmp_path: Path, name: str, repeats: int, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = sweep_of(
        tmp_path,
        scheduler={"name": name, "grace_steps": 9},
        searcher={"name": "random", "trials": 15, "repeats": repeats},
        plateau={"trials": 3, "by": 0.001},
    )
    alone, best = play(sweep, tmp_path / "alone", set(), slots=1)
    assert best is not None and len(alone) < 15 * repeats
    for slots, cut in ((40, set[int]()), (3, {2, 9}), (1, set[int]())):
        same = play(sweep, tmp_path / f"{slots}", cut, slots)[1]
        assert same is not None and (same.id, same.loss) == (best.id, best.loss)
    coordinator = coordinator_of(sweep, tmp_path / "40")
    coordinator.record_outs()
    beyond = {record.status for record in list(coordinator.book)[len(alone) :]}
    assert beyond and beyond <= {"paused", "pending", "finished"}
    # Without a plateau, it goes on to where it would have come at once.
    whole = replace(sweep, spec=sweep.spec.model_copy(update={"plateau": PlateauConfig()}))
    for slots in (1, 40):
        went_on, at_once = (play(whole, tmp_path / name, set(), slots)[1] for name in (f"{slots}", "whole"))
        assert went_on is not None and at_once is not None and went_on.id == at_once.id
    assert coordinator.is_settled and coordinator.decisions.early.startswith("plateau: the best loss at step ")


def test_trials_of_a_point_differ_by_the_seed_and_end_with_the_first_that_fails(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    searcher = {"name": "random", "trials": 2, "repeats": 3}
    sweep = sweep_of(tmp_path, set={"seed": 5}, scheduler={"name": "none"}, searcher=searcher)
    coordinator = coordinator_of(sweep, tmp_path / "store", slots=2)
    scheduler = RecordingScheduler(coordinator)
    begun = [found for _ in range(2) if (found := begin(coordinator, scheduler))]
    assert [assignment.seed for _, assignment in begun] == [5, 6]
    configs = [sweep.config_of(each.point, each.run, each.seed) for _, each in begun]
    assert [config.seed for config in configs] == [5, 6] and configs[0].train == configs[1].train
    for trial, _ in begun:
        report(scheduler, trial, 100, None)
        end(scheduler, trial, status="done")
    assert [(record.id, record.status) for record in coordinator.book] == [
        *(("t001", "failed"), ("t002", "failed"), ("t003", "stopped"))
    ]
    assert begin(coordinator, scheduler)[1].id == "t004"  # type: ignore[index]

    # What a kill amid the addition of a point leaves.
    (tmp_path / "store/trials/t006.json").unlink()
    coordinator = coordinator_of(sweep, tmp_path / "store")
    assert [(record.id, record.status) for record in coordinator.book][3:] == [
        *(("t004", "paused"), ("t005", "pending"), ("t006", "pending"))
    ]
    assert coordinator.book["t006"].point == coordinator.book["t004"].point


def test_free_slots_train_the_best_so_far_in_advance(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    searcher = {"name": "random", "trials": 8}
    for name, legs in (("halving", [9] * 7), ("asha", [9] * 7 + [18])):
        sweep = sweep_of(tmp_path, scheduler={"name": name, "grace_steps": 9, "factor": 2}, searcher=searcher)
        coordinator = coordinator_of(sweep, tmp_path / name)
        scheduler = RecordingScheduler(coordinator)
        begun = [found for _ in range(8) if (found := begin(coordinator, scheduler))]
        for trial, assignment in begun[:2]:
            report(scheduler, trial, 9, float(assignment.id[1:]))
            end(scheduler, trial, status="done")
        while begin(coordinator, scheduler):
            pass
        running = [record for record in coordinator.book if record.status == "running"]
        assert len(running) == len(legs) - 1
        assert ("t001" in [record.id for record in running]) == (name == "asha")


def test_the_median_rule_stops_worse_trials_and_gets_all_reports_replayed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = sweep_of(
        tmp_path,
        scheduler={"name": "median", "grace_steps": 10, "min_trials": 2},
        searcher={"name": "random", "trials": 5},
    )
    coordinator = coordinator_of(sweep, tmp_path / "records")
    scheduler = RecordingScheduler(coordinator)
    for loss in (1.0, 2.0, 3.0):
        begun = begin(coordinator, scheduler)
        assert begun is not None
        for step in (20, 100):
            stops = loss == 3.0 and step == 20
            assert report(scheduler, begun[0], step, loss) == ("STOP" if stops else "CONTINUE")
            if stops:
                break
        end(scheduler, begun[0], status="stopped" if loss == 3.0 else "done")
    again = coordinator_of(sweep, tmp_path / "records")
    scheduler = RecordingScheduler(again)
    begun = begin(again, scheduler)
    assert begun is not None
    assert report(scheduler, begun[0], 20, 2.5) == "STOP"


def test_a_decision_that_was_not_carried_out_is_carried_out_later(tmp_path: Path, monkeypatch: Any) -> None:
    """The report was kept, and the process died before the trial was marked as stopped."""
    monkeypatch.chdir(tmp_path)
    sweep = sweep_of(
        tmp_path, scheduler={"name": "asha-stopping", "grace_steps": 9}, searcher={"name": "random", "trials": 2}
    )
    coordinator = coordinator_of(sweep, tmp_path / "records")
    RecordingScheduler(coordinator)
    for loss in (1.0, 2.0):
        assignment = coordinator.next_assignment()
        assert assignment is not None
        coordinator.book.report(coordinator.book[assignment.id], 9, loss, 1.0, 0)
    again = coordinator_of(sweep, tmp_path / "records")
    RecordingScheduler(again)
    assert [record.status for record in again.book] == ["paused", "stopped"]
    assert "not among the best one in 4" in again.book["t002"].reason
    assert [leg.number for leg in again.waiting] == [1]


def one_trial(folder: Path, **changes: Any) -> tuple[TrialCoordinator, RecordingScheduler]:
    sweep = sweep_of(folder, searcher={"name": "random", "trials": 1}, scheduler={"name": "none"}, **changes)
    coordinator = coordinator_of(sweep, folder / "records")
    return coordinator, RecordingScheduler(coordinator)


@pytest.mark.parametrize("dies", [True, False])
def test_a_trial_that_fails_is_tried_again_as_often_as_the_recipe_says(
    tmp_path: Path, monkeypatch: Any, dies: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    coordinator, scheduler = one_trial(tmp_path, max_failures=2)
    monkeypatch.setattr("orchestrator.sweep.coordinator.RETRY_WAIT_S", 1000.0)
    begun = begin(coordinator, scheduler)
    assert begun is not None
    coordinator.record_failure(begun[1].id, "full")
    assert coordinator.waiting == [] and not coordinator.is_settled  # not at once
    coordinator = coordinator_of(coordinator.sweep, tmp_path / "other")
    scheduler = RecordingScheduler(coordinator)
    monkeypatch.setattr("orchestrator.sweep.coordinator.RETRY_WAIT_S", 0.0)
    statuses = []
    for number in range(3):
        begun = begin(coordinator, scheduler)
        assert begun is not None
        if dies:
            coordinator.record_failure(begun[1].id, f"killed {number}")
        else:
            end(scheduler, begun[0], status="failed", reason=f"killed {number}")
        statuses.append(coordinator.book["t001"].status)
    assert statuses == ["paused", "paused", "failed"]
    (record,) = TrialBook(LocalStore(str(tmp_path / "other")))
    assert (record.reason, record.failures) == ("killed 2", ["killed 0", "killed 1"])
    assert coordinator.is_settled and coordinator.decisions.finalists == []


def test_a_leg_that_ends_leaves_the_failures_before_it_behind(tmp_path: Path, monkeypatch: Any) -> None:
    """A long sweep meets more of them than a short one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("orchestrator.sweep.coordinator.RETRY_WAIT_S", 0.0)
    scheduler_fields = {"name": "halving", "grace_steps": 9, "factor": 2}
    sweep = sweep_of(tmp_path, scheduler=scheduler_fields, searcher={"name": "random", "trials": 2}, max_failures=1)
    coordinator = coordinator_of(sweep, tmp_path / "kept", slots=1)
    scheduler = RecordingScheduler(coordinator)
    legs = 0
    while begun := begin(coordinator, scheduler):
        coordinator.record_failure(begun[1].id, "its host died")
        begun = begin(coordinator, scheduler)
        assert begun is not None
        report(scheduler, begun[0], begun[1].until, float(begun[1].id[1:]))
        end(scheduler, begun[0], status="done")
        legs += 1
    assert legs == 6 and coordinator.is_settled
    assert [record.status for record in coordinator.book] == ["finished", "stopped"]
    assert [len(record.failures) for record in coordinator.book] == [5, 1]


def test_what_would_fail_again_is_not_tried_again(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    coordinator, scheduler = one_trial(tmp_path)
    begun = begin(coordinator, scheduler)
    assert begun is not None
    failed = {"at_step": 7, "worker_s": 1.0, "status": "failed", "reason": "loss=nan", "is_final": True}
    scheduler.on_trial_result(None, begun[0], failed)
    scheduler.on_trial_error(None, begun[0])
    record = coordinator.book["t001"]
    assert (record.status, record.reason, record.trial_run.step) == ("failed", "loss=nan", 7)
    assert coordinator.is_settled


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (BadLossError("loss=nan"), True),
        (RecipeError("no"), True),
        (WorkerDiedError("killed"), False),
        (TransientStoreError("away"), False),
        (StoreAccessError("refused"), False),
        (DiskFullError("full"), False),
    ],
)
def test_errors_of_the_cluster_may_pass(error: MantaError, final: bool) -> None:
    assert is_final(error) == final


@pytest.mark.parametrize("loss", [None, float("nan")])
def test_a_leg_without_a_loss_at_its_end_is_no_result(tmp_path: Path, monkeypatch: Any, loss: float | None) -> None:
    monkeypatch.chdir(tmp_path)
    coordinator, scheduler = one_trial(tmp_path)
    begun = begin(coordinator, scheduler)
    assert begun is not None
    report(scheduler, begun[0], 50, 2.0)
    if loss is not None:
        report(scheduler, begun[0], 100, loss)
    end(scheduler, begun[0], status="done", at_step=100)
    record = coordinator.book["t001"]
    assert (record.status, record.reason) == ("failed", "no finite train_loss was reported at step 100")
    assert best_of_book(coordinator) is None


def test_what_a_killed_attempt_could_not_record_is_recorded_by_the_next(tmp_path: Path, monkeypatch: Any) -> None:
    """It was killed after the reports, before the ends of the legs."""
    monkeypatch.chdir(tmp_path)
    sweep = sweep_of(
        tmp_path, scheduler={"name": "halving", "grace_steps": 10}, searcher={"name": "random", "trials": 2}
    )
    coordinator = coordinator_of(sweep, tmp_path / "records")
    scheduler = RecordingScheduler(coordinator)
    begun = [each for _ in range(2) if (each := begin(coordinator, scheduler))]
    for (trial, _), losses in zip(begun, ({10: 1.0, 40: 1.0, 100: 1.0}, {10: 2.0}), strict=True):
        coordinator._running[trial.config["trial"]] = Leg(1, 100)
        for step, loss in losses.items():
            report(scheduler, trial, step, loss)
    assert [record.status for record in TrialBook(LocalStore(str(tmp_path / "records")))] == ["running", "running"]
    again = coordinator_of(sweep, tmp_path / "records")
    assert again.is_settled
    again.record_outs()
    assert [record.status for record in TrialBook(LocalStore(str(tmp_path / "records")))] == ["finished", "stopped"]


def test_a_store_that_refuses_ends_the_sweep_with_its_own_error(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    coordinator, scheduler = one_trial(tmp_path)
    begun = begin(coordinator, scheduler)
    assert begun is not None
    refusal = StoreAccessError("the bucket is gone")

    def refuse(*_: Any) -> None:
        raise refusal

    monkeypatch.setattr(coordinator.book, "_put", refuse)
    assert report(scheduler, begun[0], 50, 2.0) == "CONTINUE"
    end(scheduler, begun[0], status="done", at_step=100)
    assert coordinator.error is refusal and coordinator.interrupted
    coordinator.close()  # saves nothing


@pytest.mark.parametrize("has_reported", [True, False])
def test_a_death_after_the_report_of_the_legs_end_is_no_failure(
    tmp_path: Path, monkeypatch: Any, has_reported: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    coordinator, scheduler = one_trial(tmp_path, max_failures=0)
    begun = begin(coordinator, scheduler)
    assert begun is not None
    report(scheduler, begun[0], 100 if has_reported else 50, 2.0)
    coordinator.record_failure("t001", "killed")
    assert coordinator.book["t001"].status == ("finished" if has_reported else "failed")


def test_early_legs_ask_for_no_nodes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = sweep_of(
        tmp_path,
        scheduler={"name": "asha", "grace_steps": 10, "factor": 2},
        searcher={"name": "random", "trials": 4},
    )
    slots = _Slots(4)
    coordinator = TrialCoordinator(sweep, TrialBook(LocalStore(str(tmp_path / "records"))), slots)  # type: ignore[arg-type]
    scheduler = RecordingScheduler(coordinator)
    begun = [each for _ in range(4) if (each := begin(coordinator, scheduler))]
    for trial, assignment in begun[:2]:
        report(scheduler, trial, 10, float(assignment.id[1:]))
        end(scheduler, trial, status="done")
    slots.slots = 2  # all that are left are in use
    assert [leg.is_early for leg in coordinator.waiting] == [True]
    assert coordinator.next_assignment() is None and slots.asked == 0


def test_trials_that_are_added_bring_back_one_that_was_out(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    scheduler = {"name": "halving", "grace_steps": 10, "factor": 4}
    few = sweep_of(tmp_path, scheduler=scheduler, searcher={"name": "random", "trials": 4})
    outcome, best = play(few, tmp_path / "records", set())
    assert best is not None
    assert sorted(status for status, _, _ in outcome.values()) == ["finished", "stopped", "stopped", "stopped"]
    more = sweep_of(tmp_path, scheduler=scheduler, searcher={"name": "random", "trials": 12})
    continued, _ = play(more, tmp_path / "records", set())
    fresh, _ = play(more, tmp_path / "fresh", set())
    assert {name: rungs for name, (_, rungs, _) in fresh.items()} != {name: r for name, (_, r, _) in outcome.items()}
    for name, (status, rungs, _) in fresh.items():
        assert set(rungs) <= set(continued[name][1])
        assert status == continued[name][0] or name == best.id


def test_a_sweep_ends_at_its_target_and_after_its_hours_and_goes_on_with_more(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    scheduler, searcher = {"name": "halving", "grace_steps": 10}, {"name": "random", "trials": 3}
    sweep = sweep_of(tmp_path, scheduler=scheduler, searcher=searcher, target=2.0, max_hours=1.0)
    coordinator = coordinator_of(sweep, tmp_path / "records")
    tune = RecordingScheduler(coordinator)
    for loss in (3.0, 1.5):
        assert coordinator.ends_early == ""
        begun = begin(coordinator, tune)
        assert begun is not None
        report(tune, begun[0], 10, loss)
        end(tune, begun[0], status="done")
    assert coordinator.ends_early == "trial t002 has reached target = 2" and not coordinator.is_settled
    assert CoordinatorSearcher(coordinator).suggest("any") == Searcher.FINISHED
    book = TrialBook(LocalStore(str(tmp_path / "records")))
    assert [record.status for record in book] == ["stopped", "paused"]

    cluster: Any = _Slots(4)
    late = TrialCoordinator(sweep_of(tmp_path, searcher=searcher, max_hours=1.0), book, cluster, spent_s=3601.0)
    assert late.ends_early == "max_hours = 1 have passed"
    more = TrialCoordinator(sweep_of(tmp_path, searcher=searcher, max_hours=2.0), book, cluster, spent_s=3601.0)
    assert more.ends_early == "" and more.waiting
    assert sweep.result_fields() == sweep_of(tmp_path, scheduler=scheduler, searcher=searcher).result_fields()


def test_a_sweep_asks_for_nodes_for_every_trial_that_waits(tmp_path: Path, monkeypatch: Any) -> None:
    """Also a population on a cluster that begins empty."""
    monkeypatch.chdir(tmp_path)
    for name in ("pbt", "asha"):
        sweep = sweep_of(tmp_path, scheduler={"name": name}, searcher={"name": "random", "trials": 6})
        slots = _Slots(0)
        coordinator = TrialCoordinator(sweep, TrialBook(LocalStore(str(tmp_path / name))), slots)  # type: ignore[arg-type]
        assert coordinator.next_assignment() is not None  # alone, a trial waits for its nodes
        assert coordinator.next_assignment() is None
        assert slots.asked == 5


def test_what_a_trial_tells_of_itself_is_in_its_record(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    coordinator = coordinator_of(sweep_of(tmp_path), tmp_path / "told")
    scheduler = RecordingScheduler(coordinator)
    begun = begin(coordinator, scheduler)
    assert begun is not None
    report(scheduler, begun[0], begun[1].until, 2.0, parameters=84_000, setup_s=3.0)
    report(scheduler, begun[0], begun[1].until, 2.0, parameters=None)  # the next leg, before it knows
    [record] = coordinator_of(sweep_of(tmp_path), tmp_path / "told").book
    assert (record.parameters, record.setup_s) == (84_000, 3.0)
