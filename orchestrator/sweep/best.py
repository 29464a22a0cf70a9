"""The winner of a sweep as a recipe ready for `manta train`, and sweeps that were begun from this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from data.config import SECRET
from orchestrator.config.load import config_from
from orchestrator.config.recipe_file import read_recipe
from orchestrator.config.result_fields import flatten
from orchestrator.errors import RecipeError, UnknownRunError
from orchestrator.sweep.records import TrialRecord
from orchestrator.sweep.spec import Sweep, changed

FOLDER = Path("sweeps")
"""Where recipes of winners go, a folder for each sweep."""

REMEMBERED = Path(".manta/sweeps")
"""Whole recipes of the sweeps begun from this folder."""


def best_recipe(sweep: Sweep, best: TrialRecord) -> dict[str, Any]:
    """The fields of the winner's recipe.

    Where trials were shorter than the base recipe's run, it is a new run of the full length; else the trial's own, with
    which `manta train` goes on.
    """
    shortened = flatten(sweep.spec.set).get("train.steps") is not None and "steps" in sweep.full.get("train", {})
    document = changed(sweep.document, {**best.point, "run": best.trial_run.run})
    if shortened:
        document["train"]["steps"] = sweep.full["train"]["steps"]
        document["run"] = f"{sweep.name}-best"
    config_from(document, f"the best of {sweep.name}")  # what is written can be trained
    return document


def write_best(sweep: Sweep, best: TrialRecord) -> Path:
    """Write best.yaml; returns where."""
    path = FOLDER / sweep.name / "best.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = ", ".join(f"{name} = {value}" for name, value in best.point.items())
    header = f"# The best of sweep {sweep.name}: trial {best.id} with loss {best.loss:.4f}.\n# {values}\n"
    path.write_text(header + yaml.safe_dump(_plain(best_recipe(sweep, best)), sort_keys=False))
    return path


def remember_sweep(sweep: Sweep) -> None:
    """Keep the sweep's whole recipe, so that `manta show SWEEP` finds it whatever --set made of it."""
    spec = sweep.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    spec |= {"recipe": _plain(sweep.document), "set": {}}
    try:
        REMEMBERED.mkdir(parents=True, exist_ok=True)
        (REMEMBERED / f"{sweep.name}.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    except OSError:  # a convenience
        return


def find_sweep(sweep_or_recipe: str, folder: Path = Path("recipes")) -> Path:
    """The recipe of a sweep: a file, or that of the sweep of this name, begun from here or described in `folder`.

    Raises:
        UnknownRunError: it is neither.
    """
    path = Path(sweep_or_recipe)
    if path.is_file():
        if "sweep" in read_recipe(path):
            return path
        raise UnknownRunError(f"{path} is the recipe of a run, and no sweep.")
    for recipe in (REMEMBERED / f"{sweep_or_recipe}.yaml", *sorted(folder.glob("*.yaml"))):
        try:
            if recipe.is_file() and read_recipe(recipe).get("sweep") == sweep_or_recipe:
                return recipe
        except RecipeError:  # a broken recipe of something else is no reason to refuse this one
            continue
    raise UnknownRunError(f"There is no sweep {sweep_or_recipe}; `manta tune RECIPE` makes one.")


def _plain(value: Any) -> Any:
    """Without tuples, which YAML has not, and without keys to the store, which are not to lie around."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if name not in SECRET}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
