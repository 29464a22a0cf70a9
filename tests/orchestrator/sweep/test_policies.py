"""The decisions of a sweep: searchers, milestones, and shares of the worker slots."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweep.capacity import concurrent_trials, share
from orchestrator.sweep.load import load_sweep
from orchestrator.sweep.milestones import mean_loss, milestones, rungs
from orchestrator.sweep.records import Report, TrialRecord, TrialRun
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.suggest import suggest
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
def test_a_searcher_is_a_function_of_the_records(tmp_path: Path, name: str) -> None:
    sweep = sweep_of(tmp_path, searcher={"name": name, "seed": 3})
    known: list[TrialRecord] = []
    for number in range(1, 12):
        point = suggest(sweep, number, known)
        assert suggest(sweep, number, known) == point
        assert ("train.optimizer.momentum" in point) == (point["train.optimizer.name"] == "sgd")
        sweep.config_of(point, "s-t001")
        known.append(trial(number, point, "finished", {100: abs(point["train.lr"] - 1e-3)}))


def test_given_points_come_first_and_missing_fields_are_drawn(tmp_path: Path) -> None:
    points = [{"train.optimizer.name": "sgd", "train.lr": 0.01}, {"train.lr": 0.02}]
    sweep = sweep_of(tmp_path, searcher={"name": "optuna", "points": points})
    first, second = suggest(sweep, 1, []), suggest(sweep, 2, [])
    assert (first["train.optimizer.name"], first["train.lr"], second["train.lr"]) == ("sgd", 0.01, 0.02)
    assert 0 <= first["train.optimizer.momentum"] <= 0.9


def test_a_grid_gives_every_point_once(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, searcher={"name": "grid"})
    known: list[TrialRecord] = []
    for number in range(1, sweep.trials + 1):
        known.append(trial(number, suggest(sweep, number, known), "finished", {100: 1.0}))
    points = [record.point for record in known]
    assert len(points) == 5 * 5 + 5 * 2
    assert all(points.count(point) == 1 for point in points)


def test_optuna_learns_from_finished_stopped_and_failed_trials(tmp_path: Path) -> None:
    """Where sgd fails, adam's losses are least near lr = 1e-3, and stopped ones are worse, it goes there."""
    sweep = sweep_of(tmp_path, searcher={"name": "optuna", "seed": 1})
    rng, known = random.Random(0), []
    for number in range(1, 31):
        lr, name = 10 ** rng.uniform(-5, -1), rng.choice(["sgd", "adam"])
        point = {"train.optimizer.name": name, "train.lr": lr}
        extra = {"train.optimizer.momentum": 0.5} if name == "sgd" else {"train.optimizer.betas": [0.9, 0.95]}
        far = abs(lr / 1e-3 if lr > 1e-3 else 1e-3 / lr)
        status = "failed" if name == "sgd" else "finished" if far < 10 else "stopped"
        losses = {} if name == "sgd" else {100 if far < 10 else 10: 1 + far}
        known.append(trial(number, point | extra, status, losses))
    proposed = [suggest(sweep, number, known) for number in range(31, 61)]
    adams = [point for point in proposed if point["train.optimizer.name"] == "adam"]
    near = [point for point in adams if 1e-4 < point["train.lr"] < 1e-2]
    assert len(adams) > 22
    assert len(near) > 0.7 * len(adams)


def test_milestones_include_all_rungs_and_the_last_step(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, scheduler={"name": "asha", "grace_steps": 7, "factor": 3})
    assert rungs(sweep) == [7, 21, 63]
    assert {7, 21, 63, 100} <= set(milestones(sweep))
    pbt = sweep_of(tmp_path, scheduler={"name": "pbt", "grace_steps": 40}, searcher={"name": "random"})
    assert rungs(pbt) == [40, 80]
    held_out = sweep_of(tmp_path, metric="val_loss", set={"eval.every_steps": 30})
    assert milestones(held_out) == [30, 60, 90, 100]


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
    assert concurrent_trials(8, 16, 2, None) == 4
    assert concurrent_trials(0, 16, 2, None) == 1
    assert concurrent_trials(8, 16, 2, 3) == 3
