"""The manifest: which shards a run reads, pinned by size and etag, and how they are cut into units.

A unit is the smallest piece that is read on its own: a row group of a Parquet shard, or any other shard as a whole.
Units are numbered by source, then by path, so an ordinal means the same piece of text whoever asks, on any cluster.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.config import SourceConfig, StoreConfig
from data.errors import BadShardError, InputError, ObjectNotFoundError, ShardChangedError, StoreAccessError
from data.s3_store import S3Store
from data.shard_file import ShardFile, filesystem_for
from data.store import raise_local_error, split_url

if TYPE_CHECKING:
    import pyarrow as pa

NAMED = 10  # shards named in one message; beyond that a count says more than a list
CHECK_THREADS = 16  # they wait for storage, not for a core

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
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}


class FoundShard(NamedTuple):
    """A shard as the storage describes it now. `path` is an s3:// or gs:// URL, or an absolute path."""

    path: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of a dataset, and the version of the shard it was pinned at.

    `source` and `shard` are indices into the config's sources and the manifest's rows. `size` is the shard's, in bytes;
    `unit_bytes` is this unit's part of it, taking row groups as equal. `row_group` is None unless the shard is Parquet.
    `input_path`, `input_size` and `input_etag` are of the file whose lines are the inputs of the shard's; "" and 0
    where there is none.
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
        """The files it is read from, as they were pinned."""
        inputs = [FoundShard(self.input_path, self.input_size, self.input_etag)] if self.input_path else []
        return [FoundShard(self.path, self.size, self.etag), *inputs]


