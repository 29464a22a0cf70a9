"""Sweeps that really run: on Ray, with Ray Tune, each trial a whole run with workers of its own."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.local.ray import ray_cluster
from data.stores.local import LocalStore
from orchestrator.cli.main import app
from orchestrator.config.load import load_recipe
from orchestrator.run.metrics_file import METRICS
from orchestrator.run.run import open_run
from orchestrator.run.summary import summary_of_run
from orchestrator.snapshots.store import snapshot_roots
from orchestrator.sweep import refusals
from orchestrator.sweep.command import tune
from orchestrator.sweep.summary import SweepSummary
from tests.end_to_end.changed_bytes import Answer, in_turn, with_a_byte_changed, wrong_answers
from tests.end_to_end.manta_process import MantaProcess
from tests.orchestrator.sweep.site import QUIET, STEPS, SweepSite
from tests.waiting import wait_until

pytestmark = [pytest.mark.sweep, *QUIET]

SETTLED_WITHIN_S = 15.0


PLANTED = {"AWS_SECRET_ACCESS_KEY": "planted-secret-key-1", "MY_SERVICE_TOKEN": "planted-token-2"}
"""Secrets of the environment, which no part of a sweep needs to pass on."""


@pytest.fixture
def ray_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray with this process as its driver, which outlives the sweep: what that leaves behind can be seen."""
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    with ray_cluster(4):
        yield


def left_behind() -> dict[str, Any]:
    """Actors, placement groups, worker processes with an actor in them, and snapshots that are there now."""
    import ray
    from ray._private.state import actors
    from ray.util import placement_group_table

    alive = [told["ActorClassName"] for told in actors().values() if told["State"] != "DEAD"]
    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    mine = os.getpid()
    titles = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != mine:
            try:
                title = (entry / "cmdline").read_bytes().decode(errors="replace")
                session = ray._private.worker._global_node.session_name
                if title.startswith("ray::") and session in (entry / "environ").read_text(errors="replace"):
                    titles.append(title.split("\0")[0])
            except (OSError, AttributeError):
                continue
    actor_processes = [title for title in titles if not title.startswith("ray::IDLE")]
    wanted = ("TrialDriver", "TrainingWorker", "TrainController", "Feeder", "Monitor", "SnapshotAgent", "Host")
    return {
        # Ray Data's own, of which there is one a cluster, are not the trials'.
        "actors": [name for name in alive if "Autoscaling" not in name and name != "_StatsActor"],
        "groups": groups,
        "processes": [title for title in actor_processes if any(name in title for name in wanted)],
        "snapshots": snapshots(),
    }


def snapshots() -> list[str]:
    """Folders in the memory of this node of the runs kept below this folder; others on the machine have their own."""
    runs = LocalStore(str(Path.cwd() / "store/runs"))
    return [
        str(root)
        for path in Path("store/runs").glob("*")
        for root in snapshot_roots(runs.child(path.name).url_of(""))
        if root.exists()
    ]


def settled() -> dict[str, Any]:
    """What is left behind once everything has had some seconds to end."""
    with suppress(AssertionError):  # the test tells what is left
        wait_until(lambda: not any(left_behind().values()), "nothing left", SETTLED_WITHIN_S)
    return left_behind()


