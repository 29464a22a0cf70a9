"""Checkpoints: a run's whole state at one step, in global form, in object storage.

    checkpoints/step-00000200-a1/model.safetensors       weights by name
                                 optimizer.safetensors   optimizer state by weight name
                                 average.safetensors     moving average of the weights, where the run keeps one
                                 progress.safetensors    sequences known to be in each unit
                                 state.json              step, seed, digests, resolved config, ledger segments
                                 manifest.json           size and sha256 of the others; written last

There is nothing in it about ranks. A checkpoint exists once its manifest does. The newest by step wins; one whose
files do not match their sums is named and passed over for the one before it, and the attempt that found it sets it
aside. RNG state needs no file: weights are drawn before step 0, and dropout is seeded by (seed, step, micro-batch).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data.errors import DiskFullError, MantaError, ObjectNotFoundError
from data.stores.store import Store
from orchestrator.errors import CheckpointDamagedError
from orchestrator.run.record import RunRecord

logger = logging.getLogger(__name__)

MANIFEST, DAMAGED = "manifest.json", "manifest.damaged.json"

MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"

PROGRESS, STATE = "progress.safetensors", "state.json"

_RENAMED = {"bad_steps": "skipped_steps", "left_out": "excluded"}
"""Fields of state.json by the names they had in version 0.1.0."""

_T = TypeVar("_T")

_NAME = re.compile(r"step-(?P<step>\d{8,})-a(?P<attempt>\d+)/manifest\.json$")


@dataclass(frozen=True, order=True)
class CheckpointName:
    """Which checkpoint; the newest is the largest."""

    step: int
    attempt: int

    def __str__(self) -> str:
        return f"step-{self.step:08d}-a{self.attempt}"


def tensor_files(*, averaged: bool) -> tuple[str, ...]:
    """Files of a worker's tensors; `averaged`: the run keeps an average of its weights."""
    return (MODEL, OPTIMIZER, AVERAGE) if averaged else (MODEL, OPTIMIZER)


def weights_file(*, averaged: bool) -> str:
    """File of the weights that are evaluated."""
    return AVERAGE if averaged else MODEL


def list_checkpoints(store: Store, record: RunRecord | None = None) -> list[CheckpointName]:
    """Complete checkpoints of the run under `store`, oldest first; those of a fenced-off attempt are left out."""
    names = []
    for info in store.list("checkpoints/"):
        if match := _NAME.search(info.key):
            name = CheckpointName(int(match["step"]), int(match["attempt"]))
            if record is None or record.continues(name.attempt, name.step):
                names.append(name)
    return sorted(names)


def fetch_newest(
    store: Store,
    record: RunRecord,
    files: Sequence[str],
    folder: Path,
    tell: Callable[[str], object] = logger.error,
) -> tuple[CheckpointName, dict[str, Any]] | None:
    """Fetch the newest undamaged checkpoint, or None where there never was one; see `newest_undamaged`.

    Args:
        files: those wanted besides state.json; they are in `folder` afterwards.

    Returns:
        its name and state.
    """
    return newest_undamaged(store, record, lambda name: (name, fetch_checkpoint(store, name, files, folder)), tell)


def newest_undamaged(
    store: Store, record: RunRecord, fetch: Callable[[CheckpointName], _T], tell: Callable[[str], object] = logger.error
) -> _T | None:
    """What `fetch` makes of the newest checkpoint that it does not find damaged, or None where there never was one.

    Args:
        tell: gets a line for every damaged checkpoint, naming it; a worker's log is read by nobody.

    Raises:
        CheckpointDamagedError: there are checkpoints, and every one is damaged.
    """
    damage = []
    for name in reversed(list_checkpoints(store, record)):
        try:
            return fetch(name)
        except CheckpointDamagedError as error:
            tell(f"{error} The one before it is used.")
            damage.append(str(error))
    if damage:
        raise CheckpointDamagedError(
            "\n".join(
                [*damage, "No checkpoint is left to continue from. Restore one, or start under another `run:` name."]
            )
        )
    return None


def fetch_checkpoint(store: Store, name: CheckpointName, files: Sequence[str] | None, folder: Path) -> dict[str, Any]:
    """Fetch `files` of a checkpoint, or all there are, into `folder` and verify them; returns its state.

    Raises:
        CheckpointDamagedError: a file is missing or does not match its sum; the message names it.
    """
    prefix = f"checkpoints/{name}"
    try:
        listed = json.loads(store.get(f"{prefix}/{MANIFEST}"))["files"]
        for file in dict.fromkeys((STATE, *(listed if files is None else files))):
            content = store.get(f"{prefix}/{file}")
            found, expected = hashlib.sha256(content).hexdigest(), listed[file]["sha256"]
            if found != expected:
                raise ValueError(f"{file} has sha256 {found[:12]}…, its manifest says {expected[:12]}…")
            (folder / file).write_bytes(content)
        state: dict[str, Any] = json.loads((folder / STATE).read_bytes())
        return {_RENAMED.get(field, field): value for field, value in state.items()}
    except (ObjectNotFoundError, ValueError, KeyError, TypeError) as error:
        raise CheckpointDamagedError(f"Checkpoint {store.url_of(prefix)} is damaged: {error}.") from error


def write_checkpoint(
    store: Store, name: CheckpointName, state: Mapping[str, Any], snapshot: Path, before_commit: Callable[[], object]
) -> int:
    """Upload a snapshot and commit it by writing its manifest last.

    Args:
        snapshot: folder of safetensors files, see `orchestrator.snapshots.tensors`.
        before_commit: called when all but the manifest is there; raises to give up.

    Returns:
        bytes written.

    Raises:
        DiskFullError: no space; what had been written is removed.
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
        with suppress(MantaError):  # the run's record has to fit yet, which says how it ended
            store.delete_prefix(f"{prefix}/")
        raise
    return sum(file["size"] for file in files.values())


def quarantine(store: Store, name: CheckpointName) -> None:
    """Make a damaged checkpoint none: its files stay for whoever wants to know, its manifest under another name."""
    prefix = f"checkpoints/{name}"
    store.put(f"{prefix}/{DAMAGED}", store.get(f"{prefix}/{MANIFEST}"))
    store.delete(f"{prefix}/{MANIFEST}")


def prune(store: Store, record: RunRecord, keep: int) -> None:
    """Delete all but the run's newest `keep` checkpoints, each one's manifest first, so that none is ever half there.

    Those that a fenced-off attempt left go too.
    """
    kept = list_checkpoints(store, record)[-keep:]
    for name in list_checkpoints(store):
        if name in kept:
            continue
        store.delete(f"checkpoints/{name}/{MANIFEST}")
        store.delete_prefix(f"checkpoints/{name}/")
