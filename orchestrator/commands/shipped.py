"""The files that `manta submit` ships: the user's folder without keys, derived files, and what no job can use.

What is shipped lies on disks of the cluster, where other users may read it. Files are left out by the folder's own
`.gitignore` and `.rayignore`, by name, by size, and by content that is a key. All that is left out has a reason, and
the recipe is never left out.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pathspec import GitIgnoreSpec

from cluster.known_secrets import form_of_key
from data.errors import InputError
from orchestrator.printable import printable

DERIVED = (
    *(".git/", ".hg/", ".svn/", ".venv/", "venv/", ".tox/", ".nox/", ".manta/", "node_modules/", ".terraform/"),
    *("__pycache__/", "*_cache/", "*.egg-info/", "*.pyc", ".ipynb_checkpoints/", ".DS_Store"),
    *("wandb/", "mlruns/", "lightning_logs/", "*.ckpt", "*.pt", "*.pth", "*.safetensors"),
)
"""What can be made again, or lies in a bucket; patterns as in a .gitignore."""

SECRET = (
    *(".env", ".env.*", ".envrc", ".netrc", "_netrc", ".pgpass", ".my.cnf", ".htpasswd", ".vault-token"),
    *(".aws/", ".ssh/", ".kube/", ".docker/", ".azure/", ".gnupg/", ".config/gcloud/", ".config/gh/", ".databrickscfg"),
    *(".git-credentials", ".npmrc", ".pypirc", ".boto", ".s3cfg", ".rclone.conf", "rclone.conf", "kubeconfig"),
    *("*.kubeconfig", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.credentials"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.tfstate", "*.tfstate.*", "*.tfvars"),
    *("credentials.json", "application_default_credentials.json", "client_secret*.json", "*service[-_]account*.json"),
)
"""What holds keys by its name."""

MOST_BYTES = 20_000_000
"""Largest file that is shipped by itself; larger ones belong into a bucket."""

MOST_ZIPPED_BYTES = 100 * 1024 * 1024
"""Most bytes of the package; Ray's dashboard takes no more."""

MOST_NAMED = 10
"""Files named in a message."""

_IGNORE_FILES = (".gitignore", ".rayignore")


