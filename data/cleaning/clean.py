"""Applies a list of steps to a text, in order, and counts what they remove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from data.cleaning.config import DedupSteps, FunctionStep, SegmentStep, Step, TextStep, name_of
from data.cleaning.fingerprint import min_hash
from data.cleaning.steps import Clean, step_function
from data.errors import CleaningError, InputError


@dataclass(frozen=True, slots=True)
class CleanResult:
    """The result of applying steps to a text.

    Attributes:
        text: the text after the last step; None where a step removed it.
        lengths: characters before the first step and after each step that was reached; 0 after the step that removed
            the text. For a pair, the sum of both sides.
        seen: for each deduplicating step that was reached, the text before it; for a pair, the input and the text,
            separated by a line break.
        input: the input of a pair after the last step.
    """

    text: str | None
    lengths: tuple[int, ...]
    seen: tuple[str, ...] = ()
    input: str | None = None

    @property
    def removed_by(self) -> int | None:
        """Index of the step that removed the text; None where it was kept."""
        return None if self.text is not None else len(self.lengths) - 2


def clean(text: str, steps: Sequence[Step], removed: Iterable[int] = (), input: str | None = None) -> CleanResult:
    """Applies steps to one text, in order.

    Pure, except for the user's functions: the same text and steps give the same result everywhere. A step that leaves
    nothing but white space removes the text. Deduplication depends on other documents and is not decided here: such a
    step changes no text, and removes it only if its index is in `removed`.

    Args:
        text: a document, or the text of a pair.
        steps: as in the recipe.
        removed: indices of the deduplicating steps that remove this text.
        input: the input of a pair. A step applies to the sides it is for; where it removes one, it removes the pair.

    Raises:
        InputError: a library or function that a step needs is missing; see `check_steps`.
        CleaningError: a user's function raised, or returned something other than text.
    """
    return cleaner(tuple(steps)).clean(text, frozenset(removed), input)


class Cleaner:
    """A list of steps ready to be applied to many texts; see `clean`."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps: list[tuple[Step, Clean | None]] = []
        segmented = False
        for step in steps:
            self._steps.append(
                (step, None if isinstance(step, DedupSteps) else step_function(step, segmented=segmented))
            )
            segmented = segmented or isinstance(step, SegmentStep)

    def clean(self, text: str, removed: frozenset[int] = frozenset(), input: str | None = None) -> CleanResult:
        """`clean` with these steps."""
        sides = {"text": text} if input is None else {"input": input, "text": text}
        lengths, seen = [sum(map(len, sides.values()))], []
        for index, (step, function) in enumerate(self._steps):
            if function is None:
                seen.append("\n".join(sides.values()))
                stays = index not in removed
            else:
                stays = self._apply(index, step, function, sides)
            if not stays:
                return CleanResult(None, (*lengths, 0), tuple(seen))
            lengths.append(sum(map(len, sides.values())))
        return CleanResult(sides["text"], tuple(lengths), tuple(seen), sides.get("input"))

    def _apply(self, index: int, step: Step, function: Clean, sides: dict[str, str]) -> bool:
        """Applies a step to the sides it is for, in place; False where nothing is left of a side."""
        for side, text in sides.items():
            if isinstance(step, TextStep) and step.on in ("both", side):
                result = (
                    _call_user_function(index, step, function, text)
                    if isinstance(step, FunctionStep)
                    else function(text)
                )
                if not result or result.isspace():
                    return False
                sides[side] = result
        return True


@lru_cache(maxsize=8)
def cleaner(steps: tuple[Step, ...]) -> Cleaner:
    """The `Cleaner` of the steps, made once per process: dictionaries and models are large.

    Raises:
        InputError: a library or function that a step needs is missing.
    """
    return Cleaner(steps)


def check_steps(steps: Sequence[Step], where: str = "data.cleaning") -> None:
    """Checks that every step can work on this machine, by importing its library or function.

    Raises:
        InputError: some cannot; all are named, with the remedy.
    """
    problems = []
    for index, step in enumerate(steps):
        try:
            if not isinstance(step, DedupSteps):
                step_function(step, segmented=False)
            elif step.step == "near_dedup":
                min_hash("", step)
        except InputError as error:
            problems.append(f"{where}.{index} ({name_of(step)}): {error}")
    if problems:
        raise InputError("\n".join(problems))


class StepCounts:
    """Counts the documents and characters that each step receives and removes."""

    def __init__(self, steps: int) -> None:
        self._counts = [[0, 0, 0, 0] for _ in range(steps)]

    def add(self, result: CleanResult) -> None:
        """Adds the result of one document."""
        for index, (before, after) in enumerate(pairwise(result.lengths)):
            counts = self._counts[index]
            counts[0] += 1
            counts[1] += after == 0
            counts[2] += before
            counts[3] += before - after

    def rows(self) -> list[dict[str, Any]]:
        """One row per step, see `REPORT_COLUMNS`."""
        return [dict(zip(REPORT_COLUMNS, counts, strict=True)) for counts in self._counts]


REPORT_COLUMNS = ("documents", "documents_removed", "characters", "characters_removed")
"""Columns of a step's row: what it received and what it removed. Added characters count below zero."""


def named_rows(rows: Sequence[Mapping[str, int]], steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The rows of a report with the steps' names; empty where there are no rows."""
    return [{"step": name_of(step), **row} for step, row in zip(steps, rows, strict=True)] if rows else []


def report_lines(report: Sequence[dict[str, Any]]) -> list[str]:
    """One line for the console per step."""
    lines = []
    for row in report:
        characters = row["characters_removed"]
        change = f"{abs(characters):,} of {row['characters']:,} characters {'removed' if characters >= 0 else 'added'}"
        lines.append(
            f"step {row['step']}: {row['documents_removed']:,} of {row['documents']:,} documents removed, {change}"
        )
    return lines


def _call_user_function(index: int, step: FunctionStep, function: Clean, text: str) -> str | None:
    try:
        return function(text)
    except Exception as error:
        shown = repr(text if len(text) <= 60 else text[:60] + "…")
        raise CleaningError(
            f"data.cleaning.{index} ({step.path}) failed on the text {shown}: {type(error).__name__}: {error}. "
            "It must return a str, or None to remove the document."
        ) from error
