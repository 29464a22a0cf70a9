"""Writes the best trial of a sweep as a recipe for `manta train`, and finds sweeps by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster import strict_yaml
from orchestrator.config.load import config_from
from orchestrator.config.recipe_file import is_file, read_recipe
from orchestrator.errors import RecipeError, UnknownRunError
from orchestrator.sweep.load import REMEMBERED
from orchestrator.sweep.spec import Sweep, without_keys
from orchestrator.sweep.trial_record import TrialRecord

FOLDER = Path("sweeps")
"""Folder of the best trials' recipes, with a folder for each sweep."""


def best_recipe(sweep: Sweep, best: TrialRecord) -> dict[str, Any]:
    """The fields of the best trial's recipe.

    If the trials were shorter than the run of the sweep's recipe, this is a new run of the full length. Otherwise it is
    the trial's own run, which `manta train` continues.
    """
    steps = (sweep.full.get("train") or {}).get("steps")
    document = sweep.document_of(best.point, best.trial_run.run)
    if isinstance(steps, int) and steps > sweep.steps:
        document["train"]["steps"] = steps
        document["run"] = f"{sweep.name}-best"
    config_from(document, f"the best of {sweep.name}")  # refuses a recipe that could not be trained
    return document


def write_best(sweep: Sweep, best: TrialRecord, loss: str) -> Path:
    """Writes best.yaml, with the best trial's loss as it is shown, and returns its path."""
    path = FOLDER / sweep.name / "best.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = ", ".join(f"{name} = {value}" for name, value in best.point.items())
    header = f"# The best trial of sweep {sweep.name}: trial {best.id} with loss {loss}.\n# {values}\n"
    path.write_text(header + strict_yaml.dump(without_keys(best_recipe(sweep, best))))
    return path


def remember_sweep(sweep: Sweep) -> None:
    """Stores the sweep's whole recipe in REMEMBERED, so that `manta show SWEEP` finds it with its overrides."""
    spec = sweep.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    spec |= {"recipe": without_keys(sweep.document), "set": {}}
    try:
        REMEMBERED.mkdir(parents=True, exist_ok=True)
        (REMEMBERED / f"{sweep.name}.yaml").write_text(strict_yaml.dump(spec))
    except OSError:  # a convenience
        return


def find_sweep(sweep_or_recipe: str, folder: Path = Path("recipes")) -> Path:
    """Finds a sweep's recipe by its path, or by the name of a sweep that was started here or has a recipe in `folder`.

    Raises:
        UnknownRunError: there is no such sweep.
    """
    path = Path(sweep_or_recipe)
    if is_file(path):
        if "sweep" in read_recipe(path):
            return path
        raise UnknownRunError(f"{path} is the recipe of a run, not of a sweep.")
    for recipe in (REMEMBERED / f"{sweep_or_recipe}.yaml", *sorted(folder.glob("*.yaml"))):
        try:
            if is_file(recipe) and read_recipe(recipe).get("sweep") == sweep_or_recipe:
                return recipe
        except RecipeError:  # the broken recipe of another run must not hide this one
            continue
    raise UnknownRunError(f"There is no sweep {sweep_or_recipe}; `manta tune RECIPE` starts one.")
