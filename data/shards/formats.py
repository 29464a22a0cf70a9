"""Formats of shards: told by the ending, checked by the first bytes or the footer."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from data.errors import BadShardError, InputError
from data.shards.file import ShardFile

if TYPE_CHECKING:
    import pyarrow as pa

_FORMATS = {
    ".txt": "txt",
    ".text": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def shard_format(path: str, configured: str) -> tuple[str, str | None]:
    """The format ("txt", "jsonl", "csv", "tsv", "parquet") and compression ("gzip", "zstd", None) of a shard.

    Raises:
        InputError: format auto and an ending it does not know, or compressed Parquet.
    """
    stem, ending = posixpath.splitext(path.lower())
    compression = _COMPRESSIONS.get(ending)
    if compression:
        stem, ending = posixpath.splitext(stem)
    known = _FORMATS.get(ending) if configured == "auto" else configured
    if known is None:
        raise InputError(
            f"the ending '{posixpath.splitext(path)[1]}' says no format. "
            "Set format, or choose shards by a pattern such as *.jsonl."
        )
    if known == "parquet" and compression:
        raise InputError(f"Parquet compresses inside; a {compression} file around it is not read. Unpack it.")
    return known, compression


def open_parquet(file: ShardFile) -> Any:
    """A `pyarrow.parquet.ParquetFile` that reads columns in small pieces. Raises BadShardError on a damaged footer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without a buffer size it would fetch the column of a whole row group at once.
        return pq.ParquetFile(pa.PythonFile(file, mode="r"), buffer_size=4 << 20)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise BadShardError(f"{file.url} is truncated or no Parquet: its footer cannot be read ({reason}).") from error


def column_problem(schema: pa.Schema, field: str, column: str) -> str | None:
    """What is wrong with the column that a source's `field` names, or None. `schema` is the shard's."""
    import pyarrow as pa

    if column not in schema.names:
        return f"has no column '{column}'. {near_names(column, schema.names)} Set {field}"
    kind = schema.field(column).type
    if field == "split_column" and not pa.types.is_nested(kind):  # whatever can be compared
        return None
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not is_text(kind):
        return f"has {kind} in column '{column}', not strings. Set {field} to the column that holds the text"
    return None


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view())


def near_names(wanted: str, names: Iterable[str]) -> str:
    """What there is instead of a name, the likeliest first, as a sentence."""
    there = [str(name) for name in names]
    near = difflib.get_close_matches(wanted, there, n=1, cutoff=0.4)
    listed = ", ".join(there[:20]) + (f" and {len(there) - 20} more" if len(there) > 20 else "")
    return f"There are: {listed or 'none'}." + (f" Nearest: '{near[0]}'." if near else "")
