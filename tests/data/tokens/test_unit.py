"""A unit's tokens and their cache: what the key depends on, the split of documents, and damaged entries."""

import gzip
import hashlib
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig, StoreConfig
from data.errors import BadShardError, ShardChangedError
from data.order.packing import token_stream
from data.readers.documents import is_held_out
from data.shards.build import build_manifest
from data.shards.manifest import Manifest, Unit
from data.shards.unit_rows import load_cached, serialize
from data.stores.local import LocalStore
from data.tokens.tokenizer import Tokenizer
from data.tokens.unit import SCHEMA, TokenizeJob, load_or_tokenize, stream_of, tokenize

BYTES = Tokenizer("bytes", [bytes([value]) for value in range(256)])
END_OF_TEXT = 256


class Corpus:
    """A folder of shards with one document per line, and a cache."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder / "shards", LocalStore(str(folder / "cache"))
        self.folder.mkdir()

    def write(self, name: str, lines: list[str]) -> None:
        (self.folder / name).write_text("".join(line + "\n" for line in lines))

    def job(self, tokenizer: Tokenizer = BYTES, store_config: StoreConfig | None = None, **data: object) -> TokenizeJob:
        source = {"path": str(self.folder), "document": "line"}
        config = DataConfig.model_validate({"sources": [source], "validation_fraction": 0.2} | data)
        return TokenizeJob(config, store_config or StoreConfig(), tokenizer, self.cache)

    def manifest(self, job: TokenizeJob) -> Manifest:
        return build_manifest(job.data.sources, StoreConfig())

    def only_unit(self, job: TokenizeJob) -> Unit:
        manifest = self.manifest(job)
        assert manifest.num_units == 1
        return manifest.unit(0)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


def lines_of(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [f"{number} " + "".join(draw.choices("abcdeß ", k=draw.randrange(1, 40))) for number in range(count)]


def documents_in(stream: np.ndarray) -> list[str]:
    """The texts of a stream of byte tokens."""
    if not len(stream):
        return []
    ends = np.flatnonzero(stream == END_OF_TEXT)
    return [stream[first + 1 : last].astype(np.uint8).tobytes().decode() for first, last in itertools.pairwise(ends)]


def split_of(table: pa.Table) -> tuple[list[str], list[str]]:
    train, validation = (documents_in(stream_of(table, name, BYTES.dtype)) for name in ("train", "validation"))
    return train, validation


SOURCE = {"path": "s3://bucket/prefix", "document": "line"}
UNIT = Unit(ordinal=3, shard=2, source=0, path="s3://bucket/x.txt", size=10, etag="e", unit_bytes=10, row_group=None)


def key(unit: Unit = UNIT, tokenizer: Tokenizer = BYTES, store: StoreConfig | None = None, **data: object) -> str:
    config = DataConfig.model_validate({"sources": [SOURCE]} | data)
    return TokenizeJob(config, store or StoreConfig(), tokenizer, LocalStore("/cache")).cache_key(unit)


def unit_with(**fields: object) -> Unit:
    return Unit(**{name: getattr(UNIT, name) for name in Unit.__slots__} | fields)


KEY_HANGS_ON: dict[str, Callable[[], str]] = {
    "path": lambda: key(unit_with(path="s3://bucket/y.txt")),
    "size": lambda: key(unit_with(size=11)),
    "etag": lambda: key(unit_with(etag="f")),
    "row group": lambda: key(unit_with(row_group=0)),
    "another row group": lambda: key(unit_with(row_group=1)),
    "format": lambda: key(sources=[SOURCE | {"format": "txt"}]),
    "text column": lambda: key(sources=[SOURCE | {"text_column": "body"}]),
    "document": lambda: key(sources=[SOURCE | {"document": "paragraph"}]),
    "invalid utf-8": lambda: key(invalid_utf8="replace"),
    "longest document": lambda: key(max_document_bytes=1000),
    "held-out share": lambda: key(validation_fraction=0.02),
    "tokenizer": lambda: key(tokenizer=Tokenizer("chars", [b"a"])),
}

KEY_IS_FREE_OF: dict[str, Callable[[], str]] = {
    "ordinal": lambda: key(unit_with(ordinal=9)),
    "shard's number": lambda: key(unit_with(shard=9)),
    "source's number": lambda: key(unit_with(source=1), sources=[SOURCE | {"document": "file"}, SOURCE]),
    "weight": lambda: key(sources=[SOURCE | {"weight": 5}]),
    "source's path": lambda: key(sources=[SOURCE | {"path": "s3://bucket/*.txt"}]),
    "sequence length": lambda: key(seq_len=64),
    "shuffle window": lambda: key(shuffle_units=2),
    "size of the held-out set": lambda: key(validation_sequences=5),
    "when it is prepared": lambda: key(prepare="streaming"),
    "what is done with bad shards": lambda: key(on_bad_shard="skip"),
    "how the tokenizer was made": lambda: key(tokenizer=Tokenizer.from_bytes(BYTES.to_bytes())),
    "credentials": lambda: key(store=StoreConfig(access_key_id="a", secret_access_key="b")),
}


@pytest.mark.parametrize("what", KEY_HANGS_ON)
def test_cache_key_changes_with(what: str) -> None:
    assert KEY_HANGS_ON[what]() != key()


def test_no_two_dependencies_share_a_key() -> None:
    assert len({make() for make in KEY_HANGS_ON.values()}) == len(KEY_HANGS_ON)


@pytest.mark.parametrize("what", KEY_IS_FREE_OF)
def test_cache_key_does_not_change_with(what: str) -> None:
    assert KEY_IS_FREE_OF[what]() == key()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(), max_size=30), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_larger_share_holds_out_what_a_smaller_one_does(texts: list[str], one: float, two: float) -> None:
    small, large = sorted((one, two))
    assert {text for text in texts if is_held_out(text, small)} <= {text for text in texts if is_held_out(text, large)}
    assert not any(is_held_out(text, 0.0) for text in texts)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_held_out_share_is_near_the_fraction(fraction: float) -> None:
    count = 20_000
    held_out = sum(is_held_out(f"document {number}", fraction) for number in range(count))
    deviation = (count * fraction * (1 - fraction)) ** 0.5
    assert abs(held_out - count * fraction) < 4 * deviation  # the hash is fixed, so the result is deterministic


def test_the_split_is_pinned_by_literals() -> None:
    assert [number for number in range(40) if is_held_out(f"document {number}", 0.2)] == GOLDEN_HELD_OUT


GOLDEN_HELD_OUT = [0, 3, 6, 16, 17, 18, 20, 24, 26, 34]


def test_train_and_held_out_are_disjoint_complete_and_in_order(corpus: Corpus) -> None:
    lines = lines_of(300)
    corpus.write("a.txt", lines)
    job = corpus.job()
    table = tokenize(corpus.only_unit(job), job)
    train, validation = split_of(table)
    assert train == [line for line in lines if line not in set(validation)]
    assert validation == [line for line in lines if line not in set(train)]
    assert 30 < len(validation) < 90
    row = table.to_pylist()[0]
    assert (row["documents"], row["validation_documents"]) == (len(train), len(validation))
    assert row["text_bytes"] == sum(len(text.encode()) for text in train)
    assert row["validation_bytes"] == sum(len(text.encode()) for text in validation)
    assert row["train_tokens"] == row["text_bytes"] + len(train) + 1
    assert row["validation_tokens"] == row["validation_bytes"] + len(validation) + 1
    assert row["problem"] is None


def test_adding_documents_and_shards_moves_no_document_across_the_split(corpus: Corpus) -> None:
    old, new = lines_of(120), lines_of(90, seed=1)
    corpus.write("b.txt", old)
    job = corpus.job()
    before = split_of(tokenize(corpus.only_unit(job), job))
    corpus.write("a.txt", new)
    corpus.write("b.txt", [*new[:7], *old, *new[7:9]])
    manifest = corpus.manifest(job)
    after = split_of(tokenize(manifest.unit(1), job))
    for part in (0, 1):
        assert [text for text in after[part] if text in set(old)] == before[part]
    other_shard = split_of(tokenize(manifest.unit(0), job))
    assert set(after[1]) & set(new) <= set(other_shard[1])


def test_cached_tokens_are_the_fresh_ones_and_read_no_shard(corpus: Corpus) -> None:
    corpus.write("a.txt", lines_of(50))
    job = corpus.job()
    unit = corpus.only_unit(job)
    assert load_cached(unit, job) is None
    fresh = load_or_tokenize(unit, job)
    (corpus.folder / "a.txt").unlink()
    cached = load_or_tokenize(unit, job)
    assert cached.equals(fresh) and cached.schema == fresh.schema
    for name in ("train", "validation"):
        assert stream_of(cached, name, BYTES.dtype).tolist() == stream_of(fresh, name, BYTES.dtype).tolist()


def test_another_run_over_the_same_shards_finds_them_cached(corpus: Corpus) -> None:
    corpus.write("a.txt", lines_of(20))
    job = corpus.job()
    load_or_tokenize(corpus.only_unit(job), job)
    other = corpus.job(seq_len=64, shuffle_units=3)
    assert load_cached(corpus.only_unit(other), other) is not None


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without_its_row(content: bytes) -> bytes:
    """Cut where Arrow reads a complete stream that ends before its first row."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA):
        pass
    mark_of_end = 8
    return content[: 32 + sink.getvalue().size - mark_of_end]


