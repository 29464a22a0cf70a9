"""The feeder actor against a reference that reads, tokenizes, packs and orders the raw files in plain Python."""

import hashlib
import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

import data.feed.feeder
import data.feed.spec
import data.tokens.pipeline
from data import ray_data
from data.config import DataConfig, StoreConfig
from data.errors import BadShardError, ShardChangedError
from data.feed.feeder import Feeder
from data.feed.spec import FeedSpec
from data.order.known_units import ExcludedDocuments, KnownUnits
from data.order.sample_order import UNKNOWN
from data.prepare import prepare_data
from data.prepared import Pins
from data.shards.build import build_manifest
from data.shards.manifest import Manifest
from data.stores.local import LocalStore
from data.tokens.pipeline import ReadAhead
from data.tokens.tokenizer import Tokenizer
from data.tokens.unit import TokenizeJob
from orchestrator.train.batches import BatchPrefetcher
from tests.data.order.order_reference import Case
from tests.waiting import WAIT_S, wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster_small"),
    # Ray Data warns of its own defaults whenever it copies its context.
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data"),
]

SEED, SEQ_LEN, MICRO_BATCH, MICRO_BATCHES = 11, 16, 2, 4
BATCH = MICRO_BATCH * MICRO_BATCHES
END_OF_TEXT = 256
FRACTION = 0.15


class Sample(NamedTuple):
    """One training sequence as the model reads it: the parts of its id, tokens with padding, and targets that count."""

    epoch: int
    unit: int
    index: int
    tokens: list[int]
    targets: int


class Source(NamedTuple):
    """Documents of each unit of a source, and how to write them."""

    units: list[list[str]]
    weight: float


def feed_spec(manifest: Manifest, job: TokenizeJob, known: KnownUnits, **fields: Any) -> FeedSpec:
    """The specification of a feeder with this file's seed and batch sizes."""
    sizes = {"seed": SEED, "global_batch_size": BATCH, "micro_batch_size": MICRO_BATCH}
    return FeedSpec(manifest, job, known=known, **sizes | fields)


class RawData:
    """Three sources in three formats below a folder: lines of txt, jsonl, and Parquet in row groups."""

    def __init__(self, folder: Path, shuffle_units: int = 2, **data: object) -> None:
        self.folder = folder
        draw = random.Random(5)
        self.sources = [
            Source([documents(draw, 6) for _ in range(7)], 3),
            Source([documents(draw, 4) for _ in range(4)], 2),
            Source([documents(draw, 5) for _ in range(4)], 1),
        ]
        for name in ("lines", "jsonl", "parquet"):
            (folder / name).mkdir(parents=True)
        for number, unit in enumerate(self.sources[0].units):
            (folder / f"lines/{number:02}.txt").write_text("".join(text + "\n" for text in unit))
        for number, unit in enumerate(self.sources[1].units):
            lines = [json.dumps({"body": text, "other": 1}) for text in unit]
            (folder / f"jsonl/{number:02}.jsonl").write_text("\n".join(lines))
        for shard in range(2):
            rows = [text for unit in self.sources[2].units[2 * shard : 2 * shard + 2] for text in unit]
            pq.write_table(pa.table({"text": rows}), folder / f"parquet/{shard}.parquet", row_group_size=5)
        paths = [
            {"path": f"{folder}/lines", "document": "line", "weight": 3},
            {"path": f"{folder}/jsonl", "text_column": "body", "weight": 2},
            {"path": f"{folder}/parquet", "weight": 1},
        ]
        fields = {"seq_len": SEQ_LEN, "shuffle_units": shuffle_units, "validation_fraction": FRACTION}
        self.config = DataConfig.model_validate({"sources": paths} | fields | data)
        self.skipped: set[int] = set()

    def spec(self, cache: str = "cache", first_step: int = 0, **data: object) -> FeedSpec:
        """A feeder's specification for this data, with no unit known."""
        config = self.config.model_copy(update=data)
        manifest = build_manifest(config.sources, StoreConfig())
        tokenizer = Tokenizer("bytes", [bytes([value]) for value in range(256)])
        job = TokenizeJob(config, StoreConfig(), tokenizer, LocalStore(str(self.folder / cache)))
        known = KnownUnits(np.full(manifest.num_units, UNKNOWN))
        return feed_spec(manifest, job, known, first_step=first_step)

    def cached(self, cache: str) -> int:
        """Units in a cache."""
        return len(list((self.folder / cache).rglob("*.arrow")))

    def sequences(self, held_out: bool) -> list[list[tuple[list[int], int]]]:
        """For every unit, its padded sequences and their numbers of targets."""
        return [
            [] if number in self.skipped else sequences_of([text for text in unit if is_held_out(text) == held_out])
            for number, unit in enumerate(unit for source in self.sources for unit in source.units)
        ]

    def line(self, samples: int) -> list[Sample]:
        """The first `samples` of the run."""
        units = self.sequences(held_out=False)
        sizes = iter([len(unit) for unit in units])
        case = Case(
            SEED,
            [list(itertools.islice(sizes, len(source.units))) for source in self.sources],
            [int(source.weight) for source in self.sources],
            self.config.shuffle_units,
        )
        rows = case.line(0, samples)
        return [Sample(epoch, unit, index, *units[unit][index]) for _, epoch, unit, index in rows]

    def held_out(self, limit: int | None = None) -> list[tuple[list[int], int]]:
        """The held-out sequences in the manifest's order."""
        return [sequence for unit in self.sequences(held_out=True) for sequence in unit][:limit]


