"""Event files hold every step of the ledger once, also after a crash, in the format that TensorBoard reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import TransientStoreError
from data.stores.local import LocalStore
from orchestrator.observe.event_files import HELD_OUT, PREFIX, TRAIN, HeldOutEvents, TrainingEvents, event_file
from orchestrator.observe.tracker import Point, Tracked
from orchestrator.run.ledger import MERGED, StepLedger, StepRow
from tests.orchestrator.event_reader import curves_in
from tests.orchestrator.run.builders import step_row


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "run"))


def rows(first: int, last: int, attempt: int = 1) -> list[StepRow]:
    """Step s has loss 1 / s, and makes s tokens in half a second."""
    return [step_row(step, tokens=step * (step + 1) // 2, world_size=attempt) for step in range(first, last + 1)]


def names(store: LocalStore) -> list[str]:
    return [found.key.removeprefix(TRAIN) for found in store.list(TRAIN)]


def curves(store: LocalStore, part: str = TRAIN) -> dict[str, list[tuple[int, float]]]:
    return curves_in(Path(store.url_of(part)))


def test_every_step_of_every_segment(store: LocalStore) -> None:
    ledger, events = StepLedger(store, 1, 0, []), TrainingEvents(store)
    for first, last in ((1, 3), (4, 4), (5, 9)):
        ledger.write(rows(first, last))
        events.follow(ledger.segments)
    found = curves(store)
    assert found.keys() == {"loss", "lr", "grad_norm", "world_size", "tokens_per_s"}
    assert found["loss"] == [(step, pytest.approx(1 / step)) for step in range(1, 10)]
    assert found["tokens_per_s"] == [(step, 2.0 * step) for step in range(1, 10)], "also of a segment's first step"
    assert len(names(store)) == 3


def test_a_step_whose_data_was_skipped_has_no_loss(store: LocalStore) -> None:
    ledger = StepLedger(store, 1, 0, [])
    skipped = step_row(2, loss=None, grad_norm=None, tokens=1)
    ledger.write([*rows(1, 1), skipped, *rows(3, 3)])
    TrainingEvents(store).follow(ledger.segments)
    found = curves(store)
    assert [step for step, _ in found["loss"]] == [1, 3]
    assert [step for step, _ in found["lr"]] == [1, 2, 3]


def test_steps_repeated_after_a_crash_appear_once(store: LocalStore) -> None:
    ledger = StepLedger(store, 1, 0, [])
    ledger.write(rows(1, 4))
    saved = list(ledger.segments)
    TrainingEvents(store).follow(ledger.segments)
    ledger.write(rows(5, 8))
    TrainingEvents(store).follow(ledger.segments)  # then its checkpoint turns out to be damaged
    ledger, events = StepLedger(store, 2, 4, saved), TrainingEvents(store)
    ledger.write(rows(5, 6, attempt=2))
    events.follow(ledger.segments)
    assert curves(store)["world_size"] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]
    assert len(names(store)) == 2


def test_a_failed_write_is_repeated_later(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, events = StepLedger(store, 1, 0, []), TrainingEvents(store)
    ledger.write(rows(1, 4))

    def fail(key: str, data: bytes) -> None:
        raise TransientStoreError("busy")

    with monkeypatch.context() as patched:
        patched.setattr(store, "put", fail)
        with pytest.raises(TransientStoreError):
            events.follow(ledger.segments)
    ledger.write(rows(5, 6))
    events.follow(ledger.segments)
    assert [step for step, _ in curves(store)["loss"]] == [1, 2, 3, 4, 5, 6]


def test_merged_segments_change_no_file(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the process has written the files itself or has just started."""
    ledger, events = StepLedger(store, 1, 0, []), TrainingEvents(store)
    for step in range(1, MERGED + 1):
        ledger.write(rows(step, step))
        events.follow(ledger.segments)
    before = names(store)
    ledger.merge()
    assert len(ledger.segments) == 1
    with monkeypatch.context() as patched:
        patched.setattr(store, "put", None)
        patched.setattr(store, "delete", None)
        events.follow(ledger.segments)
        TrainingEvents(store).follow(ledger.segments)
    assert names(store) == before and len(before) == MERGED
    ledger.write(rows(MERGED + 1, MERGED + 2))
    TrainingEvents(store).follow(ledger.segments)
    found = curves(store)
    assert [step for step, _ in found["loss"]] == list(range(1, MERGED + 3))
    assert found["tokens_per_s"] == [(step, 2.0 * step) for step in range(1, MERGED + 3)]


def test_files_that_are_missing_or_wrong_are_put_right_from_merged_segments(store: LocalStore) -> None:
    """Steps were repeated, a file could not be written, and then the segments were merged."""
    ledger = StepLedger(store, 1, 0, [])
    ledger.write(rows(1, 1))
    saved = list(ledger.segments)
    ledger.write(rows(2, 5))
    TrainingEvents(store).follow(ledger.segments)
    ledger = StepLedger(store, 2, 1, saved)
    for step in range(2, MERGED + 1):
        ledger.write(rows(step, step, attempt=2))
    ledger.merge()
    store.delete(f"{TRAIN}{PREFIX}00000001-00000001-a1")
    TrainingEvents(store).follow(ledger.segments)
    found = curves(store)
    assert found["world_size"] == [(step, 1 if step == 1 else 2) for step in range(1, MERGED + 1)]
    assert found["tokens_per_s"] == [(step, 2.0 * step) for step in range(1, MERGED + 1)]
    assert len(names(store)) == MERGED


def test_nothing_is_written_twice(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = StepLedger(store, 1, 0, [])
    ledger.write(rows(1, 4))
    TrainingEvents(store).follow(ledger.segments)
    monkeypatch.setattr(store, "put", None)
    TrainingEvents(store).follow(ledger.segments)


def test_evaluations_after_the_restored_step_are_deleted(store: LocalStore) -> None:
    events = HeldOutEvents(store)
    events.begin(Tracked("id", "run", "url", 0, {}))
    for step in (10, 20, 30):
        events.log_evaluation(Point(step, 1.0, {"loss": 1 / step, "bits_per_byte": 2 / step}), final=False)
    events.log_evaluation(Point(20, 1.0, {"loss": 1 / 20, "bits_per_byte": 2 / 20}), final=False)
    events.log_evaluation(Point(30, 2.0, {"loss": 1 / 30, "bleu": 9.5}), final=True)
    found = curves(store, HELD_OUT)
    assert found["loss"] == [(step, pytest.approx(1 / step)) for step in (10, 20, 30, 30)]
    assert found["bleu"] == [(30, 9.5)]
    HeldOutEvents(store).begin(Tracked("id", "run", "url", 20, {}))
    assert [step for step, _ in curves(store, HELD_OUT)["bits_per_byte"]] == [10, 20]


@pytest.mark.slow
def test_torch_is_not_imported() -> None:
    """Agents write these files on every node. Ray Tune, which imports all of tensorboardX, still works afterwards."""
    script = (
        "import sys; from orchestrator.observe.event_files import event_file, Point; event_file([Point(1, 0., {})]);"
        "assert 'torch' not in sys.modules; import tensorboardX; tensorboardX.SummaryWriter"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_a_file_starts_with_its_version(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1").write_bytes(event_file([Point(7, 3.0, {"loss": 0.5, "lr": None})]))
    assert curves_in(tmp_path) == {"loss": [(7, 0.5)]}
    assert b"brain.Event:2" in (tmp_path / "events.out.tfevents.1").read_bytes()[:40]
