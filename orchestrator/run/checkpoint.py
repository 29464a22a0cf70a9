"""Checkpoints: a run's whole state at one step, in global form, in object storage.

    checkpoints/step-00000200-a1/model.safetensors       weights by name
                                 optimizer.safetensors   optimizer state by weight name
                                 average.safetensors     moving average of the weights, if the run keeps one
                                 progress.safetensors    sequences known to be in each unit
                                 state.json              step, seed, digests, resolved config, ledger segments
                                 manifest.json           size and sha256 of the others; written last

It contains nothing about ranks. A checkpoint exists once its manifest does. The checkpoint with the highest step is
used. If its files do not match their checksums, it is reported, quarantined by the attempt that found it, and the one
before it is used. RNG state needs no file: weights are drawn before step 0, and dropout is seeded by (seed, step,
micro-batch).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field
from typing_extensions import TypedDict

from data.errors import DamagedObjectError, DiskFullError, MantaError, ObjectNotFoundError
from data.stores.sealed_json import unsealed
from data.stores.store import Store
from orchestrator.errors import CheckpointDamagedError, CheckpointsLostError
from orchestrator.run.record import RunRecord
from orchestrator.run.stored_fields import checked

logger = logging.getLogger(__name__)

CREATED_AT = "created_at"
"""Field of state.json: when the run was created, as its record says."""

MANIFEST, DAMAGED = "manifest.json", "manifest.damaged.json"

MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"

PROGRESS, STATE = "progress.safetensors", "state.json"

_RENAMED = {"bad_steps": "skipped_steps", "left_out": "excluded"}
"""Fields of state.json by the names they had in version 0.1.0."""

_T = TypeVar("_T")

_FILE = re.compile(r"checkpoints/step-(?P<step>\d{8,})-a(?P<attempt>\d+)/(?P<name>[^/]+)$")


@dataclass(frozen=True, order=True)
class CheckpointName:
    """Identifies a checkpoint; newer ones compare greater."""

    step: int
    attempt: int

    def __str__(self) -> str:
        return f"step-{self.step:08d}-a{self.attempt}"


def tensor_files(*, averaged: bool) -> tuple[str, ...]:
    """Names of the files with the workers' tensors; `averaged`: the run keeps a moving average of its weights."""
    return (MODEL, OPTIMIZER, AVERAGE) if averaged else (MODEL, OPTIMIZER)


def weights_file(*, averaged: bool) -> str:
    """Name of the file with the weights that are evaluated."""
    return AVERAGE if averaged else MODEL


def list_checkpoints(store: Store, record: RunRecord | None = None) -> list[CheckpointName]:
    """Complete checkpoints of the run under `store`, oldest first; with `record`, without those of fenced attempts."""
    found = _files(info.key for info in store.list("checkpoints/"))
    complete = sorted(name for name, files in found.items() if MANIFEST in files)
    return [name for name in complete if record is None or record.continues(name.attempt, name.step)]


def refuse_lost_checkpoints(store: Store, record: RunRecord) -> None:
    """Checks that the newest checkpoint which the record knows is in storage, or a newer one.

    Raises:
        CheckpointsLostError: it is not, nor was it found damaged.
    """
    if (known := record.saved_step) is None:
        return
    found = _files(info.key for info in store.list("checkpoints/"))
    steps = [name.step for name, files in found.items() if MANIFEST in files or DAMAGED in files]
    if max(steps, default=-1) >= known:
        return
    there = f"the newest there is that of step {max(steps)}" if steps else "there is none"
    choice = f"`manta train --from-step {max(steps)}` continues from that one; " if steps else ""
    raise CheckpointsLostError(
        f"By its record, run {record.run!r} has a checkpoint of step {known}, but in {store.url_of('checkpoints')} "
        f"{there}. Restore what is missing, or choose what to do without: {choice}`manta train --from-scratch` "
        "begins anew at step 1."
    )


