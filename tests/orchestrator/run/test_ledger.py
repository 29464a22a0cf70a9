"""The ledger has each step once; the audit finds every missing, duplicated or misplaced sample."""

import hashlib
import itertools
import json
import random
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import DamagedObjectError, MantaError, TransientStoreError
from data.order.sample_order import SampleOrder
from data.stores.local import LocalStore
from data.stores.shard_file import ShardFile
from orchestrator.run import segment_file
from orchestrator.run.audit import audit
from orchestrator.run.ledger import (
    IDS_SCHEMA,
    MERGED,
    METRICS_SCHEMA,
    SAVE_SCHEMA,
    Segment,
    StepLedger,
    StepRow,
    due_merge,
    read_rows,
    read_segments,
    sweep_segments,
)
from tests.orchestrator.run.builders import step_row

ORDER = SampleOrder(3, [range(4), range(4, 7)], [2, 1], 2)
COUNTS = np.array([5, 0, 3, 9, 4, 2, 7])
BATCH = 4


def expected_ids(steps: int) -> list[int]:
    return ORDER.samples(0, steps * BATCH, COUNTS).ids().tolist()


def row(step: int, ids: Sequence[int] | None = None) -> StepRow:
    ids = ORDER.samples((step - 1) * BATCH, BATCH, COUNTS).ids() if ids is None else ids
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

    ledger.write(rows(1, 3))  # a snapshot holds all rows since the last checkpoint it knows of
    assert ledger.segments == ["00000001-00000002-a1.parquet", "00000003-00000003-a1.parquet"]
    assert read_rows(store, ledger.segments).to_pylist() == [row(step).metrics() for step in (1, 2, 3)]


def test_without_new_steps_no_segment_is_written(store: LocalStore) -> None:
    ledger = StepLedger(store, 1, 0, [])
    for _ in range(2):
        ledger.write(rows(1, 1))
    assert ledger.segments == ["00000001-00000001-a1.parquet"]
    assert len(list(store.list("ledger/"))) == 1


def fail_once(monkeypatch: pytest.MonkeyPatch, store: LocalStore, method: str, error: Exception) -> None:
    work = getattr(store, method)

    def fail(*arguments: Any) -> Any:
        monkeypatch.setattr(store, method, work)
        raise error

    monkeypatch.setattr(store, method, fail)


def test_a_failed_write_is_completed_by_the_next(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = StepLedger(store, 1, 0, [])
    fail_once(monkeypatch, store, "put", TransientStoreError("busy"))
    with pytest.raises(TransientStoreError):
        ledger.write(rows(1, 2))
    ledger.write(rows(1, 4))
    assert audit(ORDER, COUNTS, BATCH, 4, read_segments(store, ledger.segments)).in_order


def test_a_skipped_step_has_samples_and_no_loss(store: LocalStore) -> None:
    """Also where it is the only one of a segment, so that the column of losses is empty."""
    ledger = StepLedger(store, 1, 0, [])
    skipped = replace(row(2), loss=None, grad_norm=None)
    for each in (row(1), skipped, row(3)):
        ledger.write([each])
    assert read_rows(store, ledger.segments)["loss"].to_pylist() == [1.0, None, pytest.approx(1 / 3)]
    assert audit(ORDER, COUNTS, BATCH, 3, read_segments(store, ledger.segments)).in_order


def test_a_resumed_run_has_each_step_once(store: LocalStore) -> None:
    """Attempt 1 saved at 4 and got to 6 in the ledger; attempt 2 continues from 4."""
    first = StepLedger(store, 1, 0, [])
    first.write(rows(1, 4))
    at_four = list(first.segments)
    first.write(rows(5, 6))  # its checkpoint was never committed

    second = StepLedger(store, 2, 4, at_four)
    second.write(rows(5, 8))
    assert second.segments == ["00000001-00000004-a1.parquet", "00000005-00000008-a2.parquet"]
    assert read_rows(store, second.segments)["step"].to_pylist() == list(range(1, 9))
    result = audit(ORDER, COUNTS, BATCH, 8, read_segments(store, second.segments))
    assert (result.expected, result.seen, result.duplicated, result.missing, result.in_order) == (32, 32, 0, 0, True)


LENGTHS = {
    "equal": lambda at: 100,
    "of a step": lambda at: 1,
    "short and long in turn": lambda at: 1000 if at % 2 else 1,
    "long between fifteen short": lambda at: 1000 if at % 16 == 0 else 1,
    "shorter and shorter": lambda at: 10_000 - at,
    "of any length": lambda at: at * 7919 % 1009 + 1,
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_after_ten_thousand_saves_there_are_few_segments_and_rows_were_rarely_written_again(kind: str) -> None:
    segments, step, written, most = list[str](), 0, 0, 0
    for at in range(9_999):
        length = LENGTHS[kind](at)
        segments.append(str(Segment(step + 1, step + length, 1)))
        step += length
        if (due := due_merge(segments)) is not None:
            parts = [Segment.named(name) for name in segments[due]]
            segments[due] = [str(Segment(parts[0].first, parts[-1].last, 1))]
            written += sum(part.steps for part in parts)
        most = max(most, len(segments))
    assert most <= 3 * MERGED and written <= 4 * step


@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 4), min_size=30, max_size=60))
def test_merging_changes_no_row(tmp_path: Path, lengths: list[int]) -> None:
    store = LocalStore(str(tmp_path / uuid.uuid4().hex))
    ledger = StepLedger(store, 1, 0, [])
    for attempt, length in enumerate(lengths, 1):
        ledger = StepLedger(store, attempt, ledger.step, ledger.segments)
        ledger.write(rows(ledger.step + 1, ledger.step + length))
        ledger.merge()
    steps = sum(lengths)
    assert len(ledger.segments) < MERGED + 8 < len(lengths)
    assert read_rows(store, ledger.segments).to_pylist() == [row(step).metrics() for step in range(1, steps + 1)]
    assert audit(ORDER, COUNTS, BATCH, steps, read_segments(store, ledger.segments)).in_order
    saved = read_rows(store, ledger.segments, SAVE_SCHEMA).to_pylist()
    ends = [(end, attempt) for attempt, end in enumerate(itertools.accumulate(lengths), 1)]
    assert [(each["save"], each["attempt"]) for each, _ in itertools.groupby(saved)] == ends


