"""Heartbeats: written beside the work, told when they fail, and none after the end."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from data.errors import TransientStoreError
from data.stores.local import LocalStore
from data.stores.patience import Outage
from orchestrator.errors import FencedError
from orchestrator.run import heartbeat as heartbeat_module
from orchestrator.run.fence import Fence
from orchestrator.run.heartbeat import Heartbeat
from orchestrator.run.record import load_record
from tests.waiting import WAIT_S, wait_until


class Slow(LocalStore):
    """A store whose conditional puts fail while `failing` is set, and wait while `open` is not."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.failing = False
        self.open, self.waiting = threading.Event(), threading.Event()
        self.open.set()

    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        if self.failing:
            raise TransientStoreError("The store is busy.")
        if not self.open.is_set():
            self.waiting.set()
            assert self.open.wait(WAIT_S)
        return super().put_if_match(key, data, etag)


@pytest.fixture
def store(tmp_path: Path) -> Slow:
    return Slow(str(tmp_path))


@pytest.fixture
def fence(store: Slow, monkeypatch: pytest.MonkeyPatch) -> Fence:
    monkeypatch.setattr(heartbeat_module, "HEARTBEAT_S", 0.01)
    return Fence.claim(store, "run", {}, keep_pins=False)


def test_the_newest_fields_are_written_again_and_again(store: Slow, fence: Fence) -> None:
    with Heartbeat(fence, 0.0) as heartbeat:
        for step in (1, 2):
            heartbeat.write({"step": step})
            wait_until(lambda step=step: load_record(store).last.step == step, f"step {step}")  # type: ignore[misc]
        beat_at = load_record(store).last.heartbeat_at
        wait_until(lambda: load_record(store).last.heartbeat_at > beat_at, "another heartbeat without news")
    heartbeat._thread.join(WAIT_S)
    assert not heartbeat._thread.is_alive()


def test_a_write_at_once_does_not_wait_for_the_next_heartbeat(
    store: Slow, fence: Fence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat_module, "HEARTBEAT_S", 1e6)
    with Heartbeat(fence, 0.0) as heartbeat:
        heartbeat.write({"step": 7}, at_once=True)
        wait_until(lambda: load_record(store).last.step == 7, "written")


def test_a_store_that_fails_for_a_while_is_told_of_and_the_record_follows(store: Slow, fence: Fence) -> None:
    told: list[Outage | None] = []
    with Heartbeat(fence, 3600.0, told.append) as heartbeat:
        store.failing = True
        heartbeat.write({"step": 7})
        wait_until(lambda: sum(outage is not None for outage in told) > 1, "it fails twice")
        assert load_record(store).last.step == 0
        store.failing = False
        wait_until(lambda: told[-1] is None, "it answers again")
        heartbeat.check()
        assert load_record(store).last.step == 7


def test_where_patience_ends_the_next_check_raises(store: Slow, fence: Fence) -> None:
    with Heartbeat(fence, 0.0) as heartbeat:
        store.failing = True
        heartbeat._thread.join(WAIT_S)
        with pytest.raises(TransientStoreError, match="busy"):
            heartbeat.check()


def test_an_attempt_that_was_taken_over_hears_of_it(store: Slow, fence: Fence) -> None:
    with Heartbeat(fence, 3600.0) as heartbeat:
        Fence.claim(store, "run", {}, keep_pins=False, takeover=True, tries=1000)
        heartbeat._thread.join(WAIT_S)
        with pytest.raises(FencedError):
            heartbeat.check()
        with pytest.raises(FencedError):
            heartbeat.write({"step": 1})
    assert load_record(store).last.number == 2


def test_no_heartbeat_follows_the_final_status(store: Slow, fence: Fence) -> None:
    """One that is being written when the attempt ends comes before the final status, and the one due then does not."""
    with Heartbeat(fence, 3600.0) as heartbeat:
        store.open.clear()
        heartbeat.write({"status": "running", "step": 7}, at_once=True)
        assert store.waiting.wait(WAIT_S)
        heartbeat.write({"status": "running", "step": 8}, at_once=True)
        heartbeat.stop()
        final = threading.Thread(target=lambda: fence.update(attempt={"status": "finished", "step": 9}))
        final.start()
        store.open.set()
        final.join(WAIT_S)
        heartbeat._thread.join(WAIT_S)
    assert not final.is_alive() and not heartbeat._thread.is_alive()
    assert (load_record(store).last.status, load_record(store).last.step) == ("finished", 9)
    assert fence.record == load_record(store)


def test_a_heartbeat_that_waits_for_its_turn_is_not_written_after_the_end(store: Slow, fence: Fence) -> None:
    with Heartbeat(fence, 3600.0) as heartbeat:
        store.open.clear()
        final = threading.Thread(target=lambda: fence.update(attempt={"status": "finished"}))
        final.start()
        assert store.waiting.wait(WAIT_S)  # the final status holds the fence
        heartbeat.write({"status": "running"}, at_once=True)
        wait_until(lambda: not heartbeat._due.is_set(), "a heartbeat waits for its turn")
        heartbeat.stop()
        store.open.set()
        final.join(WAIT_S)
        heartbeat._thread.join(WAIT_S)
    assert load_record(store).last.status == "finished"
