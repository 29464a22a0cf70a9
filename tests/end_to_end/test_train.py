"""Runs from one command to the trained model, on the real S3 server: left alone, killed, interrupted, contested.

A run is a function of its config, its data and its seed: every summary below ends in the same losses and the same
samples as the run left alone. The learning rate is constant, so that a longer run has the same losses up to any step.
"""

from __future__ import annotations

import glob
import io
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from typer.testing import CliRunner

from cluster.local.s3 import LocalS3
from data.stores.sealed_json import sealed
from model.config import ModelConfig
from model.size import flops_per_token
from orchestrator.cli.main import app
from tests.end_to_end.changed_bytes import Answer, in_turn, with_a_byte_changed, wrong_answers
from tests.end_to_end.manta_process import MantaProcess
from tests.end_to_end.shadowing import shadow_packages
from tests.orchestrator.event_reader import Curve, curves_in

pytestmark = [pytest.mark.ray, pytest.mark.s3]

STEPS = 100
SAVE_EVERY = 10
GLOBAL_BATCH_SIZE = 32
MODULES = (
    "argparse",
    "bisect",
    "colorsys",
    "contextlib",
    "csv",
    "fnmatch",
    "glob",
    "heapq",
    "queue",
    "shlex",
    "textwrap",
)
RECIPE = {
    "data": {"tokenizer": {"vocab_size": 512}, "seq_len": 64, "shuffle_units": 2, "validation_fraction": 0.05},
    "model": {"n_layers": 2, "d_model": 64, "n_heads": 2},
    "train": {
        "steps": STEPS,
        "global_batch_size": GLOBAL_BATCH_SIZE,
        "micro_batch_size": 4,
        "lr": 1e-3,
        "schedule": {"name": "constant"},
    },
    "scaling": {"num_workers": 2},
    "checkpoint": {"every_steps": SAVE_EVERY, "keep": 100},
    "sample": {"prompts": ["def "], "max_new_tokens": 20},
}


@dataclass(frozen=True)
class Site:
    """A bucket with shards in it, and a folder to run commands from."""

    folder: Path
    bucket: str
    client: Any
    environment: dict[str, str]

    def recipe(self, run: str, storage: str) -> str:
        """Path of a recipe for `run`, written here; `storage` is a prefix in the bucket."""
        path = self.folder / f"{run}.yaml"
        data = {**RECIPE["data"], "sources": [{"path": f"s3://{self.bucket}/shards"}]}
        path.write_text(json.dumps({**RECIPE, "run": run, "storage": f"s3://{self.bucket}/{storage}", "data": data}))
        return str(path)

    def run(self, name: str, storage: str = "manta") -> Run:
        return Run(self, name, storage)


