"""Snapshots of a run's state in the memory of the nodes it runs on, outside of any worker process.

    /dev/shm/manta-state-<run>/<node>/step-00000140/model.safetensors       weights by name
                                                    optimizer.safetensors   optimizer state by weight name
                                                    rows.pickle             ledger rows not yet in object storage

State is the same on every rank, so one rank of each node writes it, every few steps, and a worker group that starts
again after a sudden death takes the newest that any surviving node has: a few steps are done again, not all since the
last checkpoint. A folder is renamed to its name once it is whole. A snapshot belongs to one attempt: the next command
continues from object storage, where the fence decides who wrote last.
"""

from __future__ import annotations

import pickle
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from orchestrator.ledger import StepRow
from orchestrator.model_state import load_optimizer, load_weights, run_label, save_state, scratch_folder

KEEP = 2
"""Snapshots kept on a node: the newest, and one more for a death in the middle of the next."""

COST_SHARE = 0.01
"""Most of the training time that snapshots may take."""

_ROWS = "rows.pickle"
_NAME = re.compile(r"step-(\d{8,})$")


@dataclass(frozen=True)
class NodeMemory:
    """The snapshots of one run on one node. `folder` is found with `on_this_node`."""

    folder: Path

    @classmethod
    def on_this_node(cls, run_url: str, attempt: int, node_id: str) -> NodeMemory:
        """Where this node keeps snapshots of an attempt; those of other attempts are deleted."""
        root = Path(scratch_folder() or tempfile.gettempdir()) / f"manta-state-{run_label(run_url)}"
        mine = root / f"a{attempt}"
        for folder in root.glob("a*"):
            if folder != mine:
                shutil.rmtree(folder, ignore_errors=True)
        return cls(mine / node_id)

    def write(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, rows: Sequence[StepRow]) -> None:
        """Keep the state after `step` steps, and let go of all but the newest.

        Raises:
            DiskFullError: there is no room.
        """
        unfinished = self._unfinished()
        save_state(unfinished, model, optimizer)
        (unfinished / _ROWS).write_bytes(pickle.dumps(list(rows)))
        self._keep(unfinished, step)

    def steps(self) -> list[int]:
        """Steps of the snapshots that are here, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _NAME.search(path.name)))

    def load(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[StepRow]:
        """Put the state after `step` steps into model and optimizer; returns its rows."""
        path = self._path(step)
        load_weights(path, model)
        load_optimizer(path, model, optimizer)
        rows: list[StepRow] = pickle.loads((path / _ROWS).read_bytes())
        return rows

    def first_row(self, step: int) -> int:
        """Step of the first row that the snapshot brings along; `step` + 1 where it has none."""
        rows: list[StepRow] = pickle.loads((self._path(step) / _ROWS).read_bytes())
        return rows[0].step if rows else step + 1

    def files(self, step: int) -> dict[str, bytes]:
        """A snapshot as it is, to be handed to a node that lacks it."""
        return {path.name: path.read_bytes() for path in sorted(self._path(step).iterdir())}

    def receive(self, step: int, files: Mapping[str, bytes]) -> None:
        """Keep a snapshot that another node has handed over; see `files`."""
        unfinished = self._unfinished()
        for name, content in files.items():
            (unfinished / name).write_bytes(content)
        self._keep(unfinished, step)

    def discard(self) -> None:
        """Free the memory: the run needs it no more."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)
        with suppress(OSError):  # another rank was first, or another attempt has begun
            self.folder.parents[1].rmdir()

    def _unfinished(self) -> Path:
        folder = self.folder / "unfinished"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _keep(self, unfinished: Path, step: int) -> None:
        shutil.rmtree(self._path(step), ignore_errors=True)  # done again after a restart from before it
        unfinished.rename(self._path(step))
        for old in self.steps()[:-KEEP]:
            shutil.rmtree(self._path(old), ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


class SnapshotClock:
    """How often to take a snapshot, from what one costs and how long a step takes; kept by rank 0 for all."""

    def __init__(self) -> None:
        self._cost_s: float | None = None
        self._since_s = 0.0

    def is_due(self, step_s: float) -> bool:
        """Whether one is to be taken after a step that took `step_s` seconds: the first at once, to learn its cost."""
        self._since_s += step_s
        return self._cost_s is None or self._cost_s <= COST_SHARE * self._since_s

    def taken(self, cost_s: float) -> None:
        """One was taken, and the loop stood still for `cost_s` seconds."""
        # The slower of two: a first one that happened to be quick must not set the pace.
        self._cost_s = cost_s if self._cost_s is None else max(cost_s, 0.8 * self._cost_s)
        self._since_s = 0.0
