"""Snapshots of a run's state in the memory of the nodes it runs on, outside of any worker process.

    /dev/shm/manta-state-<run>/a<attempt>/<node>/step-00000140/model.safetensors       weights by name
                                                               optimizer.safetensors   optimizer state by weight name
                                                               average.safetensors     moving average of the weights
                                                               rows.npy                ledger rows after the checkpoint

State is the same on every rank, so one rank of each node writes it, every few steps, and a worker group that starts
again after a sudden death takes the newest that any surviving node has: a few steps are done again, not all since the
last checkpoint. Checkpoints are uploaded from here too. A folder is renamed to its name once it is whole. A snapshot
belongs to one attempt: the next command continues from object storage, where the fence decides who wrote last.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import DiskFullError
from orchestrator.run.ledger import StepRow, load_rows, save_rows

KEEP = 2
"""Snapshots kept on a node: the newest, and one more for a death in the middle of the next."""

COPIES = KEEP + 2
"""States a node may hold at once: those kept, one being written, and one being uploaded."""

COST_SHARE = 0.01
"""Most of the training time that snapshots may take."""

SECOND_SNAPSHOT_S = 2.0
"""Seconds from a worker group's first snapshot to its second."""

SHARED_MEMORY = Path("/dev/shm")

_ROWS = "rows.npy"

_NAME = re.compile(r"step-(\d{8,})$")