def with_a_bit_flipped(content: bytes) -> bytes:
    return content[:-60] + bytes([content[-60] ^ 1]) + content[-59:]


def as_version_0_2_0(content: bytes) -> bytes:
    return hashlib.sha256(content[32:]).digest() + content[32:]


def of_another_kind(_: bytes) -> bytes:
    return as_version_0_2_0(serialize(pa.table({"text": ["a sound file, with other columns"]}), ""))


@pytest.mark.parametrize(
    "damage", [cut_off, without_its_row, with_a_bit_flipped, of_another_kind, lambda _: b"", lambda _: b"not it"]
)
def test_a_damaged_cache_entry_is_replaced(corpus: Corpus, damage: Callable[[bytes], bytes]) -> None:
    corpus.write("a.txt", lines_of(30))
    job = corpus.job()
    unit = corpus.only_unit(job)
    fresh = load_or_tokenize(unit, job)
    intact = corpus.cache.get(job.cache_key(unit))
    corpus.cache.put(job.cache_key(unit), damage(intact))
    assert load_cached(unit, job) is None
    assert load_or_tokenize(unit, job).equals(fresh)
    assert corpus.cache.get(job.cache_key(unit)) == intact


def test_a_row_of_an_older_version_is_read_and_left_as_it_is(corpus: Corpus) -> None:
    corpus.write("a.txt", lines_of(30))
    job = corpus.job()
    unit = corpus.only_unit(job)
    fresh, key = load_or_tokenize(unit, job), job.cache_key(unit)
    older = as_version_0_2_0(corpus.cache.get(key))
    corpus.cache.put(key, older)
    assert load_cached(unit, job) == fresh == load_or_tokenize(unit, job)
    assert corpus.cache.get(key) == older


