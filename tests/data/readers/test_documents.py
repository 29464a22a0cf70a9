"""Readers: documents are read unchanged, within bounded memory; bad shards and storage failures are distinguished."""

import csv
import gzip
import io
import json
import os
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig, SourceConfig, StoreConfig
from data.errors import BadShardError, MantaError, OutOfMemoryError, ShardChangedError, TransientStoreError
from data.readers import parquet, unpack
from data.readers.documents import Document, read_documents
from data.readers.reading import ReadReport
from data.shards.build import build_manifest
from data.shards.listing import stat_shard
from data.shards.manifest import Unit
from data.stores import shard_file
from data.stores.store import ATTEMPTS

STORE = StoreConfig()
NASTY = [
    "plain",
    'quo"ted',
    "two\nlines",
    "crlf\r\nand\rcr",
    "tab\there, comma",
    " spaced ",
    "漢字 🦈 é",
    "x" * 5000,
    "a\u2028b\x0bc\x1cd",
]
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def unit_of(path: Path, row_group: int | None = None) -> Unit:
    now = stat_shard(str(path), STORE)
    assert now is not None
    return Unit(
        ordinal=0,
        shard=0,
        source=0,
        path=now.path,
        size=now.size,
        etag=now.etag,
        unit_bytes=now.size,
        row_group=row_group,
    )


def read(
    path: Path, report: ReadReport | None = None, row_group: int | None = None, limit: int = 64_000_000, **options: Any
) -> list[Document]:
    invalid_utf8 = options.pop("invalid_utf8", "refuse")
    source = SourceConfig(path=str(path), **options)
    config = DataConfig(sources=(source,), max_document_bytes=limit, invalid_utf8=invalid_utf8)
    if path.suffix == ".parquet" and row_group is None:
        row_group = 0
    return list(read_documents(unit_of(path, row_group), source, config, STORE, report))


def texts(path: Path, **options: Any) -> list[str]:
    return [document.text for document in read(path, **options)]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def as_jsonl(values: list[Any], key: str = "text") -> bytes:
    return "".join(
        json.dumps({"id": i, key: value}, ensure_ascii=i % 2 == 0) + "\n" for i, value in enumerate(values)
    ).encode()


def as_csv(values: list[str], delimiter: str = ",") -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, delimiter=delimiter)
    writer.writerows([["id", "text", "more"], *([i, value, "x"] for i, value in enumerate(values))])
    return sink.getvalue().encode()


def two_columns_of_one_name() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), sink)
    return sink.getvalue()


