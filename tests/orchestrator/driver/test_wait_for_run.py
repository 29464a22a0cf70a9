"""`manta train --patience`: waits for an attempt that stops sending heartbeats, and never fences off a live one."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from pathlib import Path

import pytest

from data.stores.local import LocalStore
from orchestrator.config.recipe import RunConfig
from orchestrator.driver.train import claim_when_free, close_attempt
from orchestrator.errors import RunInUseError
from orchestrator.run.fence import PRESUMED_DEAD_S
from orchestrator.run.record import RECORD, load_record

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
