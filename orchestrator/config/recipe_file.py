"""Reads recipe files strictly as YAML, applies `--set` overrides, and finds recipes by run name.

The meaning of the fields is not known here: see `load.py`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import strict_yaml
from cluster.known_secrets import looks_secret
from cluster.strict_yaml import StrictYamlError
from orchestrator.config.renamed import new_name
from orchestrator.errors import RecipeError, UnknownRunError

REMEMBERED = Path(".manta/runs")
"""Folder of the resolved recipes of runs that were started from the working directory."""

MOST_DIGITS = 9
"""Most digits of an index into a list."""

EXCERPT_CHARS = 120
"""Most characters of a line that the message of a syntax error shows."""


def read_recipe(path: Path, what: str = "recipe") -> dict[str, Any]:
    """Reads the fields of a recipe, nested as in YAML.

    Args:
        path: the file.
        what: its kind, for messages.

    Raises:
        RecipeError: the file is missing, not text, not YAML, or not a mapping; with the line where there is one.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(strict_yaml.MOST_CHARS + 1)  # one more is refused; a device has no end
    except FileNotFoundError:
        raise RecipeError(f"There is no {what} {path}. {_nearby_recipes(path)}") from None
    except (OSError, ValueError) as error:  # also not UTF-8, or a path with a NUL character
        raise RecipeError(f"The {what} {path} cannot be read: {error}. It is a YAML file in UTF-8.") from None
    try:
        document = strict_yaml.load(text)
    except StrictYamlError as error:
        raise RecipeError(_describe_syntax(path, text, error)) from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: a {what} maps names to values, such as `name: value`; found {_kind_of(document)}.")
    return document


def apply_overrides(document: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Sets each `dotted.name=value` in `document`; values are YAML. Returns the problems of invalid overrides."""
    problems = []
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not all(name.split(".")) or name.count(".") > strict_yaml.MOST_DEPTH:
            shown = re.split(r"[=:\s]", override.lstrip("."))[0]  # what follows may be a secret
            problems.append(f"--set {shown}: must be NAME=VALUE, such as --set train.lr=3e-4")
            continue
        try:
            assign(document, new_name(name).split("."), strict_yaml.load(text))
        except StrictYamlError as error:  # the value may be a secret key, so it is not shown
            problems.append(f"--set {name}: the value is not YAML ({error.problem}); quote it")
        except LookupError as error:
            problems.append(f"--set {name}: {error.args[0]}")
    return problems


def assign(document: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets the value at `path` and creates missing sections. A list takes an index; its length appends.

    Raises:
        LookupError: an index is out of range, or a part of the path is a value without fields.
    """
    current: Any = document
    for depth, name in enumerate(path):
        here = ".".join(path[:depth])
        last = depth == len(path) - 1
        if isinstance(current, list):
            if not name.isdecimal() or len(name) > MOST_DIGITS or int(name) > len(current):
                raise LookupError(
                    f"{here} is a list; valid indices are 0 to {len(current)}, and {len(current)} appends"
                )
            key: Any = int(name)
            if key == len(current):
                current.append({})
        elif isinstance(current, dict):
            key = name
            if not last and current.get(key) is None:
                current[key] = [] if path[depth + 1] == "0" else {}
        else:
            raise LookupError(f"{here} is {_kind_of(current)}, which has no fields to set")
        if last:
            current[key] = value
        else:
            current = current[key]


def _describe_syntax(path: Path, text: str, error: StrictYamlError) -> str:
    """The file, line and column of the error, and what is near it in the line, with a caret below the column.

    The line is left out where it, or the one before, may hold a key.
    """
    if error.line is None or error.column is None:
        return f"{path} is not YAML: {error.problem}"
    at = f"{path}:{error.line + 1}:{error.column + 1}: {error.problem}"
    near = text.split("\n")[max(0, error.line - 1) : error.line + 1]
    if any(looks_secret(word) for line in near for word in re.findall(r"\w+", line)):
        return at
    shown_from = max(0, error.column - EXCERPT_CHARS // 2)
    shown = near[-1][shown_from : shown_from + EXCERPT_CHARS]
    return f"{at}\n    {shown}\n    {' ' * (error.column - shown_from)}^"


def _kind_of(value: Any) -> str:
    """What a value is, for messages that must not show it: it may be a key."""
    kinds = {str: "a text", list: "a list", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _nearby_recipes(path: Path) -> str:
    folder = path.parent
    if not os.path.isdir(folder):  # not Path.is_dir, which fails on a path that is too long
        return f"There is no folder {folder} either."
    recipes = sorted(p.name for pattern in ("*.yaml", "*.yml") for p in folder.glob(pattern))
    nearest = difflib.get_close_matches(path.name, recipes, n=1) or difflib.get_close_matches(
        path.stem, [Path(name).stem for name in recipes], n=1
    )
    if nearest:
        return f"Nearest in {folder}: {nearest[0]}."
    return f"There are in {folder}: {', '.join(recipes[:10]) or 'none'}."


def remember_recipe(run: str, fields: dict[str, Any]) -> None:
    """Stores a run's resolved recipe in REMEMBERED, so that `manta show RUN` finds the run with its overrides."""
    try:
        REMEMBERED.mkdir(parents=True, exist_ok=True)
        (REMEMBERED / f"{run}.yaml").write_text(strict_yaml.dump(fields))
    except OSError:  # a convenience: an unwritable folder must not prevent training
        return


def is_file(path: Path) -> bool:
    """Whether there is such a file; not where the path is longer than any, or has a character that none has."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def find_recipe(run_or_recipe: str, folder: Path = Path("recipes")) -> Path:
    """Finds a recipe by its path, or by the name of a run that was started from here or has a recipe in `folder`.

    Raises:
        UnknownRunError: there is no such run; the message names the known runs.
        RecipeError: it looks like a path (a suffix, a slash), and there is no such file.
    """
    path = Path(run_or_recipe)
    if is_file(path):
        return path
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise RecipeError(f"There is no recipe {path}. {_nearby_recipes(path)}")
    runs = {}
    for recipe in filter(is_file, (*sorted(folder.glob("*.yaml")), *sorted(REMEMBERED.glob("*.yaml")))):  # no pipes
        try:
            if (run := read_recipe(recipe).get("run")) is not None:  # a sweep's recipe names none
                runs[str(run)] = recipe
        except RecipeError:  # the broken recipe of another run must not hide this one
            continue
    if run_or_recipe in runs:
        return runs[run_or_recipe]
    raise UnknownRunError(
        f"{run_or_recipe} is neither a recipe nor a run that was started from this folder or has a recipe "
        f"in {folder.absolute()}. Runs known here: {', '.join(runs) or 'none'}. "
        "For any other run, give its recipe: recipes/NAME.yaml"
    )
