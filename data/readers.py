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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Any, NamedTuple

from data.config import DataConfig, SourceConfig, StoreConfig
from data.errors import BadShardError, ObjectNotFoundError, ShardChangedError
from data.manifest import (
    Unit,
    change_of,
    column_problem,
    near_names,
    open_parquet,
    shard_format,
    stat_shard,
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
    """One raw text, and the input it is to be written from, where documents are pairs.

    `index` is its place in the unit, from 0, counting the empty ones that are skipped. `group` is the value of the
    source's `split_column`, None where it has none.
    """

    text: str
    index: int
    input: str | None = None
    group: str | None = None

    @property
    def split_key(self) -> str:
        """What decides whether it is held out: equal ones stay together."""
        if self.group is not None:
            return self.group
        return self.text if self.input is None else self.input


@dataclass
class ReadReport:
    """What came out of the units read with it, as a running sum."""

    documents: int = 0
    empty: int = 0  # skipped: nothing but white space, or null, in the text or in a pair's input
    bytes: int = 0  # of the documents' text and input, as UTF-8
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
    _check_pinned(unit, store)
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(ShardFile(pinned.path, store)) for pinned in unit.pinned]
            for index, (place, values) in enumerate(_raw_documents(files, unit, source, reading)):
                document = _document(index, values, place, source, reading)
                if document is not None:
                    yield document
    except ObjectNotFoundError:
        raise ShardChangedError(f"{unit.path} was removed while it was read. Restore it, or start a new run.") from None
    except BadShardError:
        _check_pinned(unit, store)  # replaced while being read is the better explanation where it is true
        raise
    _check_pinned(unit, store)


def _check_pinned(unit: Unit, store: StoreConfig) -> None:
    for pinned in unit.pinned:
        if change := change_of(pinned, stat_shard(pinned.path, store)):
            raise ShardChangedError(f"{change}. Restore the shard, or start a new run to train on what is there now.")


def _document(index: int, values: _Values, place: _Place, source: SourceConfig, reading: _Reading) -> Document | None:
    """The document that a row holds, or None where it holds none; counted in the report."""
    text = reading.document(values[0], place)
    read = reading.document(values[1], place) if source.has_pairs and text else None
    if not text or read == "":
        reading.report.empty += 1
        return None
    reading.report.documents += 1
    reading.report.bytes += len(text.encode()) + len((read or "").encode())
    group = None
    if source.split_column is not None:
        group = "" if values[-1] is None else reading.text(values[-1], place)
    return Document(text, index, read, group)


class _Place(NamedTuple):
    """Where a piece of text stands, for messages. `offset`: of its first byte in the unpacked shard, if known."""

    name: str
    offset: int | None = None


_Values = Sequence[bytes | str | None]
"""Of a row: text, then input and value to split by, as far as the source has them."""

_Raw = tuple[_Place, _Values]
_Text = tuple[_Place, bytes]


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
        """A document's text, or "" where there is nothing in it."""
        text = "" if data is None else self.text(data, place)
        if not text or text.isspace():
            return ""
        size = len(text.encode())
        if size > self.limit:
            raise self.too_long(place, _SPLIT)
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


def _raw_documents(files: Sequence[ShardFile], unit: Unit, source: SourceConfig, reading: _Reading) -> Iterator[_Raw]:
    form, compression = shard_format(unit.path, source.known_format)
    if form == "parquet":
        return _parquet_values(files[0], unit, source, reading)
    stream = _Unpacked(files[0], compression, reading)
    if unit.input_path:
        inputs = _Unpacked(files[1], shard_format(unit.input_path, "txt")[1], replace(reading, path=unit.input_path))
        return _aligned_lines(stream, inputs, reading)
    if form == "txt":
        return ((place, (data,)) for place, data in _TXT[source.document](stream, reading))
    if form == "jsonl":
        return _json_values(stream, source, reading)
    return _csv_values(stream, source, "," if form == "csv" else "\t", reading)


class _Unpacked:
    """A shard's bytes after decompression, without a byte order mark, in chunks and lines."""

    def __init__(self, file: ShardFile, compression: str | None, reading: _Reading) -> None:
        self._compression = compression
        self.reading = reading
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
            raise self.reading.bad(None, f"{what}. Upload the shard again from a sound copy.") from error
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
                    raise self.reading.too_long(_Place(f"line {number}"), remedy)
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


def _whole_file(stream: _Unpacked, reading: _Reading) -> Iterator[_Text]:
    chunks, size = [], 0
    while chunk := stream.chunk():
        chunks.append(chunk)
        size += len(chunk)
        if size > reading.limit:
            raise reading.too_long(None, "Set document: line or paragraph for this source, or raise the limit.")
    yield _Place("the whole file", stream.position - size), b"".join(chunks)


def _paragraphs(stream: _Unpacked, reading: _Reading) -> Iterator[_Text]:
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


def _text_lines(stream: _Unpacked, reading: _Reading) -> Iterator[_Text]:
    for place, line in stream.lines(reading.limit, _SPLIT):
        yield place, line.rstrip(b"\r\n")