def _files(keys: Iterable[str]) -> dict[CheckpointName, set[str]]:
    """Names of files by checkpoint."""
    found: dict[CheckpointName, set[str]] = {}
    for match in filter(None, map(_FILE.match, keys)):
        found.setdefault(CheckpointName(int(match["step"]), int(match["attempt"])), set()).add(match["name"])
    return found


def fetch_newest(
    store: Store,
    record: RunRecord | None,
    files: Sequence[str],
    folder: Path,
    log: Callable[[str], object] = logger.error,
) -> tuple[CheckpointName, dict[str, Any]] | None:
    """Fetches the newest undamaged checkpoint; see `newest_undamaged`.

    Args:
        files: files to fetch into `folder` besides state.json.

    Returns:
        name and state of the checkpoint; None if the run has none.
    """

    def fetch(name: CheckpointName) -> tuple[CheckpointName, dict[str, Any]]:
        return name, fetch_checkpoint(store, name, files, folder, record)

    return newest_undamaged(store, record, fetch, log)


def newest_undamaged(
    store: Store,
    record: RunRecord | None,
    fetch: Callable[[CheckpointName], _T],
    log: Callable[[str], object] = logger.error,
) -> _T | None:
    """Calls `fetch` for the newest checkpoint and, while it raises CheckpointDamagedError, for the one before.

    Args:
        log: takes a line for every damaged checkpoint. Workers pass one that reaches the driver's console.

    Returns:
        what `fetch` returned; None if the run has no checkpoint.

    Raises:
        CheckpointDamagedError: there are checkpoints, and every one is damaged.
        CheckpointsLostError: see `refuse_lost_checkpoints`.
    """
    if record is not None:
        refuse_lost_checkpoints(store, record)
    damage: dict[CheckpointName, str] = {}
    while names := [name for name in list_checkpoints(store, record) if name not in damage]:
        try:
            return fetch(names[-1])
        except CheckpointDamagedError as error:
            damage[names[-1]] = str(error)
            if names[-1] in list_checkpoints(store):  # otherwise it was pruned meanwhile: there is a newer one
                log(f"{error} The one before it is used." if names[:-1] else str(error))
    if damage:
        remedy = "No checkpoint is left to continue from. Restore one, or start under another `run:` name."
        raise CheckpointDamagedError("\n".join([*damage.values(), remedy]))
    return None


def fetch_checkpoint(
    store: Store, name: CheckpointName, files: Sequence[str] | None, folder: Path, record: RunRecord | None = None
) -> dict[str, Any]:
    """Fetches files of a checkpoint into `folder`, verifies their checksums and returns its state.

    Args:
        files: names besides state.json; None: all of them.
        record: of the run that the checkpoint has to be of; None: of any.

    Raises:
        CheckpointDamagedError: a file is missing or does not match its checksum, which the message names, or the
            checkpoint is of another run.
    """
    prefix = f"checkpoints/{name}"
    try:
        listed = unsealed(store.get(f"{prefix}/{MANIFEST}"), MANIFEST, _listed)
        for file in dict.fromkeys((STATE, *(listed if files is None else files))):
            store.get_file(f"{prefix}/{file}", folder / file)
            with (folder / file).open("rb") as content:
                found, expected = hashlib.file_digest(content, "sha256").hexdigest(), listed[file]
            if found != expected:
                raise ValueError(f"{file} has sha256 {found[:12]}…, its manifest says {expected[:12]}…")
        state: dict[str, Any] = json.loads((folder / STATE).read_bytes())
        if (step := state.get("step", name.step)) != name.step:
            raise ValueError(f"it is of step {step}")
        if record is not None and not _is_of(record, name, state):
            raise ValueError("it is of another run")
        return {_RENAMED.get(field, field): value for field, value in state.items()}
    except KeyError as error:
        raise CheckpointDamagedError(
            f"Checkpoint {store.url_of(prefix)} is damaged: {error} is not in its manifest."
        ) from error
    except (ObjectNotFoundError, DamagedObjectError, ValueError, TypeError) as error:
        reason = str(error).rstrip(".")
        raise CheckpointDamagedError(f"Checkpoint {store.url_of(prefix)} is damaged: {reason}.") from error


