"""Identifies a list of steps by everything their result depends on besides the text: settings and code."""

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
    """The steps and the code behind them, as JSON: equal identities give equal results.

    Libraries are identified by version, a user's function by its path and its module's source. The interpreter's
    Unicode tables are not included: by Unicode's stability policy they only gain new characters.

    Raises:
        InputError: a user's function cannot be imported.
    """
    return json.dumps([_of(step, steps[:index]) for index, step in enumerate(steps)], sort_keys=True)


def digest_of(identity: str) -> str:
    """A hash of an identity."""
    return hashlib.sha256(identity.encode()).hexdigest()


def differences(one: str, other: str) -> str:
    """The differences between two identities, for messages: "first, not second" for each step."""
    return "; ".join(
        f"data.cleaning.{index} ({(first or second)['step']}): {_shown(first, second)}, not {_shown(second, first)}"
        for index, (first, second) in enumerate(zip_longest(json.loads(one), json.loads(other)))
        if first != second
    )


def refuse_other_code(steps: tuple[Step, ...], code: str) -> None:
    """Checks that the steps have the identity `code` on this machine.

    Raises:
        InputError: they have another; names the differences.
    """
    here = identity(steps)
    if here != code:
        raise InputError(
            "This machine of the cluster has other code for data.cleaning than the one that ran the command: "
            f"{differences(here, code)}. Install the same packages and modules on all machines."
        )


def _shown(step: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    """The code of a step where only that differs from the other step, else the whole step."""
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
