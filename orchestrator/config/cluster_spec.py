"""Reads a cluster spec from YAML, as strictly as a recipe is read.

A module of its own, though short: commands on clusters need it, and no recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cluster.spec import ClusterSpec
from orchestrator.config.problems import field_problems, listed, number_problems
from orchestrator.config.recipe_file import apply_overrides, read_recipe
from orchestrator.errors import RecipeError


def load_cluster(path: Path, overrides: Sequence[str] = ()) -> ClusterSpec:
    """Reads the cluster that a file describes.

    Args:
        path: the spec's file.
        overrides: `dotted.name=value` each, applied on top of the file.

    Raises:
        RecipeError: the file cannot be read, or has problems; all of them are in the message.
    """
    document = read_recipe(path, "cluster spec")
    problems = [*apply_overrides(document, overrides), *number_problems(document, ClusterSpec)]
    try:
        spec = ClusterSpec.model_validate(document)
    except ValidationError as error:
        problems += field_problems(error, ClusterSpec)
        problems += [line for each in error.errors() if not each["loc"] for line in _contradictions_in(each)]
    if problems:
        raise RecipeError(listed(str(path), problems))
    return spec


def _contradictions_in(error: ErrorDetails) -> list[str]:
    """The contradictions between fields, which the spec's own validator reports as one error without a location."""
    return str(error.get("ctx", {}).get("error", error["msg"])).splitlines()