def test_no_damaged_bit_is_ever_read_as_tokens(corpus: Corpus) -> None:
    corpus.write("a.txt", lines_of(30))
    job = corpus.job()
    unit = corpus.only_unit(job)
    load_or_tokenize(unit, job)
    intact = corpus.cache.get(job.cache_key(unit))
    draw = random.Random(0)
    for _ in range(200):
        place, bit = draw.randrange(len(intact)), 1 << draw.randrange(8)
        corpus.cache.put(job.cache_key(unit), intact[:place] + bytes([intact[place] ^ bit]) + intact[place + 1 :])
        assert load_cached(unit, job) is None


def bad_gzip(folder: Path) -> None:
    (folder / "bad.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": "x" * 5000}).encode())[:40])


def not_json(folder: Path) -> None:
    (folder / "bad.jsonl").write_text('{"text": "first"}\nnot json\n')


def no_such_column(folder: Path) -> None:
    (folder / "bad.jsonl").write_text('{"body": "first"}\n')


def not_utf_8(folder: Path) -> None:
    (folder / "bad.txt").write_bytes(b"good line\n\xff\xfe\n")


@pytest.mark.parametrize("spoil", [bad_gzip, not_json, no_such_column, not_utf_8])
def test_a_bad_shard_is_a_row_with_a_problem_and_is_not_cached(corpus: Corpus, spoil: Callable[[Path], None]) -> None:
    spoil(corpus.folder)
    job = corpus.job()
    unit = corpus.only_unit(job)
    row = load_or_tokenize(unit, job).to_pylist()[0]
    assert str(corpus.folder / "bad.") in row["problem"]
    numbers = [name for name in row if name not in ("problem", "train", "validation", "invalid_utf8")]
    assert {row[name] for name in numbers} == {0}
    assert row["train"] == row["validation"] == b""
    assert list(corpus.cache.list()) == []