def documents(draw: random.Random, count: int) -> list[str]:
    return ["".join(draw.choices("abc def é", k=draw.randrange(5, 60))).strip() + "." for _ in range(count)]


def is_held_out(text: str) -> bool:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") / 2**64 < FRACTION


def sequences_of(texts: list[str]) -> list[tuple[list[int], int]]:
    """Every window of SEQ_LEN + 1 tokens, each beginning with the last token of the one before."""
    if not texts:
        return []
    stream = [END_OF_TEXT]
    for text in texts:
        stream += [*text.encode(), END_OF_TEXT]
    found = []
    while len(stream) > 1:
        window = stream[: SEQ_LEN + 1]
        found.append((window + [0] * (SEQ_LEN + 1 - len(window)), len(window) - 1))
        del stream[:SEQ_LEN]
    return found


def unpacked(batches: list[Any]) -> list[Sample]:
    """Samples of micro-batches, their ids taken apart."""
    found = []
    for batch in batches:
        assert batch.tokens.dtype == np.uint16
        for tokens, targets, sample_id in zip(batch.tokens, batch.target_counts, batch.sample_ids, strict=True):
            whole = int(sample_id)
            found.append(Sample(whole >> 49, (whole >> 24) % 2**25, whole % 2**24, tokens.tolist(), int(targets)))
    return found


class Feed:
    """A feeder actor, and the steps that the ranks of a world size receive from it."""

    def __init__(self, spec: FeedSpec, body: type[Feeder] = Feeder) -> None:
        self.actor = ray.remote(body).options(num_cpus=0).remote(spec)

    def step(self, step: int, world_size: int = 1) -> list[Sample]:
        """A whole step, joined from the shares of all ranks."""
        shares = self.call([self.actor.share.remote(step, rank, world_size) for rank in range(world_size)])
        (place,) = {step - share.first_step for share in shares}
        slots = {}
        for share in shares:
            batches = [column[place] for column in self.call(share.refs)]
            assert all(len(batch.sample_ids) == MICRO_BATCH for batch in batches)
            slots |= dict(zip(share.micro_steps, batches, strict=True))
        samples = unpacked([slots[slot] for slot in range(MICRO_BATCHES)])
        assert {share.target_tokens[place] for share in shares} == {sum(sample.targets for sample in samples)}
        return samples

    def call(self, refs: Any) -> Any:
        return ray.get(refs, timeout=WAIT_S)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> RawData:
    return RawData(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def feed(raw: RawData) -> Feed:
    """A feeder from step 0, on a cache that is empty at first."""
    return Feed(raw.spec())


def test_steps_are_those_of_the_reference_at_any_world_size(raw: RawData, feed: Feed) -> None:
    steps = 14  # into the third epoch of the first source
    line = raw.line(steps * BATCH)
    assert max(sample.epoch for sample in line) >= 1
    for step in range(steps):
        world_size = (1, 2, 3, 4)[step % 4]
        assert feed.step(step, world_size) == line[step * BATCH : (step + 1) * BATCH]


def test_a_step_requested_again_far_ahead_or_far_back_is_the_same(raw: RawData, feed: Feed) -> None:
    line = raw.line(301 * BATCH)
    for step in (3, 300, 299, 0, 120, 60, 1):
        assert feed.step(step, 2) == line[step * BATCH : (step + 1) * BATCH]


class WatchedFeeder(Feeder):
    """A feeder that returns which blocks it keeps."""

    async def blocks(self) -> list[int]:
        return sorted(self._blocks)

    async def threads(self) -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name in ("make-blocks", "read-ahead")]


