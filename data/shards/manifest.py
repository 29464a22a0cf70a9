"""The manifest: the shards of a run, pinned by size and etag, and their division into units.

A unit is the smallest piece that is read on its own: a row group, or a whole shard of a format without row groups.
Units are numbered by source, then by path, so an ordinal means the same piece of text on any cluster.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.errors import InputError
from data.stores.artifact import json_digest, read_artifact
from data.stores.store import Store

if TYPE_CHECKING:
    import pyarrow as pa


_PATHS = ("manta.source_paths", "manta.input_paths")
"""Metadata of a manifest's file, which the digest of its shards does not cover."""

_PATHS_DIGEST = "manta.paths_digest"


class FoundShard(NamedTuple):
    """A shard as the storage describes it. `path` is an s3:// or gs:// URL, or an absolute path."""

    path: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of a data set, and the pinned version of its shard.

    Attributes:
        shard: row of the manifest.
        source: index into the recipe's sources.
        size: bytes of the shard.
        unit_bytes: this unit's part of `size`, taking row groups as equal.
        row_group: None where the shard's format has no row groups.
        input_path, input_size, input_etag: the file whose lines are the inputs of the shard's lines; "" and 0 where
            there is none.
    """

    ordinal: int
    shard: int
    source: int
    path: str
    size: int
    etag: str
    unit_bytes: int
    row_group: int | None
    input_path: str = ""
    input_size: int = 0
    input_etag: str = ""

    @property
    def pinned(self) -> list[FoundShard]:
        """The files that the unit is read from, as they were pinned."""
        inputs = [FoundShard(self.input_path, self.input_size, self.input_etag)] if self.input_path else []
        return [FoundShard(self.path, self.size, self.etag), *inputs]


class Manifest:
    """The pinned shards of all sources, stored by column: a hundred thousand take tens of megabytes.

    Files of inputs, whose lines belong to those of shards, follow the shards of their source in the same order. They
    are shards without units.
    """

    def __init__(self, table: pa.Table, source_paths: Sequence[str], input_paths: Sequence[str | None] = ()) -> None:
        """Builds a manifest of a table.

        Args:
            table: has the columns of `manifest_schema()`, ordered by source, then path.
            source_paths: one per source.
            input_paths: one per source; None where a source has no files of inputs.
        """
        self._table = table.combine_chunks()
        self.source_paths = tuple(source_paths)
        self.input_paths = tuple(input_paths) or (None,) * len(self.source_paths)
        self._source = self._table["source"].to_numpy()
        self._units = self._table["units"].to_numpy()
        # ends[i]: the first ordinal after shard i. searchsorted skips shards without a unit.
        self._ends = np.cumsum(self._units, dtype=np.int64)

    @property
    def num_shards(self) -> int:
        return int(self._table.num_rows)

    @property
    def num_units(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def total_bytes(self) -> int:
        """Bytes of all shards as they are stored; compressed ones count compressed."""
        return int(self._table["size"].to_numpy().sum())

    def shard(self, index: int) -> FoundShard:
        """The shard in row `index`, as it was when the manifest was made."""
        return FoundShard(*(self._table[name][index].as_py() for name in ("path", "size", "etag")))

    def shards_of_source(self, source: int) -> range:
        """The rows of one source."""
        first, last = np.searchsorted(self._source, [source, source + 1])
        return range(int(first), int(last))

    def unit(self, ordinal: int) -> Unit:
        """The unit numbered `ordinal`.

        Raises:
            IndexError: not 0 <= ordinal < num_units.
        """
        if not 0 <= ordinal < self.num_units:
            raise IndexError(f"unit {ordinal} of a manifest with {self.num_units}")
        shard = int(np.searchsorted(self._ends, ordinal, side="right"))
        path, size, etag = self.shard(shard)
        units = int(self._units[shard])
        row_group = ordinal - int(self._ends[shard]) + units
        source = int(self._source[shard])
        inputs = FoundShard("", 0, "")
        if self.input_paths[source] is not None:
            inputs = self.shard(shard + len(self.shards_of_source(source)) // 2)
        return Unit(
            ordinal=ordinal,
            shard=shard,
            source=source,
            path=path,
            size=size,
            etag=etag,
            unit_bytes=-(-size // units),
            row_group=row_group if bool(self._table["parquet"][shard].as_py()) else None,
            input_path=inputs.path,
            input_size=inputs.size,
            input_etag=inputs.etag,
        )

    def units_of_source(self, source: int) -> range:
        """The ordinals of one source's units: contiguous, because units are ordered by source first."""
        rows = self.shards_of_source(source)
        starts = self._ends - self._units
        return range(int(starts[rows.start]), int(self._ends[rows.stop - 1])) if rows else range(0)

    @cached_property
    def digest(self) -> str:
        """sha256 over the pinned shards: the same shards have the same digest, independent of Arrow's version."""
        digest = hashlib.sha256(b"manta manifest 1\n")
        for name in self._table.column_names:
            for part in _canonical_bytes(self._table[name]):
                digest.update(part)
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """The manifest as a Parquet file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        paths = dict(zip(_PATHS, (json.dumps(self.source_paths), json.dumps(self.input_paths)), strict=True))
        table = self._table.replace_schema_metadata({**paths, _PATHS_DIGEST: json_digest(paths)})
        pq.write_table(table, sink, compression="zstd")
        data: bytes = sink.getvalue().to_pybytes()
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Inverse of `to_bytes`.

        Raises:
            InputError: `data` is not a manifest.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(pa.BufferReader(data))
            named = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
            paths = {name: named[name] for name in _PATHS if name in named}  # older versions knew no paths of inputs
            if named.get(_PATHS_DIGEST, json_digest(paths)) != json_digest(paths):
                raise ValueError("the paths of its sources have another digest")
            source_paths, input_paths = json.loads(paths[_PATHS[0]]), json.loads(paths.get(_PATHS[1], "[]"))
            return cls(table.select(manifest_schema().names).cast(manifest_schema()), source_paths, input_paths)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"This is not a manifest: {error}.") from error


def read_manifest(root: Store, digest: str) -> Manifest:
    """Reads a manifest from a recipe's storage.

    Raises:
        DamagedObjectError: it is missing, or is not the one with this digest.
    """
    key = f"manifests/{digest}.parquet"
    return read_artifact(root, key, digest, Manifest.from_bytes, lambda manifest: manifest.digest)


def manifest_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("source", pa.int32()),
            ("path", pa.string()),
            ("size", pa.int64()),
            ("etag", pa.string()),
            ("units", pa.int32()),
            ("parquet", pa.bool_()),
        ]
    )


def _canonical_bytes(column: Any) -> Iterator[bytes]:
    """A column in a form independent of Arrow's memory layout: little-endian int64; lengths, then text."""
    import pyarrow as pa

    if column.type == pa.string():
        values = [value.encode("utf-8", "surrogateescape") for value in column.to_pylist()]
        yield np.array([len(value) for value in values], "<i8").tobytes()
        yield b"".join(values)
    else:
        yield column.to_numpy().astype("<i8").tobytes()
