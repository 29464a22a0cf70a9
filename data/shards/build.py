"""Builds a manifest: lists the shards of every source, inspects each, and reports all problems at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from data.config import SourceConfig, StoreConfig
from data.errors import InputError, ObjectNotFoundError
from data.readers.formats import RowGroupFormat, format_of
from data.shards.listing import BROKEN_LINK, absolute, list_shards, some_of
from data.shards.manifest import FoundShard, Manifest, manifest_schema
from data.stores.shard_file import ShardFile

CHECK_THREADS = 16
"""Shards inspected at once; the threads wait for storage, not for a core."""

_MAGIC = {"gzip": rb"\x1f\x8b", "zstd": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"}
"""How they begin, as patterns; zstd also with a frame that is to be skipped."""


def build_manifest(
    sources: Sequence[SourceConfig], store: StoreConfig, *, progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """Lists and pins the shards of every source.

    Args:
        sources: in the recipe's order.
        store: how to reach them.
        progress: called with (shards inspected, all shards) while footers and headers are read.

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
        inspected = pool.map(lambda pair: _inspect(pair[1], sources[pair[0]], store), found)
        for done, ((index, _), (count, problem)) in enumerate(zip(found, inspected, strict=True), start=1):
            units.append(count)
            damaged[index] += [problem] if problem else []
            if progress is not None:
                progress(done, len(found))
    for index, bad in enumerate(damaged):
        if bad:
            named = some_of(bad, "damaged shard", joint="; ")
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
            "parquet": [_has_row_groups(shard.path, sources[index]) for index, shard in found],
        },
        schema=manifest_schema(),
    )
    inputs = [absolute(source.input_path) if source.input_path is not None else None for source in sources]
    return Manifest(table, [absolute(source.path) for source in sources], inputs)


def _shards_of(path: str, configured: str, store: StoreConfig) -> tuple[list[FoundShard], list[str]]:
    """The usable shards below a source's path, and the problems with the others' names and sizes."""
    try:
        shards = list_shards(path, store)
    except InputError as error:  # this storage cannot be used; the next source may be in another
        return [], [str(error)]
    if not shards:
        return [], [f"nothing found under {path}. Check the path; names that start with . or _ are not read."]
    problems = []
    if broken := [shard.path for shard in shards if shard.etag == BROKEN_LINK]:
        problems.append(f"{some_of(broken, 'broken link')}. Restore what it leads to, or remove it.")
    if unwritable := [shard.path for shard in shards if not _is_utf8(shard.path)]:
        problems.append(f"{some_of(unwritable, 'shard')}: the name is not UTF-8. Rename it.")
    shards = [shard for shard in shards if shard.path not in {*broken, *unwritable}]
    if empty := [shard.path for shard in shards if shard.size == 0]:
        remedy = "An upload may have failed: write them again or remove them."
        problems.append(f"{some_of(empty, 'empty shard')} (0 bytes). {remedy}")
    usable = []
    unknown: dict[str, list[str]] = {}
    for shard in shards:
        try:
            format_of(shard.path, configured)
        except InputError as error:
            unknown.setdefault(str(error), []).append(shard.path)
        else:
            usable += [shard] if shard.size else []
    problems += [f"{some_of(paths, 'shard')}: {reason}" for reason, paths in unknown.items()]
    return usable, problems


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_row_groups(path: str, source: SourceConfig) -> bool:
    return isinstance(format_of(path, source.known_format)[0], RowGroupFormat)


def _inspect(shard: FoundShard, source: SourceConfig, store: StoreConfig) -> tuple[int, str | None]:
    """The number of units in the shard, and what is wrong with it by its footer or first bytes, or None."""
    form, compression = format_of(shard.path, source.known_format)
    if not isinstance(form, RowGroupFormat) and compression is None:
        return 1, None
    try:
        with ShardFile(shard.path, store) as file:
            if isinstance(form, RowGroupFormat):
                row_groups, problem = form.inspect(file, source.columns)
                return row_groups, problem and f"{shard.path} {problem}"
            assert compression is not None
            if not re.match(_MAGIC[compression], file.read(4), re.DOTALL):
                return 1, f"{shard.path} is not {compression}, though its name ends so"
            return 1, None
    except ObjectNotFoundError:
        return 0, f"{shard.path} disappeared while it was being inspected"
    except InputError as error:
        return 0, str(error).rstrip(".")
