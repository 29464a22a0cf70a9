"""Records of runs, sweeps and trials as people change them: shown and reported, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DamagedObjectError
from orchestrator.config.load import load_recipe
from orchestrator.console import Console
from orchestrator.report.run import html
from orchestrator.report.run_data import report_data
from orchestrator.report.terminal import print_run
from orchestrator.run.run import open_run, stores
from orchestrator.sweep.load import load_sweep
from orchestrator.sweep.report.page import html as sweep_html
from orchestrator.sweep.report.table import print_sweep
from orchestrator.sweep.summary import describe_sweep
from tests.fuzz.mutations import DRAWN, altered, within_bounds
from tests.orchestrator.run.builders import disruption

STORED = Path(__file__).parents[1] / "end_to_end/stored_runs"

HAPPENED: dict[str, Any] = {
    "disruptions": [{**disruption(), "at": 1795787990.0, "phases": {"teardown": 0.5}, "detection_s": 1.0}],
    "restart_counts": {"node": 1},
    "outages": [{"doing": "saving checkpoints", "since": 1795787990.0, "until": None, "problem": "busy"}],
}
"""What a long attempt has seen that the stored ones have not."""

SCORES = {"bleu": 21.0, "bleu_signature": "a|b", "chrf": 40.0, "chrf_signature": "c", "translated": 9}
RESULT = {"step": 15, "val_loss": 5.0, "val_perplexity": 148.4, "val_bits_per_byte": 4.0}


def show_run(folder: Path) -> None:
    run = open_run(load_recipe(folder / "recipe.yaml", [f"storage={folder / 'storage'}"]))
    print_run(run, Console())
    html(report_data(run))


def show_sweep(folder: Path) -> None:
    sweep = load_sweep(folder / "recipe.yaml", [f"storage={folder / 'storage'}"])
    summary = describe_sweep(sweep, stores(sweep.base)[0])
    print_sweep(summary, Console().rich)
    sweep_html(summary)


OBJECTS = {
    "decoder/storage/runs/decoder/run.json": show_run,
    "pairs/storage/runs/pairs/run.json": show_run,
    "sweep/storage/sweeps/sweep/sweep.json": show_sweep,
    "sweep/storage/sweeps/sweep/trials/t001.json": show_sweep,
    "sweep/storage/sweeps/sweep/trials/t003.json": show_sweep,
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored runs; those that are no trials have seen and scored all that a record can tell of."""
    folder = Path(shutil.copytree(STORED, tmp_path_factory.mktemp("copied") / "runs"))
    for path in folder.glob("*/storage/runs/[dp]*/run.json"):
        record = json.loads(path.read_text())
        record["attempts"][0] |= HAPPENED
        record["attempts"].append({**record["attempts"][0], "number": 2, "from_step": 9})
        record["result"] = RESULT | {f"val_{name}": value for name, value in SCORES.items()}
        path.write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("key", OBJECTS)
@given(data=st.data())
@DRAWN
def test_a_changed_record_is_shown_or_refused_by_name(key: str, copied: Path, data: st.DataObject) -> None:
    path, show = copied / key, OBJECTS[key]
    sound = path.read_text()
    fields = {name: value for name, value in json.loads(sound).items() if name != "sha256"}
    try:
        path.write_text(json.dumps(data.draw(altered(fields))))
        with within_bounds():
            try:
                show(copied / key.partition("/")[0])
            except DamagedObjectError as error:
                assert str(path) in str(error)
                assert len(str(error)) < 2000
    finally:
        path.write_text(sound)
