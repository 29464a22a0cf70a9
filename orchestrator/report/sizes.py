"""Sizes in which charts are drawn: text stays legible on a phone only where a chart is made for one."""

from __future__ import annotations

from dataclasses import dataclass

TOP, RIGHT = 34.0, 22.0
"""Pixels above a chart's area and right of it, where half of the last tick's text stands."""


@dataclass(frozen=True)
class Size:
    """Of a chart, in its own pixels. `name` is part of the ids, as a chart may be there in two sizes."""

    name: str
    width: float
    height: float
    left: float = 58.0

    @property
    def is_narrow(self) -> bool:
        """Whether it is made for a phone, or to stand beside others."""
        return self.width < 500


WIDE = Size("wide", 860.0, 330.0)
NARROW = Size("narrow", 360.0, 270.0, 46.0)
SMALL = Size("small", 360.0, 220.0, 54.0)