class Manifest:
    """The pinned shards of all sources, by column: a hundred thousand of them are tens of megabytes, not objects.

    Files of inputs whose lines belong to those of shards come after the shards of their source, in the same order, as
    shards without a unit of their own.
    """

    def __init__(self, table: pa.Table, source_paths: Sequence[str], input_paths: Sequence[str | None] = ()) -> None:
        """`table` has the columns of `_schema()`, ordered by source and then path.

        `source_paths` is one a source, and so is `input_paths`, None where a source has no files of inputs.
        """
        self._table = table.combine_chunks()
        self.source_paths = tuple(source_paths)
        self.input_paths = tuple(input_paths) or (None,) * len(self.source_paths)
        self._source = self._table["source"].to_numpy()
        self._units = self._table["units"].to_numpy()
        # ends[i]: the first ordinal after shard i. searchsorted steps over shards without a unit (no row group).
        self._ends = np.cumsum(self._units, dtype=np.int64)

    @property
    def num_shards(self) -> int:
        return int(self._table.num_rows)

    @property
    def num_units(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def total_bytes(self) -> int:
        """Bytes of all shards as they are stored, so compressed where they are."""
        return int(self._table["size"].to_numpy().sum())

    def shard(self, index: int) -> FoundShard:
        """The shard in row `index`, as it was when the manifest was made."""
        return FoundShard(*(self._table[name][index].as_py() for name in ("path", "size", "etag")))

    def shards_of_source(self, source: int) -> range:
        """The rows of one source."""
        first, last = np.searchsorted(self._source, [source, source + 1])
        return range(int(first), int(last))

    def unit(self, ordinal: int) -> Unit:
        """The unit numbered `ordinal`. Raises IndexError outside 0 <= ordinal < num_units."""
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
        """The ordinals of one source's units: contiguous, as units are ordered by source first."""
        rows = self.shards_of_source(source)
        starts = self._ends - self._units
        return range(int(starts[rows.start]), int(self._ends[rows.stop - 1])) if rows else range(0)

    @cached_property
    def digest(self) -> str:
        """sha256 over what is pinned: same shards, same digest, whatever wrote or read the file."""
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
        paths = {"manta.source_paths": json.dumps(self.source_paths), "manta.input_paths": json.dumps(self.input_paths)}
        table = self._table.replace_schema_metadata(paths)
        pq.write_table(table, sink, compression="zstd")
        data: bytes = sink.getvalue().to_pybytes()
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """What `to_bytes` wrote. Raises InputError where it is something else."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(pa.BufferReader(data))
            source_paths = json.loads(table.schema.metadata[b"manta.source_paths"])
            input_paths = json.loads(table.schema.metadata.get(b"manta.input_paths", b"[]"))
            return cls(table.select(_schema().names).cast(_schema()), source_paths, input_paths)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"This is no manifest that can be read ({error}). Start a new run to make one.") from error


def _schema() -> pa.Schema:
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
    """A column in a form that does not depend on how Arrow lays it out: little-endian int64, lengths before text."""
    import pyarrow as pa

    if column.type == pa.string():
        values = [value.encode("utf-8", "surrogateescape") for value in column.to_pylist()]
        yield np.array([len(value) for value in values], "<i8").tobytes()
        yield b"".join(values)
    else:
        yield column.to_numpy().astype("<i8").tobytes()


def build_manifest(
    sources: Sequence[SourceConfig], store: StoreConfig, *, progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """List and pin the shards of every source.

    Args:
        sources: the bodies of text, in the config's order.
        store: how to reach them.
        progress: called with (shards looked at, shards) while footers and headers are read.

    Raises:
        InputError: every problem of every source at once: nothing found, empty, unknown or damaged shards.
        TransientStoreError: the storage stopped answering.
    """
    problems: list[str] = []
    found: list[tuple[int, FoundShard]] = []
    for index, source in enumerate(sources):
        shards, refused = _shards_of(source.path, source.known_format, store)
        if source.input_path is not None:
            inputs, refused_inputs = _shards_of(source.input_path, "txt", store)
            if not refused and not refused_inputs and len(shards) != len(inputs):
                counts = f"path has {len(shards)} files and input_path {len(inputs)}"
                refused.append(f"{counts}, and each needs its counterpart: {source.path}, {source.input_path}.")
            shards, refused = [*shards, *inputs], [*refused, *refused_inputs]
        found += [(index, shard) for shard in shards]
        problems += [f"sources[{index}]: {problem}" for problem in refused]
    units: list[int] = []
    damaged: list[list[str]] = [[] for _ in sources]
    with ThreadPoolExecutor(CHECK_THREADS, "manta-shards") as pool:
        looked = pool.map(lambda pair: _look_into(pair[1], sources[pair[0]], store), found)
        for done, ((index, _), (count, problem)) in enumerate(zip(found, looked, strict=True), start=1):
            units.append(count)
            damaged[index] += [problem] if problem else []
            if progress is not None:
                progress(done, len(found))
    for index, bad in enumerate(damaged):
        if bad:
            named = _some(bad, "damaged shard", joint="; ")
            problems.append(f"sources[{index}]: {named}. Write them again or leave them out.")
    if problems:
        raise InputError("The data cannot be used as it is:\n" + "\n".join(f"- {problem}" for problem in problems))
    return _assemble(sources, found, units)


def _assemble(sources: Sequence[SourceConfig], found: list[tuple[int, FoundShard]], units: list[int]) -> Manifest:
    import pyarrow as pa

    for index, source in enumerate(sources):
        if source.input_path is not None:
            mine = [row for row, (of_source, _) in enumerate(found) if of_source == index]
            for row in mine[len(mine) // 2 :]:
                units[row] = 0

    table = pa.table(
        {
            "source": [index for index, _ in found],
            "path": [shard.path for _, shard in found],
            "size": [shard.size for _, shard in found],
            "etag": [shard.etag for _, shard in found],
            "units": units,
            "parquet": [_is_parquet(shard.path, sources[index]) for index, shard in found],
        },
        schema=_schema(),
    )
    inputs = [absolute(source.input_path) if source.input_path is not None else None for source in sources]
    return Manifest(table, [absolute(source.path) for source in sources], inputs)


def _shards_of(path: str, configured: str, store: StoreConfig) -> tuple[list[FoundShard], list[str]]:
    """The shards below a source's path, and the problems with them that their names and sizes tell."""
    try:
        shards = list_shards(path, store)
    except InputError as error:  # a storage that cannot be used; the next source may be elsewhere
        return [], [str(error)]
    if not shards:
        return [], [f"nothing found under {path}. Check the path; names that start with . or _ are not read."]
    problems = []
    if empty := [shard.path for shard in shards if shard.size == 0]:
        remedy = "An upload may have failed: write them again or remove them."
        problems.append(f"{_some(empty, 'empty shard')} (0 bytes). {remedy}")
    usable = []
    unknown: dict[str, list[str]] = {}
    for shard in shards:
        try:
            shard_format(shard.path, configured)
        except InputError as error:
            unknown.setdefault(str(error), []).append(shard.path)
        else:
            usable += [shard] if shard.size else []
    problems += [f"{_some(paths, 'shard')}: {reason}" for reason, paths in unknown.items()]
    return usable, problems


def _some(names: Sequence[str], what: str, joint: str = ", ") -> str:
    """ "3 empty shards: a, b, c", with the first NAMED names and the count of the rest."""
    more = f"{joint}and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{len(names):,} {what}{'s' if len(names) > 1 else ''}: {joint.join(names[:NAMED])}{more}"


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


def _is_parquet(path: str, source: SourceConfig) -> bool:
    return shard_format(path, source.known_format)[0] == "parquet"


def _look_into(shard: FoundShard, source: SourceConfig, store: StoreConfig) -> tuple[int, str | None]:
    """How many units the shard has, and what is wrong with it as far as its footer or first bytes tell."""
    form, compression = shard_format(shard.path, source.known_format)
    if form != "parquet" and compression is None:
        return 1, None
    try:
        with ShardFile(shard.path, store) as file:
            if form == "parquet":
                parquet = open_parquet(file)
                found = (column_problem(parquet.schema_arrow, *column) for column in source.columns.items())
                problems = [problem for problem in found if problem]
                return parquet.metadata.num_row_groups, f"{shard.path} {problems[0]}" if problems else None
            if compression is not None and not file.read(4).startswith(_MAGIC[compression]):
                return 1, f"{shard.path} is not {compression}, whatever its name says"
            return 1, None
    except ObjectNotFoundError:
        return 0, f"{shard.path} disappeared while it was being looked at"
    except InputError as error:
        return 0, str(error).rstrip(".")


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


def absolute(path: str) -> str:
    """A source's path as it stays true in another working directory and on another machine."""
    scheme, rest = split_url(path)
    return rest if scheme == "file" else f"{scheme}://{rest}"


def list_shards(path: str, config: StoreConfig) -> list[FoundShard]:
    """The shards that a source's path names now, sorted by path.

    A path with * or ? is a pattern in which neither crosses a "/"; a folder it matches counts with all that is below.
    Any other path is a file, else a folder, else the beginning of names. Below it, files and folders whose name starts
    with . or _ are skipped, as writers leave their markers and unfinished files there.

    Raises:
        StoreAccessError, TransientStoreError: the storage cannot be listed.
    """
    path = absolute(path)
    literal = re.split(r"[*?]", path, maxsplit=1)[0]
    if literal == path or _is_local_file(path):
        found = list(_listed(path, config))
        folder = path.rstrip("/") + "/"
        if exact := [shard for shard in found if shard.path == path]:
            return exact
        if below := [shard for shard in found if shard.path.startswith(folder)]:
            found, literal = below, folder
    else:
        pattern = re.compile(_pattern(path.rstrip("/")) + r"(/.*)?", re.DOTALL)
        found = [shard for shard in _listed(literal, config) if pattern.fullmatch(shard.path)]
    return sorted(shard for shard in found if not _hidden(shard.path[len(literal) :], literal.endswith("/")))


def _is_local_file(path: str) -> bool:
    return "://" not in path and os.path.isfile(path)


def _hidden(rest: str, whole_names: bool) -> bool:
    """`rest` of a path after what the user spelled out; unless `whole_names`, it starts in the middle of a name."""
    parts = rest.split("/")
    return any(part.startswith((".", "_")) for part in (parts if whole_names else parts[1:]))


def _pattern(path: str) -> str:
    """A regular expression for a path in which * and ? stand for characters other than "/"."""
    return "".join({"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char)) for char in path)


def _listed(start: str, config: StoreConfig) -> Iterator[FoundShard]:
    """Every object whose full path starts with `start`, unordered."""
    scheme, rest = split_url(start)
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        # A clear word about endpoint, bucket and keys; with the prefix, as the keys may be good for nothing else.
        S3Store(bucket, prefix, config).check()
        for info in S3Store(bucket, "", config).list(prefix):
            yield FoundShard(f"s3://{bucket}/{info.key}", info.size, info.etag)
    elif scheme == "gs":
        yield from _gs_listed(start, config)
    else:
        # split_url drops a closing slash, which tells "below this folder" from "names that start so".
        yield from _local_listed(start)


def _local_listed(start: str) -> Iterator[FoundShard]:
    try:
        if os.path.isfile(start):
            yield _local_shard(start)
            return
        top = start if os.path.isdir(start) else os.path.dirname(start)
        seen: set[tuple[int, int]] = set()
        for folder, folders, names in os.walk(top, followlinks=True):
            # Links into other folders are common in datasets; a link back up would never end.
            below = [(name, os.path.join(folder, name)) for name in folders]
            folders[:] = [name for name, path in below if _leads_to(path, start) and _first_visit(path, seen)]
            for name in names:
                path = os.path.join(folder, name)
                if path.startswith(start) and os.path.isfile(path):
                    yield _local_shard(path)
    except OSError as error:
        raise_local_error(error, "list", start)


def _leads_to(folder: str, start: str) -> bool:
    return folder.startswith(start) or start.startswith(folder + "/")


def _first_visit(folder: str, seen: set[tuple[int, int]]) -> bool:
    stat = os.stat(folder)
    place = (stat.st_dev, stat.st_ino)
    if place in seen:
        return False
    seen.add(place)
    return True


def _local_shard(path: str) -> FoundShard:
    stat = os.stat(path)
    return FoundShard(path, stat.st_size, f"{stat.st_size:x}-{stat.st_mtime_ns:x}")


def _gs_listed(start: str, config: StoreConfig) -> Iterator[FoundShard]:
    from pyarrow import fs

    filesystem, path = filesystem_for(start, config)
    try:
        itself = filesystem.get_file_info(path.rstrip("/"))
        folder = path if itself.type == fs.FileType.Directory else posixpath.dirname(path)
        below = filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    except OSError as error:
        reason = str(error).rstrip(".")
        raise StoreAccessError(f"Could not list {start}: {reason}. Check the bucket and the credentials.") from error
    infos = [itself] if itself.type == fs.FileType.File else below
    for info in infos:
        if info.type == fs.FileType.File and info.path.startswith(path):
            yield _gs_shard(info)


def _gs_shard(info: Any) -> FoundShard:
    return FoundShard(f"gs://{info.path}", info.size, f"{info.size:x}-{info.mtime_ns or 0:x}")


def stat_shard(path: str, config: StoreConfig) -> FoundShard | None:
    """One shard as it is now, or None where there is none."""
    scheme, rest = split_url(path)
    if scheme == "s3":
        bucket, _, key = rest.partition("/")
        # Reached before, when the shard was pinned: no answer now is trouble that may pass.
        info = S3Store(bucket, "", config, reached=True).head(key)
        return FoundShard(path, info.size, info.etag) if info else None
    if scheme == "gs":
        from pyarrow import fs

        filesystem, inner = filesystem_for(path, config)
        found = filesystem.get_file_info(inner)
        return _gs_shard(found) if found.type == fs.FileType.File else None
    try:
        return _local_shard(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise_local_error(error, "read", path)


def change_of(pinned: FoundShard, now: FoundShard | None) -> str | None:
    """How a shard differs from its pinned version, as a clause, or None."""
    if now is None:
        return f"{pinned.path} is missing"
    if (now.size, now.etag) == (pinned.size, pinned.etag):
        return None
    was = f"{pinned.size} bytes, etag {pinned.etag}"
    return f"{pinned.path} is now {now.size} bytes, etag {now.etag}; pinned was {was}"


def check_unchanged(manifest: Manifest, config: StoreConfig) -> int:
    """Compare the pinned shards with what is there, by listing each source again; returns how many shards are new.

    Raises:
        ShardChangedError: shards that changed or are missing, each by name up to ten, and the count.
    """
    changes: list[str] = []
    new = 0
    for source, path in enumerate(manifest.source_paths):
        inputs = manifest.input_paths[source]
        listed = [path] if inputs is None else [path, inputs]
        now = {shard.path: shard for below in listed for shard in list_shards(below, config)}
        for row in manifest.shards_of_source(source):
            pinned = manifest.shard(row)
            change = change_of(pinned, now.get(pinned.path))
            changes += [change] if change else []
        new += len(now.keys() - {manifest.shard(row).path for row in manifest.shards_of_source(source)})
    if changes:
        raise ShardChangedError(
            f"{_some(changes, 'changed or missing shard', joint='; ')}. This run is pinned to other data: restore the "
            "shards, or start a new run to train on what is there now."
        )
    return new
