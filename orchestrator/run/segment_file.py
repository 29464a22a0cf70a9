"""The file of a ledger segment: Parquet, with a digest of every column in its metadata.

Parquet's own checksums cover pages and not what describes them, so a damaged file may be read as other rows. The
digests are of values, not of bytes, so a reader that needs some columns checks these and transfers no others.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from io import RawIOBase
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.errors import DamagedObjectError
from data.stores.artifact import sha256

GROUP_IDS = 1 << 23
"""Least number of sample ids in a row group of a segment, where it has that many: 64 MB."""

WHOLE_BYTES = 1 << 20
"""Largest segment of which all columns are read, because that takes a single request."""

DIGESTS = b"manta.digests"
"""Metadata of the file: JSON, the steps that it has, and a digest by column. Older versions wrote none."""

REMEDY = "Restore an earlier version of it; `manta train` continues the run without it."
"""What to do about a segment that is missing or damaged."""

_NOT_READABLE = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError)


class _Digest:
    """Digest of the values of a column, whatever row groups they are in."""

    def __init__(self) -> None:
        self._nulls_or_lengths, self._values = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)

    def add(self, column: pa.ChunkedArray) -> None:
        if pa.types.is_list(column.type):
            outer = pc.fill_null(pc.list_value_length(column), -1).to_numpy().astype("<i8")
            values = pc.list_flatten(column).to_numpy()
        else:
            outer = column.is_null().to_numpy().astype(np.uint8)
            values = pc.fill_null(column, 0).to_numpy()
        self._nulls_or_lengths.update(np.ascontiguousarray(outer).data)
        self._values.update(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"))).data)

    def __str__(self) -> str:
        return self._nulls_or_lengths.hexdigest() + self._values.hexdigest()


def write_segment(target: Any, steps: tuple[int, int], tables: Iterable[pa.Table], schema: pa.Schema) -> str:
    """Writes tables as a segment, in row groups of about GROUP_IDS to twice as many sample ids; returns its digest.

    Args:
        target: a path, or an Arrow stream.
        steps: first and last step.
    """
    pending: list[pa.Table] = []
    digests = {name: _Digest() for name in schema.names}
    dictionaries = [field.name for field in schema if pa.types.is_integer(field.type) and field.name != "step"]
    with pq.ParquetWriter(target, schema, compression="zstd", use_dictionary=dictionaries) as writer:

        def flush() -> None:
            whole = pa.concat_tables(pending)
            for name, digest in digests.items():
                digest.add(whole[name])
            writer.write_table(whole, row_group_size=-(-len(whole) // max(1, _id_count(whole) // GROUP_IDS)))
            pending.clear()

        for table in tables:
            pending.append(table)
            if sum(map(_id_count, pending)) >= GROUP_IDS:
                flush()
        if pending:
            flush()
        found = json.dumps({"steps": steps, "columns": {name: str(digest) for name, digest in digests.items()}})
        writer.add_key_value_metadata({DIGESTS.decode(): found})
    return sha256(found.encode())


def _id_count(table: pa.Table) -> int:
    return sum(len(chunk.flatten()) for chunk in table["sample_ids"].chunks)


def read_segment(
    file: RawIOBase,
    url: str,
    steps: tuple[int, int],
    names: Sequence[str],
    optional: Container[str] = (),
    segment_digest: str | None = None,
) -> Iterator[pa.Table]:
    """Yields the row groups of a segment, with those of the columns `names` that it has.

    Args:
        url: where it is, for messages.
        steps: first and last step that it must have.
        optional: names of columns that older versions did not write.
        segment_digest: what `write_segment` returned for it; None where it is not known.

    Raises:
        DamagedObjectError: it cannot be read; or, after the last row group, what was read is not what was written.
    """
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        parquet = pq.ParquetFile(pa.BufferReader(file.read(size)) if size <= WHOLE_BYTES else file, pre_buffer=True)
        stored = set(parquet.schema_arrow.names)
        columns = {name: _Digest() for name in names if name in stored or name not in optional}
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, list(columns))
            for name, digest in columns.items():
                digest.add(table[name])
            yield table
        written = (parquet.metadata.metadata or {}).get(DIGESTS)
        differing = [] if written is None else _differences(json.loads(written), steps, columns)
        if parquet.metadata.num_rows != steps[1] - steps[0] + 1:
            differing.append("the number of rows")
        if segment_digest is not None and (written is None or sha256(written) != segment_digest):
            differing.append("its digests")
    except _NOT_READABLE as error:
        raise DamagedObjectError(f"{url} is damaged ({type(error).__name__}: {error}). {REMEDY}") from error
    if differing:
        raise DamagedObjectError(f"{url} is damaged: {', '.join(differing)} differ from what was written. {REMEDY}")


def _differences(written: dict[str, Any], steps: tuple[int, int], columns: dict[str, _Digest]) -> list[str]:
    other = [] if tuple(written["steps"]) == steps else ["steps"]
    return other + [name for name, digest in columns.items() if written["columns"][name] != str(digest)]
