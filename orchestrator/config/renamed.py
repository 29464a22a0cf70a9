"""Recipe fields that had another name in an earlier version. The old name is read until version 0.3.

`RENAMED` is the whole list: to rename a field, add a row. Recipe files, `--set` overrides, sweeps' recipes and the
fields stored with runs and sweeps are all read through this module.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.printable import printable

RENAMED = {
    "data.steps": "data.cleaning",
    "eval.beside": "eval.background",
    "eval.translate_on_the_way": "eval.translate_during_training",
}
"""New name by old name, both dotted. All have two parts: a section and a field."""


def new_name(name: str) -> str:
    """The present name of a field, or of a part of it such as `data.steps.0.step`.

    The names in a sweep's stored fields may begin with `run.`, which is kept.
    """
    prefix = "run." if name.startswith("run.") else ""
    section, _, rest = name.removeprefix(prefix).partition(".")
    field, dot, inner = rest.partition(".")
    return f"{prefix}{RENAMED[f'{section}.{field}']}{dot}{inner}" if f"{section}.{field}" in RENAMED else name


def with_new_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `fields`, which has dotted names, under their present names."""
    return {new_name(name): value for name, value in fields.items()}


def notices_of(names: Iterable[str]) -> list[str]:
    """A line for each old field name among the dotted `names`, which says the new name."""
    found = {".".join(name.split(".")[:2]) for name in names}
    return [_notice(old) for old in RENAMED if old in found]


def rename_fields(document: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Renames the old fields of a recipe in place.

    Returns:
        Notices: a line for each old name found. Problems: a line for each field that is given under both names.
    """
    notices, problems = [], []
    for old, new in RENAMED.items():
        section, name = old.split(".")
        fields = document.get(section)
        if not isinstance(fields, dict) or name not in fields:
            continue
        if (present := new.split(".")[1]) in fields:
            problems.append(_both_given(old))
            document[section] = {each: value for each, value in fields.items() if each != name}
        else:
            notices.append(_notice(old))
            # At its old position, so that a printed recipe keeps its order.
            document[section] = {present if each == name else each: value for each, value in fields.items()}
    return notices, problems


def rename_dotted(fields: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Like `with_new_names`, for fields that a person wrote.

    Args:
        fields: values by dotted name.
        where: what the fields are in, as problems name it, such as `set`.

    Returns:
        The renamed fields, and a problem for each field that is given under both names.
    """
    given = {".".join(name.split(".")[:2]) for name in fields}  # without the indices of lists
    problems = [f"{where}.{_both_given(old)}" for old, new in RENAMED.items() if {old, new} <= given]
    return with_new_names(fields), problems


def print_notices(where: str, notices: Sequence[str]) -> None:
    """Prints notices to standard error, which keeps the output of `--json` clean."""
    for notice in notices:
        print(printable(f"{where}: {notice}"), file=sys.stderr)


def _notice(old: str) -> str:
    return f"{old} is now called {RENAMED[old]}; the old name is read until version 0.3"


def _both_given(old: str) -> str:
    return f"{old}: now called {RENAMED[old]}, which is set too. Leave {old} out."