def test_a_sweep_finds_its_best_and_leaves_nothing_behind(site: SweepSite, ray_here: None) -> None:
    told = []
    recipe = site.recipe(max_concurrent=2)
    summary = tune(recipe, [], watch=told.append)
    assert summary["status"] == "finished"
    statuses = {trial["id"]: trial["status"] for trial in summary["trials"]}
    assert len(statuses) == 4 and set(statuses.values()) <= {"finished", "stopped"}
    assert "stopped" in statuses.values()
    assert summary["best"] is not None
    finished = [trial for trial in summary["trials"] if trial["status"] == "finished"]
    assert summary["best"]["loss"] == min(trial["loss"] for trial in finished if trial["loss"] is not None)
    assert all(trial["step"] == STEPS and trial["curve"][-1][0] == STEPS for trial in finished)
    assert summary["cost"]["share"] < 1
    import ray

    session = Path(ray._private.worker._global_node.get_session_dir_path())
    files = [path for root in (session, site.folder) for path in root.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files) and any(path.name == "sweep.json" for path in files)
    held = [path for path in files if any(value.encode() in path.read_bytes() for value in PLANTED.values())]
    assert held == []
    assert any(trial["status"] == "running" and trial["workers"] == 1 for each in told for trial in each["trials"])

    # Each unit once: no file of tokens was written again by a trial.
    assert summary["tokenized"] == {"units": 6, "tokenized": 6, "cached": 0}
    first_trial = min(trial["started_at"] for trial in summary["trials"] if trial["started_at"])
    assert len(site.tokens()) == 6
    assert all(written_ns / 1e9 < first_trial for written_ns in site.tokens().values())

    # Every trial saw the same batches, as its ledger tells.
    runs = [open_run(load_recipe(f".manta/runs/{trial['run']}.yaml")) for trial in finished]
    assert len({summary_of_run(run)["samples"]["digest"] for run in runs}) == 1
    assert summary_of_run(runs[0])["samples"]["in_order"]

    assert settled() == {"actors": [], "groups": [], "processes": [], "snapshots": []}
    best = load_recipe(summary["best"]["recipe"])
    assert best.train.lr == summary["best"]["config"]["train.lr"]
    assert tune(recipe, [])["trials"] == summary["trials"]  # nothing is left to do


def test_a_failing_trial_is_recorded_with_its_values_and_the_sweep_goes_on(site: SweepSite, ray_here: None) -> None:
    points = [
        {"train.optimizer.name": "sgd", "train.lr": 1e30},
        {"train.optimizer.name": "adamw", "train.lr": 1e-3},
    ]
    space = {"train.optimizer.name": {"choice": ["sgd", "adamw"]}, "train.lr": {"loguniform": [1e-4, 1e30]}}
    recipe = site.recipe(space=space, searcher={"name": "random", "trials": 2, "points": points})
    summary = tune(recipe, [])
    failed, good = summary["trials"]
    assert failed["status"] == "failed" and failed["config"]["train.lr"] == 1e30
    assert "loss" in failed["reason"] or "grad_norm" in failed["reason"]
    assert good["status"] == "finished"
    assert summary["best"] is not None and summary["best"]["id"] == good["id"]


@pytest.mark.parametrize("flips", [pytest.param(20, id="few"), pytest.param(500, id="many", marks=pytest.mark.soak)])
def test_a_changed_byte_of_any_object_gives_the_same_answer_or_its_name(
    site: SweepSite, ray_here: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, flips: int
) -> None:
    """Of every kind of object of a finished sweep and of its trials, as often as each other."""
    monkeypatch.setattr(refusals, "DRAWS", 10)
    recipe, store, kept, draw = site.recipe(), site.folder / "store", site.folder / "kept", random.Random(1)
    best = tune(recipe, [])["best"]
    assert best is not None
    shutil.copytree(store, kept)
    commands = [("tune", str(recipe)), ("show", str(recipe)), ("report", str(recipe)), ("show", best["run"], "--json")]

    def ask(command: tuple[str, ...], key: str = "", changed: bytes = b"") -> Answer:
        caplog.clear()
        shutil.rmtree(store)
        shutil.copytree(kept, store)
        if key:
            (store / key).write_bytes(changed)
        done = CliRunner().invoke(app, list(command))
        if isinstance(done.exception, Exception):
            return 1, "".join(traceback.format_exception(done.exception))
        return done.exit_code, re.sub(r"\[ *\d+\.\d s\] ", "", done.output) + caplog.text

    sound = {command: ask(command) for command in commands}
    assert all(status == 0 for status, _ in sound.values())
    wrong = []
    for key in in_turn([str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()], draw, flips):
        changed = with_a_byte_changed((kept / key).read_bytes(), draw)
        wrong += wrong_answers(key, partial(ask, key=key, changed=changed), sound)
    assert wrong == []


