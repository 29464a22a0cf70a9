"""Durations as recipes and options write them: "20s", "1.5m", "6h", or seconds."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")


def seconds_of(text: str) -> float:
    """The seconds of a duration.

    Raises:
        ValueError: it is none.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration; give a number and a unit, such as 20s, 1.5m, 6h or 2d")
    return float(match[1]) * _UNITS_S[match[2]]


def _validated(value: Any) -> Any:
    return seconds_of(value) if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(_validated)]
"""A field of seconds that may also be written with a unit."""
