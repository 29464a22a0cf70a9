"""What the run's rules refuse of a sweep's space: its corners, and points drawn inside of it, before any trial runs."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from orchestrator.errors import RecipeError
from orchestrator.sweep.space import Point, draw, extreme_points
from orchestrator.sweep.spec import Sweep

COMBINATIONS, DRAWS = 1024, 2000
"""Most corners of the space that are checked, and points drawn inside of it."""

MOST_REFUSED = 0.5
"""Share of the drawn points from which a space is refused; below, the searcher draws again."""

Found = dict[str, tuple[int, str, Point]]
"""By problem without its numbers, how many points have it, and how the first of them has it."""


@dataclass(frozen=True)
class Refusals:
    """What was found.

    Attributes:
        inside: empty where all domains are lists of values, so that there is nothing but corners.
    """

    corners: Found
    inside: Found

    @classmethod
    def of(cls, sweep: Sweep) -> Self:
        """Tries the points of the sweep's space."""
        space, rng = sweep.spec.space, random.Random(0)
        has_ranges = any(domain.values is None for domain in space.values())
        drawn = (draw(space, rng) for _ in range(DRAWS if has_ranges else 0))
        return cls(_found(sweep, extreme_points(space, COMBINATIONS)), _found(sweep, drawn))

    def problems(self) -> Iterator[str]:
        """Refused corners, which have to be valid, and what too many points inside have."""
        for _, problem, point in self.corners.values():
            yield f"a trial with {_text(point)} would be refused: {problem}"
        for kind, (count, problem, point) in self.inside.items():
            if count > MOST_REFUSED * DRAWS and kind not in self.corners:
                yield (
                    f"{count / DRAWS:.0%} of the trials would be refused, such as one with {_text(point)}: {problem} "
                    f"Write the values that are allowed as a choice."
                )

    def notices(self) -> Iterator[str]:
        """What the searcher will have to draw again."""
        for count, problem, point in self.inside.values():
            if count <= MOST_REFUSED * DRAWS:
                yield (
                    f"{count / DRAWS:.1%} of the points of the space are refused, and drawn again, such as "
                    f"{_text(point)}: {problem}"
                )


def _found(sweep: Sweep, points: Iterable[Point]) -> Found:
    found: Found = {}
    for point in points:
        try:
            sweep.config_of(point, sweep.name)
        except RecipeError as error:
            for line in str(error).splitlines()[1:]:
                kind = re.sub(r"\d[\d.e+-]*", "#", line.strip())
                count, *first = found.get(kind, (0, line.strip(), point))
                found[kind] = count + 1, *first  # type: ignore[assignment]
    return found


def _text(point: Point) -> str:
    return ", ".join(f"{name}={value}" for name, value in point.items())