class Excluded(NamedTuple):
    """A file or folder that is not shipped, relative to the folder, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Shipment:
    """What is shipped of a folder.

    Attributes:
        folder: the folder.
        files: bytes of each file, by its path relative to the folder, in the order of paths.
        excluded: what is not shipped; of a folder that is left out as a whole, the folder alone.
    """

    folder: Path
    files: Mapping[str, int]
    excluded: tuple[Excluded, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def report(self) -> Iterator[str]:
        """Lines for the terminal: every file with its size, and everything left out with its reason."""
        for name, size in self.files.items():
            yield f"{size:>12,}  {name}"
        for name, reason in self.excluded:
            yield f"{'left out':>12}  {name}: {reason}"
        yield f"{self.bytes:>12,}  bytes in {len(self.files):,} files; {len(self.excluded):,} left out"

    def write(self, package: Path) -> None:
        """Writes the package of the files. The same files give the same bytes, by which Ray knows a package.

        Raises:
            InputError: it is larger than a cluster takes; names the largest files.
        """
        with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name in self.files:
                path = self.folder / name
                entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                entry.external_attr = (0o755 if path.stat().st_mode & 0o100 else 0o644) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                zipped.writestr(entry, path.read_bytes())
        if (size := package.stat().st_size) > MOST_ZIPPED_BYTES:
            largest = sorted(self.files, key=lambda name: -self.files[name])[:MOST_NAMED]
            named = "\n".join(f"  {self.files[name]:>12,} bytes  {printable(name)}" for name in largest)
            raise InputError(
                f"{self.folder} is {size / 1e6:,.0f} MB as a package, and Ray takes {MOST_ZIPPED_BYTES / 1e6:,.0f} MB. "
                f"The largest files:\n{named}\nPut data into a bucket, name what is not needed in .rayignore, or give "
                "a smaller folder: --working-dir."
            )


def shipment(folder: Path, needed: Iterable[str]) -> Shipment:
    """Decides what is shipped of a folder.

    Args:
        needed: paths in it that are shipped even where a .gitignore names them: the recipe.

    Raises:
        InputError: a needed file holds a key, or is no file; or there is no such folder.
    """
    folder, needed = folder.resolve(), frozenset(needed)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder, so nothing of it can be shipped.")
    files: dict[str, int] = {}
    excluded: list[Excluded] = []
    for name in sorted(needed):
        if (reason := _unfit(folder / name, name, folder)) is not None:
            raise InputError(f"{folder / name} cannot be shipped: it {reason}.")
    for name, reason in _walk(folder, "", [], frozenset([_identity(folder.stat())]), needed):
        if reason is None:
            files[name] = (folder / name).stat().st_size
        else:
            excluded.append(Excluded(name, reason))
    return Shipment(folder, dict(sorted(files.items())), tuple(sorted(excluded)))


_DERIVED, _SECRET = GitIgnoreSpec.from_lines(DERIVED), GitIgnoreSpec.from_lines(SECRET)

_Ignored = list[tuple[str, str, GitIgnoreSpec]]
"""Folder, name of the file in it, and its patterns."""


def _walk(
    folder: Path, below: str, ignored: _Ignored, inside: frozenset[tuple[int, int]], needed: frozenset[str]
) -> Iterator[tuple[str, str | None]]:
    """Yields every file below `below`, and None or why it is left out; a folder that is left out is yielded once."""
    here = folder / below
    ignored = [*ignored, *_ignore_files(here, below)]
    for entry in sorted(os.scandir(here), key=lambda each: each.name):
        name = f"{below}{entry.name}"
        if name in needed:
            yield name, None
            continue
        try:
            is_folder = entry.is_dir()
        except OSError as error:
            yield name, f"cannot be read: {error.strerror}"
            continue
        reason = _ignored_reason(name, ignored, is_folder=is_folder)
        if not is_folder:
            yield name, reason or _unfit(Path(entry.path), name, folder)
            continue
        identity = _identity(entry.stat())
        if entry.is_symlink() and not _is_inside(Path(entry.path), folder):
            reason = f"links to {os.path.realpath(entry.path)}, outside the folder"
        elif identity in inside:
            reason = "links to a folder that it is in"
        if reason is not None and not any(each.startswith(f"{name}/") for each in needed):
            yield f"{name}/", reason
        else:
            for inner, inner_reason in _walk(folder, f"{name}/", ignored, inside | {identity}, needed):
                yield inner, inner_reason if inner in needed else reason or inner_reason


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _ignore_files(here: Path, below: str) -> Iterator[tuple[str, str, GitIgnoreSpec]]:
    for name in _IGNORE_FILES:
        path = here / name
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            yield below, name, GitIgnoreSpec.from_lines(filter(_is_pattern, lines))


def _is_pattern(line: str) -> bool:
    """Whether a line of an ignore file can be used; git passes over others without a word."""
    try:
        GitIgnoreSpec.from_lines([line])
    except (ValueError, re.error):
        return False
    return True


def _ignored_reason(name: str, ignored: _Ignored, *, is_folder: bool) -> str | None:
    path = f"{name}/" if is_folder else name
    if _SECRET.match_file(path):
        return "may hold keys"
    if _DERIVED.match_file(path):
        return "is derived"
    for below, file, patterns in reversed(ignored):  # of several, the innermost decides
        found = patterns.check_file(path.removeprefix(below))
        if found.include is not None:
            return f"is ignored by {below}{file}" if found.include else None
    return None


def _unfit(path: Path, name: str, folder: Path) -> str | None:
    """Why a file cannot be shipped, or must not be; None where it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that is no UTF-8"
    if path.is_symlink() and not _is_inside(path, folder):
        return f"links to {os.path.realpath(path)}, outside the folder"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "is no file, but a pipe, socket or device"
        if status.st_size > MOST_BYTES:
            return f"has {status.st_size / 1e6:,.0f} MB; more than {MOST_BYTES / 1e6:,.0f} MB belong into a bucket"
        content = path.read_bytes()
    except FileNotFoundError:
        return "is missing, or a link to what is"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    key = form_of_key(content.decode("latin-1"), in_source=True)  # forms are ASCII, and files any bytes
    return f"holds {key}" if key else None


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(folder)
