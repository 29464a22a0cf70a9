"""Fields of a recipe that had another name in an earlier version; the old name is read until version 0.3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "data.steps": "data.cleaning",
    "eval.beside": "eval.background",
    "eval.translate_on_the_way": "eval.translate_during_training",
}
"""Dotted names, old to new. All are two words long: a section and a field."""


def new_name(name: str) -> str:
    """The present name of a field or of a part of it; a sweep's names may begin with `run.`."""
    prefix = "run." if name.startswith("run.") else ""
    section, _, rest = name.removeprefix(prefix).partition(".")
    field, dot, inner = rest.partition(".")
    return f"{prefix}{RENAMED[f'{section}.{field}']}{dot}{inner}" if f"{section}.{field}" in RENAMED else name


def with_new_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted name, under their present names."""
    return {new_name(name): value for name, value in fields.items()}


def rename_fields(document: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Put the fields of a recipe under their present names, in place.

    Returns:
        the old names found, each with its new one as a line for a person; and problems: fields given by both names.
    """
    notices, problems = [], []
    for old, new in RENAMED.items():
        section, name = old.split(".")
        fields = document.get(section)
        if not isinstance(fields, dict) or name not in fields:
            continue
        if (present := new.split(".")[1]) in fields:
            problems.append(f"{old}: now called {new}, which is set too. Leave {old} out.")
            del fields[name]
        else:
            notices.append(f"{old} is now called {new}; the old name is read until version 0.3")
            # In its old place, so that what is printed of the recipe keeps its order.
            document[section] = {present if each == name else each: value for each, value in fields.items()}
    return notices, problems
