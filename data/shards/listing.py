"""Lists the shards below a path or URL, and detects shards that have changed since they were pinned."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any

from data.config import StoreConfig
from data.errors import ShardChangedError, StoreAccessError
from data.shards.manifest import FoundShard, Manifest
from data.stores.s3 import S3Store
from data.stores.shard_file import filesystem_for
from data.stores.store import raise_local_error, split_url

NAMED = 10
"""Most shards named in one message; the rest are counted."""


BROKEN_LINK = "broken link"
"""Version of a shard that is a link to nothing."""


def some_of(names: Sequence[str], what: str, joint: str = ", ") -> str:
    """A list such as "3 empty shards: a, b, c", with the first NAMED names and the count of the rest."""
    more = f"{joint}and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{len(names):,} {what}{'s' if len(names) > 1 else ''}: {joint.join(names[:NAMED])}{more}"


def absolute(path: str) -> str:
    """A source's path, valid in any working directory: a URL or an absolute path."""
    scheme, rest = split_url(path)
    return rest if scheme == "file" else f"{scheme}://{rest}"


def list_shards(path: str, config: StoreConfig) -> list[FoundShard]:
    """The shards that a source's path names at present, sorted by path.

    A path with * or ? is a pattern, in which neither matches "/"; a matching folder includes all files below it. Any
    other path is a file, else a folder, else a prefix of names. Files and folders whose names start with . or _ are
    skipped: writers use such names for markers and unfinished files.

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
    """Whether the part of a path after the user's own has a hidden name.

    Args:
        rest: that part.
        whole_names: whether it starts with a whole name, not in the middle of one.
    """
    parts = rest.split("/")
    return any(part.startswith((".", "_")) for part in (parts if whole_names else parts[1:]))


def _pattern(path: str) -> str:
    """A regular expression for a path in which * and ? match characters other than "/"."""
    return "".join({"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char)) for char in path)


def _listed(start: str, config: StoreConfig) -> Iterator[FoundShard]:
    """Every object whose full path starts with `start`, unordered."""
    scheme, rest = split_url(start)
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        # A clear message about endpoint, bucket or keys. With the prefix: the keys may allow nothing else.
        S3Store(bucket, prefix, config).check()
        for info in S3Store(bucket, "", config).list(prefix):
            yield FoundShard(f"s3://{bucket}/{info.key}", info.size, info.etag)
    elif scheme == "gs":
        yield from _gs_listed(start, config)
    else:
        # split_url drops a trailing slash, which distinguishes "below this folder" from "names with this prefix".
        yield from _local_listed(start)


def _local_listed(start: str) -> Iterator[FoundShard]:
    try:
        if os.path.isfile(start):
            yield _local_shard(start)
            return
        top = start if os.path.isdir(start) else os.path.dirname(start)
        seen: set[tuple[int, int]] = set()
        for folder, folders, names in os.walk(top, onerror=_raise_unless_hidden_or_gone, followlinks=True):
            # Links to other folders are common in datasets; a link to a parent folder would never end.
            below = [(name, os.path.join(folder, name)) for name in folders]
            folders[:] = [name for name, path in below if _leads_to(path, start) and _first_visit(path, seen)]
            for name in names:
                path = os.path.join(folder, name)
                if path.startswith(start) and os.path.isfile(path):
                    yield _local_shard(path)
                elif path.startswith(start) and os.path.islink(path) and not os.path.exists(path):
                    yield FoundShard(path, 0, BROKEN_LINK)  # else it would be left out without a word
    except OSError as error:
        raise_local_error(error, "list", start)


def _raise_unless_hidden_or_gone(error: OSError) -> None:
    """A folder that cannot be read must not count as empty: its shards would be left out without a word."""
    name = os.path.basename(str(error.filename))
    is_hidden = _hidden(name, whole_names=True) or name == "lost+found"  # a file system's own, for root alone
    if not (is_hidden or isinstance(error, FileNotFoundError | NotADirectoryError)):
        raise error


def _leads_to(folder: str, start: str) -> bool:
    return folder.startswith(start) or start.startswith(folder + "/")


def _first_visit(folder: str, seen: set[tuple[int, int]]) -> bool:
    stat = os.stat(folder)
    identity = (stat.st_dev, stat.st_ino)
    if identity in seen:
        return False
    seen.add(identity)
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
    """The present metadata of one shard; None where there is no such shard."""
    scheme, rest = split_url(path)
    if scheme == "s3":
        bucket, _, key = rest.partition("/")
        # The storage answered when the shard was pinned, so no answer now is a temporary failure.
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
    """How a shard differs from its pinned version, as a clause; None where it does not."""
    if now is None:
        return f"{pinned.path} is missing"
    if (now.size, now.etag) == (pinned.size, pinned.etag):
        return None
    was = f"{pinned.size} bytes, etag {pinned.etag}"
    return f"{pinned.path} is now {now.size} bytes, etag {now.etag}; pinned was {was}"


def check_unchanged(manifest: Manifest, config: StoreConfig) -> int:
    """Lists each source again and compares it with the pinned shards; returns how many shards are new.

    Raises:
        ShardChangedError: shards changed or are missing; names up to ten, and the count.
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
            f"{some_of(changes, 'changed or missing shard', joint='; ')}. This run is pinned to other data: restore "
            "the shards, or start a new run to train on what is there now."
        )
    return new
