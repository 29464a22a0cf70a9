"""JSON objects that end with the sha256 of what is before it, so that a damaged one is not taken for another.

    {
     "run": "night",
     ...
     "sha256": "8d0a..."
    }

An object without this line is read, too: older versions wrote none, and people may change an object by hand.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from data.errors import DamagedObjectError
from data.stores.artifact import sha256

_SEALED = re.compile(rb'(.*),\n "sha256": "([0-9a-f]{64})"\n\}', re.DOTALL)

MOST_PROBLEMS = 3
"""Most fields of an object that a message names."""

_Value = TypeVar("_Value")


def sealed(content: bytes) -> bytes:
    """Adds its sha256 to a JSON object that ends with a line break and a brace."""
    inside = content.removesuffix(b"\n}")
    assert len(inside) < len(content), "it ends otherwise"
    return inside + b',\n "sha256": "' + sha256(inside).encode() + b'"\n}'


def unsealed(content: bytes, url: str, parse: Callable[[dict[str, Any]], _Value]) -> _Value:
    """What `parse` makes of the fields of a JSON object, without its sha256.

    Args:
        url: where the object is, for the message.

    Raises:
        DamagedObjectError: it differs from its sha256, is no JSON object, or `parse` fails on it; a ValidationError's
            fields are named.
    """
    match = _SEALED.fullmatch(content)
    if match is not None and sha256(match[1]) != match[2].decode():
        raise DamagedObjectError(
            f"{url} is damaged: its content does not have the sha256 in its last line. Restore an earlier version; or, "
            "if you have changed it by hand, remove that line."
        )
    try:
        fields = dict(json.loads(content))
        fields.pop("sha256", None)
        return parse(fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = _problems(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        raise DamagedObjectError(f"{url} is damaged ({reason}). Restore an earlier version.") from error


def _problems(error: ValidationError) -> str:
    """The first problems of fields: name, value and what is allowed."""
    found, shown = error.errors(include_url=False), []
    for each in found[:MOST_PROBLEMS]:
        value = "" if each["type"] == "missing" else f" = {reprlib.repr(each['input'])}"
        shown.append(f"{'.'.join(map(str, each['loc']))}{value}: {each['msg']}")
    return "; ".join(shown) + (f"; and {len(found) - MOST_PROBLEMS} more" if len(found) > MOST_PROBLEMS else "")