def test_the_threads_of_a_feeder_whose_process_goes_on_end(raw: RawData) -> None:
    feed = Feed(raw.spec(), WatchedFeeder)
    feed.step(0)
    assert len(feed.call(feed.actor.threads.remote())) == 2
    waits = feed.actor.share.remote(10**6, 0, 1)
    feed.call(feed.actor.close.remote())
    with pytest.raises(RuntimeError, match="the feeder is closed"):
        feed.call(waits)
    wait_until(lambda: feed.call(feed.actor.threads.remote()) == [], "the end of the threads")


def test_a_step_far_ahead_is_made_without_those_before_it(raw: RawData) -> None:
    """As after the death of a feeder in a long attempt."""
    spec = raw.spec()
    far = Feed(spec, WatchedFeeder)
    far.step(0)
    far.step(300)
    assert min(far.call(far.actor.blocks.remote())) == 300 // spec.steps_per_block


def test_known_counts_are_those_of_the_files(raw: RawData, feed: Feed) -> None:
    feed.step(40)
    known = feed.call(feed.actor.known.remote())
    assert known.counts.tolist() == [len(unit) for unit in raw.sequences(held_out=False)]
    assert known.skipped == {} and known.excluded == ExcludedDocuments(units=len(known.counts))


def test_the_held_out_set_is_that_of_the_files_and_disjoint_from_training(raw: RawData, feed: Feed) -> None:
    feed.step(5)
    expected = raw.held_out()
    assert len(expected) > 5
    for each in (feed, Feed(raw.spec(first_step=70))):
        held_out = each.call(each.actor.held_out.remote())
        samples = unpacked(each.call(held_out.refs))
        assert [(sample.tokens, sample.targets) for sample in samples] == expected
        assert held_out.target_tokens == sum(targets for _, targets in expected)
        spelled = [token for tokens, targets in expected for token in tokens[1 : targets + 1] if token != END_OF_TEXT]
        assert held_out.text_bytes == len(spelled)
        again = each.call(each.actor.held_out.remote())
        assert again.refs == held_out.refs


def test_a_later_feeder_continues_and_a_limit_cuts_the_held_out_set(raw: RawData, feed: Feed) -> None:
    later = Feed(raw.spec(first_step=37, validation_sequences=3))
    for step in (37, 38, 30):
        assert later.step(step, 3) == feed.step(step, 4)
    held_out = later.call(later.actor.held_out.remote())
    samples = unpacked(later.call(held_out.refs))
    assert [(sample.tokens, sample.targets) for sample in samples] == raw.held_out(limit=3)


def test_many_ranks_wait_for_one_step_at_once(raw: RawData) -> None:
    """All request the step before it is made; each receives its own share, and none waits forever."""
    fresh = Feed(raw.spec(first_step=20))
    shares = [fresh.actor.share.remote(step, rank, 4) for step in (21, 20) for rank in range(4)]
    got = fresh.call(shares)
    line = raw.line(22 * BATCH)
    for number, step in enumerate((21, 20)):
        slots = {
            slot: ref
            for share in got[4 * number : 4 * number + 4]
            for slot, ref in zip(share.micro_steps, share.refs, strict=True)
        }
        columns = fresh.call([slots[slot] for slot in range(MICRO_BATCHES)])
        samples = unpacked([column[step - got[0].first_step] for column in columns])
        assert samples == line[step * BATCH : (step + 1) * BATCH]


@pytest.mark.parametrize(("block_steps", "block_bytes"), [(1, 64_000), (5, 64_000), (8, 150)])
def test_blocks_of_any_length_hold_the_same_steps(raw: RawData, block_steps: int, block_bytes: int) -> None:
    """A rank's reader starts at any step of a block and ends at any step of another."""
    sized = Feed(raw.spec(first_step=13), sized_feeder(block_steps, block_bytes))
    line = raw.line(30 * BATCH)
    for first, last in ((13, 24), (3, 5), (22, 30)):
        slots: dict[int, list[Any]] = {}
        for rank in range(3):
            with BatchPrefetcher(sized.actor, rank, 3, first, last) as reader:
                for step in range(first, last):
                    share = reader.take()
                    slots.setdefault(step, [None] * MICRO_BATCHES)
                    for slot, batch in zip(share.micro_steps, share.batches, strict=True):
                        slots[step][slot] = batch
        for step in range(first, last):
            assert unpacked(slots[step]) == line[step * BATCH : (step + 1) * BATCH]


