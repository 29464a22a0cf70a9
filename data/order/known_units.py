"""Knowledge of the units read so far: the samples in each, and the documents excluded from training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from data.order.sample_order import Ints


@dataclass(frozen=True)
class ExcludedDocuments:
    """Counts of the documents that a run excludes from training, over some units.

    Attributes:
        units: number of units counted.
        steps: a row with `REPORT_COLUMNS` for each step of `data.cleaning`; empty where there are no steps or no units.
        too_long: pairs longer than the model reads.
    """

    units: int = 0
    steps: tuple[Mapping[str, int], ...] = ()
    too_long: int = 0

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> ExcludedDocuments:
        """Inverse of `dataclasses.asdict`; {} gives one of no units."""
        return cls(**{**fields, "steps": tuple(fields.get("steps", ()))})

    def __add__(self, other: ExcludedDocuments) -> ExcludedDocuments:
        rows = zip(self.steps, other.steps, strict=True) if self.steps and other.steps else ()
        steps = tuple({column: row[column] + more[column] for column in row} for row, more in rows)
        return ExcludedDocuments(
            self.units + other.units, steps or self.steps or other.steps, self.too_long + other.too_long
        )


@dataclass
class KnownUnits:
    """The units known so far.

    Attributes:
        counts: (units,) int64, training samples in each unit, UNKNOWN where it has not been read.
        skipped: units that are skipped because their shard cannot be read, with the reason.
        excluded: over the units whose count is known.
    """

    counts: Ints
    skipped: dict[int, str] = field(default_factory=dict)
    excluded: ExcludedDocuments = ExcludedDocuments()

    def record(self, unit: int, count: int, problem: str | None, excluded: ExcludedDocuments) -> None:
        """Records a unit that has been read.

        Args:
            count: training samples in it.
            problem: the reason why its shard cannot be read, or None.
        """
        if problem is not None:
            self.skipped[unit] = problem
        self.counts[unit] = count
        self.excluded += excluded

    def copy(self) -> KnownUnits:
        """A copy that later records do not change."""
        return replace(self, counts=self.counts.copy(), skipped=dict(self.skipped))
