"""NodeMemory: snapshots of a run's state in the memory of its nodes, outside of any worker process.

    /dev/shm/manta-state-<user>-<run>/a<attempt>-<identity>/<node>/step-00000140/model.safetensors
                                                                          optimizer.safetensors
                                                                          average.safetensors
                                                                          rows.npy

Files are weights and optimizer state by name of the weight, the moving average of the weights if the run keeps one, and
the ledger rows after the checkpoint that was newest.

State is the same on every rank, so one rank of each node writes it, every few steps. A worker group that restarts after
a sudden death takes the newest snapshot of any surviving node: it replays a few steps, not all since the last
checkpoint. Checkpoints are uploaded from snapshots too. A folder gets its name once it is complete. Snapshots belong to
one attempt, which frees them when it ends. Where it was killed, or could not save its state, the next attempt adopts
the newest one of a node, if the run's record says that this step belongs to the run (`RunRecord.newest_step_of`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.private_folder import is_private, private_folder
from data.errors import DiskFullError, InputError
from orchestrator.errors import SnapshotGoneError
from orchestrator.run.job import Owner
from orchestrator.run.ledger import StepRow, load_rows, save_rows

KEEP = 2
"""Snapshots kept on a node: the newest stays complete while the next one is written over the other."""

COPIES = KEEP + 2
"""Snapshots a node may hold at once: those kept, one being written, and one being uploaded."""

SHARED_MEMORY = "MANTA_SHM"
"""Variable with the folder in shared memory that holds snapshots; /dev/shm where it is not set."""

_ROWS = "rows.npy"

_NAME, _FOLDER = re.compile(r"step-(\d{8,})$"), re.compile(r"a(\d+)-\w+")


@dataclass(frozen=True)
class NodeMemory:
    """The snapshots of one run's attempt on one node; `on_this_node` finds the folder."""

    folder: Path

    @classmethod
    def on_this_node(cls, owner: Owner, node_id: str, state_bytes: int) -> NodeMemory:
        """Finds the folder for an attempt's snapshots on this node; adopts one of an earlier attempt, deletes the rest.

        A folder that exists already is used again. Otherwise it is where the adopted snapshot is; without any, it is in
        shared memory, if `COPIES` snapshots of `state_bytes` fit there beside Ray's object store at its largest, or
        else in the system's temporary folder.
        """
        if found := cls.found_on_this_node(owner, node_id):
            return found
        roots = usable_roots(owner.run_url)
        with ExitStack() as stack:  # several nodes may be on this machine
            for root in roots:
                stack.enter_context(_folder_lock(root))
            # That of the same number belonged to a deleted run of the same name; a newer one may be alive.
            others = (folder for root in roots for folder in root.glob("a*") if folder.name != owner.folder)
            earlier = [folder for folder in others if _attempt_of(folder) <= owner.attempt]
            if adopted := _newest_adoptable(earlier, owner):
                memory = cls(adopted.parents[2] / owner.folder / node_id)
                memory.make_folder()
                adopted.rename(memory.folder / adopted.name)
            else:
                memory_folder = roots[-1].parent
                free = shutil.disk_usage(memory_folder).free - unfilled_object_store_bytes(memory_folder)
                fits = free >= COPIES * state_bytes
                memory = cls((roots[-1] if fits else roots[0]) / owner.folder / node_id)
            for folder in earlier:
                shutil.rmtree(folder, ignore_errors=True)
        return memory

    @classmethod
    def found_on_this_node(cls, owner: Owner, node_id: str) -> NodeMemory | None:
        """The folder of an attempt's snapshots on this node; None where there is none yet."""
        folders = (root / owner.folder / node_id for root in snapshot_roots(owner.run_url))
        return next((cls(folder) for folder in folders if folder.is_dir()), None)

    def make_folder(self) -> None:
        """Creates the node's folder, closed to other users, unless it is there."""
        private_folder(self.folder.parents[1])
        self.folder.mkdir(parents=True, exist_ok=True)

    def unpin(self) -> None:
        """Deletes what `pinned` yielded to a process that was killed."""
        for folder in self.folder.glob("pinned-*"):
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def writing(self, step: int, rows: Sequence[StepRow]) -> Iterator[Path]:
        """Yields a folder for the state after `step`, which becomes a snapshot when the block ends; removes old ones.

        The folder may hold files of an older snapshot to write over: memory that is there already costs no page faults.

        Args:
            rows: ledger rows that are not in object storage yet.

        Raises:
            DiskFullError: there is no room; also in place of what the block raises because of that.
        """
        with self.locked(), self.writing_locked(step, rows) as folder:
            yield folder

    @contextmanager
    def writing_locked(self, step: int, rows: Sequence[StepRow]) -> Iterator[Path]:
        """As `writing`, for a caller that holds the lock already."""
        unfinished = self.folder / "unfinished"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            self._reuse_oldest(unfinished, step)
            unfinished.mkdir(parents=True, exist_ok=True)
            save_rows(unfinished / _ROWS, rows)
            yield unfinished
            self._keep(unfinished, step)
        except Exception as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if "No space left" in str(error):  # safetensors raises a class of its own
                free = shutil.disk_usage(self.folder.parent).free
                raise DiskFullError(
                    f"No room for a snapshot in {self.folder}: {free / 1e6:,.0f} MB are free. Free some space there."
                ) from error
            raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the node's lock, so that one of its processes writes at a time."""
        self.make_folder()
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def steps(self) -> list[int]:
        """Steps of the node's snapshots, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _NAME.search(path.name)))

    def path(self, step: int) -> Path:
        """Folder of a snapshot."""
        return self.folder / f"step-{step:08d}"

    def rows(self, step: int) -> list[StepRow]:
        """Ledger rows in a snapshot."""
        return load_rows(self.path(step) / _ROWS)

    def newest(self) -> tuple[int, int]:
        """Step of the newest snapshot, and of its first ledger row (step + 1 if it has none); (-1, -1) without any."""
        steps = self.steps()
        if not steps:
            return -1, -1
        rows = self.rows(steps[-1])
        return steps[-1], rows[0].step if rows else steps[-1] + 1

    @contextmanager
    def pinned(self, step: int) -> Iterator[tuple[Path, list[StepRow]]]:
        """Yields a folder with the tensors of a snapshot, and its ledger rows.

        The tensors stay in the block even if newer snapshots replace this one, which takes seconds.

        Raises:
            SnapshotGoneError: newer ones have replaced it already.
        """
        folder = Path(tempfile.mkdtemp(prefix="pinned-", dir=self.folder))
        try:
            with self.locked():
                if step not in self.steps():
                    raise SnapshotGoneError(f"The snapshot of step {step} was replaced by newer ones.")
                rows = self.rows(step)
                for path in self.path(step).glob("*.safetensors"):
                    os.link(path, folder / path.name)
            yield folder, rows
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def files(self, step: int) -> dict[str, NDArray[Any]]:
        """Files of a snapshot by name, for a node that lacks it; as arrays, which Ray passes on without a copy."""
        return {path.name: np.fromfile(path, np.uint8) for path in sorted(self.path(step).iterdir())}

    def receive(self, step: int, files: Mapping[str, NDArray[Any]]) -> None:
        """Writes a snapshot that came from another node; see `files`.

        Raises:
            DiskFullError: there is no room.
        """
        with self.writing(step, ()) as folder:
            for name, content in files.items():
                content.tofile(folder / name)

    def free(self) -> None:
        """Deletes all snapshots."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for parent in self.folder.parents[:2]:
            try:
                parent.rmdir()
            except OSError:  # not empty: another node on this machine, or another attempt, uses it
                break

    def _reuse_oldest(self, unfinished: Path, step: int) -> None:
        steps = self.steps()
        is_next = len(steps) == KEEP and steps[-1] < step  # otherwise the snapshot is still needed
        if is_next and all(path.stat().st_nlink == 1 for path in self.path(steps[0]).iterdir()):
            self.path(steps[0]).rename(unfinished)  # otherwise it is being uploaded, see `pinned`

    def _keep(self, unfinished: Path, step: int) -> None:
        shutil.rmtree(self.path(step), ignore_errors=True)  # there already if the group restarted from an older step
        unfinished.rename(self.path(step))
        older = [other for other in self.steps() if other < step]
        newer = [other for other in self.steps() if other > step]  # of the steps before a restart from an older step
        for other in (*older[: 1 - KEEP], *newer):
            shutil.rmtree(self.path(other), ignore_errors=True)


