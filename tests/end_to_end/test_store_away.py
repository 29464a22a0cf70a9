"""A run whose object store goes away for a while waits where it must, trains where it can, and loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.local.faulty_proxy import FaultyProxy
from cluster.local.s3 import LocalS3
from data.config import StoreConfig
from data.stores.open import open_store
from data.stores.store import Store
from orchestrator.cli.main import app
from tests.end_to_end.manta_process import MantaProcess
from tests.recipes import tiny_recipe, write_recipe, write_text

pytestmark = pytest.mark.chaos

SHARDS = 12

AWAY_S = 20.0
"""Seconds for which the store is away in mid-training: as many saves would be due, and seven heartbeats."""


@dataclass(frozen=True)
class Site:
    """A bucket with shards, and a proxy in front of it, through which commands reach it.

    Attributes:
        store: the bucket, past the proxy.
    """

    folder: Path
    proxy: FaultyProxy
    store: Store
    recipe: Path

    def train(self, run: str, steps: int) -> MantaProcess:
        """Starts `manta train`."""
        return MantaProcess("train", str(self.recipe), *options(run, steps), folder=self.folder, environment={})

    def show(self, run: str, steps: int) -> dict[str, Any]:
        """What `manta show --json` says."""
        done = CliRunner().invoke(app, ["show", str(self.recipe), "--json", *options(run, steps)])
        assert done.exit_code == 0, done.output
        shown: dict[str, Any] = json.loads(done.output)
        return shown

    def losses(self, run: str) -> list[float]:
        """Loss by step, from step 1."""
        rows = [json.loads(line) for line in self.store.get(f"{run}/runs/{run}/metrics.jsonl").splitlines()]
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        return [row["loss"] for row in rows]

    def saved_step(self, run: str) -> int:
        """Step of the newest complete checkpoint; -1 where there is none."""
        keys = [each.key for each in self.store.list(f"{run}/runs/{run}/checkpoints/")]
        return max((int(found[1]) for key in keys if (found := re.search(r"step-(\d+)-a1/manifest", key))), default=-1)


def options(run: str, steps: int) -> list[str]:
    """Each run has a storage of its own, where nothing is tokenized yet."""
    return ["--set", f"run={run}", "--set", f"storage=s3://away/{run}", "--set", f"train.steps={steps}"]


def step_of(process: MantaProcess) -> int:
    """The newest step that a run has told of."""
    return max((int(step.replace(",", "")) for step in re.findall(r"step ([\d,]+)/", process.output)), default=0)


@pytest.fixture(scope="module")
def site(s3_server: LocalS3, s3_store_config: StoreConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("away")
    s3_server.ensure_bucket("away")
    store = open_store("s3://away", s3_store_config)
    for shard in write_text(folder / "text", documents=SHARDS).iterdir():
        store.put_file(f"text/{shard.name}", shard)
    with FaultyProxy(s3_server.endpoint_url) as proxy:
        fields = tiny_recipe(
            store=s3_store_config.model_dump(exclude_defaults=True) | {"endpoint_url": proxy.endpoint_url},
            **{
                "data.sources": [{"path": "s3://away/text"}],
                "model.d_model": 128,
                "train.global_batch_size": 16,
                "train.schedule": {"name": "constant"},
                "scaling.num_workers": 2,
                "checkpoint.every_s": 1,
            },
        )
        yield Site(folder, proxy, store, write_recipe(folder / "recipe.yaml", fields))


@dataclass(frozen=True)
class Trained:
    """A run that is over: what it printed, what is shown of it, and its newest checkpoint before the store went."""

    output: str
    shown: dict[str, Any]
    saved_step: int


@pytest.fixture(scope="module")
def trained(site: Site) -> Trained:
    """A run whose store went away in mid-training, and one of whose workers was killed meanwhile; stopped later on."""
    with site.train("cut", steps=1_000_000) as process:
        process.wait_until(lambda: site.saved_step("cut") > 0, "a checkpoint")
        site.proxy.cut()
        mended_at = time.monotonic() + AWAY_S
        saved_step = site.saved_step("cut")
        process.wait_until(lambda: "saving checkpoints: the store fails" in process.output, "the outage is told")
        os.kill(process.pids_of("ray::TrainingWorker")[0], signal.SIGKILL)
        process.wait_until(lambda: "continuing with 2 workers" in process.output, "a restart")
        process.wait_until(lambda: time.monotonic() >= mended_at, "the store has been away for long")
        told = step_of(process)
        process.wait_until(lambda: step_of(process) > told, "training goes on")
        assert site.saved_step("cut") == saved_step
        site.proxy.mend()
        process.wait_until(lambda: site.saved_step("cut") > told, "a checkpoint again")
        process.wait_until(lambda: "record: the store answers again" in process.output, "the record is written again")
        process.interrupt()
        assert process.wait() == 130, process.output
        output = process.output
    return Trained(output, site.show("cut", steps=1_000_000), saved_step)


def test_training_goes_on_from_memory_and_no_step_is_lost(trained: Trained) -> None:
    assert "Traceback" not in trained.output
    [disruption] = trained.shown["disruptions"]
    assert trained.shown["attempts"] == 1 and disruption["restored_step"] > trained.saved_step
    assert disruption["replayed_steps"] <= disruption["restored_step"] - trained.saved_step


def test_the_outage_is_told_and_over(trained: Trained) -> None:
    for doing in ("saving checkpoints", "writing the run's record"):
        assert f"{doing}: the store answers again" in trained.output
    assert "saving checkpoints" in [each["doing"] for each in trained.shown["outages"]]
    assert all(each["until"] - each["since"] >= 0 for each in trained.shown["outages"])


def test_every_second_is_accounted_for(trained: Trained) -> None:
    seconds = dict(trained.shown["goodput"])
    wall_s = seconds.pop("wall_s")
    assert sum(seconds.values()) == pytest.approx(wall_s, rel=0.02)


@pytest.mark.soak
def test_a_run_that_waited_in_its_preparation_is_the_same(site: Site, trained: Trained) -> None:
    """The store goes away while units are tokenized; afterwards the run is left alone."""
    steps = trained.shown["step"]
    with site.train("early", steps) as process:
        process.wait_until(lambda: any(site.store.list("early/tokens/")), "it tokenizes")
        site.proxy.cut()
        process.wait_until(lambda: bool(re.search("(tokenizing|preparing): the store fails", process.output)), "told")
        process.wait_until(lambda: "the run's record: the store fails" in process.output, "heartbeats fail, too")
        site.proxy.mend()
        assert process.wait() == 0 and "Traceback" not in process.output, process.output
        assert re.search("(tokenizing|preparing): the store answers again", process.output)
    shown = site.show("early", steps)
    assert (shown["status"], shown["attempts"], shown["units_read"]) == ("finished", 1, SHARDS)
    assert site.losses("cut") == site.losses("early"), "the same, bit by bit"
    assert shown["samples"] == trained.shown["samples"] and shown["samples"]["in_order"]
    assert (shown["samples"]["duplicated"], shown["samples"]["missing"]) == (0, 0)


def tuned(site: Site, name: str, *, is_cut: bool) -> dict[str, Any]:
    """What is shown of a sweep of four trials that has ended, and whose store goes away amid it if `is_cut`."""
    sweep = {
        "sweep": name,
        "recipe": site.recipe.name,
        "set": {"train.steps": 60, "scaling.num_workers": 1, "storage": f"s3://away/sweep-{name}"},
        "space": {"train.lr": {"loguniform": [1e-4, 3e-2]}},
        "searcher": {"name": "random", "trials": 4, "seed": 1},
        "scheduler": {"name": "halving", "grace_steps": 15, "factor": 2},
    }
    recipe = write_recipe(site.folder / f"{name}.yaml", sweep)
    with MantaProcess("tune", str(recipe), folder=site.folder, environment={}) as process:
        if is_cut:
            trials = f"sweep-{name}/sweeps/{name}/trials/"
            process.wait_until(lambda: len(list(site.store.list(trials))) >= 3, "a third trial")
            site.proxy.cut()
            process.wait_until(lambda: "the store fails" in process.output, "the outage is told")
            mended_at = time.monotonic() + AWAY_S
            process.wait_until(lambda: time.monotonic() >= mended_at, "the store has been away for long")
            site.proxy.mend()
        assert process.wait() == 0 and "Traceback" not in process.output, process.output
    done = CliRunner().invoke(app, ["show", str(recipe), "--json"])
    assert done.exit_code == 0, done.output
    shown: dict[str, Any] = json.loads(done.output)
    return shown


@pytest.mark.soak
def test_a_sweep_goes_on_once_the_store_is_back(site: Site) -> None:
    alone, cut = tuned(site, "left-alone", is_cut=False), tuned(site, "cut-off", is_cut=True)
    assert (cut["attempts"], cut["best"]["id"]) == (1, alone["best"]["id"])
    for trial, same in zip(cut["trials"], alone["trials"], strict=True):
        assert (trial["status"], trial["rungs"]) == (same["status"], same["rungs"])
        assert trial["loss"] == pytest.approx(same["loss"], rel=1e-5)
