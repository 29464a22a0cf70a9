"""Formats problems of a recipe as messages that name the field, its value and the remedy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cluster.known_secrets import NOT_SHOWN, form_of_key, looks_secret
from cluster.kubernetes_syntax import RULES
from cluster.spec import ClusterSpec
from data.config import SECRET
from orchestrator.config.recipe import RunConfig
from orchestrator.config.schema import element_of, nearest_name, section_of, variants_of


def listed(where: str, problems: Sequence[str]) -> str:
    """Formats all problems of a file as one message.

    Args:
        where: the file, or what else the problems are in.
        problems: a line each, or several.
    """
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{where}: {count}\n" + "\n".join(f"  {problem}".replace("\n", "\n    ") for problem in problems)


def field_problems(error: ValidationError, model: type[BaseModel] = RunConfig) -> list[str]:
    """The problems of single fields that pydantic found.

    Left out are rules between fields, which have no location, and a list's own error where its elements have errors.
    """
    found = [e for e in error.errors(include_url=False) if e["loc"]]
    locations = {e["loc"] for e in found}
    outer = {loc[:depth] for loc in locations for depth in range(len(loc))}
    wanted = [e for e in found if e["loc"] not in outer]
    more = len(wanted) - MOST_DESCRIBED
    return [_describe(e, model) for e in wanted[:MOST_DESCRIBED]] + ([f"and {more:,} more"] if more > 0 else [])


MOST_DESCRIBED = 100
"""Most problems of fields that are described; to find the nearest names takes time."""

MOST = 2**63 - 1
"""Largest integer of a recipe: stored tables and torch have no larger ones."""


def number_problems(value: Any, annotation: Any, name: str = "") -> Iterator[str]:
    """Yields the problems of values that pydantic accepts though nobody means them.

    These are booleans as numbers, numbers beyond 64 bits, and texts with a NUL character.

    Args:
        value: of a section or field, as it was given.
        annotation: of the field, or the section's class.
        name: dotted name.
    """
    if isinstance(value, dict):
        section = next(filter(None, map(section_of, (annotation, *get_args(annotation)))), None)
        for each, inner in value.items():
            known = section.model_fields.get(each) if section else None
            if known or not section:
                of = known.annotation if known else annotation
                yield from number_problems(inner, of, f"{name}.{each}" if name else str(each))
    elif isinstance(value, list):
        kinds = variants_of(annotation)
        for index, inner in enumerate(value):
            tags = [each for each in inner.values() if isinstance(each, str)] if isinstance(inner, dict) else []
            kind = next((kinds[tag] for tag in tags if tag in kinds), None)
            yield from number_problems(inner, kind or element_of(annotation) or annotation, f"{name}.{index}")
    elif isinstance(value, bool):
        if (types := set(_scalar_types(annotation))) & {int, float} and bool not in types:
            yield f"{name} = {json.dumps(value)}: should be a number, not true or false"
    elif isinstance(value, int) and abs(value) > MOST:
        yield f"{name} = {_shown(name, value)}: should be at most {MOST:,}"
    elif isinstance(value, str) and "\0" in value:
        yield f"{name}: has a NUL character, which no path and no text of a recipe has"


def _scalar_types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _scalar_types(part)


def _describe(error: ErrorDetails, model: type[BaseModel]) -> str:
    """One problem: the dotted name, the given value, what is allowed, and the nearest valid name for a typo."""
    name = _dotted_name(error["loc"], model)
    if error["type"] in ("union_tag_invalid", "union_tag_not_found", "model_attributes_type"):
        kinds = _variants_at(error["loc"], model)
        if kinds:
            return _unknown_kind(name, error, kinds)
    if error["type"] == "extra_forbidden":
        near = nearest_name(model, name)
        where = "manta schema --cluster" if model is ClusterSpec else "manta schema"
        return f"{name}: there is no such field" + (f"; did you mean {near}?" if near else f"; see {where}")
    if error["type"] == "missing":
        return f"{name}: missing. {_meaning(error['loc'], model)}"
    if error["type"] == "value_error":  # from the section's own validator, whose message is complete
        return f"{name}: " + str(error.get("ctx", {}).get("error", error["msg"]))
    allowed = error["msg"].removeprefix("Input ").replace("String should", "should")
    if error["type"] == "string_pattern_mismatch":
        rule = RULES.get(error.get("ctx", {}).get("pattern", ""))
        allowed = _meaning(error["loc"], model) + (f" It is {rule}." if rule else "")
    if error["type"] == "string_type" and isinstance(error["input"], (int, float)):
        allowed += "; put it in quotes"
    return f"{name} = {_shown(name, error['input'])}: {allowed}"


def _unknown_kind(name: str, error: ErrorDetails, kinds: Sequence[str]) -> str:
    """The problem of a list element whose kind is unknown or not given."""
    given, tag = error["input"], str(error.get("ctx", {}).get("discriminator", "")).strip("'")
    if not isinstance(given, dict) or tag not in given:
        example = given if given in kinds else kinds[0]
        return f"{name} = {_shown(name, given)}: needs one of {', '.join(kinds)}; write {{step: {example}}}"
    near = difflib.get_close_matches(str(given[tag]), kinds, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"{name}.{tag} = {_shown(name, given[tag])}: there is no such step{hint} There are {', '.join(kinds)}"


def _steps_of(
    loc: Sequence[int | str], model: type[BaseModel] | None
) -> Iterator[tuple[int | str, FieldInfo | None, bool]]:
    """Every part of `loc`, the field it names, and whether the part is only the kind of a list element."""
    kinds: dict[str, type[BaseModel]] = {}
    for part in loc:
        if isinstance(part, int):
            yield part, None, False
        elif part in kinds:
            model, kinds = kinds[part], {}
            yield part, None, True
        else:
            field = model.model_fields.get(part) if model else None
            yield part, field, False
            annotation = field.annotation if field else None
            model, kinds = section_of(annotation) or element_of(annotation), variants_of(annotation)


def _dotted_name(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    """`loc` as a dotted name of the recipe. The kinds of list elements, which pydantic inserts, are left out."""
    return ".".join(str(part) for part, _, is_kind in _steps_of(loc, model) if not is_kind)


def _variants_at(loc: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    """The kinds that the list element at `loc` may have; empty where elements have no kinds."""
    fields = [field for _, field, _ in _steps_of(loc, model) if field]
    return list(variants_of(fields[-1].annotation)) if fields else []


def _meaning(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    """The description of the field at `loc`."""
    described = [field.description for _, field, _ in _steps_of(loc, model) if field]
    return (described[-1] if described else None) or ""


def _shown(name: str, value: Any) -> str:
    """`value` as a message may show it: shortened, and without keys."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if any(map(_names_a_key, [*name.split("."), *_names_in(value)])) or form_of_key(text):
        return NOT_SHOWN
    return text if len(text) <= 60 else text[:57] + "..."


def _names_a_key(name: str) -> bool:
    return name in SECRET or (looks_secret(name) and name != "key")  # a key of a secret, or of a taint, is a name


def _names_in(value: Any) -> Iterator[str]:
    """Names that a value has or holds: of its fields, and as Kubernetes lists variables, `name: NAME`."""
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            yield from map(str, each)
            yield str(each.get("name", ""))
        if isinstance(each, (dict, list)):
            pending += each.values() if isinstance(each, dict) else each