@dataclass(frozen=True)
class Run:
    """A run as the commands and its bucket show it; keys and formats are spelled out here, as users' scripts do."""

    site: Site
    name: str
    storage: str

    def command(self, *command: str) -> MantaProcess:
        """Start `manta COMMAND RECIPE ...` on this run."""
        name, *options = command
        recipe = self.site.recipe(self.name, self.storage)
        return MantaProcess(name, recipe, *options, folder=self.site.folder, environment=self.site.environment)

    def train(self, *options: str) -> str:
        """Train to the end; what the command printed."""
        with self.command("train", *options) as process:
            assert process.wait() == 0, process.output
            return process.output

    def refused(self, *options: str) -> str:
        """What `manta train` says to something the user has to change."""
        with self.command("train", *options) as process:
            assert process.wait() == 2, process.output
            assert "Traceback" not in process.output
            return process.output

    def summary(self) -> dict[str, Any]:
        """What `manta show --json` says."""
        with pytest.MonkeyPatch.context() as patch:
            shown: dict[str, Any] = json.loads(self.in_process(patch, "show", "--json"))
        return shown

    def in_process(self, monkeypatch: pytest.MonkeyPatch, *command: str) -> str:
        """What a command prints that needs no Ray, without waiting for another interpreter to start."""
        status, output = self.answer(monkeypatch, *command)
        assert status == 0, output
        return output

    def answer(self, monkeypatch: pytest.MonkeyPatch, *command: str) -> tuple[int, str]:
        """Exit status and output of a command that needs no Ray, whatever they are."""
        monkeypatch.chdir(self.site.folder)
        for name, value in self.site.environment.items():
            monkeypatch.setenv(name, value)
        name, *options = command
        done = CliRunner().invoke(app, [name, self.site.recipe(self.name, self.storage), *options])
        if isinstance(done.exception, Exception):
            return 1, "".join(traceback.format_exception(done.exception))
        return done.exit_code, re.sub(r"\[ *\d+\.\d s\] ", "", done.output)

    def copy(self, name: str) -> Run:
        """The same run under another name, as far as it has come."""
        for key in self.objects():
            if key.endswith("/"):  # an empty folder, which Ray makes for notes of its own
                continue
            source = {"Bucket": self.site.bucket, "Key": key}
            copied = key.replace(f"/runs/{self.name}/", f"/runs/{name}/")
            self.site.client.copy_object(Bucket=self.site.bucket, Key=copied, CopySource=source)
        fields = self.record() | {"run": name}
        del fields["sha256"]
        record = sealed(json.dumps(fields, indent=1).encode())
        self.site.client.put_object(Bucket=self.site.bucket, Key=f"{self.storage}/runs/{name}/run.json", Body=record)
        return replace(self, name=name)

    def objects(self, *, everything: bool = False) -> dict[str, str]:
        """Key and etag of every object of the run; `everything`: and of what it was prepared from."""
        pages = self.site.client.get_paginator("list_objects_v2")
        listed = pages.paginate(Bucket=self.site.bucket, Prefix=f"{self.storage}/")
        found = {found["Key"]: found["ETag"] for page in listed for found in page.get("Contents", ())}
        own = f"{self.storage}/runs/{self.name}/"
        return {
            key: etag
            for key, etag in found.items()
            if key.startswith(own) or (everything and not key.startswith(f"{self.storage}/runs/"))
        }

    def get(self, key: str) -> bytes:
        key = f"{self.storage}/runs/{self.name}/{key}"
        return self.site.client.get_object(Bucket=self.site.bucket, Key=key)["Body"].read()

    def record(self) -> dict[str, Any]:
        return json.loads(self.get("run.json"))

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.get("metrics.jsonl").splitlines()]

    def curves(self, part: str, folder: Path) -> dict[str, Curve]:
        """What TensorBoard reads in the run's folder, "train" or "held-out", fetched into `folder`."""
        keys = [key for key in self.objects() if f"/tensorboard/{part}/" in key]
        for key in keys:
            self.site.client.download_file(self.site.bucket, key, str(folder / Path(key).name))
        return curves_in(folder)

    def losses(self) -> list[float]:
        """Loss by step, from step 1."""
        rows = self.metrics()
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        return [row["loss"] for row in rows]

    def step_told(self) -> int:
        """Step of the newest sign of life; -1 before there is one."""
        try:
            attempt = self.record()["attempts"][-1]
        except self.site.client.exceptions.NoSuchKey:
            return -1
        return int(attempt["step"]) if attempt["from_step"] is not None else -1

    def saved_steps(self) -> list[int]:
        """Steps of complete checkpoints."""
        manifests = (key.split("/") for key in self.objects() if key.endswith("/manifest.json"))
        return sorted(int(parts[-2].split("-")[1]) for parts in manifests)

    def has_saved(self, step: int) -> Callable[[], bool]:
        """The condition that there is a checkpoint of `step` or later."""
        return lambda: max(self.saved_steps(), default=-1) >= step


