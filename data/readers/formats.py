"""The formats of shards: which endings each has, and which reader reads it.

To add a format, write its reader in this folder and add a row to FORMATS. The recipe field `data.sources.N.format`
takes the names of this table.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from data.errors import InputError
from data.readers.delimited import read_delimited
from data.readers.jsonl import read_json_lines
from data.readers.parquet import inspect_parquet, read_parquet
from data.readers.reading import RawDocument, Reading
from data.readers.text import read_text
from data.readers.unpack import UnpackedStream
from data.stores.shard_file import ShardFile


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """A format that is read from the first byte to the last. A shard is one unit, and may be compressed.

    Attributes:
        endings: of file names, without that of a compression.
        read: yields the raw documents of a shard, in order.
    """

    endings: tuple[str, ...]
    read: Callable[[UnpackedStream, Reading], Iterator[RawDocument]]


@dataclass(frozen=True, slots=True)
class RowGroupFormat:
    """A format with row groups that can be read one at a time. Each row group is a unit.

    Attributes:
        endings: of file names.
        inspect: counts a shard's row groups, and says what is wrong with the columns to read (by the recipe field that
            names them), or None. Reads the footer alone.
        read: yields the raw documents of one row group, in order.
    """

    endings: tuple[str, ...]
    inspect: Callable[[ShardFile, Mapping[str, str]], tuple[int, str | None]]
    read: Callable[[ShardFile, int, Reading], Iterator[RawDocument]]


Format = StreamFormat | RowGroupFormat

FORMATS: Mapping[str, Format] = {
    "txt": StreamFormat((".txt", ".text"), read_text),
    "jsonl": StreamFormat((".jsonl", ".ndjson"), read_json_lines),
    "csv": StreamFormat((".csv",), partial(read_delimited, delimiter=",")),
    "tsv": StreamFormat((".tsv",), partial(read_delimited, delimiter="\t")),
    "parquet": RowGroupFormat((".parquet",), inspect_parquet, read_parquet),
}

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def format_of(path: str, configured: str) -> tuple[Format, str | None]:
    """The format and the compression ("gzip", "zstd" or None) of a shard.

    Args:
        path: the shard; its ending decides where `configured` is "auto".
        configured: a name in FORMATS, or "auto".

    Raises:
        InputError: the ending is unknown, or a format with row groups is compressed.
    """
    stem, ending = posixpath.splitext(path.lower())
    compression = _COMPRESSIONS.get(ending)
    if compression:
        stem, ending = posixpath.splitext(stem)
    by_ending = {each: name for name, row in FORMATS.items() for each in row.endings}
    name = by_ending.get(ending) if configured == "auto" else configured
    if name is None:
        raise InputError(
            f"the ending '{posixpath.splitext(path)[1]}' does not tell the format. "
            "Set format, or choose shards by a pattern such as *.jsonl."
        )
    form = FORMATS[name]
    if compression and isinstance(form, RowGroupFormat):
        raise InputError(
            f"a {name} file cannot be read inside a {compression} file. Unpack it: {name} has its own compression."
        )
    return form, compression