def as_parquet(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


class TestRoundTrips:
    @pytest.mark.parametrize("packing", PACK)
    @pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv"])
    @pytest.mark.parametrize("chunk_bytes", [3, 1 << 20])
    def test_records(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, packing: str, chunk_bytes: int
    ) -> None:
        monkeypatch.setattr(unpack, "CHUNK_BYTES", chunk_bytes)
        content = as_jsonl(NASTY) if ending == ".jsonl" else as_csv(NASTY, "," if ending == ".csv" else "\t")
        path = written(tmp_path / f"shard{ending}{packing}", PACK[packing](content))
        report = ReadReport()
        assert texts(path, report=report) == NASTY
        assert report == ReadReport(documents=len(NASTY), bytes=sum(len(text.encode()) for text in NASTY))

    @pytest.mark.parametrize(
        "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
    )
    def test_parquet_gives_the_units_row_group_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: pa.DataType
    ) -> None:
        monkeypatch.setattr(parquet, "BATCH_BYTES", 1000)  # several batches a row group
        values = [*NASTY, *(f"row {i}" for i in range(91))]
        column = pa.array(values).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(values, kind)
        content = as_parquet({"id": range(100), "text": column}, row_group_size=40)
        path = written(tmp_path / "shard.parquet", content)
        assert [texts(path, row_group=i) for i in range(3)] == [values[:40], values[40:80], values[80:]]

    @pytest.mark.parametrize("packing", PACK)
    def test_txt(self, tmp_path: Path, packing: str) -> None:
        content = "\ufefffirst line\r\nsecond\n\n \t\nthird é\n\n\nlast"
        path = written(tmp_path / f"shard.txt{packing}", PACK[packing](content.encode()))
        assert texts(path) == [content[1:]]
        assert texts(path, document="line") == ["first line", "second", "third é", "last"]
        assert texts(path, document="paragraph") == ["first line\r\nsecond", "third é", "last"]

    @settings(max_examples=150, deadline=None)
    @given(lines=st.lists(st.text(alphabet="ab\r \né", max_size=5), max_size=12), chunk_bytes=st.integers(1, 9))
    def test_lines_do_not_depend_on_chunks(
        self, tmp_path_factory: pytest.TempPathFactory, lines: list[str], chunk_bytes: int
    ) -> None:
        content = "\n".join(lines)
        path = written(tmp_path_factory.getbasetemp() / "lines.txt", content.encode())
        whole, unpack.CHUNK_BYTES = unpack.CHUNK_BYTES, chunk_bytes
        try:
            found = texts(path, document="line")
        finally:
            unpack.CHUNK_BYTES = whole
        assert found == [line.rstrip("\r") for line in content.split("\n") if line.strip()]

    def test_members_and_frames_one_after_another(self, tmp_path: Path) -> None:
        for packing, pack in PACK.items():
            path = written(tmp_path / f"x.jsonl{packing}", pack(as_jsonl(["one"])) + pack(as_jsonl(["two"])))
            assert texts(path) == ["one", "two"]

    def test_empty_documents_are_skipped_and_keep_their_index(self, tmp_path: Path) -> None:
        report = ReadReport()
        path = written(tmp_path / "x.jsonl", as_jsonl(["a", "", None, " \n\u3000", "b"]) + b"\n\n")
        assert read(path, report=report) == [Document("a", 0), Document("b", 4)]
        assert report == ReadReport(documents=2, empty=3, bytes=2)
        path = written(tmp_path / "x.parquet", as_parquet({"text": ["a", None, "", "b"]}))
        assert read(path) == [Document("a", 0), Document("b", 3)]
        assert texts(written(tmp_path / "blank.txt", b"\n \n")) == []

    def test_another_column(self, tmp_path: Path) -> None:
        assert texts(written(tmp_path / "x.jsonl", as_jsonl(["a"], "body")), text_column="body") == ["a"]
        assert texts(written(tmp_path / "x.parquet", as_parquet({"body": ["a"]})), text_column="body") == ["a"]

    def test_csv_with_a_header_and_blank_lines_only(self, tmp_path: Path) -> None:
        assert texts(written(tmp_path / "x.csv", b"\xef\xbb\xbftext\r\n\r\n")) == []


