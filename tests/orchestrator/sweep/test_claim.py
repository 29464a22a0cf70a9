"""Which sweeps may be continued with a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.stores.local import LocalStore
from orchestrator.errors import ConfigChangedError, InputError
from orchestrator.run.fence import Fence
from orchestrator.sweep.claim import refuse_changed
from orchestrator.sweep.command import retry
from orchestrator.sweep.records import RECORD, TrialBook
from orchestrator.sweep.spec import Sweep
from tests.orchestrator.sweep.test_policies import sweep_of, trial


def refuse(folder: Path, stored: dict[str, Any], sweep: Sweep) -> None:
    """Refuse the sweep if it has a trial and was started with other settings."""
    store = LocalStore(str(folder / "records"))
    Fence.claim(store, "s", stored, keep_pins=True, takeover=True, key=RECORD)
    book = TrialBook(store)
    if not len(book):
        book.add(trial(1, {"train.lr": 0.1}, "paused", {}))
    refuse_changed(sweep, store, book)


def as_of_version_0_2(sweep: Sweep) -> dict[str, Any]:
    """The fields as that version stored them, which had the given points among them."""
    fields = {name: value for name, value in sweep.result_fields().items() if name != "searcher.batch"}
    return {**fields, "searcher.points.0.train.lr": 0.01}


@pytest.mark.parametrize("name", ["none", "median"])
def test_a_sweep_of_version_0_2_goes_on_where_its_rule_is_the_same(tmp_path: Path, name: str) -> None:
    sweep = sweep_of(tmp_path, scheduler={"name": name}, searcher={"name": "random", "points": [{"train.lr": 0.01}]})
    refuse(tmp_path, as_of_version_0_2(sweep), sweep)


@pytest.mark.parametrize(("name", "was"), [("asha", "asha-stopping"), ("pbt", r"pbt \(0.2\)")])
def test_a_sweep_of_version_0_2_is_refused_where_the_name_means_something_else(
    tmp_path: Path, name: str, was: str
) -> None:
    sweep = sweep_of(tmp_path, scheduler={"name": name}, searcher={"name": "random"})
    with pytest.raises(ConfigChangedError, match=rf"scheduler.name: '{was}' in the sweep, '{name}' now"):
        refuse(tmp_path, as_of_version_0_2(sweep), sweep)


def test_a_stopping_sweep_of_version_0_2_goes_on_under_the_rules_own_name(tmp_path: Path) -> None:
    before = sweep_of(tmp_path, scheduler={"name": "asha"}, searcher={"name": "random"})
    now = sweep_of(tmp_path, scheduler={"name": "asha-stopping"}, searcher={"name": "random"})
    refuse(tmp_path, as_of_version_0_2(before), now)


def test_a_field_that_a_stored_sweep_does_not_have_had_its_default(tmp_path: Path) -> None:
    sweep, repeated = sweep_of(tmp_path), sweep_of(tmp_path, searcher={"repeats": 3})
    stored = {name: value for name, value in sweep.result_fields().items() if name != "searcher.repeats"}
    refuse(tmp_path, stored, sweep)
    with pytest.raises(ConfigChangedError, match=r"searcher\.repeats: 1 in the sweep, 3 now"):
        refuse(tmp_path, stored, repeated)


@pytest.mark.parametrize(("name", "is_refused"), [("asha", False), ("pbt", True)])
def test_trials_can_be_added_but_to_a_population(tmp_path: Path, name: str, is_refused: bool) -> None:
    few, more = (
        sweep_of(tmp_path, scheduler={"name": name}, searcher={"name": "random", "trials": trials}) for trials in (4, 8)
    )
    if not is_refused:
        refuse(tmp_path, few.result_fields(), more)
        return
    with pytest.raises(ConfigChangedError, match=r"searcher.trials: 4 in the sweep, 8 now"):
        refuse(tmp_path, few.result_fields(), more)


def test_retrying_begins_failed_trials_again_but_not_those_that_never_began(tmp_path: Path) -> None:
    book = TrialBook(LocalStore(str(tmp_path / "records")))
    for number, began in ((1, 5.0), (2, None)):
        record = book.add(trial(number, {"train.lr": 0.1}, "running", {}))
        record.started_at = began
        record.end("failed", "why")
        book.save(record)
    retry(sweep_of(tmp_path, searcher={"name": "random"}), book)
    assert [record.status for record in TrialBook(LocalStore(str(tmp_path / "records")))] == ["paused", "failed"]
    with pytest.raises(InputError, match="not with pbt"):
        retry(sweep_of(tmp_path, searcher={"name": "random"}, scheduler={"name": "pbt"}), book)
