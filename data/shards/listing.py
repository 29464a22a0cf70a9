"""Lists shards below a path or URL, and tells whether one has changed since it was pinned."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any

from data.config import StoreConfig
from data.errors import ShardChangedError, StoreAccessError
from data.shards.file import filesystem_for
from data.shards.manifest import FoundShard, Manifest
from data.stores.s3 import S3Store
from data.stores.store import raise_local_error, split_url

NAMED = 10  # shards named in one message; beyond that a count says more than a list


def some_of(names: Sequence[str], what: str, joint: str = ", ") -> str:
    """ "3 empty shards: a, b, c", with the first NAMED names and the count of the rest."""
    more = f"{joint}and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{len(names):,} {what}{'s' if len(names) > 1 else ''}: {joint.join(names[:NAMED])}{more}"


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
            f"{some_of(changes, 'changed or missing shard', joint='; ')}. This run is pinned to other data: restore the "
            "shards, or start a new run to train on what is there now."
        )
    return new