@pytest.mark.parametrize("metric", ["val_loss", pytest.param("train_loss", marks=pytest.mark.soak)])
def test_pbt_goes_on_from_the_donors_state_with_other_values(site: SweepSite, ray_here: None, metric: str) -> None:
    points, steps = [{"train.lr": 3e-3}, {"train.lr": 1e-6}], 40
    recipe = site.recipe(
        set={
            "train.steps": steps,
            "train.schedule.name": "constant",
            "eval.every_steps": 10,
            "data.validation_fraction": 0.5,
        },
        space={"train.lr": {"loguniform": [1e-7, 1e-2]}},
        searcher={"name": "random", "trials": 2, "points": points},
        scheduler={"name": "pbt", "grace_steps": 20, "quantile": 0.5, "resample": 0.0},
        metric=metric,
        max_concurrent=2,
    )
    summary = tune(recipe, [])
    assert [trial["status"] for trial in summary["trials"]] == ["finished", "finished"]
    child = site.book(recipe)["t002"]
    (_, continued) = child.trial_runs
    donor = continued.donor
    assert donor is not None and (donor.id, donor.step) == ("t001", 20)
    assert continued.point["train.lr"] in (pytest.approx(3e-3 * 0.8), pytest.approx(3e-3 * 1.25))

    store = LocalStore(str(site.folder / "store"))
    donor_rows, child_rows = (
        [json.loads(line) for line in store.get(f"runs/{run}/{METRICS}").splitlines()]
        for run in (donor.run, continued.run)
    )
    # The donor's losses up to the copied step, to the last bit; from there on its own, which begin where the donor was.
    assert [row["loss"] for row in child_rows[: donor.step]] == [row["loss"] for row in donor_rows[: donor.step]]
    first = child_rows[donor.step]
    assert first["loss"] == pytest.approx(donor_rows[donor.step]["loss"], rel=1e-6)  # same state, same batch
    assert first["lr"] != donor_rows[donor.step]["lr"]
    assert continued.step == steps
    run = open_run(load_recipe(f".manta/runs/{continued.run}.yaml"))
    assert summary_of_run(run)["samples"]["in_order"]


@pytest.mark.soak
def test_a_sweep_killed_twice_ends_as_one_left_alone(site: SweepSite) -> None:
    """One trial at a time, so that what the scheduler hears has one order."""
    rng = random.Random(4)
    outcomes = []
    for name, kills in (("alone", 0), ("killed", 2)):
        searcher = {"name": "random", "trials": 3, "seed": 1}
        recipe = site.recipe(sweep=name, max_concurrent=1, set={"model.d_model": 128}, searcher=searcher)
        for _ in range(kills):
            with MantaProcess("tune", str(recipe), folder=site.folder, environment={}) as process:
                deadline = time.monotonic() + rng.uniform(8, 18)
                while time.monotonic() < deadline and not process.has_ended():
                    time.sleep(0.1)
                os.kill(process.pid, signal.SIGKILL)  # the rest goes when the block is left
        with MantaProcess("tune", str(recipe), folder=site.folder, environment={}) as process:
            assert process.wait() == 0, process.output
        summary = site.summary(recipe)
        assert summary["attempts"] == kills + 1
        outcomes.append([(trial["status"], trial["config"], trial["rungs"]) for trial in summary["trials"]])
        assert summary["best"] is not None
        outcomes[-1].append((summary["best"]["id"], {}, []))
        losses = [trial["loss"] for trial in summary["trials"]]
        outcomes.append(losses)  # type: ignore[arg-type]
    assert outcomes[0] == outcomes[2]
    assert outcomes[1] == pytest.approx(outcomes[3], rel=1e-5)


