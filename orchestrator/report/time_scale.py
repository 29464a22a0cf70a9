"""Maps times to pixels, with long pauses shortened. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

PAUSE_PART, PAUSES_PART = 0.06, 0.24
"""Largest share of the width for one pause, and for all pauses together."""

STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400)
"""Possible distances between two ticks in seconds; beyond these, any number of days."""


class TimeScale:
    """Maps times from `began` to `ended` to pixels from `start` to `end`.

    Args:
        pauses: (start, end) of the pauses to shorten, in order.
    """

    def __init__(
        self, began: float, ended: float, start: float, end: float, pauses: Sequence[tuple[float, float]] = ()
    ) -> None:
        ended = max(ended, began + 1.0)
        inside = [(max(began, a), min(ended, b)) for a, b in pauses if min(ended, b) > max(began, a)]
        width, active_s = end - start, max(1e-9, ended - began - sum(b - a for a, b in inside))
        most = width * min(PAUSE_PART, PAUSES_PART / max(1, len(inside)))
        # A pause that takes no more than that anyway is not shortened.
        per_s = width / (ended - began)
        short = [(b - a) * per_s <= most for a, b in inside]
        long_count = len(inside) - sum(short)
        active_s += sum(b - a for (a, b), is_short in zip(inside, short, strict=True) if is_short)
        self._per_s = (width - long_count * most) / active_s
        self._knots = [(began, start)]
        self.shortened = [pause for pause, is_short in zip(inside, short, strict=True) if not is_short]
        for a, b in self.shortened:
            at = self._knots[-1][1] + (a - self._knots[-1][0]) * self._per_s
            self._knots += [(a, at), (b, at + most)]
        self._knots.append((ended, end))
        self._began, self._moments = began, [moment for moment, _ in self._knots]

    def __call__(self, moment: float) -> float:
        place = min(max(bisect_right(self._moments, moment), 1), len(self._knots) - 1)
        (a, x), (b, y) = self._knots[place - 1], self._knots[place]
        share = min(1.0, max(0.0, (moment - a) / (b - a))) if b > a else 0.0
        return x + share * (y - x)

    def ticks(self, apart: float = 74.0) -> list[tuple[float, str]]:
        """(pixel, text) of round times since the start, at least about `apart` pixels apart, outside of pauses."""
        fitting = (step for step in STEPS_S if step * self._per_s >= apart)
        step = next(fitting, 86400 * max(1, math.ceil(apart / self._per_s / 86400)))
        found: list[tuple[float, str]] = []
        for (a, x), (b, y) in pairwise(self._knots):
            if (a, b) in self.shortened or y <= x:
                continue
            first = math.ceil((a - self._began) / step - 1e-9)
            for number in range(first, math.floor((b - self._began) / step + 1e-9) + 1):
                at = self(self._began + number * step)
                if not found or at - found[-1][0] >= apart * 0.8:
                    found.append((at, since(number * step)))
        return found


def since(seconds: float) -> str:
    """Formats seconds since the start: 0, 45 s, 1:30 min, 2 h, 2:00:05 h or 3 d 4:30 h."""
    days, rest = divmod(round(seconds), 86400)
    (hours, rest), in_day = divmod(rest, 3600), f"{days} d " if days else ""
    minutes, rest = divmod(rest, 60)
    if days or hours:
        text = f"{hours}:{minutes:02}:{rest:02} h" if rest else f"{hours}:{minutes:02} h" if minutes else f"{hours} h"
        return in_day.rstrip() if text == "0 h" else in_day + text
    if minutes:
        return f"{minutes}:{rest:02} min" if rest else f"{minutes} min"
    return f"{rest} s" if rest else "0"
