"""Reads a recipe into a `RunConfig`, and reports all of its problems at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, cast

from pydantic import BaseModel, TypeAdapter, ValidationError

from orchestrator.config.problems import field_problems, listed, number_problems
from orchestrator.config.recipe import RunConfig
from orchestrator.config.recipe_file import REMEMBERED, apply_overrides, read_recipe
from orchestrator.config.renamed import notices_of, print_notices, rename_fields
from orchestrator.config.rules import contradictions
from orchestrator.config.schema import section_of
from orchestrator.errors import RecipeError


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads the run that a recipe describes.

    Prints a line to standard error for each field that is given under an old name.

    Args:
        path: the recipe's file.
        overrides: `dotted.name=value` each, applied on top of the file.

    Raises:
        RecipeError: the recipe cannot be read, or has problems; all of them are in the message.
    """
    document = read_recipe(Path(path))
    notices, problems = rename_fields(document)
    if Path(path).parent != REMEMBERED:  # a remembered recipe was written by Manta, not by the user
        print_notices(str(path), notices)
    problems += apply_overrides(document, overrides)
    more_notices, more_problems = rename_fields(document)  # from an override of a whole section
    print_notices("--set", [*notices_of(override.partition("=")[0] for override in overrides), *more_notices])
    problems += more_problems
    return config_from(document, str(path), problems)


def config_from(document: dict[str, Any], where: str, problems: Sequence[str] = ()) -> RunConfig:
    """Checks the fields of a recipe and builds the run's config.

    Args:
        document: the fields, nested as in YAML.
        where: the origin of the fields, for the message.
        problems: problems that were found already.

    Raises:
        RecipeError: there are problems; all of them are in the message.
    """
    document = _without_empty_sections(RunConfig, document)
    problems = [*problems, *rename_fields(document)[1], *number_problems(document, RunConfig)]
    try:
        config = RunConfig.model_validate(document)
    except ValidationError as error:
        problems += field_problems(error)
        problems += contradictions(cast(RunConfig, _valid_part(RunConfig, document)))
        problems = problems or [error.errors(include_url=False)[0]["msg"]]
    if problems:
        raise RecipeError(listed(where, problems))
    return config


def _without_empty_sections(model: type[BaseModel], document: dict[str, Any]) -> dict[str, Any]:
    """Replaces a section that has a heading and nothing below it, which YAML reads as null, by an empty one."""
    kept = {}
    for name, value in document.items():
        section = section_of(model.model_fields[name].annotation) if name in model.model_fields else None
        if section and value is None:
            value = {}
        kept[name] = _without_empty_sections(section, value) if section and isinstance(value, dict) else value
    return kept


def _valid_part(model: type[BaseModel], document: Mapping[str, Any]) -> SimpleNamespace:
    """The fields of `document` that are valid by themselves, and the defaults of fields left out.

    Invalid and missing fields are absent, so that `contradictions` skips the rules that read them.
    """
    part = SimpleNamespace()
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        value = document.get(name, {})
        if section and isinstance(value, dict):
            setattr(part, name, _valid_part(section, value))
        elif name in document:
            try:
                constrained: Any = Annotated[cast(Any, field.annotation), field]
                setattr(part, name, TypeAdapter(constrained).validate_python(document[name]))
            except ValidationError:
                continue
        elif not field.is_required():
            setattr(part, name, field.get_default(call_default_factory=True))
    return part
