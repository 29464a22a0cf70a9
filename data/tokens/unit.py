"""A unit of the data set as token streams, made once and cached in object storage.

The cached object is a one-row Arrow table (IPC stream, compressed) behind its own sha256, because Arrow itself reads
damaged bytes as other tokens; the same table is what Ray Data hands on as a block.
Its key is a hash of everything it depends on, so nothing is ever invalidated: what changes gets another key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from data.cleaning.clean import REPORT_COLUMNS
from data.cleaning.units import Cleaning
from data.config import DataConfig, SourceConfig, StoreConfig
from data.errors import BadShardError, ObjectNotFoundError
from data.order.known_units import Excluded
from data.order.packing import Tokens, UnitStream, token_stream
from data.order.pairs import joined
from data.readers.documents import Document, read_documents
from data.readers.reading import ReadReport
from data.shards.manifest import Unit
from data.stores.store import Store
from data.tokens.tokenizer import Tokenizer

FORMAT_VERSION = 1
"""Part of every cache key; raise it when readers, split or stream change what they make of the same bytes."""

SCHEMA = pa.schema(
    [
        ("train", pa.large_binary()),
        ("validation", pa.large_binary()),
        ("train_tokens", pa.int64()),
        ("validation_tokens", pa.int64()),
        ("documents", pa.int64()),
        ("validation_documents", pa.int64()),
        ("text_bytes", pa.int64()),
        ("validation_bytes", pa.int64()),
        ("invalid_utf8", pa.int64()),
        ("problem", pa.string()),
    ]
)

_REPORT = pa.list_(pa.struct([(name, pa.int64()) for name in REPORT_COLUMNS]))

STEPS_COLUMN = pa.field("steps", _REPORT)
"""Of a unit whose documents went through `data.cleaning`: what each of them was given and removed."""

PAIR_COLUMNS = (
    pa.field("train_lengths", pa.large_binary()),
    pa.field("validation_lengths", pa.large_binary()),
    pa.field("validation_pairs", pa.large_string()),
    pa.field("too_long", pa.int64()),
)
"""Of a unit of pairs. `validation_pairs` is JSON, a list of [input, text]: what a translation is held against."""


@dataclass(frozen=True)
class TokenizeJob:
    """Everything a task needs to turn any unit of a manifest into tokens; picklable.

    Attributes:
        input_tokenizer: of the inputs of pairs, where they have a vocabulary of their own.
        cleaning: what is done to documents first; None for nothing.
    """

    data: DataConfig
    store_config: StoreConfig
    tokenizer: Tokenizer
    cache: Store
    input_tokenizer: Tokenizer | None = None
    cleaning: Cleaning | None = None

    @property
    def reads_with(self) -> Tokenizer:
        """The tokenizer of the inputs of pairs."""
        return self.tokenizer if self.input_tokenizer is None else self.input_tokenizer

    @property
    def dtype(self) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
        """The smallest of uint16 and uint32 that holds every id of both vocabularies."""
        return max(self.tokenizer.dtype, self.reads_with.dtype, key=lambda dtype: dtype.itemsize)

    @property
    def schema(self) -> pa.Schema:
        """Of a unit's row."""
        fields = [*SCHEMA, *(PAIR_COLUMNS if self.data.has_pairs else ())]
        return pa.schema(fields if self.cleaning is None else [*fields, STEPS_COLUMN])

    def cache_key(self, unit: Unit) -> str:
        """Key under which the unit's tokens are cached: a hash of all they depend on."""
        depends_on = {
            "version": FORMAT_VERSION,
            **documents_depend_on(unit, self.data),
            "tokenizer": self.tokenizer.digest,
        }
        if self.data.has_pairs:
            depends_on["inputs"] = [self.reads_with.digest, self.data.seq_len, self.data.most_input_tokens]
        if self.cleaning is not None:
            depends_on["steps"] = self.cleaning.depends_on(unit)
        return row_key(depends_on)


def documents_depend_on(unit: Unit, data: DataConfig) -> dict[str, Any]:
    """What the documents of a unit, and which of them are held out, are a function of."""
    source, fresh = data.sources[unit.source], SourceConfig(path="")
    fields = ("input_column", "split", "split_column", "header", "quotes")
    depends_on: dict[str, Any] = {
        "shard": [unit.path, unit.size, unit.etag, unit.row_group],
        "read": [source.format, source.text_column, source.document, data.invalid_utf8, data.max_document_bytes],
        "validation_fraction": data.validation_fraction,
        # What most sources do not have is left out there, so that their keys are those they always had.
        **{name: getattr(source, name) for name in fields if getattr(source, name) != getattr(fresh, name)},
    }
    return depends_on | ({"input": [unit.input_path, unit.input_size, unit.input_etag]} if unit.input_path else {})