class TestBadShards:
    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            (
                "a.jsonl",
                b'{"text": "a"}\n{"text": "b"\n',
                r"a\.jsonl, line 2: not JSON \(.*column.*'{\"text\": \"b\"'.*one JSON",
            ),
            ("a.jsonl", b'{"text": "a"}\nnull\n', r"line 2: not a JSON object: None.*one JSON object a line"),
            (
                "a.jsonl",
                b'{"txt": "a", "n": 1}\n',
                r"line 1: no key 'text'\. There are: txt, n\. Nearest: 'txt'\. Set text_col",
            ),
            ("a.jsonl", b'{"text": ["a"]}\n', r"line 1: 'text' is \['a'\], not a string\. Set text_column"),
            ("a.jsonl", b'{"text": 17}\n', r"line 1: 'text' is 17, not a string"),
            ("a.jsonl", b'{"text": ' + b"[" * 200_000 + b"\n", r"line 1: not JSON"),
            (
                "a.jsonl",
                b'{"text": "a"}\n{"text": "\xff"}\n',
                r"line 2: invalid UTF-8 at byte offset 24: b'\\xff.*invalid_utf8: repl",
            ),
            ("a.jsonl", b'{"text": "ab\\ud83e"}\n', r"line 1: invalid Unicode at character 2: '\\ud83e' is half"),
            ("a.txt", b"\xef\xbb\xbfab\ncd\xe9f\n", r"a\.txt, .*invalid UTF-8 at byte offset 8: b'\\xe9f"),
            (
                "a.jsonl",
                b'{"text": "a", "n": 1, "n": 2}\n{"te\\u0078t": "a", "text": "b"}',
                r"line 2: the key 'text' is there twice",
            ),
            ("a.csv", b"id,text,text\n1,a,b\n", r"line 1: the header has the column 'text' twice\. Rename"),
            ("a.txt", "text\n".encode("utf-16-le"), r"a\.txt: text in UTF-16\. Write the shard again as UTF-8"),
            ("a.txt", "text\n".encode("utf-16-be"), r"a\.txt: text in UTF-16"),
            ("a.jsonl", b"\xff\xfe" + as_jsonl(["a"]).decode().encode("utf-16-le"), r"a\.jsonl: text in UTF-16"),
            ("a.csv", b"id,body\n1,a\n", r"line 1: the header has no column 'text'\. There are: id, body\."),
            ("a.csv", b"", r"line 1: the header has no column 'text'\. There are: none\."),
            (
                "a.csv",
                b'text,n\nab,1\n"c\nd",2\na,b,c\n',
                r"line 5: 3 fields where the header has 2: \['a', 'b', 'c'\]\. Quote",
            ),
            (
                "a.csv",
                b'text,n\nab,1\n"cd,2\nef,3\n',
                r"line 3: not a well-formed row \(unexpected end of data\)\. Close every",
            ),
            ("a.tsv", b'text\tn\n"a" b\t1\n', r"line 2: not a well-formed row .*Close every quote"),
            (
                "a.txt.gz",
                gzip.compress(os.urandom(5000))[:-100],
                r"a\.txt\.gz: truncated or damaged gzip .*Upload the shard again",
            ),
            ("a.txt.zst", zstandard.compress(os.urandom(5000))[:-100], r"truncated or damaged zstd"),
            ("a.txt.gz", b"no gzip at all", r"truncated or damaged gzip"),
            ("a.parquet", as_parquet({"text": ["a"]})[:-20], r"a\.parquet is truncated or no Parquet"),
            (
                "a.parquet",
                as_parquet({"id": [1], "texts": ["a"]}),
                r"has no column 'text'\. There are: id, texts\. Nearest: 'texts'",
            ),
            ("a.parquet", two_columns_of_one_name(), r"has 2 columns 'text', and it is not known which is meant"),
            (
                "a.parquet",
                as_parquet({"été": ["a"], "text": ["b"]}).replace("été".encode(), b"\xff" * 5),
                r"a\.parquet is truncated or no Parquet",
            ),
            ("a.parquet", as_parquet({"text": [1]}), r"has int64 in column 'text', not strings"),
        ],
    )
    def test_the_message_has_location_problem_and_remedy(
        self, tmp_path: Path, name: str, content: bytes, words: str
    ) -> None:
        with pytest.raises(BadShardError, match=words) as raised:
            read(written(tmp_path / name, content), document="line")
        assert str(tmp_path / name) in str(raised.value) and len(str(raised.value)) < 600

    def test_a_damaged_parquet_page(self, tmp_path: Path) -> None:
        content = bytearray(as_parquet({"text": [f"row {i} " * 9 for i in range(5000)]}, row_group_size=2500))
        content[9_000:9_400] = os.urandom(400)
        path = written(tmp_path / "a.parquet", bytes(content))
        with pytest.raises(BadShardError, match=r"a\.parquet, row group 0, after row \d+: (truncated|invalid)"):
            read(path, row_group=0)
        assert len(read(path, row_group=1)) == 2500

    def test_page_checksums_are_verified_where_there_are_any(self, tmp_path: Path) -> None:
        sink = io.BytesIO()
        table = pa.table({"text": [f"some text {i}" for i in range(300)]})
        pq.write_table(table, sink, compression="none", use_dictionary=False, write_page_checksum=True)
        content, sound = sink.getvalue(), [f"some text {i}" for i in range(300)]
        draw = random.Random(3)
        for place in draw.sample(range(200, 4000), 20):  # those of the page, after its header
            damaged = bytearray(content)
            damaged[place] ^= 1 << draw.randrange(8)
            with pytest.raises(BadShardError, match=r"damaged Parquet"):
                texts(written(tmp_path / "a.parquet", bytes(damaged)))
        assert texts(written(tmp_path / "a.parquet", content)) == sound

    @pytest.mark.parametrize(("size", "error"), [(1 << 20, OutOfMemoryError), (1 << 35, BadShardError)])
    def test_a_node_with_little_memory_leaves_out_no_sound_shard(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, error: type[MantaError]
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise pa.ArrowMemoryError(f"malloc of size {size} failed")

        path = written(tmp_path / "a.parquet", as_parquet({"text": ["a"]}))
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
        with pytest.raises(error, match=r"a\.parquet, row group 0, after row 0: .*smaller row groups") as raised:
            read(path)
        assert type(raised.value) is error

    def test_invalid_utf8_in_parquet(self, tmp_path: Path) -> None:
        values = pa.StringArray.from_buffers(2, pa.array([0, 2, 5], pa.int32()).buffers()[1], pa.py_buffer(b"okab\xff"))
        path = written(tmp_path / "a.parquet", as_parquet({"text": values}))
        with pytest.raises(BadShardError, match=r"row group 0, row 1: invalid UTF-8 at byte 2 of the value: b'\\xff'"):
            read(path)
        assert texts(path, invalid_utf8="replace") == ["ok", "ab\ufffd"]

    @pytest.mark.parametrize(
        ("name", "content", "expected", "count"),
        [
            ("a.txt", b"a\xffb\xfe \xef\xbf\xbd", "a\ufffdb\ufffd \ufffd", 2),
            ("a.jsonl", b'{"text": "a\xff", "n": 1}\n', "a\ufffd", 1),
            ("a.jsonl", b'{"text": "a\\ud800b"}\n', "a\ufffdb", 1),
            ("a.jsonl", b'{"text": "\\ud83e\\udd88"}\n', "🦈", 0),
            ("a.csv", b"text\na\xff\n", "a\ufffd", 1),
        ],
    )
    def test_replaced_characters_are_counted(
        self, tmp_path: Path, name: str, content: bytes, expected: str, count: int
    ) -> None:
        report = ReadReport()
        assert texts(written(tmp_path / name, content), report=report, invalid_utf8="replace") == [expected]
        assert (report.invalid_utf8, report.bytes) == (count, len(expected.encode()))


class TestTooLong:
    @pytest.mark.parametrize(
        ("name", "make", "options"),
        [
            ("a.txt", lambda text: text.encode(), {}),
            ("a.txt", lambda text: f"{text}\r\nshort".encode(), {"document": "line"}),
            ("a.txt", lambda text: f"{text[:50]}\n{text[51:]}\n\nshort".encode(), {"document": "paragraph"}),
            ("a.jsonl", lambda text: as_jsonl([text]), {}),
            ("a.csv", lambda text: as_csv([text]), {}),
            ("a.parquet", lambda text: as_parquet({"text": [text]}), {}),
        ],
    )
    def test_the_limit_is_exact(
        self, tmp_path: Path, name: str, make: Callable[[str], bytes], options: dict[str, str]
    ) -> None:
        path = written(tmp_path / name, make("x" * 100))
        assert len(texts(path, limit=100, **options)[0]) == 100
        with pytest.raises(BadShardError, match=r"a\.\w+.*more than data\.max_document_bytes=99 bytes\. \w+"):
            texts(path, limit=99, **options)

    def test_escapes_do_not_count(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.jsonl", b'{"text": "' + b"\\u0041" * 20_000 + b'"}\n')
        assert texts(path, limit=20_000) == ["A" * 20_000]

    @pytest.mark.parametrize(
        ("name", "start", "words", "options"),
        [
            ("a.txt.gz", b"", "Set document: line or paragraph", {}),
            ("a.txt.gz", b"", "line 1: a document of more", {"document": "line"}),
            ("a.jsonl.gz", b'{"text": "', "one JSON object a line", {}),
            ("a.csv.gz", b'text\n"', "quote that is never closed", {}),
        ],
    )
    def test_a_document_above_the_limit_is_refused_within_bounded_memory(
        self, tmp_path: Path, name: str, start: bytes, words: str, options: dict[str, str]
    ) -> None:
        piece = b"y" * 99_999 + (b"\n" if "csv" in name else b"y")
        path = written(tmp_path / name, gzip.compress(start + piece * 640, 1))  # 64 MB
        tracemalloc.start()
        try:
            with pytest.raises(BadShardError, match=words):
                read(path, limit=100_000, **options)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 16 << 20

    def test_a_quote_that_is_never_closed_takes_the_memory_of_one_document(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.csv", b'text\n"' + (b"y" * 999 + b"\n") * 32_000)  # 32 MB
        tracemalloc.start()
        try:
            with pytest.raises(BadShardError, match="quote that is never closed"):
                read(path, limit=2_000_000)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 30 << 20  # four bytes a character, and as much again while they are copied

    def test_reading_a_long_shard_takes_little_memory(self, tmp_path: Path) -> None:
        line = json.dumps({"text": "word " * 2000}).encode() + b"\n"
        path = written(tmp_path / "a.jsonl.gz", gzip.compress(line * 4000, 1))  # 40 MB
        source = SourceConfig(path=str(path))
        config = DataConfig(sources=(source,))
        tracemalloc.start()
        try:
            count = sum(1 for _ in read_documents(unit_of(path), source, config, STORE))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert count == 4000 and peak < 16 << 20


class TestPinning:
    def test_a_changed_shard_is_refused_before_it_is_read(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.txt", b"old text")
        unit, source = unit_of(path), SourceConfig(path=str(path))
        config = DataConfig(sources=(source,))
        os.utime(path, ns=(1, 1))
        now = unit_of(path)
        with pytest.raises(
            ShardChangedError, match=f"a.txt is now 8 bytes, etag {now.etag}.* etag {unit.etag}.*Restore"
        ):
            next(read_documents(unit, source, config, STORE))
        path.unlink()
        with pytest.raises(ShardChangedError, match=r"a\.txt is missing\. Restore the shard, or start a new run"):
            next(read_documents(unit, source, config, STORE))

    def test_a_shard_changed_while_it_is_read(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.txt", b"one\ntwo\n")
        source = SourceConfig(path=str(path), document="line")
        documents = read_documents(unit_of(path), source, DataConfig(sources=(source,)), STORE)
        assert next(documents).text == "one"
        written(path, b"other")
        with pytest.raises(ShardChangedError, match="is now 5 bytes"):
            list(documents)


class FailingStorage:
    """A file system whose reads fail from an offset on."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.opened = 0

    def open_input_file(self, path: str) -> "FailingStorage":
        self.opened += 1
        self.content = Path(path).read_bytes()
        return self

    def size(self) -> int:
        return len(self.content)

    def read_at(self, size: int, offset: int) -> bytes:
        if offset + size > self.offset:
            raise OSError("AWS Error NETWORK_CONNECTION: curlCode: 56")
        return self.content[offset : offset + size]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("offset", [0, 3000])
@pytest.mark.parametrize("ending", [".txt", ".jsonl.gz", ".jsonl.zst", ".csv", ".parquet"])
def test_a_storage_failure_is_not_a_bad_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, offset: int
) -> None:
    values = [os.urandom(50).hex() for _ in range(100)]
    content = {
        ".txt": "\n".join(values).encode(),
        ".jsonl.gz": gzip.compress(as_jsonl(values)),
        ".jsonl.zst": zstandard.compress(as_jsonl(values)),
        ".csv": as_csv(values),
        ".parquet": as_parquet({"text": values}),
    }[ending]
    path = written(tmp_path / f"a{ending}", content)
    assert texts(path)
    storage = FailingStorage(offset)
    monkeypatch.setattr(shard_file, "filesystem_for", lambda url, config: (storage, url))
    monkeypatch.setattr(shard_file.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(unpack, "FETCH_BYTES", 1000)
    with pytest.raises(MantaError) as raised:
        read(path)
    assert type(raised.value) is TransientStoreError
    assert f"Could not read {path} in 3 attempts" in str(raised.value)
    assert storage.opened == ATTEMPTS


SKIPPED = struct.pack("<II", 0x184D2A50, 5) + b"index"
"""A frame of zstd without content, as pzstd and seekable files have them."""


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        pytest.param("a.txt.zst", lambda text: SKIPPED + zstandard.compress(text), id="skipped first"),
        pytest.param("a.txt.zst", lambda text: zstandard.compress(text) + SKIPPED, id="skipped last"),
        pytest.param(
            "a.txt.zst",
            lambda text: SKIPPED.join(
                zstandard.compress(text[at : at + 100_000]) for at in range(0, len(text), 100_000)
            ),
            id="frames",
        ),
        pytest.param("a.txt.zst", lambda text: looking_back(text), id="long"),
        pytest.param("a.txt.gz", lambda text: gzip.compress(text) + bytes(512), id="padded"),
        pytest.param("a.txt.gz", lambda text: gzip.compress(text[:9]) + gzip.compress(text[9:]), id="members"),
    ],
)
def test_what_tools_write_is_read(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    text = b"".join(b"line %d of a long text\n" % number for number in range(30_000))
    path = written(tmp_path / name, pack(text))
    assert build_manifest([SourceConfig(path=str(path))], STORE).num_units == 1
    assert "".join(texts(path, document="line")).replace("\n", "") == text.decode().replace("\n", "")


def looking_back(text: bytes) -> bytes:
    """As `zstd --long=31` writes it; in pieces, as the size of the whole would limit the window."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return b"".join([compressor.compress(text[:1000]), compressor.compress(text[1000:]), compressor.flush()])