def unfilled_object_store_bytes(folder: Path) -> int:
    """Bytes of shared memory, `folder`, that the object store of this process's raylet will take as it fills.

    The file system still calls them free. A node that runs out of shared memory kills the process that writes there.
    """
    unfilled = 0
    with suppress(OSError):  # the parent process is another user's, so no raylet
        for open_file in Path(f"/proc/{os.getppid()}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                if os.readlink(open_file).startswith(f"{folder}/plasma"):
                    mapped = open_file.stat()
                    unfilled += max(0, mapped.st_size - mapped.st_blocks * 512)
    return unfilled


def remove_runs(run_urls: Sequence[str]) -> None:
    """Deletes all snapshots of these runs on this node; none of them may be in training."""
    for run_url in run_urls:
        for root in snapshot_roots(run_url):
            shutil.rmtree(root, ignore_errors=True)


def remove_attempt(run_url: str, attempt: int) -> None:
    """Deletes all snapshots of an ended attempt on this machine, also those of nodes that are gone."""
    for root in snapshot_roots(run_url):
        for folder in root.glob("a*"):
            if _attempt_of(folder) == attempt:
                shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not empty, or not there
            root.rmdir()


def usable_roots(run_url: str) -> list[Path]:
    """As `snapshot_roots`; raises InputError where there is none."""
    if roots := snapshot_roots(run_url):
        return roots
    raise InputError(
        f"Snapshots have no place on this node: in {tempfile.gettempdir()} and /dev/shm, manta-state-{os.geteuid()}-* "
        f"are other users' folders. Remove them, or set {SHARED_MEMORY} to a folder of your own."
    )


def snapshot_roots(run_url: str) -> list[Path]:
    """Folders that may hold a run's snapshots on a node, the preferred one last; none that another user has made."""
    label = hashlib.blake2b(run_url.encode(), digest_size=8).hexdigest()
    places = [Path(tempfile.gettempdir())]
    memory = Path(os.environ.get(SHARED_MEMORY, "/dev/shm"))
    if memory.is_dir():
        places.append(memory)
    roots = [place / f"manta-state-{os.geteuid()}-{label}" for place in places]
    return [root for root in roots if is_private(root)]


def _attempt_of(folder: Path) -> int:
    """The attempt that a folder of snapshots belongs to; -1 for those of version 0.2.0, which are not adopted."""
    match = _FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else -1


def _newest_adoptable(folders: Sequence[Path], owner: Owner) -> Path | None:
    """The newest snapshot of earlier attempts that belongs to the run, whichever node wrote it; None without any."""
    newest: tuple[int, Path] | None = None
    for folder in folders:
        attempt = _attempt_of(folder)
        if attempt not in owner.earlier or not folder.name.endswith(f"-{owner.identity}"):
            continue
        most = owner.earlier[attempt]
        for node in folder.iterdir():
            steps = [step for step in NodeMemory(node).steps() if most is None or step <= most]
            if steps and (newest is None or steps[-1] > newest[0]):
                newest = steps[-1], NodeMemory(node).path(steps[-1])
    return newest[1] if newest else None


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, if there is such a folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
