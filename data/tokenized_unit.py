"""A unit of the data set as token streams, made once and cached in object storage.

The cached object is a one-row Arrow table (IPC stream, compressed) behind its own sha256, because Arrow itself reads
damaged bytes as other tokens; the same table is what Ray Data hands on as a block.
Its key is a hash of everything it depends on, so nothing is ever invalidated: what changes gets another key.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data.config import DataConfig, StoreConfig
from data.errors import BadShardError, ObjectNotFoundError
from data.manifest import Unit
from data.packing import Tokens, token_stream
from data.readers import ReadReport, read_documents
from data.store import Store
from data.tokenizer import Tokenizer

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


@dataclass(frozen=True)
class TokenizeJob:
    """Everything a task needs to turn any unit of a manifest into tokens; picklable."""

    data: DataConfig
    store_config: StoreConfig
    tokenizer: Tokenizer
    cache: Store

    def cache_key(self, unit: Unit) -> str:
        """Key under which the unit's tokens are cached: a hash of all they depend on."""
        source = self.data.sources[unit.source]
        depends_on = {
            "version": FORMAT_VERSION,
            "shard": [unit.path, unit.size, unit.etag, unit.row_group],
            "read": [
                source.format,
                source.text_column,
                source.document,
                self.data.invalid_utf8,
                self.data.max_document_bytes,
            ],
            "validation_fraction": self.data.validation_fraction,
            "tokenizer": self.tokenizer.digest,
        }
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        return f"{digest[:2]}/{digest}.arrow"


def is_held_out(text: str, validation_fraction: float) -> bool:
    """Whether a document belongs to the held-out set: decided by its text alone, so adding shards moves nothing."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < validation_fraction * 2.0**64


def load_or_tokenize(unit: Unit, job: TokenizeJob) -> pa.Table:
    """The unit's row: from the cache, or read, split, tokenized and then cached.

    A shard that cannot be read yields a row without tokens whose `problem` says why; it is not cached, so that a mended
    reader gets another chance.

    Raises:
        ShardChangedError, StoreAccessError, TransientStoreError, DiskFullError: see data.errors.
    """
    table = load_cached(unit, job)
    if table is None:
        table = tokenize(unit, job)
        if table["problem"][0].as_py() is None:
            job.cache.put(job.cache_key(unit), _serialize(table))
    return table


def load_cached(unit: Unit, job: TokenizeJob) -> pa.Table | None:
    """The unit's row from the cache; None where it is not there, or not whole."""
    try:
        return _deserialize(job.cache.get(job.cache_key(unit)))
    except ObjectNotFoundError:
        return None


def tokenize(unit: Unit, job: TokenizeJob) -> pa.Table:
    """The unit's row, made from its shard; see `load_or_tokenize`."""
    tokenizer = job.tokenizer
    report = ReadReport()
    parts: tuple[list[Tokens], list[Tokens]] = ([], [])
    text_bytes = [0, 0]
    problem = None
    try:
        for document in read_documents(unit, job.data.sources[unit.source], job.data, job.store_config, report):
            held_out = is_held_out(document.text, job.data.validation_fraction)
            parts[held_out].append(tokenizer.encode(document.text))
            text_bytes[held_out] += len(document.text.encode("utf-8"))
    except BadShardError as error:
        problem, parts, text_bytes = str(error), ([], []), [0, 0]
    train, validation = (token_stream(documents, tokenizer.end_of_text, tokenizer.dtype) for documents in parts)
    return pa.Table.from_pylist(
        [
            {
                "train": train.tobytes(),
                "validation": validation.tobytes(),
                "train_tokens": len(train),
                "validation_tokens": len(validation),
                "documents": len(parts[0]),
                "validation_documents": len(parts[1]),
                "text_bytes": text_bytes[0],
                "validation_bytes": text_bytes[1],
                "invalid_utf8": report.invalid_utf8,
                "problem": problem,
            }
        ],
        schema=SCHEMA,
    )


def stream_of(table: pa.Table, column: str, dtype: np.dtype[np.uint16] | np.dtype[np.uint32]) -> Tokens:
    """A unit's `train` or `validation` stream as an array over the table's own memory, without a copy."""
    chunk = table.column(column).chunk(0)
    offsets = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset : chunk.offset + 2]
    values = chunk.buffers()[2]
    if values is None:
        return np.empty(0, dtype)
    return np.frombuffer(values, dtype, count=int(offsets[1] - offsets[0]) // dtype.itemsize, offset=int(offsets[0]))


def _serialize(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return hashlib.sha256(content).digest() + content


def _deserialize(data: bytes) -> pa.Table | None:
    """What `_serialize` wrote; None where it is damaged."""
    sha256, content = data[:32], memoryview(data)[32:]
    if hashlib.sha256(content).digest() != sha256:
        return None
    with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
        return reader.read_all().cast(SCHEMA)
