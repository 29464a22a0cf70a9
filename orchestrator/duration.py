"""Lengths of time as a person types them."""

from __future__ import annotations

import re

from orchestrator.errors import InputError


def seconds_of(text: str, option: str = "--every") -> float:
    """Seconds that "20s", "1.5m" or "20" stand for.

    Raises:
        InputError: it is none of these; the message names the option it was given to.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|)", text.strip())
    if match is None:
        raise InputError(f"{option} {text}: give seconds, as 20s.")
    return float(match[1]) * (60 if match[2] == "m" else 1)
