"""The processes of a run, each killed while it trains: the run goes on by itself, and nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.snapshots.store import snapshot_roots
from tests.end_to_end.manta_process import MantaProcess
from tests.recipes import tiny_recipe, write_recipe, write_text

pytestmark = [pytest.mark.chaos, pytest.mark.soak]

ENDLESS = ("--set", "train.steps=1000000")

KILLED = {
    "ray::Monitor": "the monitor died, and has been started again",
    "ray::Feeder": "the feeder died, and has been started again",
    "ray::SnapshotAgent": "",
    "ray::TrainController": "Ray Train's controller died",
}
"""What is killed, one after the other, and what the run says about it."""


@dataclass(frozen=True)
class Run:
    """A run of two workers, stored in a folder."""

    folder: Path
    name: str

    @property
    def stored(self) -> Path:
        """Folder of the run."""
        return self.folder / "kept" / "runs" / self.name

    def command(self, name: str, *options: str) -> MantaProcess:
        """Starts `manta NAME` on the run."""
        options = ("recipe.yaml", "--set", f"run={self.name}", *options)
        return MantaProcess(name, *options, folder=self.folder, environment={})

    def show(self, *options: str) -> dict[str, Any]:
        """What `manta show --json` says."""
        with self.command("show", "--json", *options) as process:
            assert process.wait() == 0, process.output
            shown: dict[str, Any] = json.loads(process.output)
        return shown

    def record(self) -> dict[str, Any]:
        """The run's record."""
        record: dict[str, Any] = json.loads((self.stored / "run.json").read_text())
        return record

    def snapshot(self) -> int:
        """Step of the newest snapshot in memory; -1 where there is none."""
        found = [path.name for root in snapshot_roots(str(self.stored)) for path in root.glob("a*/*/step-*")]
        return max((int(name.removeprefix("step-")) for name in found), default=-1)

    def losses(self) -> list[float]:
        """Loss by step, from step 1."""
        rows = [json.loads(line) for line in (self.stored / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        return [row["loss"] for row in rows]

    def saved_step(self) -> int:
        """Step of the newest complete checkpoint; -1 where there is none."""
        found = [path.parent.name for path in self.stored.glob("checkpoints/*/manifest.json")]
        return max((int(re.findall(r"step-(\d+)-", name)[0]) for name in found), default=-1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fields = tiny_recipe(
        storage=str(tmp_path / "kept"),
        **{
            "data.sources": [{"path": str(write_text(tmp_path / "text", documents=24))}],
            "train.global_batch_size": 16,
            "train.schedule": {"name": "constant"},
            "scaling.num_workers": 2,
            "checkpoint.every_s": 3,
            "model.d_model": 128,
        },
    )
    write_recipe(tmp_path / "recipe.yaml", fields)
    return tmp_path


def test_a_run_whose_processes_are_killed_one_after_the_other(folder: Path) -> None:
    run, alone = Run(folder, "killed"), Run(folder, "alone")
    with run.command("train", *ENDLESS) as process:
        process.wait_until(lambda: run.saved_step() > 0, "a checkpoint")
        for title, told in KILLED.items():
            for pid in process.pids_of(title):
                os.kill(pid, signal.SIGKILL)
            process.wait_until(lambda told=told: told in process.output, told)
            saved = run.saved_step()
            process.wait_until(lambda saved=saved: run.saved_step() > saved, f"a checkpoint after that of {title}")
        process.wait_until(lambda: run.snapshot() > run.saved_step(), "a snapshot")
        kept = run.snapshot()
        os.kill(process.pid, signal.SIGKILL)  # the rest goes when the block is left
        process.wait()
        assert "Traceback" not in process.output

    with run.command("train", *ENDLESS) as process:
        process.wait_until(lambda: run.record()["attempts"][-1]["step"] > kept, "going on")
        process.interrupt()
        assert process.wait() == 130, process.output
        assert "Traceback" not in process.output
    assert run.record()["attempts"][1]["from_step"] >= kept, "from memory that the killed driver left"
    assert not any(root.exists() for root in snapshot_roots(str(run.stored)))
    shown = run.show(*ENDLESS)
    assert shown["attempts"] == 2
    assert [each["cause"] for each in shown["disruptions"]] == ["crash"], "the controller's, which the workers end with"
    seconds = dict(shown["goodput"])
    assert sum(seconds.values()) - seconds["wall_s"] == pytest.approx(seconds["wall_s"], rel=0.02)

    steps = ("--set", f"train.steps={shown['step']}", "--set", "checkpoint.every_s=1000")
    with alone.command("train", *steps) as process:
        assert process.wait() == 0, process.output
    assert run.losses() == alone.losses(), "the same, bit by bit"
    assert shown["samples"] == alone.show(*steps)["samples"]
    assert (shown["samples"]["duplicated"], shown["samples"]["missing"]) == (0, 0)
