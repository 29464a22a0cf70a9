"""Shards to documents: one unit in, its texts out, in the order they stand in the shard.

Memory is bounded by a few buffers and `max_document_bytes`, whatever the size of the shard. A shard that is not the
pinned version is refused before it is read, and again after, in case it was replaced meanwhile. Whose fault a failure
is decides its class: the shard's (BadShardError), or the storage's, which may pass (TransientStoreError).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from data.config import DataConfig, SourceConfig, StoreConfig
from data.errors import BadShardError, ObjectNotFoundError, ShardChangedError
from data.readers.delimited import read_delimited
from data.readers.jsonl import read_json_lines
from data.readers.parquet import read_parquet
from data.readers.reading import Location, RawDocument, Reading, ReadReport, Values
from data.readers.text import TEXT_READERS, read_aligned_lines
from data.readers.unpack import UnpackedStream
from data.shards.file import ShardFile
from data.shards.formats import shard_format
from data.shards.listing import change_of, stat_shard
from data.shards.manifest import Unit


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
    reading = Reading(unit.path, config, ReadReport() if report is None else report)
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


def _document(index: int, values: Values, place: Location, source: SourceConfig, reading: Reading) -> Document | None:
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


def _raw_documents(
    files: Sequence[ShardFile], unit: Unit, source: SourceConfig, reading: Reading
) -> Iterator[RawDocument]:
    form, compression = shard_format(unit.path, source.known_format)
    if form == "parquet":
        return read_parquet(files[0], unit, source, reading)
    stream = UnpackedStream(files[0], compression, reading)
    if unit.input_path:
        inputs = UnpackedStream(
            files[1], shard_format(unit.input_path, "txt")[1], replace(reading, path=unit.input_path)
        )
        return read_aligned_lines(stream, inputs, reading)
    if form == "txt":
        return ((place, (data,)) for place, data in TEXT_READERS[source.document](stream, reading))
    if form == "jsonl":
        return read_json_lines(stream, source, reading)
    return read_delimited(stream, source, "," if form == "csv" else "\t", reading)
