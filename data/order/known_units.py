"""What is known of the units that have been read: how many samples each gives, and what of them is not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from data.order.sample_order import Ints


@dataclass(frozen=True)
class Excluded:
    """What the run does not train on of some units, whatever the order.

    Attributes:
        units: how many units this tells of.
        steps: a row with `REPORT_COLUMNS` for each of `data.cleaning`; none where there are no steps, or no units.
        too_long: pairs that are longer than the model takes.
    """

    units: int = 0
    steps: tuple[Mapping[str, int], ...] = ()
    too_long: int = 0

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> Excluded:
        """What `dataclasses.asdict` made of one, read back; {} is one of no units."""
        return cls(**{**fields, "steps": tuple(fields.get("steps", ()))})

    def __add__(self, other: Excluded) -> Excluded:
        rows = zip(self.steps, other.steps, strict=True) if self.steps and other.steps else ()
        steps = tuple({column: row[column] + more[column] for column in row} for row, more in rows)
        return Excluded(self.units + other.units, steps or self.steps or other.steps, self.too_long + other.too_long)


@dataclass
class KnownUnits:
    """What is known so far.

    Attributes:
        counts: (units,) int64, training samples in each unit, UNKNOWN where it has not been read.
        skipped: units whose shard cannot be read and is left out, and why.
        excluded: over the units whose count is known.
    """

    counts: Ints
    skipped: dict[int, str] = field(default_factory=dict)
    excluded: Excluded = Excluded()

    def learn(self, unit: int, count: int, problem: str | None, excluded: Excluded) -> None:
        """A unit has been read."""
        if problem is not None:
            self.skipped[unit] = problem
        self.counts[unit] = count
        self.excluded += excluded

    def copy(self) -> KnownUnits:
        """As it is now."""
        return replace(self, counts=self.counts.copy(), skipped=dict(self.skipped))