@dataclass(frozen=True)
class NodeMemory:
    """The snapshots of one run on one node. `folder` is found with `on_this_node`."""

    folder: Path

    @classmethod
    def on_this_node(cls, run_url: str, attempt: int, node_id: str, state_bytes: int) -> NodeMemory:
        """Where this node keeps snapshots of an attempt; those of other attempts are deleted.

        Where there are some already; else in shared memory where `COPIES` states of `state_bytes` fit there; else in
        the system's temporary folder.
        """
        roots = _roots(run_url)
        for root in roots:
            for folder in root.glob("a*"):
                if folder.name != f"a{attempt}":
                    shutil.rmtree(folder, ignore_errors=True)
        for root in roots:
            if (found := root / f"a{attempt}" / node_id).is_dir():
                return cls(found)
        fits = shutil.disk_usage(roots[-1].parent).free >= COPIES * state_bytes
        return cls((roots[-1] if fits else roots[0]) / f"a{attempt}" / node_id)

    @contextmanager
    def writing(self, step: int, rows: Sequence[StepRow]) -> Iterator[Path]:
        """A folder to write the state after `step` steps into; kept when the block ends, and all but the newest let go.

        It may hold files of an older snapshot, to be written over: memory that is there already costs no page faults.

        Raises:
            DiskFullError: there is no room; also for what the block raises because of it.
        """
        with self.alone(), self.writing_alone(step, rows) as folder:
            yield folder

    @contextmanager
    def writing_alone(self, step: int, rows: Sequence[StepRow]) -> Iterator[Path]:
        """As `writing`, for who is `alone` already."""
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
                    f"No room for a snapshot in {self.folder}: {free / 1e6:,.0f} MB are free. Make room."
                ) from error
            raise

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One of the node's processes writes at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def steps(self) -> list[int]:
        """Steps of the snapshots that are here, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _NAME.search(path.name)))

    def path(self, step: int) -> Path:
        """Folder of a snapshot's files."""
        return self.folder / f"step-{step:08d}"

    def rows(self, step: int) -> list[StepRow]:
        """Ledger rows that a snapshot brings along."""
        return load_rows(self.path(step) / _ROWS)

    def newest(self) -> tuple[int, int]:
        """Step of the newest snapshot and of the first row in it, `step` + 1 where it has none; (-1, -1) for none."""
        steps = self.steps()
        if not steps:
            return -1, -1
        rows = self.rows(steps[-1])
        return steps[-1], rows[0].step if rows else steps[-1] + 1

    @contextmanager
    def pinned(self, step: int) -> Iterator[Path]:
        """A folder with the tensors of a snapshot, which stay there as long as the block lasts, whatever comes next."""
        folder = Path(tempfile.mkdtemp(prefix="pinned-", dir=self.folder))
        try:
            for path in self.path(step).glob("*.safetensors"):
                os.link(path, folder / path.name)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def files(self, step: int) -> dict[str, NDArray[Any]]:
        """A snapshot as it is, to be handed to a node that lacks it; arrays travel between processes without a copy."""
        return {path.name: np.fromfile(path, np.uint8) for path in sorted(self.path(step).iterdir())}

    def receive(self, step: int, files: Mapping[str, NDArray[Any]]) -> None:
        """Keep a snapshot that another node has handed over; see `files`.

        Raises:
            DiskFullError: there is no room.
        """
        with self.writing(step, ()) as folder:
            for name, content in files.items():
                content.tofile(folder / name)

    def free(self) -> None:
        """Free the memory: the run needs it no more."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for parent in self.folder.parents[:2]:
            try:
                parent.rmdir()
            except OSError:  # another node on this machine, or another attempt, has its own there
                break

    def _reuse_oldest(self, unfinished: Path, step: int) -> None:
        steps = self.steps()
        is_next = len(steps) == KEEP and steps[-1] < step  # else the newest must stay until it is replaced
        if is_next and all(path.stat().st_nlink == 1 for path in self.path(steps[0]).iterdir()):
            self.path(steps[0]).rename(unfinished)  # else it is being uploaded, see `pinned`

    def _keep(self, unfinished: Path, step: int) -> None:
        shutil.rmtree(self.path(step), ignore_errors=True)  # done again after a restart from before it
        unfinished.rename(self.path(step))
        older = [other for other in self.steps() if other < step]
        newer = [other for other in self.steps() if other > step]  # of a future that did not come about
        for other in (*older[: 1 - KEEP], *newer):
            shutil.rmtree(self.path(other), ignore_errors=True)


class SnapshotClock:
    """How often to take a snapshot, from what one costs and how long a step takes; kept by rank 0 for all.

    The first is taken at once, while a group is still warming up and everything is slow; its cost sets no pace, and the
    second follows `SECOND_SNAPSHOT_S` later.
    """

    def __init__(self) -> None:
        self._cost_s = 0.0
        self._taken = 0
        self._since_s = 0.0

    def is_due(self, step_s: float) -> bool:
        """Whether one is to be taken after a step that took `step_s` seconds."""
        self._since_s += step_s
        if self._taken < 2:
            return self._taken == 0 or self._since_s >= SECOND_SNAPSHOT_S
        return self._cost_s <= COST_SHARE * self._since_s

    def taken(self, cost_s: float) -> None:
        """One was taken, and the loop stood still for `cost_s` seconds."""
        self._taken += 1
        if self._taken > 1:
            # The slower of two: one that happened to be quick must not set the pace.
            self._cost_s = max(cost_s, 0.8 * self._cost_s)
        self._since_s = 0.0


def forget(run_urls: Sequence[str]) -> None:
    """Delete all that this node keeps of runs, none of which is being trained."""
    for run_url in run_urls:
        for root in _roots(run_url):
            shutil.rmtree(root, ignore_errors=True)


def remove_attempt(run_url: str, attempt: int) -> None:
    """Delete all that this machine keeps of an attempt that has ended: also of nodes on it that are gone."""
    for root in _roots(run_url):
        shutil.rmtree(root / f"a{attempt}", ignore_errors=True)
        with suppress(OSError):  # another attempt's, or nothing
            root.rmdir()


def _roots(run_url: str) -> list[Path]:
    """Folders a run's snapshots may be in on a node, the best one last."""
    label = hashlib.blake2b(run_url.encode(), digest_size=8).hexdigest()
    roots = [Path(tempfile.gettempdir()) / f"manta-state-{label}"]
    if SHARED_MEMORY.is_dir():
        roots.append(SHARED_MEMORY / f"manta-state-{label}")
    return roots
