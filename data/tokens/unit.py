"""Tokenizes a unit: its documents as token streams in a one-row Arrow table, made once and cached.

The same table is a block of Ray Data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data.cleaning.clean import REPORT_COLUMNS
from data.cleaning.units import Cleaning
from data.config import DataConfig, StoreConfig
from data.errors import BadShardError
from data.order.known_units import ExcludedDocuments
from data.order.packing import Tokens, UnitStream, token_stream
from data.order.pairs import joined
from data.readers.documents import Document, documents_depend_on, is_for_training, read_documents
from data.readers.reading import ReadReport
from data.shards.manifest import Unit
from data.shards.unit_rows import load_or_make, row_key
from data.stores.store import Store
from data.tokens.tokenizer import Tokenizer

FORMAT_VERSION = 1
"""Part of every cache key. Raise it when readers, split or stream give another result for the same bytes."""

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
"""Column of units whose documents are cleaned: what each step received and removed."""

PAIR_COLUMNS = (
    pa.field("train_lengths", pa.large_binary()),
    pa.field("validation_lengths", pa.large_binary()),
    pa.field("validation_pairs", pa.large_string()),
    pa.field("too_long", pa.int64()),
)
"""Columns of units of pairs. `validation_pairs` is JSON, a list of [input, text]: references for translations."""


@dataclass(frozen=True)
class TokenizeJob:
    """Everything a task needs to tokenize any unit of a manifest; picklable.

    Attributes:
        cache: where rows are cached.
        input_tokenizer: for the inputs of pairs, where they have their own vocabulary.
        cleaning: applied to documents first; None for none.
    """

    data: DataConfig
    store_config: StoreConfig
    tokenizer: Tokenizer
    cache: Store
    input_tokenizer: Tokenizer | None = None
    cleaning: Cleaning | None = None

    @property
    def encoder_tokenizer(self) -> Tokenizer:
        """The tokenizer of the inputs of pairs."""
        return self.tokenizer if self.input_tokenizer is None else self.input_tokenizer

    @property
    def dtype(self) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
        """The smallest of uint16 and uint32 that holds every id of both vocabularies."""
        return max(self.tokenizer.dtype, self.encoder_tokenizer.dtype, key=lambda dtype: dtype.itemsize)

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of one cached row."""
        fields = [*SCHEMA, *(PAIR_COLUMNS if self.data.has_pairs else ())]
        return pa.schema(fields if self.cleaning is None else [*fields, STEPS_COLUMN])

    def cache_key(self, unit: Unit) -> str:
        """The key of the unit's cached row: a hash of everything it depends on."""
        depends_on = {
            "version": FORMAT_VERSION,
            **documents_depend_on(unit, self.data),
            "tokenizer": self.tokenizer.digest,
        }
        if self.data.has_pairs:
            depends_on["inputs"] = [self.encoder_tokenizer.digest, self.data.seq_len, self.data.most_input_tokens]
        if self.cleaning is not None:
            depends_on["steps"] = self.cleaning.depends_on(unit)
        return row_key(depends_on)


def load_or_tokenize(unit: Unit, job: TokenizeJob) -> pa.Table:
    """The unit's row: from the cache, or read, split, tokenized and then cached.

    A shard that cannot be read gives a row without tokens whose `problem` says why. It is not cached, so that a later
    version of the reader can read it.

    Raises:
        ShardChangedError, StoreAccessError, TransientStoreError, DiskFullError: see data.errors.
    """
    return load_or_make(unit, job, lambda: tokenize(unit, job))


def tokenize(unit: Unit, job: TokenizeJob) -> pa.Table:
    """The unit's row, made from its shard; see `load_or_tokenize`."""
    report, source = ReadReport(), job.data.sources[unit.source]
    cleaner = None if job.cleaning is None else job.cleaning.of_unit(unit)
    parts = (_Part(job), _Part(job))
    problem = None
    try:
        for document in read_documents(unit, source, job.data, job.store_config, report):
            cleaned = document if cleaner is None else cleaner.clean(document)
            if cleaned is not None:  # the split is decided by the document before cleaning
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
    """Collects the training documents of a unit, or the held-out ones.

    A pair too long for the model is counted and excluded, but is one of the `raw` pairs, which are translated.
    """

    def __init__(self, job: TokenizeJob) -> None:
        self._job = job
        self._tokens: list[Tokens] = []
        self._pairs: list[tuple[Tokens, Tokens]] = []
        self.raw: list[tuple[str, str]] = []
        self.documents = self.text_bytes = self.too_long = 0

    def add(self, document: Document) -> None:
        """Adds one document."""
        tokens = self._job.tokenizer.encode(document.text)
        if document.input is None:
            self._tokens.append(tokens)
        else:
            input_tokens = self._job.encoder_tokenizer.encode(document.input)
            self.raw.append((document.input, document.text))
            # Both need room for an end-of-text.
            if len(input_tokens) >= self._job.data.most_input_tokens or len(tokens) >= self._job.data.seq_len:
                self.too_long += 1
                return
            self._pairs.append((input_tokens, tokens))
        self.documents += 1
        self.text_bytes += len(document.text.encode("utf-8"))

    def columns(self, name: str) -> dict[str, object]:
        """The columns of this part in the unit's row: tokens, their number and, for pairs, their lengths."""
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
    """The columns that `unit_stream` reads for the `train` or `validation` part."""
    return [part, "problem", *([f"{part}_lengths"] if job.data.has_pairs else []), *excluded_columns(job)]


def excluded_columns(job: TokenizeJob) -> list[str]:
    """The columns that `excluded_of` reads."""
    return [*(["too_long"] if job.data.has_pairs else []), *(["steps"] if job.cleaning is not None else [])]


def unit_stream(table: pa.Table, part: str, job: TokenizeJob) -> UnitStream:
    """The `train` or `validation` stream of a unit, over the memory of its row."""
    tokens, problem = stream_of(table, part, job.dtype), table["problem"][0].as_py()
    lengths = None
    if job.data.has_pairs:
        lengths = np.frombuffer(table[f"{part}_lengths"][0].as_py(), np.int32).reshape(-1, 2)
    return UnitStream(tokens, problem, lengths, excluded_of(table, job))


def excluded_of(table: pa.Table, job: TokenizeJob) -> ExcludedDocuments:
    """The documents excluded from training in the units of the table's rows."""
    rows = table.select(excluded_columns(job)).to_pylist() if excluded_columns(job) else [{}] * table.num_rows
    each = (ExcludedDocuments(1, tuple(row.get("steps", ())), row.get("too_long", 0)) for row in rows)
    return sum(each, start=ExcludedDocuments())


def stream_of(table: pa.Table, column: str, dtype: np.dtype[np.uint16] | np.dtype[np.uint32]) -> Tokens:
    """A column of token ids as an array over the table's memory, without a copy."""
    chunk = table.column(column).chunk(0)
    offsets = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset : chunk.offset + 2]
    values = chunk.buffers()[2]
    if values is None:
        return np.empty(0, dtype)
    return np.frombuffer(values, dtype, count=int(offsets[1] - offsets[0]) // dtype.itemsize, offset=int(offsets[0]))
