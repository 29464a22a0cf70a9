"""Recipes, sweeps, specs and overrides as people mistype them: a sound config, or one message; never a traceback."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.strict_yaml import dump, override
from data.errors import MantaError
from orchestrator.commands.render import render
from orchestrator.config.cluster_spec import load_cluster
from orchestrator.config.load import load_recipe
from orchestrator.sweep.load import load_sweep
from tests.fuzz.mutations import DRAWN, SCALARS, altered, damaged, within_bounds
from tests.recipes import tiny_recipe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

RECIPE = tiny_recipe(**{"data.cleaning": [{"step": "length", "min_chars": 3}], "train.ema_decay": 0.9})
SWEEP = {
    "sweep": "s",
    "recipe": RECIPE,
    "set": {"train.steps": 20},
    "space": {
        "train.lr": {"loguniform": [1e-4, 1e-2]},
        "train.optimizer.name": {"choice": ["adamw", "sgd"]},
        "train.optimizer.momentum": {"uniform": [0.0, 0.9], "when": {"train.optimizer.name": "sgd"}},
    },
    "searcher": {"name": "random", "trials": 4, "seed": 1, "points": [{"train.lr": 1e-3}]},
    "scheduler": {"name": "asha", "grace_steps": 3, "factor": 2},
    "metric": "train_loss",
}
SPEC = yaml.safe_load((ROOT / "tests/cluster/render/golden/everything.yaml").read_text())

KINDS: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "recipe": (RECIPE, load_recipe),
    "sweep": (SWEEP, load_sweep),
    "spec": (SPEC, load_cluster),
    "manifests": (SPEC, lambda path: render(path, kind="raycluster")),
    "machines": (SPEC, lambda path: render(path, to="vm")),
}


def loaded(load: Callable[[Path], Any], path: Path, text: bytes) -> Any:
    """What is made of a file with this text; None if it is refused with a message of some size."""
    path.write_bytes(text)
    with within_bounds():
        try:
            return load(path)
        except MantaError as error:
            assert 0 < len(str(error)) < 20_000
            return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("kind", KINDS)
def test_the_sound_documents_are_read(kind: str, folder: Path) -> None:
    document, load = KINDS[kind]
    assert loaded(load, folder / "sound.yaml", dump(document).encode()) is not None


@pytest.mark.parametrize("kind", KINDS)
@DRAWN
@given(data=st.data())
def test_other_values(kind: str, folder: Path, data: st.DataObject) -> None:
    document, load = KINDS[kind]
    loaded(load, folder / "other.yaml", dump(data.draw(altered(document))).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("kind", KINDS)
@DRAWN
@given(data=st.data())
def test_damaged_text(kind: str, folder: Path, data: st.DataObject) -> None:
    document, load = KINDS[kind]
    loaded(load, folder / "damaged.yaml", data.draw(damaged(dump(document).encode())))


@DRAWN
@given(name=st.sampled_from(sorted(RECIPE)) | st.text(max_size=20), rest=st.text(max_size=40))
def test_any_override(folder: Path, name: str, rest: str) -> None:
    path = folder / "override.yaml"
    for given_ in (f"{name}={rest}", f"{name}.{rest}", rest):
        loaded(lambda file, given_=given_: load_recipe(file, [given_]), path, dump(RECIPE).encode())


@DRAWN
@given(value=st.sampled_from(SCALARS))
def test_what_is_accepted_reads_the_same_once_it_is_written_down(folder: Path, value: Any) -> None:
    """A config that is accepted is the one that its resolved form gives: nothing is read in two ways."""
    document = copy.deepcopy(RECIPE)
    document["train"]["lr"] = value
    config = loaded(load_recipe, folder / "first.yaml", dump(document).encode("utf-8", "surrogatepass"))
    if config is not None:
        written = dump(config.model_dump(mode="json")).encode()
        assert loaded(load_recipe, folder / "again.yaml", written) == config
        sets = [override("train.lr", config.train.lr)]
        assert load_recipe(folder / "again.yaml", sets) == config
