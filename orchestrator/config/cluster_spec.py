"""A cluster's spec as written in YAML, read as strictly as a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from cluster.spec import ClusterSpec
from orchestrator.config.problems import field_problems, listed
from orchestrator.config.recipe_file import apply_overrides, read_recipe
from orchestrator.errors import RecipeError


def load_cluster(path: Path, overrides: Sequence[str] = ()) -> ClusterSpec:
    """The cluster that a file describes, with `dotted.name=value` overrides in place.

    Raises:
        RecipeError: the file cannot be read, or has problems; all of them are in the message.
    """
    document = read_recipe(path, "cluster spec")
    problems = apply_overrides(document, overrides)
    try:
        spec = ClusterSpec.model_validate(document)
    except ValidationError as error:
        problems += field_problems(error, ClusterSpec)
        problems += [line for each in error.errors() if not each["loc"] for line in _lines_of(each)]
    if problems:
        raise RecipeError(listed(str(path), problems))
    return spec


def _lines_of(error: object) -> list[str]:
    """The contradictions that the spec as a whole has found."""
    assert isinstance(error, dict)
    return str(error.get("ctx", {}).get("error", error["msg"])).splitlines()
