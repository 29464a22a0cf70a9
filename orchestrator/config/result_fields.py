"""The fields of a recipe that decide the result of a run, and their comparison between two recipes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from data.config import SECRET
from orchestrator.config.recipe import RunConfig
from orchestrator.config.schema import default_of

# These decide how and where a run is computed and stored, not what it computes: they may change when a run continues.
_FREE = ("run", "storage", "store", "scaling", "checkpoint", "sample", "observe", "data.prepare", "eval.background")


def resolved(config: RunConfig) -> dict[str, Any]:
    """All fields in JSON types, with defaults and without the store's keys: the config that is stored with a run."""
    fields = config.model_dump(mode="json")
    for name in SECRET:
        fields["store"].pop(name)
    return fields


def result_fields(config: RunConfig) -> dict[str, Any]:
    """Value by dotted name, in JSON types, of every field that decides what a run learns."""
    fields = flatten(resolved(config))
    return {name: value for name, value in fields.items() if not is_free(name)}


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, old value and new value of the `result_fields` that differ; None where one side has no such field.

    A field that was added to Manta after `old` was stored had its present default. The names of a sweep's fields begin
    with `run.`.
    """
    since = {name: default_of(RunConfig, name.removeprefix("run.")) for name in new if name not in old}
    names = [*old, *since]
    # Through JSON, because the old values were read from a file, in which tuples are lists.
    old, new = json.loads(json.dumps([{**since, **old}, dict(new)]))
    return [(name, old.get(name), new.get(name)) for name in names if not _is_same(name, old.get(name), new.get(name))]


_PATHS = re.compile(r"(data\.sources\.\d+\.(input_)?path|data\.tokenizer\.path|train\.init_from)$")


def _is_same(name: str, old: Any, new: Any) -> bool:
    """Whether two values of a field are equal.

    A relative path equals an absolute path that ends with it, because `manta submit` makes paths absolute. Another
    folder of the same name is still detected, since the manifest pins the content.
    """
    if not (_PATHS.search(name) and isinstance(old, str) and isinstance(new, str)):
        return bool(old == new)
    old, new = (path if "://" in path else os.path.normpath(path) for path in (old, new))
    return any(
        one == other or (one.startswith("/") and not other.startswith("/") and one.endswith("/" + other))
        for one, other in ((old, new), (new, old))
    )


def is_free(name: str) -> bool:
    """Whether a field may change when a run continues, because it does not decide the result."""
    return any(name == free or name.startswith(free + ".") for free in _FREE)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted name. Elements of a list of sections are named by index; any other list is one value."""
    if isinstance(value, dict):
        below = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        below = {str(index): item for index, item in enumerate(value)}.items()
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in below:
        flat |= flatten(item, f"{prefix}.{name}" if prefix else name)
    return flat
