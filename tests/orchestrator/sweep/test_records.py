"""The records of trials: kept as they were, and never replaced by an older attempt at the sweep."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from data.errors import DamagedObjectError, TransientStoreError
from data.stores.local import LocalStore
from data.stores.patience import Patience
from orchestrator.console import Console
from orchestrator.errors import FencedError
from orchestrator.run.fence import Fence
from orchestrator.sweep import command
from orchestrator.sweep.command import no_result, runs_of_the_past
from orchestrator.sweep.coordinator import TrialCoordinator
from orchestrator.sweep.records import RECORD, TrialBook
from orchestrator.sweep.trial_record import Donor, TrialRun
from tests.orchestrator.sweep.test_policies import sweep_of, trial


def test_records_are_read_back_unchanged(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    book = TrialBook(store)
    record = book.add(trial(1, {"train.lr": 0.1}, "running", {}))
    book.report(record, 10, 3.5, 1.0, 0)
    record.trial_runs.append(TrialRun("s-t001-m1", {"train.lr": 0.2}, Donor("t002", "s-t002", 10, 1), 14))
    book.save(record)
    book.report(record, 20, None, 2.0, 1)
    again = TrialBook(store)
    assert list(again) == [record]
    assert again["t001"].step == 4
    assert again.report(again["t001"], 30, 1.0, 3.0, 1).number == 3
    assert again["t001"].has_reported(20)
    assert not again["t001"].has_reported(31)


def claimed(store: LocalStore) -> Fence:
    return Fence.claim(store, "s", {}, keep_pins=True, takeover=True, key=RECORD)


def book_of(store: LocalStore, fence: Fence) -> TrialBook:
    return TrialBook(store, fence.record.last.number)


def test_an_older_attempt_does_not_replace_what_a_newer_one_wrote(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    older = book_of(store, claimed(store))
    older.add(trial(1, {"train.lr": 0.1}, "pending", {}))
    newer = book_of(store, claimed(store))
    newer["t001"].end("finished")
    newer.save(newer["t001"])
    newer.add(trial(2, {"train.lr": 0.2}, "running", {}))
    for record in (older["t001"], trial(2, {"train.lr": 0.9}, "pending", {})):
        with pytest.raises(FencedError, match="Attempt 1 of run 's' stops: attempt 2"):
            older.save(record)
    assert [(each.status, each.point["train.lr"]) for each in TrialBook(store)] == [("finished", 0.1), ("running", 0.2)]


def test_a_newer_attempt_replaces_what_an_older_one_wrote_meanwhile(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    older = book_of(store, claimed(store))
    older.add(trial(1, {"train.lr": 0.1}, "running", {}))
    newer = book_of(store, claimed(store))
    older.report(older["t001"], 10, 3.5, 1.0, 0)
    older.add(trial(2, {"train.lr": 0.9}, "running", {}))
    newer["t001"].end("stopped")
    newer.save(newer["t001"])
    newer.add(trial(2, {"train.lr": 0.2}, "pending", {}))
    assert [(each.status, each.point["train.lr"]) for each in TrialBook(store)] == [("stopped", 0.1), ("pending", 0.2)]


class LostAnswers(LocalStore):
    """Its next conditional put is written, and its answer lost."""

    lost = False

    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        answer = super().put_if_match(key, data, etag)
        if self.lost:
            self.lost = False
            raise TransientStoreError("no answer")
        return answer


def test_a_trial_is_saved_again_when_the_store_has_failed(tmp_path: Path) -> None:
    store = LostAnswers(str(tmp_path))
    book = TrialBook(store, 1, Patience(60.0, sleep=lambda _: None))
    record = book.add(trial(1, {"train.lr": 0.1}, "running", {}))
    store.lost = True
    book.report(record, 10, 3.5, 1.0, 0)
    book.report(record, 20, 3.0, 2.0, 0)
    assert [report.step for report in TrialBook(store)["t001"].reports] == [10, 20]


def test_snapshots_of_runs_that_are_continued_stay_in_memory(tmp_path: Path) -> None:
    ended, running = trial(1, {"train.lr": 0.1}, "finished", {}), trial(2, {"train.lr": 0.2}, "running", {})
    running.trial_runs.append(TrialRun("s-t002-m1", {"train.lr": 0.3}))
    assert runs_of_the_past([ended, running]) == ["s-t001", "s-t002"]


def test_a_record_that_is_gone_or_another_trials_is_named(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    book = TrialBook(store)
    for number in (1, 2, 3):
        book.add(trial(number, {"train.lr": 0.1}, "finished", {}))
    kept = store.get("trials/t002.json")
    store.put("trials/t002.json", store.get("trials/t003.json"))
    with pytest.raises(DamagedObjectError, match=r"trials/t002.json is the record of trial t003"):
        TrialBook(store)
    store.delete("trials/t002.json")
    with pytest.raises(DamagedObjectError, match=r"trials/t002.json is missing, though the sweep had 3 trials"):
        TrialBook(store)
    store.put("trials/t002.json", kept)
    assert len(TrialBook(store)) == 3


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["failed", "failed"], "all 2 have failed, such as t001: the loss is nan"),
        (["stopped", "failed", "stopped"], "1 of 3 have failed, such as t002: the loss is nan"),
    ],
)
def test_only_trials_that_failed_are_counted_as_failed(tmp_path: Path, statuses: list[str], expected: str) -> None:
    book = TrialBook(LocalStore(str(tmp_path)))
    for number, status in enumerate(statuses, 1):
        book.add(trial(number, {"train.lr": 0.1}, "running", {})).end(status, "the loss is nan")
    assert no_result(book, "") == f"No trial has a usable result: {expected}"


def test_the_last_record_is_missed_once_the_sweep_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, store = sweep_of(tmp_path, searcher={"name": "random", "trials": 1}), LocalStore(str(tmp_path / "sweep"))
    fence = claimed(store)
    coordinator = TrialCoordinator(sweep, book_of(store, fence), Mock())

    def fit(*_: object) -> None:
        coordinator.book.add(trial(1, {"train.lr": 0.1}, "finished", {}))

    monkeypatch.setattr(command, "fit", fit)
    for name in ("refuse_small_cluster", "free_node_memory"):  # they ask Ray
        monkeypatch.setattr(command, name, Mock())
    heartbeat: Any = SimpleNamespace(fence=fence)
    command.run_trials(sweep, store, heartbeat, coordinator, Mock(), Console(), None, Patience(0.0))
    assert len(TrialBook(store)) == 1
    store.delete("trials/t001.json")
    with pytest.raises(DamagedObjectError, match=r"trials/t001.json is missing, though the sweep had 1 trials"):
        TrialBook(store)