def is_held_out(text: str, validation_fraction: float) -> bool:
    """Whether a document belongs to the held-out set: decided by its text alone, so adding shards moves nothing."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < validation_fraction * 2.0**64


def is_for_training(document: Document, source: SourceConfig, data: DataConfig) -> bool:
    """Whether a document is trained on: as its source says, or by its hash."""
    if source.split == "hash":
        return not is_held_out(document.split_key, data.validation_fraction)
    return source.split == "train"


def documents_of(
    unit: Unit, data: DataConfig, store_config: StoreConfig, cleaning: Cleaning | None, *, for_training: bool
) -> Iterator[Document]:
    """The documents of a unit that are trained on, or those held out, cleaned; none of a bad shard that is skipped.

    Raises:
        BadShardError: the shard cannot be read, and `on_bad_shard` is refuse.
    """
    source = data.sources[unit.source]
    cleaner = None if cleaning is None else cleaning.of_unit(unit)
    try:
        for document in read_documents(unit, source, data, store_config):
            if is_for_training(document, source, data) == for_training:
                cleaned = document if cleaner is None else cleaner.clean(document)
                if cleaned is not None:
                    yield cleaned
    except BadShardError:
        if data.on_bad_shard == "refuse":
            raise


def load_or_tokenize(unit: Unit, job: TokenizeJob) -> pa.Table:
    """The unit's row: from the cache, or read, split, tokenized and then cached.

    A shard that cannot be read yields a row without tokens whose `problem` says why; it is not cached, so that a mended
    reader gets another chance.

    Raises:
        ShardChangedError, StoreAccessError, TransientStoreError, DiskFullError: see data.errors.
    """
    return load_or_make(unit, job, lambda: tokenize(unit, job))


class UnitJob(Protocol):
    """A task that makes one row of every unit, and keeps it."""

    @property
    def cache(self) -> Store:
        """Where rows are kept."""

    @property
    def schema(self) -> pa.Schema:
        """Of a row; `problem` is one of its columns."""

    def cache_key(self, unit: Unit) -> str:
        """Key of the unit's row: a hash of all it depends on."""


def load_or_make(unit: Unit, job: UnitJob, make: Callable[[], pa.Table]) -> pa.Table:
    """The unit's row: from the cache, or made and then kept there; with a `problem` it is not kept."""
    table = load_cached(unit, job)
    if table is None:
        table = make()
        if table["problem"][0].as_py() is None:
            job.cache.put(job.cache_key(unit), serialize(table))
    return table


def json_digest(value: object) -> str:
    """sha256 of a value as JSON: equal values, equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def row_key(depends_on: object) -> str:
    """Key of a row that is a function of `depends_on`."""
    digest = json_digest(depends_on)
    return f"{digest[:2]}/{digest}.arrow"


def load_cached(unit: Unit, job: UnitJob) -> pa.Table | None:
    """The unit's row from the cache; None where it is not there, or not whole."""
    try:
        return deserialize(job.cache.get(job.cache_key(unit)), job.schema)
    except ObjectNotFoundError:
        return None


def tokenize(unit: Unit, job: TokenizeJob) -> pa.Table:
    """The unit's row, made from its shard; see `load_or_tokenize`."""
    report, source = ReadReport(), job.data.sources[unit.source]
    cleaner = None if job.cleaning is None else job.cleaning.of_unit(unit)
    parts = (_Part(job), _Part(job))
    problem = None
    try:
        for document in read_documents(unit, source, job.data, job.store_config, report):
            cleaned = document if cleaner is None else cleaner.clean(document)
            if cleaned is not None:  # held out or not is decided by the document as it was read
                parts[not is_for_training(document, source, job.data)].add(cleaned)
    except BadShardError as error:
        problem, parts = str(error), (_Part(job), _Part(job))
    train, validation = parts
    row = train.columns("train") | validation.columns("validation")
    row |= {"documents": train.documents, "validation_documents": validation.documents}
    row |= {"text_bytes": train.text_bytes, "validation_bytes": validation.text_bytes}
    row |= {"invalid_utf8": report.invalid_utf8, "problem": problem}
    if job.data.has_pairs:
        row |= {"validation_pairs": json.dumps(validation.raw), "too_long": train.too_long + validation.too_long}
    if cleaner is not None:
        row |= {"steps": [] if problem else cleaner.report()}
    return pa.Table.from_pylist([row], schema=job.schema)


