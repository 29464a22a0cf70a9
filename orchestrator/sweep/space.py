"""The search space of a sweep: a domain for each field by its dotted name, and the condition under which it is used.

Everything random is drawn from a generator that is passed in, so that the same seed gives the same trials.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from data.section import Section

Kind = Literal["choice", "grid", "uniform", "loguniform", "int"]

Point = dict[str, Any]
"""Values of a trial's searched fields by dotted name, without the fields that the trial does not use."""

GRID_STEPS = 5
"""Number of values that a grid takes from a range."""

HIGHEST = sys.float_info.max
"""Largest bound of a range: numbers are drawn as floats."""

PERTURB_FACTORS = (0.8, 1.25)
"""Factors by which pbt changes a number when a trial continues from another's state."""


class Domain(Section):
    """The values that a field may take: exactly one of choice, grid, uniform, loguniform and int."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="List of values to choose from.")
    grid: tuple[Any, ...] | None = Field(
        None, min_length=1, description="List of values that a grid tries in this order."
    )
    uniform: tuple[float, float] | None = Field(None, description="Lowest and highest value of a real number.")
    loguniform: tuple[float, float] | None = Field(
        None, description="Lowest and highest value of a real number above 0, drawn evenly by its logarithm."
    )
    integer: tuple[int, int] | None = Field(
        None, alias="int", description="Lowest and highest value of an integer, both included."
    )
    log: bool = Field(False, description="Whether int is drawn evenly by its logarithm.")
    when: dict[str, Any] | None = Field(
        None,
        description="Condition: other fields of the space, with the value or list of values for which this is used.",
    )

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        given = self._given
        if len(given) != 1:
            raise ValueError(
                f"{' and '.join(given) or 'nothing'} given. Give exactly one of choice: [a, b], grid: [a, b], "
                f"uniform: [low, high], loguniform: [low, high] or int: [low, high]."
            )
        if (bounds := self.bounds) is not None:
            low, high = bounds
            if not (-HIGHEST <= low <= HIGHEST and -HIGHEST <= high <= HIGHEST):
                raise ValueError(f"{given[0]} = [{low}, {high}]: the bounds must be finite.")
            if low > high:
                raise ValueError(f"{given[0]} = [{low}, {high}]: the first is above the second; swap them.")
            if self.is_log and low <= 0:
                raise ValueError(f"{given[0]} = [{low}, {high}]: a logarithm needs a lowest value above 0.")
        return self

    @property
    def kind(self) -> Kind:
        """Which of the five kinds the domain is."""
        return self._given[0]

    @property
    def _given(self) -> list[Kind]:
        values: dict[Kind, Any] = {
            "choice": self.choice,
            "grid": self.grid,
            "uniform": self.uniform,
            "loguniform": self.loguniform,
            "int": self.integer,
        }
        return [kind for kind, value in values.items() if value is not None]

    @property
    def values(self) -> tuple[Any, ...] | None:
        """The values of a choice or a grid; None for ranges."""
        return self.choice if self.choice is not None else self.grid

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest value of a range; None for a choice and a grid."""
        return self.uniform or self.loguniform or self.integer

    @property
    def is_log(self) -> bool:
        """Whether values are drawn evenly by their logarithm."""
        return self.loguniform is not None or (self.integer is not None and self.log)

    def draw(self, rng: random.Random) -> Any:
        """Draws a value."""
        if self.values is not None:
            return rng.choice(self.values)
        assert self.bounds is not None
        low, high = self.bounds
        value = math.exp(rng.uniform(math.log(low), math.log(high))) if self.is_log else rng.uniform(low, high)
        if self.integer is not None and not self.log:
            return rng.randint(int(low), int(high))
        return self.clipped(value)

    def clipped(self, value: float) -> Any:
        """The value of a range that is nearest to `value`."""
        assert self.bounds is not None
        low, high = self.bounds
        value = min(max(value, low), high)
        return round(value) if self.integer is not None else value

    def holds(self, value: Any) -> bool:
        """Whether `value` is in the domain."""
        if self.values is not None:
            return value in self.values
        assert self.bounds is not None
        number = isinstance(value, (float, int)) and not isinstance(value, bool)
        return (
            number and self.bounds[0] <= value <= self.bounds[1] and (self.integer is None or float(value).is_integer())
        )

    def grid_values(self) -> tuple[Any, ...]:
        """The values that a grid tries: all of a choice, GRID_STEPS of a range, both ends included."""
        if self.values is not None:
            return self.values
        assert self.bounds is not None
        low, high = self.bounds
        shares = [step / (GRID_STEPS - 1) for step in range(GRID_STEPS)]
        if self.is_log:
            return tuple(dict.fromkeys(self.clipped(low * (high / low) ** share) for share in shares))
        return tuple(dict.fromkeys(self.clipped(low + (high - low) * share) for share in shares))

    def extremes(self) -> tuple[Any, ...]:
        """Every value of a choice, or both ends of a range."""
        return self.values if self.values is not None else tuple(dict.fromkeys(self.bounds or ()))

    def perturbed(self, value: Any, rng: random.Random) -> Any:
        """A value near `value`: a number times one of PERTURB_FACTORS, or a neighbour in a choice."""
        if self.values is None:
            return self.clipped(value * rng.choice(PERTURB_FACTORS))
        place = self.values.index(value) + rng.choice((-1, 1)) if value in self.values else 0
        return self.values[min(max(place, 0), len(self.values) - 1)]

    def summary(self) -> dict[str, Any]:
        """The domain as a `DomainSummary`."""
        when = {name: list(wanted) for name, wanted in self.conditions().items()} or None
        if self.values is not None:
            return {"kind": self.kind, "values": list(self.values), "when": when}
        assert self.bounds is not None
        return {"kind": self.kind, "low": self.bounds[0], "high": self.bounds[1], "log": self.is_log, "when": when}

    def conditions(self) -> dict[str, tuple[Any, ...]]:
        """For each field that this one depends on, the values for which this one is used."""
        return {
            name: tuple(wanted) if isinstance(wanted, (list, tuple)) else (wanted,)
            for name, wanted in (self.when or {}).items()
        }