def _is_of(record: RunRecord, name: CheckpointName, state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was saved by this run. A forked one, of attempt 0, was saved by another."""
    if name.attempt == 0:
        return True
    if CREATED_AT in state:
        return bool(state[CREATED_AT] == record.created_at)
    config = state.get("config")  # version 0.2.0 had no more of it
    return not isinstance(config, dict) or config.get("run", record.run) == record.run


class _File(TypedDict):
    sha256: str


class _Manifest(TypedDict):
    files: dict[Annotated[str, Field(pattern=r"^[\w-]+\.\w+$")], _File]  # names, no paths to other folders


def _listed(fields: dict[str, Any]) -> dict[str, str]:
    """The sha256 of every file that a manifest lists."""
    return {name: file["sha256"] for name, file in checked(_Manifest, fields)["files"].items()}


def write_checkpoint(
    store: Store, name: CheckpointName, state: Mapping[str, Any], snapshot: Path, before_commit: Callable[[], object]
) -> int:
    """Uploads a snapshot and commits it by writing its manifest last.

    Args:
        snapshot: folder of safetensors files, see `orchestrator.snapshots.tensors`.
        before_commit: called once everything but the manifest is uploaded; may raise to abandon the checkpoint.

    Returns:
        bytes written.

    Raises:
        DiskFullError: no space left; the files written so far are removed.
    """
    prefix = f"checkpoints/{name}"
    (snapshot / STATE).write_text(json.dumps(state))
    files: dict[str, dict[str, Any]] = {}
    try:
        for path in sorted(snapshot.iterdir()):
            with path.open("rb") as content:
                files[path.name] = {
                    "size": path.stat().st_size,
                    "sha256": hashlib.file_digest(content, "sha256").hexdigest(),
                }
            store.put_file(f"{prefix}/{path.name}", path)
        before_commit()
        store.put(f"{prefix}/{MANIFEST}", json.dumps({"step": name.step, "files": files}, indent=1).encode())
    except DiskFullError:
        with suppress(MantaError):  # make room for the run's record, which says how the run ended
            store.delete_prefix(f"{prefix}/")
        raise
    return sum(file["size"] for file in files.values())


def quarantine(store: Store, name: CheckpointName) -> None:
    """Renames the manifest of a damaged checkpoint, so that it is not used again; its files stay for inspection."""
    prefix = f"checkpoints/{name}"
    with suppress(ObjectNotFoundError):  # pruned meanwhile
        store.put(f"{prefix}/{DAMAGED}", store.get(f"{prefix}/{MANIFEST}"))
        store.delete(f"{prefix}/{MANIFEST}")


def ledgers_of(store: Store, names: Iterable[CheckpointName]) -> Iterator[Sequence[str]]:
    """Names of the ledger segments of each of these checkpoints, read one by one."""
    for name in names:
        yield json.loads(store.get(f"checkpoints/{name}/{STATE}")).get("ledger", ())


def prune(store: Store, record: RunRecord, keep: int) -> list[CheckpointName]:
    """Deletes all but the run's newest `keep` checkpoints, also those of fenced attempts, and partial ones.

    The manifest is deleted first, so a half-deleted checkpoint does not count as one. A partial one is deleted once
    nobody needs it: where its upload is not of the newest attempt, or is of an older step than what is kept.

    Returns:
        the checkpoints that are kept, oldest first.
    """
    found = _files([*(info.key for info in store.list("checkpoints/")), *store.unfinished("checkpoints/")])
    complete = sorted(name for name, files in found.items() if MANIFEST in files)
    kept = [name for name in complete if record.continues(name.attempt, name.step)][-keep:]
    for name, files in found.items():
        if MANIFEST in files:
            if name not in kept:
                store.delete(f"checkpoints/{name}/{MANIFEST}")
                store.delete_prefix(f"checkpoints/{name}/")
        elif DAMAGED not in files and (name.attempt != record.last.number or (kept and name.step < kept[0].step)):
            store.delete_prefix(f"checkpoints/{name}/")
    return kept
