"""The monitor: one actor a run through which the driver sees the loop and the loop hears the driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """The loop as rank 0 last told it.

    Attributes:
        phase: what it is at: "starting", "training", "evaluating", "saving" or "done".
        restored_step: step it went on from; None until it knows.
        row: newest metrics row.
        goodput: seconds by cause since the loop began.
        notes: lines for the person watching, oldest first.
        result: what the loop ended with; None until it has.
    """

    phase: str = "starting"
    restored_step: int | None = None
    world_size: int = 0
    row: dict[str, Any] = field(default_factory=dict)
    goodput: dict[str, float] = field(default_factory=dict)
    first_step_at: float | None = None
    notes: list[str] = field(default_factory=list)
    result: dict[str, Any] | None = None


class Monitor:
    """Body of the actor. Nothing here waits."""

    def __init__(self) -> None:
        self._progress = Progress()
        self._stop = False

    def report(self, **changes: Any) -> bool:
        """Rank 0: fields of Progress that changed. Returns whether the run is to stop."""
        for name, value in changes.items():
            setattr(self._progress, name, value)
        return self._stop

    def note(self, line: str) -> None:
        """Any rank: a line for the person watching."""
        self._progress.notes.append(line)

    def progress(self) -> Progress:
        """Driver: the loop's state."""
        return self._progress

    def request_stop(self) -> None:
        """Driver: save and stop at the next step."""
        self._stop = True
