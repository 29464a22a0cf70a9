"""The ledger has each step once; the audit finds every missing, duplicated or misplaced sample."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import TransientStoreError
from data.order.sample_order import SampleOrder
from data.stores.local import LocalStore
from orchestrator.run.audit import audit
from orchestrator.run.ledger import METRICS, StepLedger, StepRow, metrics_lines, read_segments
from tests.orchestrator.run.builders import step_row

ORDER = SampleOrder(3, [range(4), range(4, 7)], [2, 1], 2)
COUNTS = np.array([5, 0, 3, 9, 4, 2, 7])
BATCH = 4


def expected_ids(steps: int) -> list[int]:
    return ORDER.samples(0, steps * BATCH, COUNTS).ids().tolist()


def row(step: int, ids: Sequence[int] | None = None) -> StepRow:
    ids = expected_ids(step)[-BATCH:] if ids is None else ids
    return step_row(step, world_size=1 + step % 2, sample_ids=np.array(ids, np.int64))


def segments_of(ids: Sequence[int], lengths: Sequence[int]) -> list[pa.Table]:
    """Tables that hold `ids`, step by step, cut after so many steps each."""
    steps = [list(ids[start : start + BATCH]) for start in range(0, len(ids), BATCH)]
    tables, left = [], iter(steps)
    for length in lengths:
        tables.append(pa.table({"sample_ids": pa.array(list(itertools.islice(left, length)), pa.list_(pa.int64()))}))
    return [table for table in tables if len(table)]


def audited(ids: Sequence[int], steps: int, lengths: Sequence[int] = (3, 4, 100)):
    return audit(ORDER, COUNTS, BATCH, steps, iter(segments_of(ids, lengths)))


def by_counting(ids: Sequence[int], steps: int) -> tuple[int, int]:
    """Duplicated and missing, from the definition."""
    seen, wanted = Counter(ids), set(expected_ids(steps))
    return sum(times - 1 for times in seen.values()), len(wanted - set(seen))


def test_a_correct_run() -> None:
    ids = expected_ids(12)
    result = audited(ids, 12)
    assert (result.expected, result.seen, result.duplicated, result.missing, result.in_order) == (48, 48, 0, 0, True)
    assert result.digest == hashlib.sha256(b"".join(i.to_bytes(8, "little") for i in ids)).hexdigest()


def test_a_run_before_its_first_step() -> None:
    result = audit(ORDER, COUNTS, BATCH, 0, iter([]))
    assert (result.expected, result.seen, result.missing, result.in_order) == (0, 0, 0, True)


@pytest.mark.parametrize("lengths", [(1,) * 12, (12,), (5, 7)])
def test_the_digest_does_not_depend_on_how_the_ledger_is_cut(lengths: tuple[int, ...]) -> None:
    assert audited(expected_ids(12), 12, lengths) == audited(expected_ids(12), 12)


def test_two_samples_swapped() -> None:
    ids = expected_ids(12)
    ids[5], ids[30] = ids[30], ids[5]
    result = audited(ids, 12)
    assert (result.duplicated, result.missing, result.in_order) == (0, 0, False)
    assert result.digest != audited(expected_ids(12), 12).digest


@pytest.mark.parametrize("place, instead", [(13, 12), (40, 0), (2, 47)])
def test_a_sample_seen_twice_instead_of_another(place: int, instead: int) -> None:
    """Twice in one segment, and in two segments of which one is correct."""
    ids = expected_ids(12)
    ids[place] = ids[instead]
    result = audited(ids, 12)
    assert (result.seen, result.duplicated, result.missing, result.in_order) == (48, 1, 1, False)


def test_a_position_without_a_sample() -> None:
    ids = expected_ids(12)
    ids[20] = -1
    result = audited(ids, 12)
    assert (result.duplicated, result.missing, result.in_order) == (0, 1, False)


def test_steps_missing_at_the_end() -> None:
    result = audited(expected_ids(9), 12)
    assert (result.expected, result.seen, result.duplicated, result.missing) == (48, 36, 0, 12)
    assert not result.in_order


def test_repeated_steps() -> None:
    ids = expected_ids(6)
    result = audited([*ids[: 3 * BATCH], *ids], 6, (3, 3, 3))
    assert (result.expected, result.seen, result.duplicated, result.missing) == (24, 36, 12, 0)
    assert not result.in_order


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_audit_agrees_with_plain_counting(data: st.DataObject) -> None:
    steps = 8
    whole = expected_ids(steps)
    assert len(set(whole)) == len(whole)
    ids = list(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(ids) - 1))
        ids[place] = data.draw(st.sampled_from([*whole, -1, 2**40]))
    cut = data.draw(st.integers(0, steps))
    ids = ids[: BATCH * cut] + (whole[: BATCH * 2] if data.draw(st.booleans()) else []) + ids[BATCH * cut :]
    ids = ids[: BATCH * data.draw(st.integers(1, len(ids) // BATCH))]
    lengths = data.draw(st.lists(st.integers(1, 4), max_size=4))
    result = audited(ids, steps, [*lengths, 100])
    assert (result.seen, result.in_order) == (len(ids), ids == whole)
    assert (result.duplicated, result.missing) == by_counting(ids, steps)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def rows(first: int, last: int) -> list[StepRow]:
    return [row(step) for step in range(first, last + 1)]


def test_only_new_steps_are_written(store: LocalStore) -> None:
    ledger = StepLedger(store, 1, 0, [])
    ledger.write(rows(1, 2))
    assert ledger.segments == ["00000001-00000002-a1.parquet"] and ledger.step == 2
    table = pq.read_table(pa.BufferReader(store.get(f"ledger/{ledger.segments[0]}")))
    assert table["step"].to_pylist() == [1, 2]
    assert table["sample_ids"].to_pylist() == [expected_ids(2)[:BATCH], expected_ids(2)[BATCH:]]
    assert table["world_size"].to_pylist() == [2, 1]
    lines = [json.loads(line) for line in store.get(METRICS).splitlines()]
    assert lines == [
        {
            "step": s,
            "loss": 1 / s,
            "lr": 0.1,
            "grad_norm": 2.0,
            "tokens": 100 * s,
            "world_size": 1 + s % 2,
            "step_s": 0.5,
            "at": 1e9 + s,
        }
        for s in (1, 2)
    ]

    ledger.write(rows(1, 3))  # a snapshot holds all rows since the last checkpoint it knows of
    assert ledger.segments == ["00000001-00000002-a1.parquet", "00000003-00000003-a1.parquet"]
    assert [json.loads(line)["step"] for line in metrics_lines(store)] == [1, 2, 3]


def test_without_new_steps_no_segment_is_written(store: LocalStore) -> None:
    ledger = StepLedger(store, 1, 0, [])
    for _ in range(2):
        ledger.write(rows(1, 1))
    assert ledger.segments == ["00000001-00000001-a1.parquet"]
    assert len(list(store.list("ledger/"))) == 1


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_write_is_completed_by_the_next(
    failing: int, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, calls = StepLedger(store, 1, 0, []), itertools.count(1)
    put = store.put

    def fail_once(key: str, data: bytes) -> None:
        if next(calls) == failing:
            raise TransientStoreError("busy")
        put(key, data)

    monkeypatch.setattr(store, "put", fail_once)
    with pytest.raises(TransientStoreError):
        ledger.write(rows(1, 2))
    ledger.write(rows(1, 4))
    assert [json.loads(line)["step"] for line in metrics_lines(store)] == [1, 2, 3, 4]
    assert audit(ORDER, COUNTS, BATCH, 4, read_segments(store, ledger.segments)).in_order


def test_a_skipped_step_has_samples_and_no_loss(store: LocalStore) -> None:
    ledger = StepLedger(store, 1, 0, [])
    ledger.write([row(1), replace(row(2), loss=None, grad_norm=None), row(3)])
    assert [json.loads(line)["loss"] for line in metrics_lines(store)] == [1.0, None, pytest.approx(1 / 3)]
    assert audit(ORDER, COUNTS, BATCH, 3, read_segments(store, ledger.segments)).in_order


def test_a_resumed_run_has_each_step_once(store: LocalStore) -> None:
    """Attempt 1 saved at 4 and got to 6 in metrics and ledger; attempt 2 continues from 4."""
    first = StepLedger(store, 1, 0, [])
    first.write(rows(1, 4))
    at_four = list(first.segments)
    first.write(rows(5, 6))  # its checkpoint was never committed
    assert [json.loads(line)["step"] for line in metrics_lines(store)] == [1, 2, 3, 4, 5, 6]
    assert [json.loads(line)["step"] for line in metrics_lines(store, 4)] == [1, 2, 3, 4]

    second = StepLedger(store, 2, 4, at_four)
    second.write(rows(5, 8))
    assert second.segments == ["00000001-00000004-a1.parquet", "00000005-00000008-a2.parquet"]
    assert [json.loads(line)["step"] for line in metrics_lines(store)] == list(range(1, 9))
    result = audit(ORDER, COUNTS, BATCH, 8, read_segments(store, second.segments))
    assert (result.expected, result.seen, result.duplicated, result.missing, result.in_order) == (32, 32, 0, 0, True)


def test_a_fresh_start_overwrites_metrics_without_a_checkpoint(store: LocalStore) -> None:
    store.put(METRICS, b'{"step": 1}\n{"step": 2}\n')
    StepLedger(store, 2, 0, []).write(rows(1, 1))
    assert [json.loads(line)["step"] for line in metrics_lines(store)] == [1]


def test_there_are_no_metrics_before_the_first_checkpoint(store: LocalStore) -> None:
    assert metrics_lines(store) == []