Space = Mapping[str, Domain]


def counts(domain: Domain, point: Mapping[str, Any]) -> bool:
    """Whether a field with this domain is used in a trial with these values."""
    return all(name in point and point[name] in wanted for name, wanted in domain.conditions().items())


def in_order(space: Space) -> list[str]:
    """The names of the fields, each after those it depends on.

    Raises:
        ValueError: fields depend on each other in a circle, or on a field that is not in the space.
    """
    done: list[str] = []
    left = list(space)
    while left:
        ready = [name for name in left if all(other in done for other in space[name].conditions())]
        if not ready:
            raise ValueError(f"when: {', '.join(left)} depend on each other, or on a field that is not in the space")
        done += ready
        left = [name for name in left if name not in ready]
    return done


def draw(space: Space, rng: random.Random, fixed: Mapping[str, Any] | None = None) -> Point:
    """Draws a point. Fields in `fixed` take their values from there, and unused fields are drawn and dropped."""
    point: Point = {}
    for name in in_order(space):
        value = space[name].draw(rng)  # drawn even if unused, so that no draw depends on another field's value
        if counts(space[name], point):
            point[name] = (fixed or {}).get(name, value)
    return point


def grid(space: Space) -> list[Point]:
    """Every point of the grid once; the last field changes fastest."""
    return list(_points(space, {name: space[name].grid_values() for name in space}))


def on_the_grid(space: Space, given: Mapping[str, Any]) -> Point:
    """The point of these values; fields that are not given have the first value of their grid."""
    return _active(space, {name: space[name].grid_values()[0] for name in space} | dict(given))


def extreme_points(space: Space, at_most: int) -> list[Point]:
    """Points at the ends of every domain: all combinations, or a random `at_most` of them if there are more."""
    ends = {name: space[name].extremes() for name in space}
    if math.prod(len(values) for values in ends.values()) <= at_most:
        return list(_points(space, ends))
    rng = random.Random(0)
    found = []
    for name, values in ends.items():  # every value at least once
        found += [_active(space, {n: v[0] for n, v in ends.items()} | {name: value}) for value in values]
    while len(found) < at_most:
        found.append(_active(space, {name: rng.choice(values) for name, values in ends.items()}))
    return found


def perturbed(space: Space, point: Mapping[str, Any], names: list[str], rng: random.Random, resample: float) -> Point:
    """`point` with the fields `names` changed: drawn anew with probability `resample`, else to a value nearby."""
    moved: Point = {}
    for name in in_order(space):
        if not counts(space[name], moved):
            continue
        value = point.get(name, space[name].draw(rng))
        if name in names:
            value = space[name].draw(rng) if rng.random() < resample else space[name].perturbed(value, rng)
        moved[name] = value
    return moved


def plain(value: Any) -> Any:
    """The value with tuples in place of lists and mappings: equal for equal values, and hashable."""
    if isinstance(value, Mapping):
        return tuple((name, plain(each)) for name, each in sorted(value.items()))
    return tuple(plain(each) for each in value) if isinstance(value, (list, tuple)) else value


def _points(space: Space, values: Mapping[str, tuple[Any, ...]]) -> Iterator[Point]:
    seen, order = set(), in_order(space)
    for combination in itertools.product(*values.values()):
        point = _active(space, dict(zip(values, combination, strict=True)), order)
        if (key := plain(point)) not in seen:
            seen.add(key)
            yield point


def _active(space: Space, values: Mapping[str, Any], order: Sequence[str] = ()) -> Point:
    point: Point = {}
    for name in order or in_order(space):
        if counts(space[name], point):
            point[name] = values[name]
    return {name: point[name] for name in space if name in point}
