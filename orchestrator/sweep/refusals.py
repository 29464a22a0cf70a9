"""What the run's rules refuse of a sweep's space: its corners, and points drawn inside of it, before any trial runs."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from orchestrator.sweep.space import Point, draw, extreme_points
from orchestrator.sweep.spec import Sweep

COMBINATIONS, DRAWS = 1024, 2000
"""Most corners of the space that are checked, and points drawn inside of it."""

MOST_REFUSED, ENOUGH = 0.5, 100
"""Share of the drawn points from which a space is refused (below, the searcher draws again), and refused points from
which the share counts without the rest of the draws."""

Found = dict[str, tuple[int, str, Point]]
"""By problem without its numbers, how many points have it, and how the first of them has it."""


@dataclass(frozen=True)
class Refusals:
    """What was found.

    Attributes:
        certain: of points that will be tried, or that decide whether the space makes sense: those that the recipe
            gives, the grid, the corners.
        inside: of points drawn inside the space; empty where all domains are lists of values.
        share: of the points inside that are refused.
    """

    certain: Found
    inside: Found
    share: float

    @classmethod
    def of(cls, sweep: Sweep) -> Self:
        """Tries the points of the sweep's space."""
        space, searcher, rng = sweep.spec.space, sweep.spec.searcher, random.Random(0)
        points = [draw(space, rng, given) for given in searcher.points]
        points += sweep.grid[:COMBINATIONS] if searcher.name == "grid" else extreme_points(space, COMBINATIONS)
        has_ranges = searcher.name != "grid" and any(domain.values is None for domain in space.values())
        drawn = [draw(space, rng) for _ in range(DRAWS if has_ranges else 0)]
        return cls(_found(sweep, points)[0], *_found(sweep, drawn))

    def problems(self) -> Iterator[str]:
        """Refused points that have to be valid, and what too many points inside have."""
        for _, problem, point in self.certain.values():
            yield f"a trial with {_text(point)} would be refused: {problem}"
        if self.share > MOST_REFUSED:
            _, problem, point = max(self.inside.values(), key=lambda found: found[0])
            yield (
                f"{self.share:.0%} of the trials would be refused, such as one with {_text(point)}: {problem} "
                f"Write the values that are allowed as a choice."
            )

    def notices(self) -> Iterator[str]:
        """What the searcher will have to draw again."""
        for count, problem, point in self.inside.values():
            yield (
                f"{count / DRAWS:.1%} of the points of the space are refused, and drawn again, such as "
                f"{_text(point)}: {problem}"
            )


def _found(sweep: Sweep, points: Sequence[Point]) -> tuple[Found, float]:
    """The problems, and the share of the points that have any."""
    found, refused = Found(), 0
    for tried, point in enumerate(points, 1):
        problems = sweep.problems_of(point)
        refused += bool(problems)
        for problem in problems:
            kind = re.sub(r"\d[\d.e+-]*", "#", problem)
            count, example, first = found.get(kind, (0, problem, point))
            found[kind] = count + 1, example, first
        if refused >= ENOUGH and refused > MOST_REFUSED * tried:  # what is refused takes time to describe
            return found, refused / tried
    return found, refused / max(1, len(points))


def _text(point: Point) -> str:
    return ", ".join(f"{name}={value}" for name, value in point.items())