def save_each(store: LocalStore, steps: range, attempt: int = 1, segments: Sequence[str] = ()) -> StepLedger:
    """A ledger with a segment for each of the steps."""
    ledger = StepLedger(store, attempt, steps[0] - 1, segments)
    for step in steps:
        ledger.write(rows(step, step))
    return ledger


def test_the_ledger_of_an_older_version_is_merged_little_by_little(store: LocalStore) -> None:
    """Its segments do not tell with which checkpoint each row was saved, and name the items of lists otherwise."""
    names, ids = [], pa.list_(pa.field("element", pa.int64()))
    for step in range(1, 101):
        metrics = {name: [value] for name, value in row(step).metrics().items()}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({**metrics, "sample_ids": pa.array([row(step).sample_ids], ids)}), sink)
        names.append(str(Segment(step, step, 3)))
        store.put(f"ledger/{names[-1]}", sink.getvalue().to_pybytes())
    ledger = StepLedger(store, 4, 100, names)
    lengths = []
    for _ in range(10):
        ledger.merge()
        lengths.append(len(ledger.segments))
    assert lengths[:6] == [85, 70, 55, 40, 25, 10] and lengths[-1] == 10
    saved = read_rows(store, ledger.segments, pa.schema([*METRICS_SCHEMA, *SAVE_SCHEMA])).to_pylist()
    assert saved == [row(step).metrics() | {"save": step, "attempt": 3} for step in range(1, 101)]
    assert audit(ORDER, COUNTS, BATCH, 100, read_segments(store, ledger.segments)).in_order


