"""Shards to documents: one unit in, its texts out, in the order they stand in the shard.

Memory is bounded by a few buffers and `max_document_bytes`, whatever the size of the shard. A shard that is not the
pinned version is refused before it is read, and again after, in case it was replaced meanwhile. Whose fault a failure
is decides its class: the shard's (BadShardError), or the storage's, which may pass (TransientStoreError).
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from data.config import DataConfig, SourceConfig, StoreConfig
from data.errors import BadShardError, ObjectNotFoundError, ShardChangedError
from data.manifest import (
    FoundShard,
    Unit,
    change_of,
    near_names,
    open_parquet,
    shard_format,
    stat_shard,
    text_column_problem,
)
from data.shard_file import ShardFile

FETCH_BYTES = 4 << 20  # one request to the storage
CHUNK_BYTES = 1 << 20  # one step of decompression and line splitting
BATCH_BYTES = 8 << 20  # text of Parquet rows held at once, by the row group's average
BATCH_ROWS = 512  # and the most rows, as a long text that is repeated is stored once and so looks short
SHORTENED = 60  # characters of a bad value that a message shows

_SPLIT = "Split it, or raise the limit."
_UTF8_REMEDY = "Write the shard again as UTF-8, or set data.invalid_utf8: replace, which counts what it replaces."
_BOM = b"\xef\xbb\xbf"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Document:
    """One raw text. `index` is its place in the unit, from 0, counting the empty ones that are skipped."""

    text: str
    index: int


@dataclass
class ReadReport:
    """What came out of the units read with it, as a running sum."""

    documents: int = 0
    empty: int = 0  # skipped: nothing but white space, or null
    bytes: int = 0  # of the documents' text, as UTF-8
    invalid_utf8: int = 0  # replacements made


def read_documents(
    unit: Unit, source: SourceConfig, config: DataConfig, store: StoreConfig, report: ReadReport | None = None
) -> Iterator[Document]:
    """The documents of a unit, in order. Null and nothing but white space are skipped; their index is not reused.

    Args:
        unit: what to read, as the manifest pinned it.
        source: the format and where the text is.
        config: limits and how to treat invalid UTF-8.
        store: how to reach the shard.
        report: filled while the documents are taken.

    Raises:
        ShardChangedError: the shard is missing or not the pinned version.
        BadShardError: truncated or damaged, no such column, not text, or a document above `max_document_bytes`.
        TransientStoreError: the storage failed through the bounded attempts.
    """
    reading = _Reading(unit.path, config, ReadReport() if report is None else report)
    pinned = FoundShard(unit.path, unit.size, unit.etag)
    _check_pinned(pinned, store)
    try:
        with ShardFile(unit.path, store) as file:
            for index, (place, data) in enumerate(_raw_documents(file, unit, source, reading)):
                text = reading.document(data, place)
                if text:
                    yield Document(text, index)
    except ObjectNotFoundError:
        raise ShardChangedError(f"{unit.path} was removed while it was read. Restore it, or start a new run.") from None
    except BadShardError:
        _check_pinned(pinned, store)  # replaced while being read is the better explanation where it is true
        raise
    _check_pinned(pinned, store)


def _check_pinned(pinned: FoundShard, store: StoreConfig) -> None:
    change = change_of(pinned, stat_shard(pinned.path, store))
    if change:
        raise ShardChangedError(f"{change}. Restore the shard, or start a new run to train on what is there now.")


class _Place(NamedTuple):
    """Where a piece of text stands, for messages. `offset`: of its first byte in the unpacked shard, if known."""

    name: str
    offset: int | None = None


_Raw = tuple[_Place, bytes | str | None]


@dataclass(frozen=True, slots=True)
class _Reading:
    """What every reader needs to judge text and to say where it is bad."""

    path: str
    config: DataConfig
    report: ReadReport

    @property
    def limit(self) -> int:
        return self.config.max_document_bytes

    @property
    def record_limit(self) -> int:
        """The longest line or row, in bytes, that may hold a document: all of it \\u-escaped, and other fields."""
        return 6 * self.limit + 65536

    def bad(self, place: _Place | None, what: str) -> BadShardError:
        """The error for `what`, which ends in a remedy."""
        return BadShardError(f"{self.path}, {place.name}: {what}" if place else f"{self.path}: {what}")

    def too_long(self, place: _Place | None, remedy: str) -> BadShardError:
        return self.bad(place, f"a document of more than data.max_document_bytes={self.limit:,} bytes. {remedy}")

    def document(self, data: bytes | str | None, place: _Place) -> str:
        """The document's text, or "" where there is nothing in it; counted in the report."""
        text = "" if data is None else self.text(data, place)
        if not text or text.isspace():
            self.report.empty += 1
            return ""
        size = len(text.encode())
        if size > self.limit:
            raise self.too_long(place, _SPLIT)
        self.report.documents += 1
        self.report.bytes += size
        return text

    def text(self, data: bytes | str, place: _Place) -> str:
        """`data` as text that UTF-8 can hold; what has to be replaced is refused or counted, as the config says."""
        try:
            if isinstance(data, bytes):
                return data.decode()
            data.encode()
            return data
        except UnicodeError as error:
            if self.config.invalid_utf8 == "refuse":
                raise self.bad(place, f"{_invalid(error, place)}. {_UTF8_REMEDY}") from None
        if isinstance(data, bytes):
            text, there = data.decode(errors="replace"), data.count(_REPLACEMENT.encode())
        else:
            text, there = data.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), data.count(_REPLACEMENT)
        self.report.invalid_utf8 += text.count(_REPLACEMENT) - there
        return text


