"""A folder with a small corpus and a sweep over a small model, for tests that really run it."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import pytest

from orchestrator.sweep.load import load_sweep
from orchestrator.sweep.records import TrialBook
from orchestrator.sweep.summary import SweepSummary, describe_sweep
from tests.end_to_end.shadowing import shadow_packages
from tests.recipes import tiny_recipe, write_recipe

QUIET = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "ResourceWarning", "pytest.PytestUnraisableExceptionWarning")
]
"""Ray Data and Ray Tune warn of their own defaults and leave sockets to the garbage collector."""

STEPS = 60
BASE: dict[str, Any] = {
    "seed": 3,
    "data.seq_len": 64,
    "data.shuffle_units": 2,
    "model.d_model": 64,
    "model.n_heads": 2,
    "train.steps": STEPS,
    "train.global_batch_size": 8,
    "train.micro_batch_size": 4,
    "train.lr": 2e-3,
}
"""Overrides of the tiny recipe."""

SWEEP: dict[str, Any] = {
    "sweep": "small",
    "space": {"train.optimizer.name": {"choice": ["sgd", "adamw"]}, "train.lr": {"loguniform": [1e-4, 3e-2]}},
    "searcher": {"name": "random", "trials": 4, "seed": 1},
    "scheduler": {"name": "asha", "grace_steps": 6},
}


class SweepSite:
    """The folder, in which a user has files of the names of our packages; commands are run from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shadow_packages(folder)
        (folder / "text").mkdir()
        library = Path(sysconfig.get_paths()["stdlib"])
        for name in ("argparse", "csv", "glob", "heapq", "shlex", "textwrap"):
            (folder / f"text/{name}.txt").write_text((library / f"{name}.py").read_text("utf-8"))

    def recipe(self, **changes: Any) -> Path:
        """Write a sweep's recipe; `changes` are fields of the sweep."""
        places = {"storage": str(self.folder / "store"), "data.sources": [{"path": str(self.folder / "text")}]}
        sweep = {**SWEEP, "recipe": tiny_recipe(**BASE, **places), **changes}
        return write_recipe(self.folder / f"{sweep['sweep']}.yaml", sweep)

    def book(self, recipe: Path) -> TrialBook:
        """The sweep's records."""
        from orchestrator.run.run import stores

        sweep = load_sweep(recipe)
        return TrialBook(stores(sweep.base)[0].child(f"sweeps/{sweep.name}"))

    def summary(self, recipe: Path) -> SweepSummary:
        """The sweep's summary."""
        from orchestrator.run.run import stores

        sweep = load_sweep(recipe)
        return describe_sweep(sweep, stores(sweep.base)[0])

    def tokens(self) -> dict[str, int]:
        """When each tokenized unit was written, nanoseconds, by its file."""
        return {path.name: path.stat().st_mtime_ns for path in (self.folder / "store/tokens").rglob("*.arrow")}
