"""What the result of a list of steps depends on apart from the text: the steps, and the code that they run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import Any

from data.cleaning.config import FunctionStep, LengthStep, Step, StopWordsStep
from data.cleaning.libraries import version_of
from data.cleaning.user_function import source_digest
from data.errors import InputError

_LIBRARIES = {
    "near_dedup": ("rensa",),
    "language": ("py3langid",),
    "stop_words": ("stopwordsiso",),
    "lemmatize": ("simplemma",),
    "segment": ("rjieba",),
}


@lru_cache(maxsize=8)
def identity(steps: tuple[Step, ...]) -> str:
    """The steps and the code behind them, as JSON: equal where results are.

    Libraries go by their versions, a user's function by its path and its module's source. The interpreter's Unicode
    tables are left out: by Unicode's stability policy they only ever learn new characters.

    Raises:
        InputError: a user's function cannot be imported.
    """
    return json.dumps([_of(step, steps[:index]) for index, step in enumerate(steps)], sort_keys=True)


def digest_of(identity: str) -> str:
    """A short name for an identity."""
    return hashlib.sha256(identity.encode()).hexdigest()


def differences(one: str, other: str) -> str:
    """Where two identities differ, for a person: what the first has, and what the second."""
    return "; ".join(
        f"data.cleaning.{index} ({(first or second)['step']}): {_shown(first, second)}, not {_shown(second, first)}"
        for index, (first, second) in enumerate(zip_longest(json.loads(one), json.loads(other)))
        if first != second
    )


def refuse_other_code(steps: tuple[Step, ...], code: str) -> None:
    """Raises InputError if the steps' code on this machine is not that of the identity `code`."""
    here = identity(steps)
    if here != code:
        raise InputError(
            "A machine of the cluster would clean documents otherwise than the one that the command was given on: "
            f"{differences(here, code)}. Give all the same packages and modules."
        )


def _shown(step: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    """The code of a step where that is all in which it differs from another, else all of it."""
    if step is None:
        return "no step"
    if other is not None and {**step, "code": None} == {**other, "code": None}:
        return ", ".join(f"{name} {what}" for name, what in step.get("code", {}).items())
    return json.dumps({name: value for name, value in step.items() if name != "code"})


def _of(step: Step, before: Sequence[Step]) -> dict[str, Any]:
    fields: dict[str, Any] = step.model_dump(mode="json")
    if isinstance(step, FunctionStep):
        return fields | {"code": {step.path.rpartition(".")[0]: source_digest(step.path)}}
    libraries = list(_LIBRARIES.get(step.step, ()))
    cuts_chinese = (isinstance(step, LengthStep) and step.counts_words) or (
        isinstance(step, StopWordsStep) and step.language == "zh"
    )
    if cuts_chinese and not any(each.step == "segment" for each in before):
        libraries.append("rjieba")
    return fields | ({"code": {name: version_of(name) for name in libraries}} if libraries else {})
