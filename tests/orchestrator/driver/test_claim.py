"""How `manta train` claims a run: it waits for an attempt that stops sending heartbeats, and never fences off a live
one; it never begins anew by itself where the run's record knows a checkpoint.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import time
from pathlib import Path

import pytest

from data.errors import InputError, StoreAccessError
from data.stores.local import LocalStore
from orchestrator.config.recipe import RunConfig
from orchestrator.driver.train import claim_when_free, close_attempt
from orchestrator.errors import CheckpointsLostError, RunInUseError
from orchestrator.run.checkpoint import (
    CheckpointName,
    list_checkpoints,
    quarantine,
    refuse_lost_checkpoints,
    write_checkpoint,
)
from orchestrator.run.fence import PRESUMED_DEAD_S
from orchestrator.run.job import Owner
from orchestrator.run.record import RECORD, RunRecord, load_record
from orchestrator.run.stored import read_state
from tests.orchestrator.run.builders import attempt

CONFIG = RunConfig.model_validate(
    {
        "run": "night",
        "storage": "s3://bucket/manta",
        "data": {"sources": [{"path": "s3://bucket/corpus/"}]},
        "train": {"steps": 10, "global_batch_size": 8, "micro_batch_size": 4, "lr": 1e-3},
    }
)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """Store of a run that another machine has claimed, and that was never trained."""
    store = LocalStore(str(tmp_path / "run"))
    assert claim_when_free(store, CONFIG, print) is not None
    send_heartbeat(store, 0.0)
    return store


def send_heartbeat(store: LocalStore, seconds_ago: float) -> None:
    record = load_record(store)
    last = dataclasses.replace(record.last, host="pod", boot_id="other")
    store.put(RECORD, dataclasses.replace(record, attempts=(*record.attempts[:-1], last)).to_json())
    os.utime(store.url_of(RECORD), times=(0.0, time.time() - seconds_ago))


def test_without_waiting_a_heartbeat_is_an_error(store: LocalStore) -> None:
    with pytest.raises(RunInUseError, match=r"Run 'night' is in use: attempt 1 on pod"):
        claim_when_free(store, CONFIG, print)


def test_an_attempt_that_misses_its_heartbeats_is_followed(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    heartbeat_ages = iter([5.0, PRESUMED_DEAD_S + 1.0])
    monkeypatch.setattr("orchestrator.driver.train.time.sleep", lambda _: send_heartbeat(store, next(heartbeat_ages)))
    fence = claim_when_free(store, CONFIG, lines.append, wait_s=60)
    assert fence is not None and fence.record.last.number == 2
    [line] = lines
    assert line.startswith("Run 'night' is in use: attempt 1 on pod") and line.endswith("waiting up to 60 s for it")


def test_a_live_attempt_is_not_fenced_off(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 10)
    monkeypatch.setattr("orchestrator.driver.train.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("orchestrator.driver.train.time.sleep", lambda _: send_heartbeat(store, 1.0))
    with pytest.raises(RunInUseError, match="in use"):
        claim_when_free(store, CONFIG, lambda _: None, wait_s=60)
    assert [attempt.number for attempt in load_record(store).attempts] == [1]


def test_takeover_does_not_wait(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.driver.train.time.sleep", lambda _: pytest.fail("waited"))
    fence = claim_when_free(store, CONFIG, print, wait_s=60, takeover=True)
    assert fence is not None and fence.record.last.number == 2


@pytest.mark.parametrize(("status", "then"), [("running", "stopped"), ("finished", "finished")])
def test_an_interrupt_at_the_end_leaves_a_finished_run_finished(tmp_path: Path, status: str, then: str) -> None:
    store = LocalStore(str(tmp_path / "run"))
    fence = claim_when_free(store, CONFIG, print)
    assert fence is not None
    fence.update(attempt={"status": status})
    close_attempt(fence, KeyboardInterrupt())
    assert load_record(store).last.status == then


class TestFromWhichState:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> LocalStore:
        """Store of a run that stopped at step 60, with checkpoints of steps 20, 40 and 60."""
        store = LocalStore(str(tmp_path / "run"))
        fence = claim_when_free(store, CONFIG, print)
        assert fence is not None
        fence.update(attempt={"status": "stopped", "from_step": 0, "saved_step": 60, "step": 60}, manifest="pinned")
        for step in (20, 40, 60):
            (tmp_path / f"{step}").mkdir()
            write_checkpoint(store, CheckpointName(step, 1), {"step": step}, tmp_path / f"{step}", lambda: None)
        return store

    @staticmethod
    def claimed(store: LocalStore, from_step: int | None = None) -> RunRecord:
        fence = claim_when_free(store, CONFIG, print, from_step=from_step)
        assert fence is not None
        return fence.record

    def test_the_newest_is_continued(self, saved: LocalStore) -> None:
        record = self.claimed(saved)
        assert (record.manifest, record.last.from_step) == ("pinned", None)
        assert [name.step for name in list_checkpoints(saved, record)] == [20, 40, 60]

    @pytest.mark.parametrize(
        ("lost", "told"),
        [
            ((60,), ["step 60", "the newest there is that of step 40", "--from-step 40", "--from-scratch"]),
            ((20, 40, 60), ["step 60", "there is none", "--from-scratch"]),
        ],
    )
    def test_with_a_checkpoint_lost_the_user_is_asked(
        self, saved: LocalStore, lost: tuple[int, ...], told: list[str]
    ) -> None:
        for step in lost:
            saved.delete_prefix(f"checkpoints/step-{step:08d}")
        before = saved.get(RECORD)
        with pytest.raises(CheckpointsLostError) as raised:
            claim_when_free(saved, CONFIG, print)
        for words in (*told, saved.url_of("checkpoints")):
            assert words in str(raised.value)
        assert ("--from-step" in str(raised.value)) == ("--from-step 40" in told)
        assert saved.get(RECORD) == before, "its pins are kept"
        with pytest.raises(CheckpointsLostError):
            read_state(saved, load_record(saved))

    def test_a_folder_that_cannot_be_read_is_not_empty(
        self, saved: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(path: str) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", path)

        monkeypatch.setattr(os, "scandir", refused)  # rights do not hold for root, as whom tests may run
        with pytest.raises(StoreAccessError, match="Permission denied"):
            claim_when_free(saved, CONFIG, print)

    def test_a_damaged_one_that_was_reported_is_not_asked_about_again(self, saved: LocalStore) -> None:
        quarantine(saved, CheckpointName(60, 1))
        assert self.claimed(saved).manifest == "pinned"

    def test_what_was_trained_after_the_chosen_step_is_no_part_of_the_run(self, saved: LocalStore) -> None:
        record = self.claimed(saved, from_step=40)
        assert (record.manifest, record.last.from_step) == ("pinned", 40)
        assert [name.step for name in list_checkpoints(saved, load_record(saved))] == [20, 40]
        assert Owner.of("url", record).earlier == {1: 40}, "nor what nodes have in memory"
        read_record = load_record(saved)
        saved.delete_prefix("checkpoints/step-00000060")
        refuse_lost_checkpoints(saved, read_record)

    def test_a_step_without_a_checkpoint_cannot_be_chosen(self, saved: LocalStore) -> None:
        with pytest.raises(InputError, match="There are: 20, 40, 60"):
            claim_when_free(saved, CONFIG, print, from_step=50)

    def test_from_scratch_nothing_is_kept(self, saved: LocalStore) -> None:
        saved.delete_prefix("checkpoints/step-00000060")
        record = self.claimed(saved, from_step=0)
        assert (record.manifest, record.last.from_step, record.last.number) == (None, 0, 2)
        assert list_checkpoints(saved, record) == []

    def test_a_finished_run_goes_on_only_where_a_step_is_chosen(self, saved: LocalStore) -> None:
        record = load_record(saved)
        ended = dataclasses.replace(record.last, status="finished")
        saved.put(RECORD, dataclasses.replace(record, attempts=(ended,)).to_json())
        assert claim_when_free(saved, CONFIG, print) is None
        assert self.claimed(saved, from_step=20).last.from_step == 20

    def test_checkpoints_without_a_record_are_not_overwritten(self, saved: LocalStore) -> None:
        saved.delete(RECORD)
        for from_step in (None, 0, 40):
            with pytest.raises(CheckpointsLostError, match=r"run\.json is missing"):
                claim_when_free(saved, CONFIG, print, from_step=from_step)

    def test_a_record_of_an_older_version_knows_no_checkpoint(self, saved: LocalStore) -> None:
        fields = json.loads(saved.get(RECORD))
        del fields["attempts"][0]["saved_step"]
        saved.put(RECORD, json.dumps(fields).encode())
        saved.delete_prefix("checkpoints/step-00000060")
        assert self.claimed(saved).manifest == "pinned"


def test_the_known_checkpoint_is_that_of_the_newest_attempt_that_had_one() -> None:
    def known(*attempts: tuple[int | None, int | None]) -> int | None:
        made = (attempt(number, from_step=begun, saved_step=saved) for number, (begun, saved) in enumerate(attempts, 1))
        return RunRecord(run="night", created_at=0.0, result_fields={}, attempts=tuple(made)).saved_step

    assert known() is None
    assert known((0, None)) is None, "trained, but not saved"
    assert known((0, 60)) == 60
    assert known((0, 60), (None, None)) == 60, "the second died before it began"
    assert known((0, 60), (40, 40)) == 40, "the second found step 60 damaged"
    assert known((0, 60), (40, None)) is None, "the user chose step 40"
    assert known((0, 60), (64, 60)) == 60, "the second went on from the memory of nodes"