def _invalid(error: UnicodeError, place: _Place) -> str:
    if isinstance(error, UnicodeDecodeError):
        at = f"byte {error.start} of the value" if place.offset is None else f"byte offset {place.offset + error.start}"
        return f"invalid UTF-8 at {at}: {error.object[error.start : error.start + 8]!r}"
    assert isinstance(error, UnicodeEncodeError)
    # JSON can spell half of a surrogate pair ("\\ud800"), which UTF-8 cannot hold.
    return f"invalid Unicode at character {error.start}: {error.object[error.start]!a} is half of a surrogate pair"


def _shortened(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= SHORTENED else f"{shown[:SHORTENED]}…"


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _raw_documents(file: ShardFile, unit: Unit, source: SourceConfig, reading: _Reading) -> Iterator[_Raw]:
    form, compression = shard_format(unit.path, source.format)
    if form == "parquet":
        return _parquet_values(file, unit, source.text_column, reading)
    stream = _Unpacked(file, compression, reading)
    if form == "txt":
        return _TXT[source.document](stream, reading)
    if form == "jsonl":
        return _json_values(stream, source.text_column, reading)
    return _csv_values(stream, source.text_column, "," if form == "csv" else "\t", reading)


class _Unpacked:
    """A shard's bytes after decompression, without a byte order mark, in chunks and lines."""

    def __init__(self, file: ShardFile, compression: str | None, reading: _Reading) -> None:
        self._compression = compression
        self._reading = reading
        self._stream: Any = io.BufferedReader(file, FETCH_BYTES)
        if compression:
            import pyarrow as pa

            # Unlike zstandard's reader it notices a stream that ends too early. It unpacks no more than is asked for.
            self._stream = pa.CompressedInputStream(self._stream, compression)
        self.position = 0  # unpacked bytes read so far

    def chunk(self) -> bytes:
        """The next bytes; none at the end. Raises BadShardError where they cannot be unpacked."""
        try:
            data: bytes = self._stream.read(CHUNK_BYTES)
        except OSError as error:  # not the storage: ShardFile has turned its failures into our own
            what = f"truncated or damaged {self._compression} ({_reason(error)})"
            raise self._reading.bad(None, f"{what}. Upload the shard again from a sound copy.") from error
        first, self.position = self.position == 0, self.position + len(data)
        return data.removeprefix(_BOM) if first else data

    def lines(self, limit: int, remedy: str) -> Iterator[tuple[_Place, bytes]]:
        """Each line with its end, if it has one.

        Raises:
            BadShardError: a line longer than `limit` bytes, before the rest of it is read; `remedy` says what to do.
        """
        number, size = 1, 0
        parts: list[bytes] = []  # of a line that goes on in the next chunk
        while chunk := self.chunk():
            offset = self.position - len(chunk) - size
            for line in _split_at_newline(chunk):
                parts.append(line)
                size += len(line)
                if size > limit + 2:  # the line's own end does not count
                    raise self._reading.too_long(_Place(f"line {number}"), remedy)
                if line.endswith(b"\n"):
                    yield _Place(f"line {number}", offset), b"".join(parts)
                    number, offset, size, parts = number + 1, offset + size, 0, []
        if parts:
            yield _Place(f"line {number}", self.position - size), b"".join(parts)


def _split_at_newline(chunk: bytes) -> list[bytes]:
    if b"\r" not in chunk:
        return chunk.splitlines(keepends=True)
    # `splitlines` would also end a line at a lone carriage return.
    *lines, rest = chunk.split(b"\n")
    return [line + b"\n" for line in lines] + ([rest] if rest else [])


def _whole_file(stream: _Unpacked, reading: _Reading) -> Iterator[_Raw]:
    chunks, size = [], 0
    while chunk := stream.chunk():
        chunks.append(chunk)
        size += len(chunk)
        if size > reading.limit:
            raise reading.too_long(None, "Set document: line or paragraph for this source, or raise the limit.")
    yield _Place("the whole file", stream.position - size), b"".join(chunks)


def _paragraphs(stream: _Unpacked, reading: _Reading) -> Iterator[_Raw]:
    remedy = "Blank lines separate paragraphs here. Set document: line for this source, or raise the limit."
    first, size = _Place(""), 0
    parts: list[bytes] = []
    for place, line in stream.lines(reading.limit, remedy):
        if line.strip():
            first = first if parts else place
            parts.append(line)
            size += len(line)
            if size > reading.limit + 2:
                raise reading.too_long(first, remedy)
        elif parts:
            yield first, b"".join(parts).rstrip(b"\r\n")
            parts, size = [], 0
    if parts:
        yield first, b"".join(parts).rstrip(b"\r\n")


def _text_lines(stream: _Unpacked, reading: _Reading) -> Iterator[_Raw]:
    for place, line in stream.lines(reading.limit, _SPLIT):
        yield place, line.rstrip(b"\r\n")


_TXT = {"file": _whole_file, "paragraph": _paragraphs, "line": _text_lines}


def _json_values(stream: _Unpacked, key: str, reading: _Reading) -> Iterator[_Raw]:
    for place, line in stream.lines(reading.record_limit, f"{_SPLIT} Is it one JSON object a line?"):
        if not line.strip():
            continue
        record = _json_object(reading.text(line, place), place, reading)
        if key not in record:
            raise reading.bad(place, f"no key '{key}'. {near_names(key, record)} Set text_column.")
        value = record[key]
        if value is not None and not isinstance(value, str):
            remedy = "Set text_column to the key that holds the text."
            raise reading.bad(place, f"'{key}' is {_shortened(value)}, not a string. {remedy}")
        yield place, value


def _json_object(text: str, place: _Place, reading: _Reading) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else _reason(error)
        shown = _shortened(text.strip())
        raise reading.bad(place, f"not JSON ({reason}): {shown}. Write one JSON object a line.") from None
    if not isinstance(record, dict):
        raise reading.bad(place, f"not a JSON object: {_shortened(record)}. Write one JSON object a line.")
    return record


class _CsvLines:
    """Lines as text for `csv`, which joins them into rows; an open quote must not make it join the whole shard."""

    def __init__(self, stream: _Unpacked, reading: _Reading) -> None:
        self._lines = stream.lines(reading.record_limit, _SPLIT)
        self._reading = reading
        self.row = _Place("line 1")  # where the row that is being put together begins
        self.row_bytes = 0

    def __iter__(self) -> Iterator[str]:
        for place, line in self._lines:
            if self.row_bytes == 0:
                self.row = place
            self.row_bytes += len(line)
            if self.row_bytes > self._reading.record_limit:
                raise self._reading.too_long(self.row, f"{_SPLIT} A quote that is never closed looks the same.")
            yield self._reading.text(line, place)


def _csv_values(stream: _Unpacked, column: str, delimiter: str, reading: _Reading) -> Iterator[_Raw]:
    csv.field_size_limit(sys.maxsize)  # the 128 KiB of the standard library are too few; _CsvLines has the limit
    lines = _CsvLines(stream, reading)
    rows = _csv_rows(csv.reader(lines, delimiter=delimiter, strict=True), lines, reading)
    place, header = next(rows, (_Place("line 1"), []))
    if column not in header:
        raise reading.bad(place, f"the header has no column '{column}'. {near_names(column, header)} Set text_column.")
    at = header.index(column)
    for place, row in rows:
        if len(row) != len(header):
            found = f"{len(row)} fields where the header has {len(header)}: {_shortened(row)}"
            raise reading.bad(place, f"{found}. Quote fields that hold the delimiter, a quote or a line break.")
        yield place, row[at]


def _csv_rows(rows: Iterable[list[str]], lines: _CsvLines, reading: _Reading) -> Iterator[tuple[_Place, list[str]]]:
    try:
        for row in rows:
            lines.row_bytes = 0
            if row:  # else a blank line
                yield lines.row, row
    except csv.Error as error:
        remedy = "Close every quote, quote fields that hold one, and double it inside."
        raise reading.bad(lines.row, f"not a well-formed row ({_reason(error)}). {remedy}") from None


def _parquet_values(file: ShardFile, unit: Unit, column: str, reading: _Reading) -> Iterator[_Raw]:
    import pyarrow as pa

    assert unit.row_group is not None
    parquet = open_parquet(file)
    if problem := text_column_problem(parquet.schema_arrow, column):
        raise reading.bad(None, f"it {problem}.")
    group = parquet.metadata.row_group(unit.row_group)
    columns = [group.column(i) for i in range(group.num_columns)]
    stored = sum(each.total_uncompressed_size for each in columns if each.path_in_schema == column)
    wanted = {
        "batch_size": min(BATCH_ROWS, max(1, BATCH_BYTES * group.num_rows // max(1, stored))),
        "row_groups": [unit.row_group],
        "columns": [column],
    }
    row = 0
    try:
        for batch in parquet.iter_batches(**wanted, use_threads=False):
            values = batch.column(0)
            if pa.types.is_dictionary(values.type):
                values = values.dictionary_decode()
            # As bytes, because Arrow takes a writer's word for it that strings are UTF-8.
            for value in values.cast(pa.large_binary()):
                yield _Place(f"row group {unit.row_group}, row {row}"), value.as_py()
                row += 1
    except (pa.ArrowException, OSError) as error:
        place = _Place(f"row group {unit.row_group}, after row {row}")
        raise reading.bad(place, f"truncated or damaged Parquet ({_reason(error)}). Write the shard again.") from error
