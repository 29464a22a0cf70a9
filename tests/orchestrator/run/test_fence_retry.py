"""The fence tells its own repeated conditional put from a write of another attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import ConflictError
from data.stores.local import LocalStore
from orchestrator.errors import FencedError, RunInUseError
from orchestrator.run.fence import Fence
from orchestrator.run.record import RECORD, RunRecord, load_record


class LostAnswer(LocalStore):
    """While `lost`, the next conditional put is written and then refused, like a retry whose first try succeeded.

    `meanwhile` runs between the two tries.
    """

    lost = False

    def meanwhile(self) -> None:
        """Replaced by tests."""

    def put_if_absent(self, key: str, data: bytes) -> str:
        return self._answer(super().put_if_absent(key, data))

    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        return self._answer(super().put_if_match(key, data, etag))

    def _answer(self, etag: str) -> str:
        if not self.lost:
            return etag
        self.lost = False
        self.meanwhile()
        raise ConflictError("is another version")


@pytest.fixture
def store(tmp_path: Path) -> LostAnswer:
    return LostAnswer(str(tmp_path))


def claim(store: LocalStore) -> Fence:
    return Fence.claim(store, "run", {}, keep_pins=False)


def another_attempt(store: LocalStore) -> RunRecord:
    """Takes the run over as another machine would."""
    record = load_record(store)
    newer = replace(record.last, number=record.last.number + 1, host="elsewhere")
    taken = replace(record, attempts=(*record.attempts, newer))
    store.put(RECORD, taken.to_json())
    return taken


def test_an_update_with_a_lost_answer_succeeds(store: LostAnswer) -> None:
    fence = claim(store)
    store.lost = True
    fence.update(attempt={"step": 1})
    assert not store.lost and load_record(store) == fence.record and fence.record.last.step == 1
    fence.update(attempt={"step": 2})  # with the etag of the write that was recognized as its own
    assert load_record(store).last.step == 2


@pytest.mark.parametrize("prepare", [lambda store: None, claim], ids=["new run", "known run"])
def test_a_claim_with_a_lost_answer_succeeds(store: LostAnswer, prepare: Callable[[LocalStore], object]) -> None:
    prepare(store)
    store.lost = True
    fence = claim(store)
    assert not store.lost and load_record(store) == fence.record
    fence.update(attempt={"step": 1})
    assert load_record(store).last.step == 1


def test_an_update_that_another_attempt_overwrote_is_fenced(store: LostAnswer) -> None:
    fence = claim(store)
    store.lost, store.meanwhile = True, lambda: another_attempt(store)
    with pytest.raises(FencedError, match="attempt 2 on elsewhere"):
        fence.update(attempt={"step": 1})
    assert load_record(store).last.host == "elsewhere"


def test_a_claim_that_another_attempt_overwrote_is_refused(store: LostAnswer) -> None:
    store.lost, store.meanwhile = True, lambda: another_attempt(store)
    with pytest.raises(RunInUseError, match="claimed by another command"):
        claim(store)


def test_a_record_removed_meanwhile_is_a_conflict(store: LostAnswer) -> None:
    store.lost, store.meanwhile = True, lambda: store.delete(RECORD)
    with pytest.raises(RunInUseError, match="claimed by another command"):
        claim(store)


def test_a_takeover_while_reading_back_keeps_its_version(store: LostAnswer, monkeypatch: pytest.MonkeyPatch) -> None:
    fence = claim(store)
    store.lost, read = True, store.get

    def takeover_after_reading(key: str) -> bytes:
        content = read(key)
        another_attempt(LocalStore(store.root))
        return content

    monkeypatch.setattr(store, "get", takeover_after_reading)
    fence.update(attempt={"step": 1})
    monkeypatch.undo()
    with pytest.raises(FencedError, match="attempt 2 on elsewhere"):
        fence.update(attempt={"step": 2})
