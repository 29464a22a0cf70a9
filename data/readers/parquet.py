"""Reads Parquet shards, one row group at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from data.errors import BadShardError, MantaError, OutOfMemoryError
from data.readers.reading import Location, RawDocument, Reading, near_names, reason_of
from data.stores.shard_file import ShardFile

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_BYTES = 8 << 20
"""Bytes of text of the rows held at once, by the row group's average."""

MOST_BYTES = 1 << 32
"""Most memory that a sound shard asks for at once: a page, or a dictionary of texts, which have 32-bit sizes."""

BATCH_ROWS = 512
"""Most rows held at once: a long text that repeats is stored once, so the average makes it look short."""


def inspect_parquet(file: ShardFile, columns: Mapping[str, str]) -> tuple[int, str | None]:
    """The number of row groups, and what is wrong with one of the columns, or None.

    Args:
        columns: names of columns by the recipe field that names them.

    Raises:
        BadShardError: the footer is damaged.
    """
    parquet = _open(file)
    problems = (_column_problem(parquet.schema_arrow, *column) for column in columns.items())
    return parquet.metadata.num_row_groups, next((problem for problem in problems if problem), None)


def read_parquet(file: ShardFile, row_group: int, reading: Reading) -> Iterator[RawDocument]:
    """The documents of one row group."""
    import pyarrow as pa

    source = reading.source
    parquet = _open(file)
    for field, column in source.columns.items():
        if problem := _column_problem(parquet.schema_arrow, field, column):
            raise reading.bad(None, f"it {problem}.")
    wanted_columns = list(dict.fromkeys(source.columns.values()))
    group = parquet.metadata.row_group(row_group)
    columns = [group.column(i) for i in range(group.num_columns)]
    stored = sum(each.total_uncompressed_size for each in columns if each.path_in_schema in wanted_columns)
    wanted = {
        "batch_size": min(BATCH_ROWS, max(1, BATCH_BYTES * group.num_rows // max(1, stored))),
        "row_groups": [row_group],
        "columns": wanted_columns,
    }
    row = 0
    try:
        for batch in parquet.iter_batches(**wanted, use_threads=False):
            values = [_as_bytes(batch.column(name)) for name in source.columns.values()]
            for of_row in zip(*values, strict=True):
                yield Location(f"row group {row_group}, row {row}"), [value.as_py() for value in of_row]
                row += 1
    except MemoryError as error:  # Arrow's, too
        raise _without_memory(reading, Location(f"row group {row_group}, after row {row}"), error) from error
    except (pa.ArrowException, OSError) as error:
        location = Location(f"row group {row_group}, after row {row}")
        raise reading.bad(
            location, f"truncated or damaged Parquet ({reason_of(error)}). Write the shard again."
        ) from error


def _without_memory(reading: Reading, location: Location, error: MemoryError) -> MantaError:
    """The error for memory that was refused.

    Whether a shard is left out must not depend on the memory of the node that reads it. So one that asks for more than
    any sound one needs is bad everywhere, and any other one is read by another node, or not at all.
    """
    asked = max(map(int, re.findall(r"\d+", str(error))), default=0)
    if asked > MOST_BYTES:
        remedy = "Write the shard again, in smaller row groups."
        return reading.bad(location, f"it asks for {asked / 1e9:,.0f} GB of memory at once. {remedy}")
    return OutOfMemoryError(
        f"{reading.path}, {location.name}: this node has too little memory to read it ({reason_of(error)}). Use nodes "
        "with more memory, or write the shard again in smaller row groups."
    )


def _as_bytes(values: Any) -> Any:
    """A column as bytes: Arrow does not check that strings are UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not _is_text(values.type):
        values = values.cast(pa.string())
    return values.cast(pa.large_binary())


def _open(file: ShardFile) -> Any:
    """A `pyarrow.parquet.ParquetFile` that reads columns in small pieces.

    Raises:
        BadShardError: the footer is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without a buffer size it would fetch the column of a whole row group at once.
        return pq.ParquetFile(
            pa.PythonFile(file, mode="r"),
            buffer_size=4 << 20,
            page_checksum_verification=True,  # where the writer has written any
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = reason_of(error)
        raise BadShardError(f"{file.url} is truncated or no Parquet: its footer cannot be read ({reason}).") from error


def _column_problem(schema: pa.Schema, field: str, column: str) -> str | None:
    """What is wrong with the column that the recipe field `field` names, or None. `schema` is the shard's."""
    import pyarrow as pa

    if (count := schema.names.count(column)) > 1:
        return f"has {count} columns '{column}', and it is not known which is meant. Set {field}"
    if column not in schema.names:
        return f"has no column '{column}'. {near_names(column, schema.names)} Set {field}"
    kind = schema.field(column).type
    if field == "split_column" and not pa.types.is_nested(kind):  # any value that can be compared
        return None
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not _is_text(kind):
        return f"has {kind} in column '{column}', not strings. Set {field} to the column that holds the text"
    return None


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view())
