"""Pareto fronts of loss against cost, on made-up sweeps for which they are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.stores.local import LocalStore
from orchestrator.sweep.claim import claim
from orchestrator.sweep.report.facts import read
from orchestrator.sweep.report.page import html
from orchestrator.sweep.report.pareto import fronts
from orchestrator.sweep.summary import summary_of
from tests.html_page import Page
from tests.orchestrator.sweep.summaries import realistic
from tests.orchestrator.sweep.test_policies import sweep_of
from tests.orchestrator.sweep.test_policies import trial as record_of


def sweep(*trials: tuple[float, float, int]) -> dict[str, Any]:
    """A sweep of finished trials with these losses, worker-seconds and parameters."""
    told = [
        {"id": f"t{number}", "status": "finished", "step": 9, "steps": 9, "curve": [[9, loss]], "loss": loss}
        | {"worker_s": worker_s, "parameters": parameters, "config": {}}
        for number, (loss, worker_s, parameters) in enumerate(trials)
    ]
    return {"trials": told, "space": {}, "rungs": []}


def _fronts(*fronts: str) -> dict[str, list[str]]:
    return {name: ids.split() for name, ids in zip(("worker time", "parameters"), fronts, strict=False)}


def found(summary: dict[str, Any]) -> dict[str, list[str]]:
    return {front.cost.name: [trial.id for trial in front.best] for front in fronts(read(summary))}


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        # Cheaper and worse, dearer and better; t2 is beaten by t0 in time, by nothing in size.
        ([(3.0, 10, 500), (2.0, 20, 700), (3.1, 11, 400)], _fronts("t0 t1", "t2 t0 t1")),
        # One beats all others.
        ([(2.0, 5, 100), (2.0, 6, 200), (2.5, 5, 100)], _fronts("t0", "t0")),
        # Neither of two equal ones beats the other.
        ([(2.0, 5, 100), (2.0, 5, 100), (3.0, 4, 50)], _fronts("t2 t0 t1", "t2 t0 t1")),
        # Where all models are of one size, or sizes are not known, there is nothing to choose.
        ([(3.0, 10, 500), (2.0, 20, 500)], _fronts("t0 t1")),
        ([(3.0, 10, 0), (2.0, 20, 0)], _fronts("t0 t1")),
        ([(3.0, 10, 1)], {}),
    ],
)
def test_trials_that_no_other_beats_in_both(
    trials: list[tuple[float, float, int]], expected: dict[str, list[str]]
) -> None:
    assert found(sweep(*trials)) == expected


def test_trials_that_ended_before_the_others_are_not_compared() -> None:
    summary = sweep((3.0, 10, 500), (2.0, 20, 700), (1.0, 1, 1), (1.0, 1, 1))
    summary["trials"][2] |= {"status": "stopped", "step": 3, "curve": [[3, 1.0]]}
    summary["trials"][3] |= {"status": "failed"}
    assert found(summary) == _fronts("t0 t1", "t0 t1")


def test_a_trial_that_was_interrupted_after_its_last_report_is_not_alone_the_furthest() -> None:
    summary = sweep((3.0, 10, 500), (2.0, 20, 700), (4.0, 30, 900))
    summary["trials"][1]["step"] = 13
    assert found(summary) == _fronts("t0 t1", "t0 t1")


def test_points_of_several_trials_are_compared_by_their_means(tmp_path: Path) -> None:
    spec = {"searcher": {"name": "random", "trials": 2, "repeats": 2}, "scheduler": {"name": "none"}}
    lr, store = sweep_of(tmp_path, **spec), LocalStore(str(tmp_path / "store"))
    book = []
    for number, (loss, worker_s) in enumerate([(2.0, 10.0), (5.0, 30.0), (3.0, 40.0), (3.2, 40.0)], 1):
        book.append(record_of(number, {"train.lr": 0.1 * ((number + 1) // 2)}, "finished", {lr.steps: loss}))
        book[-1].trial_run.step, book[-1].worker_s = lr.steps - number % 2, worker_s
    summary = summary_of(lr, claim(lr, store, takeover=False).record, book)
    [front] = fronts(read(summary))
    assert [(each.id, each.loss, each.worker_s) for each in front.best] == [("t001", 3.5, 20.0), ("t003", 3.1, 40.0)]
    assert summary["best"] is not None and summary["best"]["id"] == "t003"
    assert [each["step"] for each in summary["points"]] == [lr.steps - 1] * 2
    assert len(summary["trials"]) == 4


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([1.0, 2.0, 3.0, 4.0]), st.integers(1, 5), st.integers(1, 5)), max_size=12))
def test_the_front_is_what_the_definition_says(trials: list[tuple[float, float, int]]) -> None:
    for place, name in ((1, "worker time"), (2, "parameters")):
        costs = [(trial[0], float(trial[place])) for trial in trials]
        unbeaten = {
            f"t{number}"
            for number, (loss, cost) in enumerate(costs)
            if not any(a <= loss and b <= cost and (a, b) != (loss, cost) for a, b in costs)
        }
        if name in (told := found(sweep(*trials))):
            assert set(told[name]) == unbeaten


def test_the_page_marks_them() -> None:
    summary = realistic()
    for number, trial in enumerate(summary["trials"]):
        trial["parameters"] = 10_000 * (1 + number)
    text = html(summary)
    assert "Loss against cost" in Page(text).texts["h2"]
    unbeaten = {id for ids in found(summary).values() for id in ids}
    rows = [row for row in text.split("<tr ")[1:] if 'data-trial="' in row[:60]]
    marked = {row.split('data-trial="')[1].split('"')[0] for row in rows if "◆" in row}
    assert marked == unbeaten != set()
    assert summary["best"]["id"] in unbeaten
