"""Whole runs of `manta train`, with their metrics, and the attempt's record during the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import MantaError
from harness.processes import Command, manta
from orchestrator.commands.quickstart import QUICKSTARTS, RECIPE, make_corpus
from orchestrator.config.load import load_recipe
from orchestrator.config.recipe import RunConfig
from orchestrator.run.record import Attempt, load_record
from orchestrator.run.run import open_run, reaching_storage, stores
from orchestrator.run.stored import read_state
from orchestrator.run.summary import summary_of_run

RECORD_INTERVAL_S = 5.0
"""Seconds between two readings of a run's record. One takes a twentieth of a second on either side: more of them would
slow the run under measurement."""


def quickstart_overrides(folder: Path) -> list[str]:
    """The quickstart recipe with its store in `folder`."""
    return [f"store.serve={folder / 's3'}"]


def as_options(overrides: Sequence[str]) -> list[str]:
    """Overrides as options of the command."""
    return [part for override in overrides for part in ("--set", override)]


def prepare_quickstart(folder: Path) -> None:
    """Creates corpus, vocabulary and tokens of the quickstart recipe, in a store in `folder`."""
    with reaching_storage(load_recipe(RECIPE, quickstart_overrides(folder))) as config:
        make_corpus(config, _QuietConsole(), QUICKSTARTS["modules"])
    with Command(*manta("prepare", str(RECIPE), *as_options(quickstart_overrides(folder))), folder=folder) as command:
        command.wait()


class _QuietConsole:
    def line(self, text: str) -> None:
        """Prints nothing."""


@dataclass
class FinishedRun:
    """A run that has ended.

    Attributes:
        summary: output of `manta show --json`.
        rows: a row for every step, as in metrics.jsonl.
        records: the attempt's record, read repeatedly during the run, the oldest first.
        lines: the command's output, see `Command`.
    """

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    records: list[Attempt] = field(default_factory=list)
    lines: list[tuple[float, str]] = field(default_factory=list)

    def losses(self) -> list[float]:
        """Loss of every step."""
        return [row["loss"] for row in self.rows]


def train(
    recipe: Path,
    overrides: Sequence[str],
    folder: Path,
    observer_of: Callable[[Command], Callable[[], object]] = lambda _: lambda: None,
    *,
    serve: bool = True,
) -> FinishedRun:
    """Runs `manta train` to its end, in a separate process.

    Args:
        recipe: file of the recipe.
        overrides: `dotted.name=value` for its fields.
        folder: current folder of the process.
        observer_of: returns, for the command, the function to call every POLL_INTERVAL_S while it runs.
        serve: whether to start the store before the command, and read the run's record through it; else the command
            starts it itself, and `records` has only the last record.
    """
    config = load_recipe(recipe, overrides)
    records: list[Attempt] = []
    with ExitStack() as stack:
        reached = stack.enter_context(reaching_storage(config)) if serve else None
        command = stack.enter_context(Command(*manta("train", str(recipe), *as_options(overrides)), folder=folder))
        observe_command = observer_of(command)

        read_at = time.monotonic()

        def observe() -> None:
            nonlocal read_at
            observe_command()
            if reached is not None and time.monotonic() - read_at >= RECORD_INTERVAL_S:
                read_at = time.monotonic()
                _read_record(reached, records)

        command.wait(observe)
    with reaching_storage(config) as config:
        run = open_run(config)
        stored = read_state(run.store, run.record)
        summary, rows = summary_of_run(run, stored), stored.rows.to_pylist()
        return FinishedRun(summary, rows, [*records, run.record.last], command.lines)


def _read_record(config: RunConfig, records: list[Attempt]) -> None:
    with suppress(MantaError):  # the run has not begun yet
        record = load_record(stores(config)[1]).last
        if not records or record.heartbeat_at > records[-1].heartbeat_at:
            records.append(record)