@pytest.mark.parametrize("failing", ["open", "put_file"])
def test_a_merge_that_fails_changes_nothing_and_is_done_later(
    failing: str, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = save_each(store, range(1, MERGED + 1))
    before = list(ledger.segments)
    fail_once(monkeypatch, store, failing, TransientStoreError("busy"))
    with pytest.raises(TransientStoreError):
        ledger.merge()
    assert ledger.segments == before == [info.key.removeprefix("ledger/") for info in store.list("ledger/")]
    ledger.merge()
    assert ledger.segments == [f"00000001-{MERGED:08d}-a1.parquet"]


def test_segments_that_lack_a_step_are_not_merged(store: LocalStore) -> None:
    ledger = save_each(store, range(1, MERGED + 1))
    store.put(f"ledger/{ledger.segments[4]}", store.get(f"ledger/{ledger.segments[3]}"))
    with pytest.raises(MantaError, match="does not have each step from 1 to 16 once"):
        ledger.merge()
    assert len(ledger.segments) == MERGED


def test_row_groups_are_neither_tiny_nor_larger_than_memory_allows(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading and merging hold a few of them at a time."""
    monkeypatch.setattr(segment_file, "GROUP_IDS", 5 * BATCH)
    ledger = StepLedger(store, 1, 0, [])
    for length in (23, *[13] * (MERGED - 1)):
        ledger.write(rows(ledger.step + 1, ledger.step + length))
    ledger.merge()
    [merged] = ledger.segments
    parquet = pq.ParquetFile(store.url_of(f"ledger/{merged}"))
    *groups, last = [parquet.metadata.row_group(at).num_rows for at in range(parquet.num_row_groups)]
    assert all(4 <= length <= 10 for length in groups) and last <= 10 and 20 <= len(groups) <= 50
    assert [len(table) for table in read_segments(store, [merged])] == [*groups, last]


def test_of_a_large_segment_only_the_wanted_columns_are_read(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = StepLedger(store, 1, 0, [])
    ids = np.random.default_rng(0).integers(0, 2**60, (2_000, 100))
    ledger.write([step_row(step, sample_ids=ids[step - 1]) for step in range(1, 2001)])
    [segment] = ledger.segments
    transferred = 0

    def count(file: ShardFile, buffer: Any) -> int:
        nonlocal transferred
        found = readinto(file, buffer)
        transferred += found
        return found

    readinto = ShardFile.readinto
    monkeypatch.setattr(ShardFile, "readinto", count)
    assert read_rows(store, ledger.segments)["step"].to_pylist() == list(range(1, 2001))
    assert transferred < Path(store.url_of(f"ledger/{segment}")).stat().st_size / 4


def parts(*ends: int, attempt: int = 1) -> list[str]:
    """Segments that end with these steps."""
    return [str(Segment(first + 1, last, attempt)) for first, last in itertools.pairwise((0, *ends))]


SWEPT = {
    "merged, and in no list": ([parts(4), [*parts(4), *parts(4, 6)[1:]]], parts(1, 2, 3, 4), parts(1, 2, 3, 4)),
    "an older checkpoint lists it": ([parts(4), parts(1, 2, 3, 4)], [], []),
    "a fenced attempt wrote it": ([parts(4, attempt=2), parts(9, attempt=2)], parts(4), parts(4)),
    "a save in progress wrote its rows": ([parts(4), parts(1, 2, 3, 4)], parts(4, 6)[1:], []),
    "a save in progress has merged it": ([parts(2, 4), parts(2, 4, 6)], parts(6), []),
    "there was no checkpoint before": ([[], parts(4)], parts(1, 2, 3), []),
}


@pytest.mark.parametrize("case", SWEPT)
def test_segments_are_deleted_once_no_checkpoint_needs_them(case: str, store: LocalStore) -> None:
    lists, unlisted, swept = SWEPT[case]
    store.put("ledger/notes.txt", b"of the user")
    (Path(store.root) / "ledger/.tmp~1").write_bytes(b"half of a merge whose process was killed")
    for name in {name for each in (*lists, unlisted) for name in each}:
        store.put(f"ledger/{name}", b"rows")
    everything = {info.key.removeprefix("ledger/") for info in store.list("ledger/")}
    sweep_segments(store, lists)
    assert everything - {info.key.removeprefix("ledger/") for info in store.list("ledger/")} == set(swept)
    assert store.unfinished("ledger/") == [] and store.get("ledger/notes.txt") == b"of the user"


@pytest.mark.parametrize("schema", [METRICS_SCHEMA, IDS_SCHEMA], ids=["metrics", "ids"])
def test_a_changed_byte_changes_no_row_or_is_found(store: LocalStore, schema: pa.Schema) -> None:
    ledger = StepLedger(store, 1, 0, [])
    ledger.write([row(step) for step in range(1, 40)])
    [segment] = ledger.segments
    path = Path(store.url_of(f"ledger/{segment}"))
    content, expected = path.read_bytes(), read_rows(store, [segment], schema)
    found = 0
    draw = random.Random(5)
    for place in [*draw.sample(range(len(content)), 250), *range(len(content) - 12, len(content))]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert read_rows(store, [segment], schema).equals(expected), place
        except DamagedObjectError as error:
            assert str(path) in str(error)
            found += 1
    assert found > 20


def test_a_missing_segment_and_one_of_other_steps_are_named(store: LocalStore) -> None:
    ledger = StepLedger(store, 1, 0, [])
    ledger.write(rows(1, 3))
    ledger.write(rows(4, 6))
    first, second = (f"ledger/{name}" for name in ledger.segments)
    store.put(second, store.get(first))
    with pytest.raises(DamagedObjectError, match=r"00000004-00000006-a1\.parquet is damaged: steps differ"):
        read_rows(store, ledger.segments, IDS_SCHEMA)
    store.delete(second)
    with pytest.raises(DamagedObjectError, match="is missing"):
        read_rows(store, ledger.segments)


def test_a_segment_of_another_run_is_named(store: LocalStore, tmp_path: Path) -> None:
    """It has the same name and steps, and is as sound."""
    ledger, other = StepLedger(store, 1, 0, []), StepLedger(LocalStore(str(tmp_path / "other")), 1, 0, [])
    for each, loss in ((ledger, 1.0), (other, 2.0)):
        for step in range(1, MERGED + 1):
            each.write([step_row(step, loss=loss)])
    fields = json.loads(json.dumps(ledger.fields))
    assert read_rows(store, fields["ledger"], digests=fields["ledger_digests"])["loss"].to_pylist() == [1.0] * MERGED
    key = f"ledger/{ledger.segments[3]}"
    store.put(key, LocalStore(str(tmp_path / "other")).get(key))
    for use in (ledger.merge, lambda: read_rows(store, fields["ledger"], IDS_SCHEMA, fields["ledger_digests"])):
        with pytest.raises(DamagedObjectError, match=r"00000004-00000004-a1\.parquet is damaged: its digests differ"):
            use()


def test_segments_of_older_versions_have_no_digests(store: LocalStore) -> None:
    ledger = StepLedger(store, 1, 0, [])
    ledger.write(rows(1, 3))
    path = Path(store.url_of(f"ledger/{ledger.segments[0]}"))
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    assert read_rows(store, ledger.segments)["step"].to_pylist() == [1, 2, 3]
