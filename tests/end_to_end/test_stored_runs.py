"""Runs that version 0.1.0 began and stopped are read, gone on with, and end as that version would have ended them.

stored_runs/README.md says how they were made. Their recipes and files are as that version wrote them.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.config.load import config_from, load_recipe
from tests.end_to_end.manta_process import MantaProcess

pytestmark = pytest.mark.ray

STORED = Path(__file__).parent / "stored_runs"

RENAMED = {"data_steps": "cleaning_steps", "bad_steps": "skipped_steps"}
"""Keys of `manta show --json`, by the names that version 0.1.0 gave them."""

MTIME_S = 1_700_000_000
"""When the shards were written, which their manifests pin and no checkout keeps."""

PREPARED = ("manifests", "tokenizers", "tokens", "unit-tables", "duplicates", "fingerprints")
"""Folders of the storage with what is made of the data, under keys of what it was made from."""

SAME_TO = 1e-5
"""Relative difference of losses and scores that another processor may make."""


@pytest.mark.parametrize("run", ["decoder", pytest.param("pairs", marks=pytest.mark.soak)])
def test_a_stored_run_is_read_and_goes_on_to_the_same_end(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = copied(run, tmp_path, monkeypatch)
    prepared = files_of(folder)
    assert_holds(story(run), expected["stopped"])
    page = reported(run)
    assert "stopped" in page and expected["stopped"]["samples"]["digest"][:16] in page

    command("prepare", "recipe.yaml")  # as for a new run: everything is found under its key
    assert files_of(folder) == prepared

    with MantaProcess("train", "recipe.yaml", folder=folder, environment={}) as process:
        assert process.wait() == 0, process.output
    assert_holds(story(run), expected["finished"])
    shown = json.loads(command("show", "recipe.yaml", "--json"))
    assert (shown["attempts"], shown["restarts"]) == (2, 0)
    assert "finished" in reported(run)
    assert files_of(folder) == prepared


def test_a_stored_sweep_is_shown_and_reported_and_has_nothing_left_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = copied("sweep", tmp_path, monkeypatch)
    prepared, finished = files_of(folder), expected["finished"]
    assert [rung["stopped"] for rung in finished.pop("rungs")] == [0, 0, 0], "its stops were between its rungs"
    best = (folder / finished["best"]["recipe"]).read_text()
    for name in ("sweep", "recipe.yaml"):  # remembered, and as it was written
        shown = json.loads(command("show", name, "--json"))
        assert_holds(shown, finished)
        assert [(each["step"], each["trials"], each["stopped"]) for each in shown["rungs"]] == [(6, 2, 2), (12, 1, 0)]
    page = reported("sweep", "sweeps/sweep/report.html")
    assert all(trial["id"] in page for trial in finished["trials"])
    scores = json.loads(command("eval", finished["best"]["run"], "--json"))
    assert_holds(scores["val_loss"], finished["best"]["loss"])

    done = CliRunner().invoke(app, ["tune", "recipe.yaml"])
    assert done.exit_code == 2
    assert "scheduler.name: 'asha-stopping' in the sweep, 'asha' now" in str(done.exception) + done.output
    command("tune", "recipe.yaml", "--set", "scheduler.name=asha-stopping")
    shown = json.loads(command("show", "sweep", "--json"))
    assert_holds(shown, {name: finished[name] for name in ("status", "trials", "best")})
    assert shown["attempts"] == 2
    # Written again under the present names, it is the same recipe.
    assert load_recipe(finished["best"]["recipe"]) == config_from(yaml.safe_load(best), "as it was stored")
    assert files_of(folder) == prepared


def copied(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    """A copy of a stored run, from whose folder commands are given now, and what is expected of it."""
    folder = Path(shutil.copytree(STORED / name, tmp_path / name))
    for shard in folder.glob("corpus/*"):
        os.utime(shard, (MTIME_S, MTIME_S))
    monkeypatch.chdir(folder)
    expected: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    return folder, expected


def command(*arguments: str) -> str:
    """What a command prints that needs no Ray."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def story(run: str) -> dict[str, Any]:
    """What is known of the run in this folder: as its recipe and as its name tell it, which is the same."""
    shown = json.loads(command("show", run, "--json"))
    assert shown == json.loads(command("show", "recipe.yaml", "--json"))
    store = Path("storage/runs") / run
    record = json.loads((store / "run.json").read_text())
    evaluations = [each for attempt in record["attempts"] for each in attempt["evaluations"]]
    return {
        **shown,
        "losses": [json.loads(line)["loss"] for line in (store / "metrics.jsonl").read_text().splitlines()],
        "evaluations": sorted(evaluations, key=lambda each: each["step"]),
        "eval": json.loads(command("eval", "recipe.yaml", "--json")),
    }


def reported(name: str, place: str | None = None) -> str:
    """The page that `manta report` writes."""
    command("report", name)
    return Path(place or f".manta/reports/{name}.html").read_text()


def files_of(folder: Path) -> dict[str, bytes]:
    """What was made of the data, by path."""
    paths = [path for name in PREPARED for path in (folder / "storage" / name).rglob("*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


def assert_holds(found: Any, expected: Any, where: str = "it") -> None:
    """All that is expected is found, numbers but for rounding; there may be more of it."""
    if isinstance(expected, dict):
        expected = {RENAMED.get(name, name): value for name, value in expected.items()}
        assert isinstance(found, dict) and expected.keys() <= found.keys(), where
        for name, value in expected.items():
            assert_holds(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list):
        assert isinstance(found, list) and len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_holds(one, other, f"{where}.{index}")
    elif isinstance(expected, float):
        assert isinstance(found, float) and math.isclose(found, expected, rel_tol=SAME_TO), (
            f"{where}: {found} for {expected}"
        )
    else:
        assert found == expected, where
