"""Progress of work that takes a while, in lines for a person."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

TELL_EVERY_S = 2.0
"""Seconds between two lines of progress."""

Tell = Callable[[str], None]
"""Takes a line of progress."""

Row = TypeVar("Row")


def told_of(rows: Iterable[Row], total: int, what: str, tell: Tell) -> Iterator[Row]:
    """The rows, one a unit, telling now and then, and at the end, how many of `total` there have been."""
    told_at = time.monotonic()
    for done, row in enumerate(rows, start=1):
        yield row
        if done == total or time.monotonic() - told_at >= TELL_EVERY_S:
            told_at = time.monotonic()
            tell(f"{what}: {done:,} of {total:,} units")
