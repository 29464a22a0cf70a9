"""Reads a sweep's recipe, and reports all of its problems at once."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.config.load import config_from
from orchestrator.config.problems import field_problems, listed, number_problems
from orchestrator.config.recipe import RunConfig
from orchestrator.config.recipe_file import apply_overrides, read_recipe
from orchestrator.config.renamed import notices_of, print_notices, rename_dotted, rename_fields, with_new_names
from orchestrator.config.result_fields import flatten
from orchestrator.config.schema import fields_of
from orchestrator.errors import RecipeError
from orchestrator.sweep.refusals import Refusals
from orchestrator.sweep.rules import point_problems, space_problems, sweep_problems
from orchestrator.sweep.space import Domain
from orchestrator.sweep.spec import Sweep, SweepSpec, changed

REMEMBERED = Path(".manta/sweeps")
"""Folder of the whole recipes of sweeps that were started from the working directory."""


def load_sweep(path: Path | str, overrides: Sequence[str] = (), *, tries_points: bool = False) -> Sweep:
    """Reads the sweep that a recipe describes.

    Prints a line to standard error for each field of the run that is given under an old name.

    Args:
        path: the sweep's file.
        overrides: `dotted.name=value` each, a field of the sweep, or of the run for all trials.
        tries_points: whether points of the space are tried, see `Refusals`, which takes a second.

    Raises:
        RecipeError: there are problems; all of them are in the message, also those that only some trials would have.
    """
    path = Path(path)
    document, problems = _with_new_names(read_recipe(path), path)
    of_sweep = [each for each in overrides if each.partition("=")[0].split(".")[0] not in RunConfig.model_fields]
    of_run = [each for each in overrides if each not in of_sweep]
    print_notices("--set", notices_of(override.partition("=")[0] for override in of_run))
    problems += [*apply_overrides(document, of_sweep), *number_problems(document, SweepSpec)]
    if shape_problems := list(_domain_problems(document.get("space"))):  # nothing else can be said of them
        raise RecipeError(listed(str(path), problems + shape_problems))
    try:
        spec = SweepSpec.model_validate(document)
    except ValidationError as error:
        raise RecipeError(listed(str(path), problems + field_problems(error, SweepSpec))) from None
    run_path = path if isinstance(spec.recipe, dict) else path.parent / spec.recipe
    full = copy.deepcopy(spec.recipe) if isinstance(spec.recipe, dict) else read_recipe(run_path)
    full["run"] = spec.sweep
    notices, renaming_problems = rename_fields(full)
    if path.parent != REMEMBERED:  # a remembered recipe was written by Manta, not by the user
        print_notices(str(run_path), notices)
    try:
        base = changed(full, with_new_names(flatten(spec.set)))
    except LookupError as error:
        raise RecipeError(listed(str(path), [*problems, *renaming_problems, f"set: {error.args[0]}"])) from None
    problems += [*renaming_problems, *apply_overrides(base, of_run)]
    problems += [*space_problems(spec.space), *point_problems(spec)]
    if problems:
        raise RecipeError(listed(str(path), problems))
    config = config_from(base, f"{path}, for every trial")
    sweep = Sweep(spec, config, base, full)
    problems = list(sweep_problems(sweep))
    if tries_points and not problems:
        refusals = Refusals.of(sweep)
        problems += refusals.problems()
        if not problems:
            print_notices(str(path), list(refusals.notices()))
    if problems:
        raise RecipeError(listed(str(path), problems))
    return sweep


_EXAMPLE = "{choice: [a, b]}, {uniform: [low, high]}, {loguniform: [low, high]}, {int: [low, high]} or {grid: [a, b]}"


def _domain_problems(space: Any) -> Iterator[str]:
    """Yields what is no domain in the space, most often a nested section or a bare list."""
    kinds = {field.alias or name for name, field in Domain.model_fields.items()}
    fields = [field.name for field in fields_of(RunConfig)]
    names = {name.rsplit(".", dots)[0] for name in fields for dots in range(name.count(".") + 1)}
    for name, domain in space.items() if isinstance(space, dict) else ():
        if isinstance(domain, list):
            yield f"space.{name} = {domain}: a list is no domain; write {{choice: {domain}}}, or another of {_EXAMPLE}"
        elif not isinstance(domain, dict):
            yield f"space.{name} = {domain!r}: not a domain; write {_EXAMPLE}, or put the value into `set`"
        elif nested := [key for key in domain if key not in kinds and f"{name}.{key}" in names]:
            dotted = ", ".join(f"{name}.{key}: …" for key in nested)
            yield f"space.{name}: fields of a section are written with dots, as in {dotted}"
        else:
            for key in domain.keys() - kinds:
                near = difflib.get_close_matches(str(key), kinds, n=1, cutoff=0.7)
                yield f"space.{name}.{key}: no kind of domain" + (
                    f"; did you mean {near[0]}?" if near else f": {_EXAMPLE}"
                )


def _with_new_names(document: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    """The sweep's recipe with the run's fields in `set`, `space` and `searcher.points` under their present names.

    Prints a line for each old name, and returns a problem for each field that is given under both names.
    """
    set_, space, searcher = (document.get(name) for name in ("set", "space", "searcher"))
    result = dict(document)
    names: list[str] = []
    problems: list[str] = []

    def renamed(fields: dict[str, Any], where: str) -> dict[str, Any]:
        present, found = rename_dotted(fields, where)
        names.extend(fields)
        problems.extend(found)
        return present

    if isinstance(set_, dict):
        result["set"] = renamed(flatten(set_), "set")
    if isinstance(space, dict):
        result["space"] = renamed(space, "space")
    if isinstance(searcher, dict) and isinstance(points := searcher.get("points"), list):
        points = [
            renamed(point, f"searcher.points.{index}") if isinstance(point, dict) else point
            for index, point in enumerate(points)
        ]
        result["searcher"] = {**searcher, "points": points}
    if path.parent != REMEMBERED:
        print_notices(str(path), notices_of(names))
    return result, problems
