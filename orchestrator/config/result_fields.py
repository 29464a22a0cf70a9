"""Which fields of a recipe decide the result of a run, and whether two recipes differ in them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from data.config import SECRET
from orchestrator.config.recipe import RunConfig
from orchestrator.config.schema import default_of

# What decides how and where a run is computed and kept, but not what it computes: free to change when a run goes on.
_FREE = ("run", "storage", "store", "scaling", "checkpoint", "sample", "observe", "data.prepare", "eval.background")


def resolved(config: RunConfig) -> dict[str, Any]:
    """All fields as JSON has them, defaults included and the store's keys left out: what is kept with a run."""
    fields = config.model_dump(mode="json")
    for name in SECRET:
        fields["store"].pop(name)
    return fields


def result_fields(config: RunConfig) -> dict[str, Any]:
    """Dotted name and value (as JSON has it) of every field that decides what a run learns."""
    fields = flatten(resolved(config))
    return {name: value for name, value in fields.items() if not is_free(name)}


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, old and new value of the `result_fields` that differ; None where one side has no such field.

    A field that is younger than the old ones had what is now its default. A sweep's begin with `run.`.
    """
    since = {name: default_of(RunConfig, name.removeprefix("run.")) for name in new if name not in old}
    names = [*old, *since]
    # Through JSON, because the old ones were read from a file: there are no tuples in it.
    old, new = json.loads(json.dumps([{**since, **old}, dict(new)]))
    return [(name, old.get(name), new.get(name)) for name in names if not _is_same(name, old.get(name), new.get(name))]


_PLACES = re.compile(r"(data\.sources\.\d+\.(input_)?path|data\.tokenizer\.path|train\.init_from)$")


def _is_same(name: str, old: Any, new: Any) -> bool:
    """Whether two values of a field are one: a folder of the project's is named in full where a job is submitted.

    What is in it is pinned by itself, so a folder of the same name elsewhere passes for no other.
    """
    if not (_PLACES.search(name) and isinstance(old, str) and isinstance(new, str)):
        return bool(old == new)
    old, new = (place if "://" in place else os.path.normpath(place) for place in (old, new))
    return any(
        one == other or (one.startswith("/") and not other.startswith("/") and one.endswith("/" + other))
        for one, other in ((old, new), (new, old))
    )


def is_free(name: str) -> bool:
    """Whether a field may change when a run goes on, because it does not decide the result."""
    return any(name == free or name.startswith(free + ".") for free in _FREE)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name; a list of sections by index, any other list as one value."""
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
