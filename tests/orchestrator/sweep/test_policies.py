"""The decisions of a sweep: searchers, milestones, and shares of the worker slots."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data.stores.local import LocalStore
from orchestrator.sweep.capacity import share
from orchestrator.sweep.load import load_sweep
from orchestrator.sweep.new_trials import is_held_back, known_results, new_trial
from orchestrator.sweep.records import TrialBook
from orchestrator.sweep.schedule.milestones import mean_loss, milestones, rungs
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.suggest import Result, suggest
from orchestrator.sweep.trial_record import DRAWN, Report, TrialRecord, TrialRun
from tests.orchestrator.sweep.test_spec import SWEEP

SPACE = {
    "train.optimizer.name": {"choice": ["sgd", "adam"]},
    "train.lr": {"loguniform": [1e-5, 1e-1]},
    "train.optimizer.momentum": {"uniform": [0.0, 0.9], "when": {"train.optimizer.name": "sgd"}},
    "train.optimizer.betas": {"choice": [[0.9, 0.95], [0.9, 0.99]], "when": {"train.optimizer.name": "adam"}},
}


def sweep_of(folder: Path, **changes: Any) -> Sweep:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, "space": SPACE, **changes}))
    return load_sweep(path)


def trial(number: int, point: dict[str, Any], status: str, losses: dict[int, float]) -> TrialRecord:
    record = TrialRecord(number, [TrialRun(f"s-t{number:03d}", point)], status)
    for step, loss in losses.items():
        record.reports.append(Report(100 * number + step, step, loss, 1.0, 0.0))
    return record


@pytest.mark.parametrize("name", ["random", "optuna", "grid"])
def test_a_searcher_is_a_function_of_the_results(tmp_path: Path, name: str) -> None:
    sweep = sweep_of(tmp_path, searcher={"name": name, "seed": 3})
    known: list[Result] = []
    for number in range(1, 12):
        point = suggest(sweep, number, known)
        assert suggest(sweep, number, known) == point
        assert ("train.optimizer.momentum" in point) == (point["train.optimizer.name"] == "sgd")
        sweep.config_of(point, "s-t001")
        known.append(Result(point, abs(point["train.lr"] - 1e-3)))


def test_given_points_come_first_and_missing_fields_are_drawn(tmp_path: Path) -> None:
    points = [{"train.optimizer.name": "sgd", "train.lr": 0.01}, {"train.lr": 0.02}]
    sweep = sweep_of(tmp_path, searcher={"name": "optuna", "points": points})
    first, second = suggest(sweep, 1, [], 0), suggest(sweep, 2, [], 1)
    assert (first["train.optimizer.name"], first["train.lr"], second["train.lr"]) == ("sgd", 0.01, 0.02)
    assert 0 <= first["train.optimizer.momentum"] <= 0.9


@pytest.mark.parametrize(
    ("points", "more"),
    [
        ([], 0),
        ([{"train.optimizer.name": "adam", "train.lr": 1e-5, "train.optimizer.betas": [0.9, 0.99]}], 0),
        ([{"train.lr": 0.02}, {"train.optimizer.name": "adam", "train.lr": 0.03}], 2),
    ],
)
def test_a_grid_gives_every_point_once_and_all_given_ones(
    tmp_path: Path, points: list[dict[str, Any]], more: int
) -> None:
    sweep = sweep_of(tmp_path, searcher={"name": "grid", "points": points})
    book = TrialBook(LocalStore(str(tmp_path / "records")))
    for number in range(1, sweep.trials + 1):
        book.add(new_trial(sweep, number, book, [100]))
    found = [record.point for record in book]
    assert len(found) == 5 * 5 + 5 * 2 + more
    assert all(found.count(point) == 1 for point in found)
    assert all(any(point.items() >= wanted.items() for point in found) for wanted in points)


def test_optuna_learns_from_finished_and_failed_trials(tmp_path: Path) -> None:
    """Where sgd fails and adam's losses are least near lr = 1e-3, it goes there."""
    sweep = sweep_of(tmp_path, searcher={"name": "optuna", "seed": 1})
    rng, known = random.Random(0), list[Result]()
    for _ in range(30):
        lr, name = 10 ** rng.uniform(-5, -1), rng.choice(["sgd", "adam"])
        point = {"train.optimizer.name": name, "train.lr": lr}
        extra = {"train.optimizer.momentum": 0.5} if name == "sgd" else {"train.optimizer.betas": [0.9, 0.95]}
        far = abs(lr / 1e-3 if lr > 1e-3 else 1e-3 / lr)
        known.append(Result(point | extra, None if name == "sgd" else 1 + far, name == "sgd"))
    proposed = [suggest(sweep, number, known) for number in range(31, 61)]
    adams = [point for point in proposed if point["train.optimizer.name"] == "adam"]
    near = [point for point in adams if 1e-4 < point["train.lr"] < 1e-2]
    assert len(adams) > 22
    assert len(near) > 0.7 * len(adams)


