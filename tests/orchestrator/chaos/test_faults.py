"""Faults that need neither cluster nor store: wrong clocks, and memory that is full."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from data.errors import InputError
from orchestrator.chaos.command import chaos, possible_kinds
from orchestrator.chaos.faults import Injector
from orchestrator.chaos.plan import KINDS, Plan
from orchestrator.chaos.runs import Disturber
from orchestrator.chaos.skewed_clock import skewed
from orchestrator.chaos.small_memory import LEFT_BYTES, fill, small_memory
from orchestrator.cli.main import app
from orchestrator.config.load import load_recipe
from orchestrator.snapshots.store import snapshot_roots
from tests.recipes import tiny_recipe, write_recipe


def test_the_clock_of_a_process_is_shifted(tmp_path: Path) -> None:
    code = "import logging, time; print(time.time()); print(time.time_ns()); print(logging.makeLogRecord({}).created)"
    variables = {**os.environ, **skewed(tmp_path / "clock", -600)}
    shown = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    seconds, nanoseconds, logged = map(float, shown.stdout.split())
    for shifted in (seconds, nanoseconds / 1e9, logged):
        assert time.time() - shifted == pytest.approx(600, abs=60)


def test_full_memory_has_no_room_for_a_snapshot_until_it_is_mended(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    before = snapshot_roots("run")
    with small_memory(tmp_path / "memory") as folder:
        assert snapshot_roots("run")[-1].parent == folder
        ballast = fill(folder)
        with pytest.raises(OSError, match="No space left"):
            (folder / "snapshot").write_bytes(bytes(2 * LEFT_BYTES))
        ballast.unlink()
        (folder / "snapshot").write_bytes(bytes(2 * LEFT_BYTES))
    assert snapshot_roots("run") == before
    assert list(folder.iterdir()) == [], "it is unmounted"


def test_all_faults_are_those_that_the_recipe_and_the_machine_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny_recipe())
    on_s3 = load_recipe(recipe, ["storage=s3://bucket/kept"])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert possible_kinds(on_s3) == list(KINDS)
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    left_out = set(KINDS) - set(possible_kinds(load_recipe(recipe)))
    assert left_out == {"store-errors", "store-slow", "store-away", "full-disk", "full-shm"}
    with pytest.raises(InputError, match="store-slow, full-disk need `storage: s3://"):
        chaos(recipe, [], Plan(["store-slow", "full-disk"], 1.0, 1, None, 2), False, print)


def test_a_fault_waits_for_a_target() -> None:
    """In a restart there are no workers for a moment, or one ends between the look at it and the signal."""
    worker: Any = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    looks = iter([[], [gone.pid], [worker.pid]])
    node = SimpleNamespace(name="node-1", workers=lambda title: next(looks))
    nodes: Any = SimpleNamespace(living=lambda: [node])
    command: Any = SimpleNamespace(status=None)
    disturber = Disturber(command, Injector(nodes, command, None, command, random.Random(1)))
    steps = itertools.count(1)
    disturber.disturb(iter(["kill-worker"]), lambda: (next(steps), True), every_s=0.0, count=1)
    worker.stdin.close()
    assert worker.wait() == -9
    assert [fault.target for fault in disturber.faults] == [f"process {worker.pid} on node-1"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--soak", "1h"), "--soak 1h: not a duration"),
        (("--soak", "5m", "--baseline", "ray"), "--soak and --baseline cannot be combined"),
        (("--faults", "kill-drivr"), "No such fault: kill-drivr"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    done = CliRunner().invoke(app, ["chaos", str(write_recipe(tmp_path / "recipe.yaml", tiny_recipe())), *options])
    assert done.exit_code == 2
    assert told in done.output