@pytest.fixture(scope="module")
def site(s3_server: LocalS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    import boto3

    folder = tmp_path_factory.mktemp("site")
    shadow_packages(folder)  # a user's folder may have a model.py
    bucket = f"site-{folder.name}".lower().replace("_", "-")
    s3_server.ensure_bucket(bucket)
    environment = {
        "AWS_ENDPOINT_URL": s3_server.endpoint_url,
        "AWS_ACCESS_KEY_ID": s3_server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_access_key,
        "PLANTED_TOKEN": "planted-in-the-environment",
    }
    client = boto3.client(
        "s3",
        endpoint_url=s3_server.endpoint_url,
        aws_access_key_id=s3_server.access_key_id,
        aws_secret_access_key=s3_server.secret_access_key,
        region_name="us-east-1",
    )
    for name, content in shards().items():
        client.put_object(Bucket=bucket, Key=f"shards/{name}", Body=content)
    with tempfile.TemporaryDirectory(prefix="manta-", dir="/tmp") as ray_folder:  # sockets need a short path
        Path(ray_folder).chmod(0o755)  # like /tmp, where Ray's folder is for everybody else
        yield Site(folder, bucket, client, environment | {"RAY_TMPDIR": ray_folder})


def shards() -> dict[str, bytes]:
    """The functions and classes of some modules of the standard library as documents, in shards of three formats."""
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [text for module in MODULES for text in (library / f"{module}.py").read_text("utf-8").split("\n\n\n")]
    parts = [texts[start::4] for start in range(4)]
    lines = ["".join(json.dumps({"text": text}) + "\n" for text in part).encode() for part in parts]
    table = io.BytesIO()
    pq.write_table(pa.table({"text": parts[2]}), table, row_group_size=len(parts[2]) // 2 + 1)
    return {
        "a.jsonl": lines[0],
        "b.jsonl.zst": zstandard.compress(lines[1]),
        "c.parquet": table.getvalue(),
        "d.jsonl": lines[3],
    }


@pytest.fixture(scope="module")
def alone(site: Site) -> Run:
    """The run left alone: finished."""
    run = site.run("alone")
    run.train()
    return run


@pytest.fixture(scope="module")
def summary(alone: Run) -> dict[str, Any]:
    return alone.summary()


NOBODY, SYSTEM_PATH = 65534, "/usr/bin:/bin"

TRESPASS = """
import glob, os, socket, sys

session, *roots = sys.argv[1:]
for root in roots:
    for folder, folders, files in os.walk(root):
        print("listed", folder)
        for name in files:
            try:
                open(os.path.join(folder, name), "rb").close()
                print("read", folder, name)
            except OSError:
                pass
    for what in (os.unlink, lambda path: os.rename(path, path + "-mine"), lambda path: os.mkdir(path + "/mine")):
        try:
            what(root)
            print("changed", root)
        except OSError:
            pass
for path in glob.glob("/proc/[0-9]*/stat"):
    try:
        if open(path).read().rpartition(")")[2].split()[3] == session:
            open(os.path.dirname(path) + "/environ").close()
            print("environment read", path)
    except OSError:
        pass
for path in glob.glob(os.environ["SOCKETS"]):
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        print("connected", path)
    except OSError:
        pass
print("tried", len(roots))
"""


def trespassed(site: Site, process: MantaProcess) -> list[str]:
    """What a user who is nobody could read, change or reach of a run that is on, and how much was tried."""
    states = glob.glob(f"/dev/shm/manta-state-{os.geteuid()}-*")
    assert states, "the run keeps its state in memory"
    sockets = f"{site.environment['RAY_TMPDIR']}/ray/session_*/sockets/*"
    assert glob.glob(sockets)
    return subprocess.run(
        ["/usr/bin/env", "python3", "-I", "-c", TRESPASS, str(process.pid), *states],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env={"PATH": SYSTEM_PATH, "SOCKETS": sockets},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()


@pytest.fixture(scope="module")
def trespasses() -> list[str]:
    """What `trespassed` found while the run that is stopped was on."""
    return []


@pytest.fixture(scope="module")
def stopped_once(site: Site, trespasses: list[str]) -> Run:
    """A run stopped by Ctrl-C in a terminal; to be copied, not continued.

    It tokenizes while it trains, in a store where nothing has been tokenized yet.
    """
    run = site.run("stopped", storage="untouched")
    with run.command("train", "--set", "data.prepare=streaming") as process:
        process.wait_until(run.has_saved(SAVE_EVERY), "a checkpoint")
        if os.geteuid() == 0 and shutil.which("python3", path=SYSTEM_PATH):
            trespasses += trespassed(site, process)
        process.interrupt_group()
        assert process.wait() == 130, process.output
        assert "tokenized as training needs them" in process.output
        assert "saving, then stopping" in process.output
        assert "Traceback" not in process.output
    return run


@pytest.fixture
def stopped(stopped_once: Run, request: pytest.FixtureRequest) -> Run:
    """A copy of the stopped run for this test."""
    return stopped_once.copy(request.node.name)


def same_samples(run: Run, alone_summary: dict[str, Any]) -> dict[str, Any]:
    """The summary of a run that has finished with the samples of the run left alone."""
    summary = run.summary()
    assert summary["status"] == "finished"
    assert summary["samples"] == alone_summary["samples"]
    assert summary["tokens"] == alone_summary["tokens"]
    return summary


def shows_every_step(run: Run, folder: Path) -> bool:
    """Whether TensorBoard has what metrics.jsonl has, each step once."""
    rows, curves = run.metrics(), run.curves("train", folder)
    return all(
        curves[name] == [(row["step"], pytest.approx(row[name])) for row in rows]
        for name in ("loss", "lr", "grad_norm", "world_size")
    )


def adds_up(goodput: dict[str, float]) -> bool:
    causes = sum(seconds for cause, seconds in goodput.items() if cause != "wall_s")
    return causes == pytest.approx(goodput["wall_s"], rel=0.02)


class TestLeftAlone:
    def test_show_says_the_same_as_a_command_of_its_own(self, alone: Run, summary: dict[str, Any]) -> None:
        with alone.command("show", "--json") as process:
            assert process.wait() == 0, process.output
            assert json.loads(process.output) == summary

    def test_story(self, alone: Run, summary: dict[str, Any]) -> None:
        assert (summary["run"], summary["status"], summary["attempts"], summary["step"]) == (
            "alone",
            "finished",
            1,
            STEPS,
        )
        assert summary["world_sizes"] == [[1, 2]]
        # 64 targets a sequence, but for those at the end of a unit, which may be shorter.
        assert 0.8 * STEPS * GLOBAL_BATCH_SIZE * 64 < summary["tokens"] <= STEPS * GLOBAL_BATCH_SIZE * 64
        # A model that knows nothing of 512 tokens is at ln 512 = 6.2.
        assert 2 < summary["loss"]["train"] < 5.5
        assert 2 < summary["loss"]["val"] < 5.5
        assert summary["val_perplexity"] == pytest.approx(math.exp(summary["loss"]["val"]))
        assert 1 < summary["val_bits_per_byte"] < 6
        assert 0 < summary["first_step_s"] < summary["goodput"]["wall_s"] + 5
        assert summary["tokens_per_s"] > 0
        saved = [found["step"] for found in summary["checkpoints"]]
        assert saved == alone.saved_steps()
        assert saved[-1] == STEPS
        assert len(saved) > 2
        assert all(step % SAVE_EVERY == 0 for step in saved), "one is skipped while another is written, never late"

    def test_every_sample_was_seen_once(self, summary: dict[str, Any]) -> None:
        samples = summary["samples"]
        assert samples["expected"] == samples["seen"] == STEPS * GLOBAL_BATCH_SIZE
        assert (samples["duplicated"], samples["missing"]) == (0, 0)
        assert len(samples["digest"]) == 64

    def test_seconds_add_up(self, summary: dict[str, Any]) -> None:
        goodput = summary["goodput"]
        assert adds_up(goodput), goodput
        assert goodput["training_s"] > 0
        assert goodput["startup_s"] > 0
        assert goodput["evaluation_s"] > 0
        assert goodput["replay_s"] == goodput["idle_s"] == goodput["compile_s"] == 0

    def test_metrics_have_a_line_a_step(self, alone: Run, summary: dict[str, Any]) -> None:
        rows = alone.metrics()
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        for row in rows:
            assert {"step", "loss", "lr", "grad_norm", "tokens", "world_size", "step_s"} <= row.keys()
            assert (row["lr"], row["world_size"]) == (1e-3, 2)
            assert row["step_s"] > 0
        assert rows[-1]["tokens"] == summary["tokens"]
        assert rows[-1]["loss"] == summary["loss"]["train"]
        assert rows[0]["loss"] == pytest.approx(math.log(512), abs=0.5)

    def test_tensorboard_shows_the_same(self, alone: Run, summary: dict[str, Any], tmp_path: Path) -> None:
        assert shows_every_step(alone, tmp_path)
        (tmp_path / "held-out").mkdir()
        held_out = alone.curves("held-out", tmp_path / "held-out")
        assert held_out["loss"] == [(STEPS, pytest.approx(summary["loss"]["val"]))]
        assert held_out["bits_per_byte"] == [(STEPS, pytest.approx(summary["val_bits_per_byte"]))]

    def test_model_flops_are_told_and_utilization_is_not_made_up(self, alone: Run, summary: dict[str, Any]) -> None:
        step_s = sum(row["step_s"] for row in alone.metrics())
        per_token = flops_per_token(ModelConfig.model_validate(RECIPE["model"]), 512, RECIPE["data"]["seq_len"])
        assert summary["model_flops_per_s"] == pytest.approx(per_token * summary["tokens"] / step_s)
        assert (summary["device"], summary["mfu"]) == ("cpu", None)

    def test_again_says_finished_and_does_nothing(self, alone: Run) -> None:
        before = alone.objects()
        assert "'alone' is finished" in alone.train()
        assert alone.objects() == before

    def test_eval_agrees(self, alone: Run, summary: dict[str, Any]) -> None:
        with alone.command("eval", "--json") as process:
            assert process.wait() == 0, process.output
            found = json.loads(process.output)
        assert found["step"] == STEPS
        assert found["val_loss"] == pytest.approx(summary["loss"]["val"], rel=1e-6)
        assert found["val_perplexity"] == pytest.approx(summary["val_perplexity"], rel=1e-6)
        assert found["val_bits_per_byte"] == pytest.approx(summary["val_bits_per_byte"], rel=1e-6)

    def test_generate_is_reproducible(self, alone: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        first, again, other = (alone.in_process(monkeypatch, "generate", "--seed", seed) for seed in ("7", "7", "8"))
        assert f"step {STEPS}" in first
        assert "def " in first
        assert first == again != other

    def test_its_report_has_its_numbers(
        self, alone: Run, summary: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alone.in_process(monkeypatch, "report", "--to", str(tmp_path / "report.html"))
        page = (tmp_path / "report.html").read_text()
        assert alone.get("report.html").decode() == page
        assert "Every sample once and in order." in page
        assert summary["samples"]["digest"] in page and f"{summary['loss']['val']:.4f}" in page
        assert f"{len(alone.saved_steps())} were saved; the newest are kept" in page
        assert all(url["url"] in page for url in summary["checkpoints"])
        keys = [value for name, value in alone.site.environment.items() if "SECRET" in name]
        assert keys and not any(key in page for key in keys)

    def test_other_settings_are_refused(self, alone: Run) -> None:
        before = alone.objects()
        output = alone.refused("--set", "train.lr=0.002", "--set", "scaling.num_workers=1")
        assert "train.lr: 0.001 in the run, 0.002 now" in output
        assert "scaling" not in output
        assert "--set run=NAME" in output
        assert alone.objects() == before

    def test_other_scaling_is_not(self, alone: Run) -> None:
        assert "'alone' is finished" in alone.train("--set", "scaling.num_workers=4", "--set", "checkpoint.keep=1")


@pytest.mark.soak
def test_a_killed_worker_costs_seconds_and_no_sample(site: Site, alone: Run) -> None:
    """Either of the two, and no checkpoint is written before the end: what they go on from is in memory."""
    run = site.run("killed-worker")
    endless = ("--set", "train.steps=100000", "--set", "checkpoint.every_steps=100000")
    with run.command("train", *endless) as process:
        for told in (1, 2):
            beginning = run.step_told() + 2
            process.wait_until(lambda step=beginning: run.step_told() >= step, f"step {beginning}")
            workers = process.pids_of("ray::TrainingWorker")
            assert len(workers) == 2
            os.kill(workers[told - 1], signal.SIGKILL)
            process.wait_until(
                lambda times=told: process.output.count("continuing with 2 workers") == times, "a restart"
            )
        beginning = run.step_told() + 1
        process.wait_until(lambda: run.step_told() >= beginning, f"step {beginning}")
        assert run.saved_steps() == []
        process.interrupt()
        assert process.wait() == 130, process.output
        assert "Traceback" not in process.output

    with pytest.MonkeyPatch.context() as patch:
        found = json.loads(run.in_process(patch, "show", "--json", *endless))
    losses, reference = run.losses(), alone.losses()
    assert len(losses) == found["step"] > 0
    assert losses[:STEPS] == reference[: len(losses)], "the same, bit by bit"
    assert found["samples"]["seen"] == found["samples"]["expected"] == len(losses) * GLOBAL_BATCH_SIZE
    assert (found["samples"]["duplicated"], found["samples"]["missing"]) == (0, 0)
    assert (found["attempts"], found["restarts"]) == (1, 2)
    assert found["goodput"]["restart_s"] > 0
    assert adds_up(found["goodput"]), found["goodput"]
    resumed_at = [int(step) for step in re.findall(r"step (\d+): continuing with", process.output)]
    assert len(resumed_at) == 2 and min(resumed_at) > 0, "from memory, not from the beginning"


def test_stopped_killed_and_continued(stopped: Run, alone: Run, summary: dict[str, Any], tmp_path: Path) -> None:
    first = stopped.summary()
    assert (first["status"], first["attempts"]) == ("stopped", 1)
    assert first["step"] == max(stopped.saved_steps()) == len(stopped.metrics()) < STEPS
    assert first["step"] == stopped.record()["attempts"][-1]["step"], "saved at another step than it stopped at"

    with stopped.command("train") as process:
        process.wait_until(stopped.has_saved(first["step"] + SAVE_EVERY), "another checkpoint")
        process.wait_until(lambda: stopped.record()["attempts"][-1]["from_step"] is not None, "a sign of life")
        process.kill_everything()
    killed_at = max(stopped.saved_steps())
    assert killed_at < STEPS, "killed too late to tell anything"
    assert stopped.summary()["status"] == "died"

    stopped.train("--set", "scaling.num_workers=3")
    beginnings = [attempt["from_step"] for attempt in stopped.record()["attempts"]]
    assert beginnings[:2] == [0, first["step"]] and beginnings[2] >= killed_at
    losses, reference = stopped.losses(), alone.losses()
    assert losses[: beginnings[2]] == reference[: beginnings[2]], "the same, bit by bit, at the same world size"
    assert losses == pytest.approx(reference, rel=1e-6)
    found = same_samples(stopped, summary)
    assert found["world_sizes"] == [[1, 2], [beginnings[2] + 1, 3]]
    assert found["goodput"]["idle_s"] > 0
    assert adds_up(found["goodput"]), found["goodput"]
    assert shows_every_step(stopped, tmp_path)


@pytest.mark.soak
def test_damaged_checkpoint_is_named_and_the_one_before_used(
    stopped: Run, alone: Run, summary: dict[str, Any], tmp_path: Path
) -> None:
    before, newest = stopped.saved_steps()[-2:]
    [damaged] = [key for key in stopped.objects() if f"step-{newest:08d}" in key and key.endswith("model.safetensors")]
    whole = stopped.site.client.get_object(Bucket=stopped.site.bucket, Key=damaged)["Body"].read()
    middle = len(whole) // 2
    broken = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    stopped.site.client.put_object(Bucket=stopped.site.bucket, Key=damaged, Body=broken)

    output = stopped.train()
    assert f"step-{newest:08d}" in output
    assert "damaged" in output
    assert "model.safetensors" in output
    assert stopped.record()["attempts"][-1]["from_step"] == before
    assert stopped.losses() == alone.losses()
    assert shows_every_step(stopped, tmp_path)
    found = same_samples(stopped, summary)
    assert found["goodput"]["replay_s"] > 0
    assert adds_up(found["goodput"]), found["goodput"]


def test_changed_shard_is_refused_by_name(stopped: Run) -> None:
    client, bucket, key = stopped.site.client, stopped.site.bucket, "shards/a.jsonl"
    pinned = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    before = stopped.saved_steps()
    try:
        client.put_object(Bucket=bucket, Key=key, Body=pinned.replace(b"def ", b"fed ", 1))
        output = stopped.refused()
    finally:
        client.put_object(Bucket=bucket, Key=key, Body=pinned)
    assert f"s3://{bucket}/{key}" in output
    assert "restore the shards, or start a new run" in output
    assert "b.jsonl.zst" not in output
    assert stopped.saved_steps() == before


@pytest.fixture
def endless(site: Site) -> Iterator[tuple[Run, MantaProcess]]:
    """A run that goes on until it is ended, with its command."""
    run = site.run("contested")
    with run.command("train", "--set", "train.steps=1000000") as process:
        process.wait_until(run.has_saved(SAVE_EVERY), "a checkpoint")
        yield run, process


def test_two_attempts_never_write_one_run(endless: tuple[Run, MantaProcess], alone: Run) -> None:
    run, older = endless
    output = run.refused("--set", "train.steps=1000000")
    assert "'contested' is in use" in output
    assert f"pid {older.pid}" in output
    assert "--takeover" in output
    assert not older.has_ended()

    with run.command("train", "--takeover", "--set", "train.steps=1000000") as newer:
        assert older.wait() == 1, older.output
        assert "Attempt 1 of run 'contested' stops: attempt 2" in older.output
        assert f"pid {newer.pid}" in older.output
        assert "Traceback" not in older.output
        taken_at = max(run.saved_steps())
        newer.wait_until(run.has_saved(taken_at + SAVE_EVERY), "a checkpoint of the newer attempt")
        newer.interrupt()
        assert newer.wait() == 130, newer.output

    losses, reference = run.losses(), alone.losses()
    assert losses[:STEPS] == reference[: len(losses)]
    with pytest.MonkeyPatch.context() as patch:
        found = json.loads(run.in_process(patch, "show", "--json", "--set", "train.steps=1000000"))
    assert (found["status"], found["attempts"], found["step"]) == ("stopped", 2, len(losses))
    assert found["samples"]["seen"] == found["samples"]["expected"] == len(losses) * GLOBAL_BATCH_SIZE
    assert (found["samples"]["duplicated"], found["samples"]["missing"]) == (0, 0)


def test_another_user_of_the_machine_reads_and_changes_nothing(stopped_once: Run, trespasses: list[str]) -> None:
    if not trespasses:
        pytest.skip("only root can act for another user, who needs a python3 that is everybody's")
    *found, tried = trespasses
    states = int(tried.removeprefix("tried "))
    assert states > 0 and found == []


@pytest.mark.parametrize("flips", [pytest.param(5, id="few"), pytest.param(500, id="many", marks=pytest.mark.soak)])
def test_a_changed_byte_of_any_object_gives_the_same_answer_or_its_name(
    alone: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, flips: int
) -> None:
    """Of every kind of object of a finished run and of what it was prepared from, as often as each other."""
    site, draw, wrong = alone.site, random.Random(1), []
    exported = str(site.folder / "exported")
    commands = [
        ("show", "--json"),
        ("generate", "--seed", "7"),
        ("report", "--to", "page.html"),
        ("eval",),
        ("export", "--to", exported),
        ("train",),
    ]

    def ask(run: Run, command: tuple[str, ...]) -> Answer:
        caplog.clear()
        shutil.rmtree(exported, ignore_errors=True)
        status, output = run.answer(monkeypatch, *command)
        if command[0] == "export" and status == 0:
            output += sha256(Path(exported, "model.safetensors").read_bytes()).hexdigest()
        return status, output.replace(run.name, "flip-0000") + ("" if run.name == "flip-0000" else caplog.text)

    run = alone.copy("flip-0000")
    sound = {command: ask(run, command) for command in commands}
    assert all(status == 0 for status, _ in sound.values())
    keys = [key for key in alone.objects(everything=True) if not key.endswith("/")]
    for number, key in enumerate(in_turn(keys, draw, flips), 1):
        run = alone.copy(f"flip-{number:04}")  # each has its own: a damaged checkpoint is put aside, and stays there
        key = key.replace("/runs/alone/", f"/runs/{run.name}/")
        content = site.client.get_object(Bucket=site.bucket, Key=key)["Body"].read()
        changed = with_a_byte_changed(content, draw)

        def ask_anew(command: tuple[str, ...], run: Run = run, key: str = key, changed: bytes = changed) -> Answer:
            site.client.put_object(Bucket=site.bucket, Key=key, Body=changed)
            return ask(run, command)

        wrong += wrong_answers(key, ask_anew, sound)
        site.client.put_object(Bucket=site.bucket, Key=key, Body=content)
    assert wrong == []


def test_no_key_is_in_anything_that_a_run_leaves(alone: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept in the store, checkpoints and reports among it, and what commands wrote here and printed."""
    alone.in_process(monkeypatch, "report")
    site = alone.site
    pages = site.client.get_paginator("list_objects_v2").paginate(Bucket=site.bucket)
    kept = [found["Key"] for page in pages for found in page.get("Contents", ())]
    assert any("checkpoints/" in each for each in kept) and any("tensorboard/" in each for each in kept)
    assert any(each.endswith("report.html") for each in kept)
    logs = [path for path in Path(site.environment["RAY_TMPDIR"]).rglob("*") if path.is_file()]
    left = [path for path in site.folder.rglob("*") if path.is_file()]
    assert left and any(path.suffix == ".log" for path in logs)
    holding = []
    for name in ("AWS_SECRET_ACCESS_KEY", "PLANTED_TOKEN"):
        secret = site.environment[name].encode()
        holding += [key for key in kept if secret in site.client.get_object(Bucket=site.bucket, Key=key)["Body"].read()]
        holding += [str(path) for path in (*left, *logs) if secret in path.read_bytes()]
    assert holding == []