def sized_feeder(block_steps: int, block_bytes: int) -> type[Feeder]:
    class SizedFeeder(Feeder):
        def __init__(self, spec: FeedSpec) -> None:
            data.feed.spec.BLOCK_STEPS, data.feed.spec.BLOCK_BYTES = block_steps, block_bytes
            super().__init__(spec)

    return SizedFeeder


def spoil(raw: RawData, unit: int) -> str:
    """Writes a line that is not JSON into a shard of the second source; returns the shard's path."""
    path = raw.folder / f"jsonl/{unit - len(raw.sources[0].units):02}.jsonl"
    path.write_text(path.read_text() + "\nno json\n")
    raw.skipped.add(unit)
    return str(path)


def test_a_bad_shard_reaches_the_training_loop_as_the_error_it_is(tmp_path: Path) -> None:
    raw = RawData(tmp_path)
    path = spoil(raw, unit=8)
    refusing = Feed(raw.spec())
    with pytest.raises(BadShardError, match=path):
        for step in range(60):
            refusing.step(step)
    with BatchPrefetcher(refusing.actor, 0, 1, 0, 60) as reader, pytest.raises(BadShardError, match=path):
        for _ in range(60):
            reader.take()


def test_a_bad_shard_is_skipped_and_counted_where_the_recipe_says_so(tmp_path: Path) -> None:
    raw = RawData(tmp_path, on_bad_shard="skip")
    path = spoil(raw, unit=8)
    skipping = Feed(raw.spec())
    steps = 20
    line = raw.line(steps * BATCH)
    assert not any(sample.unit == 8 for sample in line)
    for step in range(steps):
        assert skipping.step(step) == line[step * BATCH : (step + 1) * BATCH]
    known = skipping.call(skipping.actor.known.remote())
    assert list(known.skipped) == [8] and path in known.skipped[8]
    assert known.counts[8] == 0
    samples = unpacked(skipping.call(skipping.call(skipping.actor.held_out.remote()).refs))
    assert [(sample.tokens, sample.targets) for sample in samples] == raw.held_out()


def test_a_shard_that_changed_since_the_manifest_stops_the_feeder(tmp_path: Path) -> None:
    raw = RawData(tmp_path)
    spec = raw.spec()
    for path in (tmp_path / "lines").iterdir():
        path.write_text("other text\n")
    changed = Feed(spec)
    with pytest.raises(ShardChangedError, match=r"lines/0\d\.txt is now"):
        changed.step(0)


