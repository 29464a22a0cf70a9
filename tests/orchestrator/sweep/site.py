"""A folder with a small corpus and a sweep over a small model, for tests that really run it."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from orchestrator.sweep.records import TrialBook
from orchestrator.sweep.spec import load_sweep
from orchestrator.sweep.summary import SweepSummary, describe_sweep

QUIET = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "ResourceWarning", "pytest.PytestUnraisableExceptionWarning")
]
"""Ray Data and Ray Tune warn of their own defaults and leave sockets to the garbage collector."""

STEPS = 60
BASE: dict[str, Any] = {
    "run": "base",
    "seed": 3,
    "data": {"tokenizer": {"kind": "bytes"}, "seq_len": 64, "shuffle_units": 2, "validation_fraction": 0},
    "model": {"n_layers": 2, "d_model": 64, "n_heads": 2},
    "train": {"steps": STEPS, "global_batch_size": 8, "micro_batch_size": 4, "lr": 2e-3},
}
SWEEP: dict[str, Any] = {
    "sweep": "small",
    "space": {"train.optimizer.name": {"choice": ["sgd", "adamw"]}, "train.lr": {"loguniform": [1e-4, 3e-2]}},
    "searcher": {"name": "random", "trials": 4, "seed": 1},
    "scheduler": {"name": "asha", "grace_steps": 6},
}


class SweepSite:
    """The folder; commands are run from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "text").mkdir()
        library = Path(sysconfig.get_paths()["stdlib"])
        for name in ("argparse", "csv", "glob", "heapq", "shlex", "textwrap"):
            (folder / f"text/{name}.txt").write_text((library / f"{name}.py").read_text("utf-8"))

    def recipe(self, **changes: Any) -> Path:
        """Write a sweep's recipe; `changes` are fields of the sweep."""
        data = {**BASE["data"], "sources": [{"path": str(self.folder / "text")}]}
        base = {**BASE, "storage": str(self.folder / "store"), "data": data}
        sweep = {**SWEEP, "recipe": base, **changes}
        path = self.folder / f"{sweep['sweep']}.yaml"
        path.write_text(json.dumps(sweep))  # JSON is YAML
        return path

    def book(self, recipe: Path) -> TrialBook:
        """The sweep's records."""
        from orchestrator.run.run import stores

        sweep = load_sweep(recipe)
        return TrialBook(stores(sweep.base)[0].child(f"sweeps/{sweep.name}"))

    def summary(self, recipe: Path) -> SweepSummary:
        """What there is to say of the sweep."""
        from orchestrator.run.run import stores

        sweep = load_sweep(recipe)
        return describe_sweep(sweep, stores(sweep.base)[0])

    def tokens(self) -> dict[str, int]:
        """When each tokenized unit was written, nanoseconds, by its file."""
        return {path.name: path.stat().st_mtime_ns for path in (self.folder / "store/tokens").rglob("*.arrow")}
