"""Reads the documents of a unit, in the order of the shard, and decides which of them are held out.

Memory is bounded by a few buffers and `max_document_bytes`, whatever the size of the shard. A shard that is not the
pinned version is refused before it is read, and again after, in case it was replaced meanwhile. The cause of a failure
decides its class: the shard's content (BadShardError), or the storage, which may recover (TransientStoreError).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from data.config import DataConfig, SourceConfig, StoreConfig
from data.errors import BadShardError, ObjectNotFoundError, ShardChangedError
from data.readers.formats import RowGroupFormat, format_of
from data.readers.reading import Location, RawDocument, Reading, ReadReport, Values
from data.readers.text import read_aligned_lines
from data.readers.unpack import UnpackedStream
from data.shards.listing import change_of, stat_shard
from data.shards.manifest import Unit
from data.stores.shard_file import ShardFile


@dataclass(frozen=True, slots=True)
class Document:
    """One raw text and, where documents are pairs, its input.

    Attributes:
        index: position in the unit, from 0, counting the empty documents that are skipped.
        group: value of the source's `split_column`; None where the source has none.
    """

    text: str
    index: int
    input: str | None = None
    group: str | None = None

    @property
    def split_key(self) -> str:
        """The value whose hash decides whether the document is held out: equal values stay together."""
        if self.group is not None:
            return self.group
        return self.text if self.input is None else self.input


def read_documents(
    unit: Unit, source: SourceConfig, config: DataConfig, store: StoreConfig, report: ReadReport | None = None
) -> Iterator[Document]:
    """The documents of a unit, in order. Null and white space alone are skipped; their index is not reused.

    Args:
        unit: the unit to read, as the manifest pinned it.
        source: the unit's source, with its format and columns.
        config: limits, and the treatment of invalid UTF-8.
        store: how to reach the shard.
        report: updated while documents are read.

    Raises:
        ShardChangedError: the shard is missing or not the pinned version.
        BadShardError: the shard is truncated or damaged, a column is missing or is not text, or a document is longer
            than `max_document_bytes`.
        TransientStoreError: the storage failed through the bounded attempts.
    """
    reading = Reading(unit.path, source, config, ReadReport() if report is None else report)
    _check_pinned(unit, store)
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(ShardFile(pinned.path, store)) for pinned in unit.pinned]
            for index, (location, values) in enumerate(_raw_documents(files, unit, source, reading)):
                document = _document(index, values, location, source, reading)
                if document is not None:
                    yield document
    except ObjectNotFoundError:
        raise ShardChangedError(f"{unit.path} was removed while it was read. Restore it, or start a new run.") from None
    except BadShardError:
        _check_pinned(unit, store)  # where the shard was replaced meanwhile, that is the better explanation
        raise
    _check_pinned(unit, store)


def _check_pinned(unit: Unit, store: StoreConfig) -> None:
    for pinned in unit.pinned:
        if change := change_of(pinned, stat_shard(pinned.path, store)):
            raise ShardChangedError(f"{change}. Restore the shard, or start a new run to train on what is there now.")


def _document(
    index: int, values: Values, location: Location, source: SourceConfig, reading: Reading
) -> Document | None:
    """The document in a row, or None where the row is empty; counts it in the report."""
    text = reading.document(values[0], location)
    input_text = reading.document(values[1], location) if source.has_pairs and text else None
    if not text or input_text == "":
        reading.report.empty += 1
        return None
    reading.report.documents += 1
    reading.report.bytes += len(text.encode()) + len((input_text or "").encode())
    group = None
    if source.split_column is not None:
        group = "" if values[-1] is None else reading.text(values[-1], location)
    return Document(text, index, input_text, group)


def _raw_documents(
    files: Sequence[ShardFile], unit: Unit, source: SourceConfig, reading: Reading
) -> Iterator[RawDocument]:
    form, compression = format_of(unit.path, source.known_format)
    if isinstance(form, RowGroupFormat):
        assert unit.row_group is not None
        return form.read(files[0], unit.row_group, reading)
    stream = UnpackedStream(files[0], compression, reading)
    if not unit.input_path:
        return form.read(stream, reading)
    _, input_compression = format_of(unit.input_path, "txt")
    inputs = UnpackedStream(files[1], input_compression, replace(reading, path=unit.input_path))
    return read_aligned_lines(stream, inputs, reading)


def documents_depend_on(unit: Unit, data: DataConfig) -> dict[str, Any]:
    """Everything that the documents of a unit, and their split, depend on: part of cache keys."""
    source, fresh = data.sources[unit.source], SourceConfig(path="")
    fields = ("input_column", "split", "split_column", "header", "quotes")
    depends_on: dict[str, Any] = {
        "shard": [unit.path, unit.size, unit.etag, unit.row_group],
        "read": [source.format, source.text_column, source.document, data.invalid_utf8, data.max_document_bytes],
        "validation_fraction": data.validation_fraction,
        # Fields at their default are left out, so that most sources keep the cache keys of older versions.
        **{name: getattr(source, name) for name in fields if getattr(source, name) != getattr(fresh, name)},
    }
    return depends_on | ({"input": [unit.input_path, unit.input_size, unit.input_etag]} if unit.input_path else {})


def is_held_out(text: str, validation_fraction: float) -> bool:
    """Whether a document is held out: decided by its text alone, so adding shards moves no document."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < validation_fraction * 2.0**64


def is_for_training(document: Document, source: SourceConfig, data: DataConfig) -> bool:
    """Whether a document is for training: by its source's `split`, or by its hash."""
    if source.split == "hash":
        return not is_held_out(document.split_key, data.validation_fraction)
    return source.split == "train"
