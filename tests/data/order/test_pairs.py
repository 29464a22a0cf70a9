"""Pairs: how they are read, split, tokenized and batched, against plain Python over the same lists."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.cleaning.clean import clean
from data.cleaning.duplicate_pass import FingerprintJob, decide, fingerprints_of
from data.cleaning.identity import identity
from data.cleaning.units import Cleaning, store_removed
from data.config import DataConfig, StoreConfig
from data.errors import BadShardError, InputError, ShardChangedError
from data.feed.held_out import fixed_batches
from data.feed.spec import FeedSpec, micro_batches_of_rank
from data.order.packing import MicroBatch
from data.order.pairs import PairBatching, joined
from data.order.sample_order import UNKNOWN
from data.prepare import prepare_data
from data.prepared import Pins
from data.readers.documents import Document, is_held_out, read_documents
from data.shards.build import build_manifest
from data.shards.listing import check_unchanged
from data.shards.manifest import Manifest
from data.stores.local import LocalStore
from data.tokens.tokenizer import Tokenizer
from data.tokens.unit import TokenizeJob, load_or_tokenize, tokenize, unit_stream
from tests.data.feed.test_feeder import Feed
from tests.data.order.order_reference import reference_shuffle, sample_order

BYTES = Tokenizer("bytes", [bytes([value]) for value in range(256)])
UPPER = Tokenizer("chars", [chr(point).encode() for point in range(ord("A"), ord("Z") + 1)])
END = 256
PAIRS = [("one", "uno"), ("two", "dos"), ('say "three"', "tres"), ("four,5", "cuatro")]


def config(*sources: dict[str, Any], **fields: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": sources, "validation_fraction": 0} | fields)


def read_all(data: DataConfig) -> list[Document]:
    manifest = build_manifest(data.sources, StoreConfig())
    units = map(manifest.unit, range(manifest.num_units))
    return [
        document for unit in units for document in read_documents(unit, data.sources[unit.source], data, StoreConfig())
    ]


def pairs_of(documents: list[Document]) -> list[tuple[str | None, str]]:
    return [(document.input, document.text) for document in documents]


class TestReading:
    def test_columns_of_every_format(self, tmp_path: Path) -> None:
        columns = {"input_column": "en", "text_column": "es"}
        (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"es": text, "en": read}) for read, text in PAIRS))
        pq.write_table(
            pa.table({"x": [1] * 4, "en": [read for read, _ in PAIRS], "es": [text for _, text in PAIRS]}),
            tmp_path / "b.parquet",
            row_group_size=3,
        )
        (tmp_path / "c.csv").write_text('en,es\none,uno\ntwo,dos\n"say ""three""",tres\n"four,5",cuatro\n')
        (tmp_path / "d.tsv").write_text('one\tuno\tx\ntwo\tdos\tx\nsay "three"\ttres\tx\nfour,5\tcuatro\tx\n')
        for name, fields in {
            "a.jsonl": columns,
            "b.parquet": columns,
            "c.csv": columns,
            "d.tsv": {"input_column": "1", "text_column": "2", "header": False, "quotes": False},
        }.items():
            assert pairs_of(read_all(config({"path": str(tmp_path / name)} | fields))) == PAIRS, name

    def test_two_aligned_files_of_lines(self, tmp_path: Path) -> None:
        (tmp_path / "train.es").write_text("uno\n\ntres\n")
        with gzip.open(tmp_path / "train.en.gz", "wt") as file:
            file.write("one\ntwo\nthree\n")
        data = config({"path": f"{tmp_path}/train.es", "input_path": f"{tmp_path}/train.en.gz"})
        found = read_all(data)
        assert pairs_of(found) == [("one", "uno"), ("three", "tres")] and [each.index for each in found] == [0, 2]

    def test_aligned_files_of_many_shards_are_pinned_with_their_counterparts(self, tmp_path: Path) -> None:
        for side, words in {"en": "one two three", "es": "uno dos tres"}.items():
            (tmp_path / side).mkdir()
            for number, word in enumerate(words.split()):
                (tmp_path / side / f"{number}.txt").write_text(word)
        data = config(
            {"path": f"{tmp_path}/es", "input_path": f"{tmp_path}/en"},
            {"path": f"{tmp_path}/es/1.txt", "input_path": f"{tmp_path}/en/1.txt"},
        )
        manifest = Manifest.from_bytes(build_manifest(data.sources, StoreConfig()).to_bytes())
        assert (manifest.num_units, manifest.num_shards) == (4, 8)
        assert [Path(manifest.unit(n).input_path).relative_to(tmp_path).as_posix() for n in range(4)] == [
            "en/0.txt",
            "en/1.txt",
            "en/2.txt",
            "en/1.txt",
        ]
        assert pairs_of(read_all(data))[1:] == [("two", "dos"), ("three", "tres"), ("two", "dos")]
        assert check_unchanged(manifest, StoreConfig()) == 0
        (tmp_path / "en/2.txt").write_text("other")
        with pytest.raises(ShardChangedError, match=r"en/2\.txt is now 5 bytes"):
            check_unchanged(manifest, StoreConfig())
        with pytest.raises(ShardChangedError, match=r"en/2\.txt is now 5 bytes"):
            list(read_documents(manifest.unit(2), data.sources[0], data, StoreConfig()))

    def test_problems_name_the_field_to_correct(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "x", "sorce": "y"}')
        with pytest.raises(BadShardError, match=r"no key 'source'.*Nearest: 'sorce'.*Set input_column"):
            read_all(config({"path": f"{tmp_path}/a.jsonl", "input_column": "source"}))
        (tmp_path / "b.tsv").write_text("1\t2\n")
        with pytest.raises(BadShardError, match=r"the first row has no column '3'. There are: 1, 2"):
            read_all(config({"path": f"{tmp_path}/b.tsv", "text_column": "1", "input_column": "3", "header": False}))
        (tmp_path / "c.txt").write_text("a\nb\n")
        (tmp_path / "d.txt").write_text("a\n")
        with pytest.raises(BadShardError, match=r"d\.txt has fewer lines than .*c\.txt"):
            read_all(config({"path": f"{tmp_path}/c.txt", "input_path": f"{tmp_path}/d.txt"}))
        (tmp_path / "e").mkdir()
        with pytest.raises(InputError, match="nothing found under"):
            build_manifest(config({"path": f"{tmp_path}/c.txt", "input_path": f"{tmp_path}/e"}).sources, StoreConfig())
        pq.write_table(pa.table({"text": ["x"], "in": [1]}), tmp_path / "f.parquet")
        with pytest.raises(InputError, match=r"has int64 in column 'in', not strings. Set input_column"):
            build_manifest(config({"path": f"{tmp_path}/f.parquet", "input_column": "in"}).sources, StoreConfig())

    def test_contradictions_are_reported_together(self) -> None:
        with pytest.raises(ValidationError) as raised:
            config({"path": "a", "input_column": "x", "input_path": "y", "format": "csv"}, {"path": "b"})
        messages = str(raised.value)
        assert all(
            word in messages
            for word in ("both name the input", "goes with files of lines", "sources.1: its documents have no")
        )
        with pytest.raises(ValidationError, match="need sources of pairs"):
            config({"path": "a"}, input_len=5)


