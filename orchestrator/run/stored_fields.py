"""Types of the fields of stored records, to which they are held when they are read: anybody may have changed one.

Numbers are bounded to what dates, tables and Arrow can hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, NotRequired, TypeVar, cast

from pydantic import ConfigDict, Field, GetPydanticSchema, TypeAdapter
from typing_extensions import TypedDict

_Stored = TypeVar("_Stored")

Count = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
"""A number of things, or a position, from 0."""

Time = Annotated[float, Field(strict=True, ge=0, le=253_402_300_799)]
"""Seconds since the epoch, up to the year 9999."""

Seconds = Annotated[float, Field(strict=True, ge=-1e12, le=1e12)]
"""A duration; negative where clocks were set in between."""

Number = Annotated[float, Field(strict=True)]
"""Any number, also NaN and infinity, as losses are."""

Digest = Annotated[str, Field(pattern=r"^\w+$")]
"""Part of an object's key."""


class Disruption(TypedDict):
    """The end of a worker group, see `orchestrator.run.progress.Disruption.summary`."""

    cause: str
    step: Count
    workers: Count
    at: NotRequired[Time | None]
    phases: NotRequired[dict[str, Seconds]]
    restored_step: NotRequired[Count | None]
    workers_after: Count | None
    lost_s: Seconds | None
    detection_s: NotRequired[Seconds | None]
    replayed_steps: Count | None


class Decision(TypedDict):
    """A decision about workers."""

    at: NotRequired[Time | None]
    step: Count
    what: str


class Outage(TypedDict):
    """A time in which a store failed."""

    doing: str
    since: Time
    until: Time | None
    problem: str


class Scores(TypedDict, total=False):
    """Scores of an evaluation."""

    val_loss: Number
    val_perplexity: Number
    val_bits_per_byte: Number
    val_bleu: Number
    val_bleu_signature: str
    val_chrf: Number
    val_chrf_signature: str
    val_translated: Count


class Evaluation(Scores):
    """An evaluation during training."""

    step: Count
    at: NotRequired[Time | None]


class Tokenized(TypedDict):
    """Units of a sweep's data: all, those that it tokenized, and those that were cached before."""

    units: Count
    tokenized: Count
    cached: Count


class Result(Scores, total=False):
    """The final evaluation of a run; of a sweep: the path of its best recipe, its units, and its number of trials."""

    step: Count
    recipe: str
    tokenized: Tokenized
    trials: Count


class CleaningRow(TypedDict):
    """What a step of `data.cleaning` received and removed; a step may add characters."""

    step: str
    documents: Count
    documents_removed: Count
    characters: Count
    characters_removed: Annotated[int, Field(strict=True, ge=-(2**63), le=2**63 - 1)]


class Pinned(TypedDict, total=False):
    """What a run is pinned to of `data.cleaning`."""

    code: str
    duplicates: Digest | None
    report: list[CleaningRow]


def one_of(names: Iterable[str]) -> Any:
    """Holds a text to these."""
    return Field(pattern=f"^({'|'.join(names)})$")


def checked(kind: type[_Stored], fields: Any) -> _Stored:
    """What was stored, held to the types of the fields of `kind`.

    Raises:
        ValidationError: a field is missing, or has another type.
    """
    reader: TypeAdapter[_Stored] = _reader(cast(Any, kind))  # mypy does not see that classes are hashable
    return reader.validate_python(fields)


@cache
def _reader(kind: type) -> TypeAdapter[Any]:
    """Made when it is needed, as that takes a while."""
    return TypeAdapter(kind)


def held_to(kind: type) -> GetPydanticSchema:
    """Holds a field that is annotated as a dictionary to `kind`, which may have more keys than it lists."""
    kind.__pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[attr-defined]
    return GetPydanticSchema(lambda _, handler: handler.generate_schema(kind))