def test_replaced_utf8_is_counted_and_cached(corpus: Corpus) -> None:
    not_utf_8(corpus.folder)
    job = corpus.job(invalid_utf8="replace", validation_fraction=0)
    unit = corpus.only_unit(job)
    table = load_or_tokenize(unit, job)
    assert table["invalid_utf8"].to_pylist() == [2]
    assert split_of(table) == (["good line", "\ufffd\ufffd"], [])
    assert load_cached(unit, job).equals(table)


def test_a_shard_that_changed_is_no_bad_shard(corpus: Corpus) -> None:
    corpus.write("a.txt", ["one"])
    job = corpus.job()
    unit = corpus.only_unit(job)
    corpus.write("a.txt", ["something else"])
    with pytest.raises(ShardChangedError, match=r"a\.txt is now"):
        load_or_tokenize(unit, job)
    assert not issubclass(ShardChangedError, BadShardError)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_stream_is_a_view_of_a_sliced_tables_own_memory(dtype: type, first: int) -> None:
    streams = [np.arange(5 * row, 9 * row + 3, dtype=dtype) for row in range(3)]
    column = pa.array([stream.tobytes() for stream in streams], pa.large_binary())
    table = pa.table({"train": column}).slice(first, 1)
    stream = stream_of(table, "train", np.dtype(dtype))
    assert stream.dtype == dtype and stream.tolist() == streams[first].tolist()
    values = column.buffers()[2]
    assert values.address <= stream.ctypes.data < values.address + values.size


@pytest.mark.parametrize("rows", [[b""], [b"", b"\x01\x00"], [None]])
def test_an_empty_stream(rows: list[bytes | None]) -> None:
    table = pa.table({"train": pa.array(rows, pa.large_binary())}).slice(0, 1)
    assert stream_of(table, "train", np.dtype(np.uint16)).tolist() == []


def test_an_empty_shard_of_only_white_space_gives_empty_streams(corpus: Corpus) -> None:
    corpus.write("a.txt", ["", "   ", "\t"])
    job = corpus.job()
    table = load_or_tokenize(corpus.only_unit(job), job)
    assert split_of(table) == ([], [])
    assert table["train_tokens"].to_pylist() == [0] and table["problem"].to_pylist() == [None]


def test_wide_vocabularies_get_32_bits_and_narrow_ones_16(corpus: Corpus) -> None:
    corpus.write("a.txt", ["ab\U0001f600"])
    wide = Tokenizer("bpe", [bytes([value]) for value in range(256)] + [f"{n:06}".encode() for n in range(65_536)])
    assert (BYTES.dtype, wide.dtype) == (np.uint16, np.uint32)
    for tokenizer in (BYTES, wide):
        job = corpus.job(tokenizer, validation_fraction=0)
        row = load_or_tokenize(corpus.only_unit(job), job)
        text = np.frombuffer("ab\U0001f600".encode(), np.uint8).astype(tokenizer.dtype)
        expected = token_stream([text], tokenizer.end_of_text, tokenizer.dtype)
        assert stream_of(row, "train", tokenizer.dtype).tolist() == expected.tolist()
        assert len(row["train"][0].as_py()) == len(expected) * (2 if tokenizer is BYTES else 4)