class TestSplit:
    def test_pairs_of_equal_inputs_stay_together(self, tmp_path: Path) -> None:
        rows = [{"input": f"in {n % 40}", "text": f"out {n}"} for n in range(200)]
        row = self._tokenized(tmp_path, rows, {"input_column": "input"})
        held_out = json.loads(row["validation_pairs"][0].as_py())
        expected = [[each["input"], each["text"]] for each in rows if is_held_out(each["input"], 0.3)]
        assert held_out == expected and 0 < len(expected) < 200

    def test_a_column_may_decide(self, tmp_path: Path) -> None:
        rows = [{"input": f"in {n}", "text": f"out {n}", "module": n % 30} for n in range(200)]
        row = self._tokenized(tmp_path, rows, {"input_column": "input", "split_column": "module"})
        held_out = json.loads(row["validation_pairs"][0].as_py())
        expected = [[each["input"], each["text"]] for each in rows if is_held_out(str(each["module"]), 0.3)]
        assert held_out == expected and 0 < len(expected) < 200

    def _tokenized(self, folder: Path, rows: list[dict[str, Any]], fields: dict[str, Any]) -> pa.Table:
        (folder / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        data = config({"path": f"{folder}/x.jsonl"} | fields, validation_fraction=0.3)
        manifest = build_manifest(data.sources, StoreConfig())
        return tokenize(manifest.unit(0), TokenizeJob(data, StoreConfig(), BYTES, LocalStore(str(folder / "cache"))))


class TestUnits:
    def test_a_pair_that_does_not_fit_is_excluded_and_counted(self, tmp_path: Path) -> None:
        pairs = [("ab", "cd"), ("abcd", "x"), ("a", "wxyz"), ("abc", "uvw")]
        row, job = self._row(tmp_path, pairs, seq_len=4, input_len=4)
        assert row["documents"][0].as_py() == 2 and row["too_long"][0].as_py() == 2
        stream = unit_stream(row, "train", job)
        assert bytes(stream.tokens.tolist()).decode() == "abcdabcuvw"
        assert stream.lengths is not None and stream.lengths.tolist() == [[2, 2], [3, 3]]

    def test_separate_vocabularies_and_the_cache(self, tmp_path: Path) -> None:
        row, job = self._row(tmp_path, [("AB", "ab"), ("C!", "c")], encoder_tokenizer=UPPER)
        stream = unit_stream(row, "train", job)
        assert stream.tokens.tolist() == [0, 1, *b"ab", 2, 26, *b"c"]
        manifest = build_manifest(job.data.sources, StoreConfig())
        assert load_or_tokenize(manifest.unit(0), job).equals(load_or_tokenize(manifest.unit(0), job))
        others = [
            TokenizeJob(job.data, StoreConfig(), BYTES, job.cache),
            TokenizeJob(job.data.model_copy(update={"seq_len": 9}), StoreConfig(), BYTES, job.cache, UPPER),
        ]
        assert len({each.cache_key(manifest.unit(0)) for each in (job, *others)}) == 3

    def _row(
        self, folder: Path, pairs: list[tuple[str, str]], encoder_tokenizer: Tokenizer | None = None, **fields: Any
    ) -> tuple[pa.Table, TokenizeJob]:
        (folder / "x.jsonl").write_text("\n".join(json.dumps({"input": read, "text": text}) for read, text in pairs))
        data = config({"path": f"{folder}/x.jsonl", "input_column": "input"}, **fields)
        job = TokenizeJob(data, StoreConfig(), BYTES, LocalStore(str(folder / "cache")), encoder_tokenizer)
        return tokenize(build_manifest(data.sources, StoreConfig()).unit(0), job), job


texts = st.lists(st.integers(0, 255), max_size=12)


def pair_batching(**fields: int) -> PairBatching:
    """A batching with one pair per step by default."""
    defaults = {
        "seed": 0,
        "micro_batch_size": 1,
        "micro_batches_per_step": 1,
        "steps_together": 1,
        "length_multiple": 8,
        "longest_input": 200,
        "longest_text": 200,
        "end_of_text": END,
        "input_end": END,
    }
    return PairBatching(**defaults | fields)


@settings(deadline=None, max_examples=60)
@given(
    units=st.lists(st.lists(st.tuples(texts, texts), min_size=1, max_size=9), min_size=1, max_size=4),
    micro=st.integers(1, 3),
    per_step=st.integers(1, 3),
    together=st.integers(1, 4),
    multiple=st.sampled_from([1, 4, 8]),
    seed=st.integers(0, 3),
)
def test_batches_are_those_of_a_plain_reference(
    units: list[list[tuple[list[int], list[int]]]], micro: int, per_step: int, together: int, multiple: int, seed: int
) -> None:
    batching = pair_batching(
        seed=seed,
        micro_batch_size=micro,
        micro_batches_per_step=per_step,
        steps_together=together,
        length_multiple=multiple,
        longest_input=13,
        longest_text=13,
        input_end=300,
    )
    streams = {
        number: joined([(np.array(read, np.uint16), np.array(text, np.uint16)) for read, text in unit], np.dtype("u2"))
        for number, unit in enumerate(units)
    }
    counts = np.array([batching.count(stream) for stream in streams.values()])
    assert counts.tolist() == [len(unit) for unit in units]
    order = sample_order(range(len(units)), seed=seed, shuffle_units=2)
    size = micro * per_step * together
    for block in range(3):
        samples = order.samples(block * size, size, counts)
        rows = [
            (units[unit][sequence], int(sample_id))
            for unit, sequence, sample_id in zip(samples.unit, samples.sequence, samples.ids(), strict=True)
        ]
        ordered = sorted(
            enumerate(rows), key=lambda row: (len(row[1][0][0]) + len(row[1][0][1]), len(row[1][0][1]), row[0])
        )[::-1]
        batches = [[row for _, row in ordered[start : start + micro]] for start in range(0, size, micro)]
        places = reference_shuffle(range(len(batches)), 3, seed, block)
        expected = [
            [batches[place] for place in sorted(places[start : start + per_step])]
            for start in range(0, len(batches), per_step)
        ]
        made = batching.steps(samples, streams, block * together)
        assert [[plain(batch) for batch in step] for step in made] == expected
        for batch in (batch for step in made for batch in step):
            assert batch.inputs is not None
            for width in (batch.tokens.shape[1] - 1, batch.inputs.shape[1]):
                assert width == 13 or width % multiple == 0, "a model of 13 tokens reads no more"


def plain(batch: MicroBatch) -> list[tuple[tuple[list[int], list[int]], int]]:
    """Pairs and ids of a micro-batch; checks its end-of-texts and padding."""
    assert batch.inputs is not None and batch.input_counts is not None
    found = []
    for row in range(len(batch.sample_ids)):
        read, text = batch.inputs[row].tolist(), batch.tokens[row].tolist()
        inputs, targets = int(batch.input_counts[row]), int(batch.target_counts[row])
        assert read[inputs - 1] == 300 and not any(read[inputs:])
        assert text[0] == text[targets] == END and not any(text[targets + 1 :])
        found.append(((read[: inputs - 1], text[1:targets]), int(batch.sample_ids[row])))
    return found


def test_batches_have_little_padding(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pairs = [(np.zeros(n, np.uint16), np.zeros(n, np.uint16)) for n in draw.integers(4, 100, 2048)]
    stream = joined(pairs, np.dtype(np.uint16))
    order = sample_order(range(1))

    def padded(together: int) -> float:
        batching = pair_batching(micro_batch_size=16, micro_batches_per_step=4, steps_together=together)
        samples = order.samples(0, 64 * 16, np.array([2048]))
        parts = [
            samples._replace(**{k: v[i : i + 64 * together] for k, v in samples._asdict().items()})
            for i in range(0, 1024, 64 * together)
        ]
        batches = [
            b for n, part in enumerate(parts) for s in batching.steps(part, {0: stream}, n * together) for b in s
        ]
        return 1 - sum(int(b.target_counts.sum()) for b in batches) / sum(b.tokens[:, 1:].size for b in batches)

    assert padded(16) < 0.08 < padded(1)


class TestPrepared:
    @pytest.mark.ray
    @pytest.mark.usefixtures("ray_cluster_small")
    @pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data")
    def test_a_feeder_makes_the_same_steps_for_any_ranks_and_first_step(self, tmp_path: Path) -> None:
        spec = self._spec(tmp_path, separate=True)
        whole = Feed(spec)
        steps = [self._step(whole, step, 1) for step in range(9)]
        assert [len(step) for step in steps] == [4] * 9
        ids = [row for step in steps for batch in step for row in batch.sample_ids.tolist()]
        assert len(set(ids)) == len(ids) == 72
        late = Feed(FeedSpec(**{**spec.__dict__, "first_step": 7}))
        for step, world_size in ((7, 3), (8, 2), (2, 4)):
            again = self._step(late, step, world_size)
            for one, other in zip(again, steps[step], strict=True):
                assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in one.__dict__)
        held_out = fixed_batches(spec, "validation")
        assert sum(len(batch.sample_ids) for batch in held_out) > 10

    @pytest.mark.ray
    @pytest.mark.usefixtures("ray_cluster_small")
    @pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data")
    def test_a_shared_vocabulary_is_learned_from_both_sides(self, tmp_path: Path) -> None:
        spec = self._spec(tmp_path, separate=False)
        assert spec.job.input_tokenizer is None
        assert {b"x", b"7", b"y"} <= set(spec.job.tokenizer.tokens)

    def _spec(self, folder: Path, *, separate: bool) -> FeedSpec:
        for shard in range(3):
            rows = [
                {"input": f"x {hashlib.sha1(bytes([n, shard])).hexdigest()[: n % 20]}", "text": "y" * (n % 17 + 1)}
                for n in range(50)
            ]
            (folder / f"{shard}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        chars = {"tokenizer": {"kind": "chars"}} | ({"input_tokenizer": {"kind": "chars"}} if separate else {})
        data = config(
            {"path": f"{folder}/*.jsonl", "input_column": "input"},
            validation_fraction=0.2,
            seq_len=32,
            bucket_steps=4,
            **chars,
        )
        messages: list[str] = []
        prepared = prepare_data(
            data,
            StoreConfig(),
            LocalStore(str(folder / "store")),
            Pins(),
            messages.append,
            lambda *_: None,
            lambda: None,
        )
        if separate:
            assert prepared.job.encoder_tokenizer.unknown and b"y" not in prepared.job.encoder_tokenizer.tokens
            assert any(line.startswith("input tokenizer: learned") for line in messages)
        known = prepared.known()
        assert known.counts.sum() > 72 and "pairs held out" in prepared.summary() and (known.counts != UNKNOWN).all()
        return FeedSpec(prepared.manifest, prepared.job, seed=1, global_batch_size=8, micro_batch_size=2, known=known)

    def _step(self, feed: Feed, step: int, world_size: int) -> list[MicroBatch]:
        shares = feed.call([feed.actor.share.remote(step, rank, world_size) for rank in range(world_size)])
        slots: dict[int, MicroBatch] = {}
        for rank, share in enumerate(shares):
            assert share.micro_steps == micro_batches_of_rank(4, rank, world_size)
            batches = [column[step - share.first_step] for column in feed.call(share.refs)]
            slots |= dict(zip(share.micro_steps, batches, strict=True))
        return [slots[slot] for slot in range(4)]


class TestCleaning:
    def test_steps_work_on_the_sides_they_are_for_and_take_the_whole_pair(self) -> None:
        steps = config(
            {"path": "a", "input_column": "b"},
            cleaning=[{"step": "lowercase", "on": "input"}, {"step": "length", "min_chars": 3, "on": "text"}],
        ).cleaning
        kept = clean("ABC", steps, input="DE")
        assert (kept.input, kept.text, kept.lengths) == ("de", "ABC", (5, 5, 5))
        assert clean("AB", steps, input="DEF").text is None
        assert clean("AB", steps).text is None and clean("ABC", steps).text == "ABC"

    def test_duplicates_are_equal_on_both_sides(self, tmp_path: Path) -> None:
        pairs = [("a", "x"), ("a", "y"), ("A", "x"), ("a", "x"), ("b", "x")]
        (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"input": read, "text": text}) for read, text in pairs))
        data = config(
            {"path": f"{tmp_path}/x.jsonl", "input_column": "input"},
            cleaning=[{"step": "lowercase"}, {"step": "dedup"}],
        )
        store = LocalStore(str(tmp_path / "store"))
        manifest = build_manifest(data.sources, StoreConfig())
        job = FingerprintJob(data, StoreConfig(), data.cleaning, identity(data.cleaning), store)
        removed, total = decide([fingerprints_of(manifest.unit(0), job)], data.cleaning)
        assert total == 5 and removed[0][1].tolist() == [2, 3]
        cleaning = Cleaning(data.cleaning, identity(data.cleaning), store_removed(store, removed), store)
        row = tokenize(manifest.unit(0), TokenizeJob(data, StoreConfig(), BYTES, store, cleaning=cleaning))
        assert bytes(row["train"][0].as_py())[::2].decode() == "axaybx"
        assert row["steps"][0].as_py()[1]["documents_removed"] == 2

    def test_a_side_needs_pairs(self) -> None:
        with pytest.raises(ValidationError, match=r"cleaning\.0: on = input needs sources of pairs"):
            config({"path": "a"}, cleaning=[{"step": "lowercase", "on": "input"}])


def test_a_pair_as_long_as_the_model_reads_is_not_padded_beyond_it() -> None:
    text, read = np.ones(49, np.uint16), np.ones(20, np.uint16)
    batching = pair_batching(longest_input=21, longest_text=50)
    samples = sample_order(range(1)).samples(0, 1, np.array([1]))
    ((batch,),) = batching.steps(samples, {0: joined([(read, text)], np.dtype(np.uint16))}, 0)
    assert batch.tokens.shape == (1, 51) and batch.inputs is not None and batch.inputs.shape == (1, 21)
    assert batch.target_counts.tolist() == [50] and batch.input_counts is not None
    assert batch.input_counts.tolist() == [21]
