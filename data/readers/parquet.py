"""Reads one row group of a Parquet shard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data.config import SourceConfig
from data.readers.reading import Location, RawDocument, Reading, reason_of
from data.shards.file import ShardFile
from data.shards.formats import column_problem, open_parquet
from data.shards.manifest import Unit

BATCH_BYTES = 8 << 20  # text of Parquet rows held at once, by the row group's average

BATCH_ROWS = 512  # and the most rows, as a long text that is repeated is stored once and so looks short


def read_parquet(file: ShardFile, unit: Unit, source: SourceConfig, reading: Reading) -> Iterator[RawDocument]:
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
                yield Location(f"row group {unit.row_group}, row {row}"), [value.as_py() for value in of_row]
                row += 1
    except (pa.ArrowException, OSError) as error:
        place = Location(f"row group {unit.row_group}, after row {row}")
        raise reading.bad(
            place, f"truncated or damaged Parquet ({reason_of(error)}). Write the shard again."
        ) from error


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