def _aligned_lines(stream: _Unpacked, inputs: _Unpacked, reading: _Reading) -> Iterator[_Raw]:
    """Lines of two files side by side. Raises BadShardError where one ends before the other."""
    lines = zip_longest(_text_lines(stream, reading), _text_lines(inputs, inputs.reading))
    for line, line_read in lines:
        if line is None or line_read is None:
            longer, shorter = (inputs, stream) if line is None else (stream, inputs)
            ended = f"{shorter.reading.path} has fewer lines than {longer.reading.path}"
            raise reading.bad(None, f"{ended}. Line n of one is the input of line n of the other: write both again.")
        yield line[0], (line[1], line_read[1])


_TXT = {"file": _whole_file, "paragraph": _paragraphs, "line": _text_lines}


def _json_values(stream: _Unpacked, source: SourceConfig, reading: _Reading) -> Iterator[_Raw]:
    for place, line in stream.lines(reading.record_limit, f"{_SPLIT} Is it one JSON object a line?"):
        if not line.strip():
            continue
        record = _json_object(reading.text(line, place), place, reading)
        yield place, [_json_value(record, field, key, place, reading) for field, key in source.columns.items()]


def _json_value(record: dict[str, Any], field: str, key: str, place: _Place, reading: _Reading) -> str | None:
    if key not in record:
        raise reading.bad(place, f"no key '{key}'. {near_names(key, record)} Set {field}.")
    value = record[key]
    if value is None or isinstance(value, str):
        return value
    if field == "split_column":  # whatever can be compared
        return json.dumps(value, sort_keys=True)
    raise reading.bad(
        place, f"'{key}' is {_shortened(value)}, not a string. Set {field} to the key that holds the text."
    )


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


def _csv_values(stream: _Unpacked, source: SourceConfig, delimiter: str, reading: _Reading) -> Iterator[_Raw]:
    csv.field_size_limit(sys.maxsize)  # the 128 KiB of the standard library are too few; _CsvLines has the limit
    lines = _CsvLines(stream, reading)
    quoted = csv.reader(lines, delimiter=delimiter, strict=True)
    plain = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    rows = _csv_rows(quoted if source.quotes else plain, lines, reading)
    top, first = next(rows, (_Place("line 1"), []))
    header = first if source.header else [str(number) for number in range(1, len(first) + 1)]
    for field, column in source.columns.items():
        if column not in header:
            what = "the header has no column" if source.header else "the first row has no column"
            raise reading.bad(top, f"{what} '{column}'. {near_names(column, header)} Set {field}.")
    at = [header.index(column) for column in source.columns.values()]
    for place, row in rows if source.header else chain([(top, first)] if first else [], rows):
        if len(row) != len(header):
            found = f"{len(row)} fields where the {'header' if source.header else 'first row'} has {len(header)}"
            remedy = "Quote fields that hold the delimiter, a quote or a line break."
            raise reading.bad(place, f"{found}: {_shortened(row)}. {remedy}")
        yield place, [row[index] for index in at]


def _csv_rows(rows: Iterable[list[str]], lines: _CsvLines, reading: _Reading) -> Iterator[tuple[_Place, list[str]]]:
    try:
        for row in rows:
            lines.row_bytes = 0
            if row:  # else a blank line
                yield lines.row, row
    except csv.Error as error:
        remedy = "Close every quote, quote fields that hold one, and double it inside."
        raise reading.bad(lines.row, f"not a well-formed row ({_reason(error)}). {remedy}") from None


def _parquet_values(file: ShardFile, unit: Unit, source: SourceConfig, reading: _Reading) -> Iterator[_Raw]:
    import pyarrow as pa

    assert unit.row_group is not None
    parquet = open_parquet(file)
    for field, column in source.columns.items():
        if problem := column_problem(parquet.schema_arrow, field, column):
            raise reading.bad(None, f"it {problem}.")
    wanted_columns = list(dict.fromkeys(source.columns.values()))
    group = parquet.metadata.row_group(unit.row_group)
    columns = [group.column(i) for i in range(group.num_columns)]
    stored = sum(each.total_uncompressed_size for each in columns if each.path_in_schema in wanted_columns)
    wanted = {
        "batch_size": min(BATCH_ROWS, max(1, BATCH_BYTES * group.num_rows // max(1, stored))),
        "row_groups": [unit.row_group],
        "columns": wanted_columns,
    }
    row = 0
    try:
        for batch in parquet.iter_batches(**wanted, use_threads=False):
            values = [_as_bytes(batch.column(name)) for name in source.columns.values()]
            for of_row in zip(*values, strict=True):
                yield _Place(f"row group {unit.row_group}, row {row}"), [value.as_py() for value in of_row]
                row += 1
    except (pa.ArrowException, OSError) as error:
        place = _Place(f"row group {unit.row_group}, after row {row}")
        raise reading.bad(place, f"truncated or damaged Parquet ({_reason(error)}). Write the shard again.") from error


def _as_bytes(values: Any) -> Any:
    """A column as bytes, because Arrow takes a writer's word for it that strings are UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not (
        pa.types.is_string(values.type) or pa.types.is_large_string(values.type) or values.type == pa.string_view()
    ):
        values = values.cast(pa.string())
    return values.cast(pa.large_binary())