def test_what_optuna_may_know_does_not_depend_on_how_many_trials_run_at_once(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, searcher={"name": "optuna", "trials": 14, "batch": 4, "seed": 3})
    book, levels = TrialBook(LocalStore(str(tmp_path / "records"))), [10, 100]
    for number in range(1, 7):
        assert not is_held_back(sweep, number, book, levels)
        book.add(new_trial(sweep, number, book, levels))
    assert is_held_back(sweep, 7, book, levels)
    for record in book:
        book.report(record, 10, float(record.number), 0.0, 0)
    book["t003"].end("failed")  # beyond that step, which it might not have come to elsewhere
    known = known_results(sweep, 8, book, levels)
    assert not any(result.has_failed for result in known)
    assert [result.loss for result in known] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    book.report(book["t001"], 100, 0.1, 0.0, 0)  # where slots are free, some have come further
    assert known_results(sweep, 8, book, levels) == known
    for number in range(7, 11):
        assert not is_held_back(sweep, number, book, levels)
        book.add(new_trial(sweep, number, book, levels))
    book.report(book["t007"], 10, 0.5, 0.0, 0)
    assert [result.loss for result in known_results(sweep, 9, book, levels)] == [*map(float, range(1, 7)), None, None]
    assert is_held_back(sweep, 11, book, levels)


def test_a_point_that_the_recipe_refuses_is_recorded_and_drawn_again(tmp_path: Path) -> None:
    space = {"model.d_model": {"int": [60, 64]}, "model.n_heads": {"choice": [1, 2]}}
    sweep = sweep_of(tmp_path, space=space, searcher={"name": "random", "trials": 30})
    book = TrialBook(LocalStore(str(tmp_path / "records")))
    for number in range(1, 31):
        book.add(new_trial(sweep, number, book, [100]))
    assert all(record.status == "pending" for record in book)
    refused = [each for record in book for each in record.refused]
    assert refused and all(
        each["point"]["model.d_model"] not in (60, 62, 64) or "odd" in each["reason"] for each in refused
    )
    assert "d_model" in refused[0]["reason"]


def test_points_that_are_added_are_tried_next(tmp_path: Path) -> None:
    points = [{"train.lr": 0.01}]
    before = sweep_of(tmp_path, searcher={"name": "random", "trials": 2, "points": points})
    book = TrialBook(LocalStore(str(tmp_path / "records")))
    for number in (1, 2):
        book.add(new_trial(before, number, book, [100]))
    after = sweep_of(tmp_path, searcher={"name": "random", "trials": 4, "points": [*points, {"train.lr": 0.02}]})
    for number in (3, 4):
        book.add(new_trial(after, number, book, [100]))
    assert [record.given for record in book] == [0, DRAWN, 1, DRAWN]
    assert book["t003"].point["train.lr"] == 0.02
    assert before.result_fields() == after.result_fields()


def test_milestones_include_all_rungs_and_the_last_step(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, scheduler={"name": "asha", "grace_steps": 7, "factor": 3})
    assert rungs(sweep) == [7, 21, 63]
    assert {7, 21, 63, 100} <= set(milestones(sweep))
    pbt = sweep_of(tmp_path, scheduler={"name": "pbt", "grace_steps": 40}, searcher={"name": "random"})
    assert rungs(pbt) == [40, 80]
    held_out = sweep_of(tmp_path, metric="val_loss", set={"eval.every_steps": 30})
    assert milestones(held_out) == [30, 60, 90, 100]
    assert rungs(held_out) == [30, 60]  # of steps 11 and 44, the next ones after which trials are evaluated
    pbt = sweep_of(
        tmp_path,
        metric="val_loss",
        set={"eval.every_steps": 30},
        scheduler={"name": "pbt", "grace_steps": 20},
        searcher={"name": "random"},
    )
    assert rungs(pbt) == [30, 60, 90]


def test_the_mean_is_over_the_known_losses_of_the_window() -> None:
    losses: dict[int, float | None] = {1: 8.0, 2: 4.0, 3: None, 4: 2.0, 5: 99.0}
    assert mean_loss(losses, 4, 2) == 2.0
    assert mean_loss(losses, 4, 8) == pytest.approx(14 / 3)
    assert mean_loss(losses, 3, 1) is None


@given(
    total=st.integers(0, 40),
    min_workers=st.integers(1, 6),
    more=st.integers(0, 6),
    trials=st.integers(1, 20),
    data=st.data(),
)
def test_shares_never_exceed_the_slots_and_a_trial_always_runs(
    total: int, min_workers: int, more: int, trials: int, data: st.DataObject
) -> None:
    shares: dict[str, int] = {}
    left = trials
    for event in range(60):
        given_out = share(total, shares, left, min_workers, min_workers + more) if left else None
        if given_out is not None:
            assert min_workers <= given_out <= min_workers + more
            shares[str(event)] = given_out
            left -= 1
            assert sum(shares.values()) <= max(total, min_workers)  # alone, a trial waits for its nodes
        elif shares:
            shares.pop(data.draw(st.sampled_from(sorted(shares))))
        else:
            break
    assert left == 0 or shares


def test_trials_share_the_slots() -> None:
    assert share(8, {}, 4, 1, 8) == 2
    assert share(8, {}, 1, 1, 8) == 8
    assert share(3, {"a": 2}, 3, 2, 2) is None