def test_known_units_depend_on_how_every_source_is_read(tmp_path: Path) -> None:
    """Prepares ahead, then again with another `document` in a source that is not the first."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("first\nsecond\nthird\n" * 5)
    counts = []
    for document in ("file", "line", "file"):
        sources = [{"path": f"{tmp_path}/one"}, {"path": f"{tmp_path}/two", "document": document}]
        config = DataConfig.model_validate(
            {"sources": sources, "tokenizer": {"kind": "bytes"}, "seq_len": 4, "validation_fraction": 0}
        )
        store = LocalStore(str(tmp_path / "store"))
        counts.append(
            prepare_data(config, StoreConfig(), store, Pins(), lambda _: None, lambda *_: None, lambda: None)
            .counts()
            .tolist()
        )
    as_file = len("first\nsecond\nthird\n" * 5) + 1  # every token but the first boundary
    as_lines = len("firstsecondthird" * 5) + 15
    assert counts == [[-(-as_file // 4), -(-each // 4)] for each in (as_file, as_lines, as_file)]


AHEAD_BYTES, SEGMENT_BYTES = 4000, 2000


class FrugalFeeder(Feeder):
    """A feeder that reads a few kilobytes ahead instead of 128 MB, and reports when it is idle."""

    def __init__(self, spec: FeedSpec) -> None:
        data.feed.feeder.AHEAD_BYTES = AHEAD_BYTES
        data.tokens.pipeline.SEGMENT_BYTES = SEGMENT_BYTES
        super().__init__(spec)

    async def at_rest(self) -> bool:
        """Whether every requested step and unit has been made."""
        made = self._next_block > self._last_block_ahead(self._newest_request)
        return made and all(unit in self._read_ahead._streams for unit in self._read_ahead._requests)


class ManyShards(NamedTuple):
    """200 shards of about 500 bytes each."""

    folder: Path
    units: list[list[str]]

    def spec(self, cache: str, **fields: Any) -> FeedSpec:
        source = {"path": str(self.folder / "shards"), "document": "line"}
        config = DataConfig.model_validate(
            {
                "sources": [source],
                "seq_len": SEQ_LEN,
                "shuffle_units": 2,
                "validation_fraction": 0,
                "prepare": "streaming",
            }
        )
        manifest = build_manifest(config.sources, StoreConfig())
        tokenizer = Tokenizer("bytes", [bytes([value]) for value in range(256)])
        job = TokenizeJob(config, StoreConfig(), tokenizer, LocalStore(str(self.folder / cache)))
        known = KnownUnits(fields.pop("counts", np.full(manifest.num_units, UNKNOWN)))
        return feed_spec(manifest, job, known, **fields)

    def case(self) -> Case:
        return Case(SEED, [[len(sequences_of(unit)) for unit in self.units]], [1], 2)

    def cached(self, cache: str) -> int:
        return len(list((self.folder / cache).rglob("*.arrow")))

    def windows_of_steps(self, first: int, last: int) -> int:
        """Shuffle windows that steps `first` to `last` read from."""
        case = self.case()
        rows = case.line(first * BATCH, (last - first) * BATCH)
        order = case.order()
        window_of = {
            (epoch, unit): window
            for epoch in {row[1] for row in rows}
            for window in range(order.num_windows(0))
            for unit in order.window_units(0, epoch, window).tolist()
        }
        return len({(row[1], window_of[row[1], row[2]]) for row in rows})


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> ManyShards:
    folder = tmp_path_factory.mktemp("many")
    (folder / "shards").mkdir()
    draw = random.Random(1)
    units = [documents(draw, 15) for _ in range(200)]
    for number, unit in enumerate(units):
        (folder / f"shards/{number:03}.txt").write_text("".join(text + "\n" for text in unit))
    return ManyShards(folder, units)


@pytest.mark.parametrize("first_step", [0, 150])
def test_only_the_units_needed_soon_are_read(many: ManyShards, first_step: int) -> None:
    """What is bounded: units of the steps made, of the windows they lie in, and AHEAD_BYTES of shards beyond.

    Later starts read no more, given the counts that every checkpoint keeps. Without those, all windows of the epoch up
    to the start must be read once, to know where its samples begin.
    """
    cache = f"cache-{first_step}"
    counts = many.case().counts.copy()
    order = many.case().order()
    block = many.spec(cache).steps_per_block
    step_ends = ((first_step + data.feed.feeder.AHEAD_STEPS) // block + 1) * block
    if first_step:  # as after a restart: only the units read by the feeder before are known
        position = order.locate(0, first_step * BATCH, counts)
        assert position.epoch == 0 and position.window > 10
        known = np.concatenate([order.window_units(0, 0, window) for window in range(position.window)])
        counts[np.setdiff1d(np.arange(len(counts)), known)] = UNKNOWN
    else:
        counts[:] = UNKNOWN
    frugal = Feed(many.spec(cache, counts=counts, first_step=first_step), FrugalFeeder)
    line = many.case().line(first_step * BATCH, BATCH)
    got = frugal.step(first_step, 2)
    assert [(sample.epoch, sample.unit, sample.index) for sample in got] == [row[1:] for row in line]
    wait_until(lambda: frugal.call(frugal.actor.at_rest.remote()), "the feeder is at rest")

    smallest_shard = min(path.stat().st_size for path in (many.folder / "shards").iterdir())
    windows = (
        many.windows_of_steps(first_step // block * block, step_ends) + -(-AHEAD_BYTES // (2 * smallest_shard)) + 1
    )
    assert many.cached(cache) <= 2 * windows < 60


def test_a_start_without_counts_gives_the_same_samples(many: ManyShards) -> None:
    frugal = Feed(many.spec("cache-without", first_step=30), FrugalFeeder)
    line = many.case().line(30 * BATCH, BATCH)
    got = frugal.step(30)
    assert [(sample.epoch, sample.unit, sample.index) for sample in got] == [row[1:] for row in line]
    assert many.cached("cache-without") < 100


@pytest.fixture
def read_ahead(many: ManyShards, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ReadAhead]]:
    """Makes a `ReadAhead` that tokenizes in tasks; closes it after the test, and checks that its thread ends."""
    monkeypatch.setattr(ray_data, "SMALL_BYTES", 0)
    made = []

    def make(**options: int) -> ReadAhead:
        spec = many.spec("cache-read-ahead")
        made.append(ReadAhead(spec.manifest, spec.job, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
    for thread in threading.enumerate():
        if thread.name == "read-ahead":
            thread.join(WAIT_S)
            assert not thread.is_alive()


def stream_in_files(many: ManyShards, unit: int) -> list[int]:
    tokens = [END_OF_TEXT]
    for text in many.units[unit]:
        tokens += [*text.encode(), END_OF_TEXT]
    return tokens


def test_read_ahead_gives_requested_units_and_others(many: ManyShards, read_ahead: Callable[..., ReadAhead]) -> None:
    reader = read_ahead()
    reader.request([5, 3, 5, 9])
    for unit in (9, 5, 120, 3, 120):  # 120 was never requested
        stream = reader.stream(unit)
        assert stream.problem is None
        assert stream.tokens.tolist() == stream_in_files(many, unit)


def test_read_ahead_evicts_units_that_are_no_longer_requested(
    many: ManyShards, read_ahead: Callable[..., ReadAhead]
) -> None:
    reader = read_ahead(keep_bytes=0)
    reader.request([1, 2])
    first = reader.stream(1)
    reader.stream(2)
    reader.request([2, 4])
    assert sorted(reader._streams)[:1] == [2]
    assert reader.stream(4).tokens.tolist() == stream_in_files(many, 4)
    assert first.tokens.tolist() == stream_in_files(many, 1)  # still valid for callers that have it
    assert reader.stream(1).tokens.tolist() == stream_in_files(many, 1)  # and read again for others


def test_read_ahead_keeps_the_most_recently_used(many: ManyShards, read_ahead: Callable[..., ReadAhead]) -> None:
    sizes = {unit: 2 * len(stream_in_files(many, unit)) for unit in (1, 2, 3, 4)}
    reader = read_ahead(keep_bytes=sizes[1] + sizes[3] + sizes[4])
    reader.request([1, 2, 3, 4])
    for unit in (2, 3, 4, 1):
        reader.stream(unit)
    reader.request([])
    assert sorted(reader._streams) == [1, 3, 4]


def test_read_ahead_raises_errors_to_its_caller(tmp_path: Path) -> None:
    raw = RawData(tmp_path)
    spec = raw.spec()
    (tmp_path / "lines/00.txt").unlink()
    reader = ReadAhead(spec.manifest, spec.job)
    for _ in range(2):  # on every call
        with pytest.raises(ShardChangedError, match=r"lines/00\.txt is missing"):
            reader.stream(0)
    reader.close()


def test_excluded_documents_are_the_same_when_units_are_read_during_training(tmp_path: Path) -> None:
    """Also after a restart that knows some units already."""
    (tmp_path / "pairs").mkdir()
    for shard in range(5):
        rows = [("ab" * (1 + n % 3), "x" * (1 + (7 * n + shard) % 40)) for n in range(200)]
        lines = [json.dumps({"from": read, "to": text}) for read, text in rows]
        (tmp_path / f"pairs/{shard}.jsonl").write_text("\n".join(lines))
    fields = {
        "sources": [{"path": f"{tmp_path}/pairs", "input_column": "from", "text_column": "to"}],
        "tokenizer": {"kind": "bytes"},
        "seq_len": 30,
        "bucket_steps": 1,
        "shuffle_units": 1,
        "validation_fraction": 0,
        "cleaning": [{"step": "lowercase"}, {"step": "length", "min_chars": 4}],
    }

    def prepared(prepare: str) -> FeedSpec:
        config = DataConfig.model_validate({**fields, "prepare": prepare})
        store = LocalStore(str(tmp_path / prepare))
        data = prepare_data(config, StoreConfig(), store, Pins(), lambda _: None, lambda *_: None, lambda: None)
        return feed_spec(data.manifest, data.job, data.known())

    expected = prepared("ahead").known
    assert expected.excluded.too_long > 0 and expected.excluded.steps[1]["documents_removed"] > 0
    streaming = prepared("streaming")
    assert streaming.known.excluded == ExcludedDocuments()

    first = Feed(streaming)
    first.step(0)
    partly = first.call(first.actor.known.remote())
    assert 0 < partly.excluded.units == (partly.counts != UNKNOWN).sum() < 5
    later = Feed(replace(streaming, known=partly, first_step=1))
    later.step(3 * expected.counts.sum() // BATCH)  # in the third epoch: every unit has been read
    known = later.call(later.actor.known.remote())
    assert known.counts.tolist() == expected.counts.tolist()
    assert known.excluded == expected.excluded