@pytest.mark.soak
def test_a_sweep_whose_shared_processes_are_killed_ends_as_one_left_alone(site: SweepSite) -> None:
    changes: dict[str, Any] = {
        "set": {"model.d_model": 128, "train.steps": 120},
        "scheduler": {"name": "halving", "grace_steps": 30, "factor": 2},
        "max_failures": 4,
        "max_concurrent": 2,
    }
    alone = tune_here(site, site.recipe(sweep="alone", **changes))
    recipe = site.recipe(sweep="killed", **changes)
    with MantaProcess("tune", str(recipe), folder=site.folder, environment={}) as process:
        for reports, title in enumerate(("ray::Host", "ray::ConcurrentHost"), start=1):
            process.wait_until(partial(has_reported, site, recipe, reports), f"{reports} reports")
            killed = process.pids_of(title)
            assert killed
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        assert process.wait() == 0, process.output
        assert "Traceback" not in process.output
    summary = site.summary(recipe)
    assert summary["best"] is not None and alone["best"] is not None
    assert (summary["attempts"], summary["best"]["id"]) == (1, alone["best"]["id"])
    for trial, same in zip(summary["trials"], alone["trials"], strict=True):
        assert (trial["status"], trial["rungs"]) == (same["status"], same["rungs"])
        assert trial["loss"] == pytest.approx(same["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("trials", "interrupted_at"),
    [pytest.param(1, [2], id="once"), pytest.param(2, [1, 3, 5, 7, 9], id="five times", marks=pytest.mark.soak)],
)
def test_a_sweep_by_held_out_loss_is_the_same_after_ctrl_c(
    site: SweepSite, trials: int, interrupted_at: list[int]
) -> None:
    """Interrupted after so many reports."""
    changes: dict[str, Any] = {
        "set": {"model.d_model": 128, "train.steps": 60, "eval.every_steps": 10, "data.validation_fraction": 0.5},
        "metric": "val_loss",
        "searcher": {"name": "random", "trials": trials, "seed": 1},
        "scheduler": {"name": "halving", "grace_steps": 60 // trials - 1, "factor": 2},
        "max_concurrent": 1,
    }
    alone = tune_here(site, site.recipe(sweep="alone", **changes))
    recipe = site.recipe(sweep="interrupted", **changes)
    for reports in interrupted_at:
        with MantaProcess("tune", str(recipe), folder=site.folder, environment={}) as process:
            process.wait_until(partial(has_reported, site, recipe, reports), f"{reports} reports")
            process.interrupt_group()
            assert process.wait() == 130, process.output
            assert f"`manta tune {recipe}` continues it" in process.output
        assert site.summary(recipe)["status"] == "stopped"
        assert "running" not in [trial["status"] for trial in site.summary(recipe)["trials"]]
    summary = tune_here(site, recipe)
    assert summary["attempts"] == 1 + len(interrupted_at)
    for trial, same in zip(summary["trials"], alone["trials"], strict=True):
        assert (trial["status"], trial["step"], trial["rungs"]) == (same["status"], same["step"], same["rungs"])
        assert [step for step, _ in trial["curve"]] == [step for step, _ in same["curve"]]
        assert [loss for _, loss in trial["curve"]] == pytest.approx([loss for _, loss in same["curve"]], rel=1e-5)
    assert summary["best"] is not None and alone["best"] is not None
    assert summary["best"]["id"] == alone["best"]["id"]
    runs = [load_recipe(f".manta/runs/{trial['run']}.yaml") for trial in summary["trials"]]
    assert all(summary_of_run(open_run(run))["samples"]["in_order"] for run in runs)


def has_reported(site: SweepSite, recipe: Path, reports: int) -> bool:
    return sum(len(record.reports) for record in site.book(recipe)) >= reports


def tune_here(site: SweepSite, recipe: Path) -> SweepSummary:
    """Run a sweep to its end by the command; its summary."""
    with MantaProcess("tune", str(recipe), folder=site.folder, environment={}) as process:
        assert process.wait() == 0, process.output
    return site.summary(recipe)


def test_a_sweep_without_a_result_says_why(site: SweepSite) -> None:
    """Nothing is found to be held out, though the recipe holds out a share; then the learning rate is too high."""
    held_out = {"data.validation_fraction": 1e-9, "eval.every_steps": 10}
    recipe = site.recipe(set=held_out, metric="val_loss")
    with MantaProcess("tune", str(recipe), folder=site.folder, environment={}) as process:
        assert process.wait() == 2, process.output
    assert "of 6 documents, none is held out by data.validation_fraction = 1e-09" in process.output

    space = {"train.lr": {"loguniform": [1e29, 1e30]}}
    recipe = site.recipe(sweep="wild", space=space, searcher={"name": "random", "trials": 2})
    with MantaProcess("tune", str(recipe), folder=site.folder, environment={}) as process:
        assert process.wait() == 1, process.output
    assert "No trial has a usable result: all 2 have failed, such as t001: " in process.output
    assert "--retry-failed" in process.output and "Traceback" not in process.output
    assert site.summary(recipe)["status"] == "died"