class _Part:
    """The documents of a unit that are trained on, or those held out.

    A pair too long for the model is counted and left out; as one of the `raw` ones it is still translated.
    """

    def __init__(self, job: TokenizeJob) -> None:
        self._job = job
        self._tokens: list[Tokens] = []
        self._pairs: list[tuple[Tokens, Tokens]] = []
        self.raw: list[tuple[str, str]] = []
        self.documents = self.text_bytes = self.too_long = 0

    def add(self, document: Document) -> None:
        """Take one more document."""
        tokens = self._job.tokenizer.encode(document.text)
        if document.input is None:
            self._tokens.append(tokens)
        else:
            read = self._job.reads_with.encode(document.input)
            self.raw.append((document.input, document.text))
            # Either needs room for an end-of-text.
            if len(read) >= self._job.data.most_input_tokens or len(tokens) >= self._job.data.seq_len:
                self.too_long += 1
                return
            self._pairs.append((read, tokens))
        self.documents += 1
        self.text_bytes += len(document.text.encode("utf-8"))

    def columns(self, name: str) -> dict[str, object]:
        """What the unit's row has of this part: tokens, their number and, of pairs, their lengths."""
        job = self._job
        if not job.data.has_pairs:
            tokens = token_stream(self._tokens, job.tokenizer.end_of_text, job.dtype)
            return {name: tokens.tobytes(), f"{name}_tokens": len(tokens)}
        unit = joined(self._pairs, job.dtype)
        assert unit.lengths is not None
        return {
            name: unit.tokens.tobytes(),
            f"{name}_tokens": len(unit.tokens),
            f"{name}_lengths": unit.lengths.tobytes(),
        }


def stream_columns(part: str, job: TokenizeJob) -> list[str]:
    """Columns of a unit's row that `unit_stream` reads for its `train` or `validation` part."""
    return [part, "problem", *([f"{part}_lengths"] if job.data.has_pairs else []), *excluded_columns(job)]


def excluded_columns(job: TokenizeJob) -> list[str]:
    """Columns of a unit's row that tell what of it is not trained on."""
    return [*(["too_long"] if job.data.has_pairs else []), *(["steps"] if job.cleaning is not None else [])]


def unit_stream(table: pa.Table, part: str, job: TokenizeJob) -> UnitStream:
    """A unit's `train` or `validation` stream over its row's own memory."""
    tokens, problem = stream_of(table, part, job.dtype), table["problem"][0].as_py()
    lengths = None
    if job.data.has_pairs:
        lengths = np.frombuffer(table[f"{part}_lengths"][0].as_py(), np.int32).reshape(-1, 2)
    return UnitStream(tokens, problem, lengths, excluded_of(table, job))


def excluded_of(table: pa.Table, job: TokenizeJob) -> Excluded:
    """What is not trained on of the units that are rows of the table."""
    rows = table.select(excluded_columns(job)).to_pylist() if excluded_columns(job) else [{}] * table.num_rows
    each = (Excluded(1, tuple(row.get("steps", ())), row.get("too_long", 0)) for row in rows)
    return sum(each, start=Excluded())


def stream_of(table: pa.Table, column: str, dtype: np.dtype[np.uint16] | np.dtype[np.uint32]) -> Tokens:
    """A unit's `train` or `validation` stream as an array over the table's own memory, without a copy."""
    chunk = table.column(column).chunk(0)
    offsets = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset : chunk.offset + 2]
    values = chunk.buffers()[2]
    if values is None:
        return np.empty(0, dtype)
    return np.frombuffer(values, dtype, count=int(offsets[1] - offsets[0]) // dtype.itemsize, offset=int(offsets[0]))


def serialize(table: pa.Table) -> bytes:
    """A row as an object of the store."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return hashlib.sha256(content).digest() + content


def deserialize(data: bytes, schema: pa.Schema) -> pa.Table | None:
    """What `serialize` wrote; None where it is damaged."""
    sha256, content = data[:32], memoryview(data)[32:]
    if hashlib.sha256(content).digest() != sha256:
        return None
    with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
        return reader.read_all().cast(schema)
