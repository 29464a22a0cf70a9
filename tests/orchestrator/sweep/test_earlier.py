"""What a sweep takes over from an earlier one, which may have had another space, recipe or rungs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.stores.local import LocalStore
from orchestrator.errors import InputError
from orchestrator.run.fence import Fence
from orchestrator.sweep.earlier import take_over
from orchestrator.sweep.new_trials import known_results, new_trial
from orchestrator.sweep.records import RECORD, TrialBook
from orchestrator.sweep.spec import Sweep
from tests.orchestrator.sweep.test_policies import sweep_of, trial

ADAM = {"train.optimizer.name": "adam", "train.optimizer.betas": [0.9, 0.95]}

EARLIER: list[tuple[dict[str, Any], str, dict[int, float]]] = [
    ({**ADAM, "train.lr": 1e-3}, "finished", {11: 5.0, 44: 4.0, 100: 3.0}),
    ({**ADAM, "train.lr": 1e-4}, "stopped", {11: 6.0}),
    ({**ADAM, "train.lr": 2e-3}, "finished", {11: 4.5, 44: 4.1, 100: 2.9}),
    ({**ADAM, "train.lr": 0.5}, "finished", {11: 1.0, 44: 1.0, 100: 1.0}),  # not in the space
    ({**ADAM, "train.lr": 0.05}, "failed", {11: 9.0}),
    ({"train.lr": 3e-3}, "stopped", {11: 4.8, 44: 4.2}),  # without an optimizer
    ({**ADAM, "train.lr": 4e-3}, "stopped", {10: 4.8}),  # no loss at the rung
    ({**ADAM, "train.lr": 3e-4}, "stopped", {11: 5.5}),
]
"""Point, status and losses by step of the earlier sweep's trials."""


def store_earlier(root: LocalStore, sweep: Sweep) -> LocalStore:
    """Writes the records of an earlier sweep with the config of `sweep`."""
    store = root.child("sweeps/early")
    Fence.claim(store, "early", sweep.result_fields(), keep_pins=True, key=RECORD)
    book = TrialBook(store)
    for number, (point, status, losses) in enumerate(EARLIER, 1):
        book.add(trial(number, point, status, losses))
    return store


def warm(folder: Path, root: LocalStore, **changes: Any) -> tuple[Sweep, TrialBook, str]:
    """A sweep that has taken over what it does, the book of its trials, and what it has told."""
    searcher = {"from": "early", "trials": 12, "seed": 1} | changes.pop("searcher", {})
    sweep = sweep_of(folder, scheduler={"name": "halving", "factor": 4}, searcher=searcher, **changes)
    store, told = root.child("sweeps/s"), list[str]()
    fence = Fence.claim(store, "s", sweep.result_fields(), keep_pins=True, takeover=True, key=RECORD)
    book = TrialBook(store)
    return take_over(sweep, root, fence, book, told.append), book, " ".join(told)


def lrs(points: Any) -> list[float]:
    return [point["train.lr"] for point in points]


def test_the_best_points_come_first_and_the_results_are_known(tmp_path: Path) -> None:
    root = LocalStore(str(tmp_path / "store"))
    before = store_earlier(root, sweep_of(tmp_path, scheduler={"name": "asha"}, searcher={"name": "random"}))
    sweep, book, told = warm(tmp_path, root, searcher={"points": [{"train.lr": 0.09}]})
    assert lrs(sweep.earlier.points) == [2e-3, 1e-3, 3e-3, 3e-4]
    expected = [(1e-3, 5.0), (1e-4, 6.0), (2e-3, 4.5), (0.05, 9.0), (3e-4, 5.5)]
    assert [(point["train.lr"], loss) for point, loss in sweep.earlier.results] == expected
    assert told == "from sweep early: 4 points are tried first, 5 results are known to the searcher"
    levels = [11, 44, 100]
    for number in range(1, 6):
        book.add(new_trial(sweep, number, book, levels))
    assert lrs(record.point for record in book) == [2e-3, 1e-3, 3e-3, 3e-4, 0.09]
    assert [result.loss for result in known_results(sweep, 2, book, levels)] == [5.0, 6.0, 4.5, 9.0, 5.5, None]

    # What becomes of the earlier sweep changes nothing.
    before.delete_prefix("")
    again, _, told = warm(tmp_path, root, searcher={"points": [{"train.lr": 0.09}]})
    assert again.earlier == sweep.earlier and told == ""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"set": {"train.grad_clip": 0.5}}, "train.grad_clip was 1.0, and is 0.5 now"),
        ({"window": 4}, "window was 8, and is 4 now"),
        ({"searcher": {"repeats": 2}}, "searcher.repeats was 1, and is 2 now"),
        ({"set": {"seed": 7}}, "seed was 0, and is 7 now"),
        ({"scheduler": {"name": "asha", "grace_steps": 12}}, "none of its trials has a loss at step 12"),
    ],
)
def test_of_another_recipe_metric_or_rung_only_points_are_taken(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    root = LocalStore(str(tmp_path / "store"))
    store_earlier(root, sweep_of(tmp_path, searcher={"name": "random"}))
    if "scheduler" in changes:
        sweep = sweep_of(tmp_path, searcher={"from": "early"}, **changes)
        fence = Fence.claim(root.child("sweeps/s"), "s", {}, keep_pins=True, key=RECORD)
        told = list[str]()
        sweep = take_over(sweep, root, fence, TrialBook(root.child("sweeps/s")), told.append)
    else:
        sweep, _, text = warm(tmp_path, root, **changes)
        told = [text]
    assert sweep.earlier.results == () and lrs(sweep.earlier.points) == [2e-3, 1e-3, 3e-3, 3e-4]
    assert why in told[0]


def test_results_on_other_data_are_not_known(tmp_path: Path) -> None:
    root = LocalStore(str(tmp_path / "store"))
    sweep = sweep_of(tmp_path, searcher={"name": "random"})
    store = store_earlier(root, sweep)
    Fence.claim(store, "early", {}, keep_pins=True, takeover=True, key=RECORD).update(manifest="of_other_shards")
    taken, _, told = warm(tmp_path, root)
    assert taken.earlier.results == () and "its data are others" in told


@pytest.mark.parametrize("name", ["never-run", "/there/is/no/sweep"])
def test_a_sweep_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"searcher.from = {name}: there is no sweep at "):
        warm(tmp_path, LocalStore(str(tmp_path / "store")), searcher={"from": name})


def test_a_sweep_elsewhere_is_given_by_its_folder(tmp_path: Path) -> None:
    elsewhere = LocalStore(str(tmp_path / "elsewhere"))
    store_earlier(elsewhere, sweep_of(tmp_path, searcher={"name": "random"}))
    folder = str(tmp_path / "elsewhere/sweeps/early")
    assert warm(tmp_path, LocalStore(str(tmp_path / "store")), searcher={"from": folder})[0].earlier.points
