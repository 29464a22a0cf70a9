"""A sweep of 1,000 made-up trials, 100 at once: what its driver computes, asks of the store, and writes as a report.

The recipe is recipes/sweep.yaml with more trials; its records go to a folder, through a store that counts. Legs end one
after the other with made-up losses. The driver's share of a core is its CPU time for a leg, beside the time that a leg
of --leg-s seconds takes while 100 run, with a summary a second. The work of Ray Tune and of Ray is not part of it.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
from harness import Verdict

from data.stores.local import LocalStore
from orchestrator.sweep.claim import claim
from orchestrator.sweep.coordinator import TrialCoordinator
from orchestrator.sweep.load import load_sweep
from orchestrator.sweep.records import TrialBook
from orchestrator.sweep.report.page import html
from orchestrator.sweep.summary import summary_of
from orchestrator.sweep.tune.adapters import RecordingScheduler

RECIPE = Path(__file__).parents[1] / "recipes" / "sweep.yaml"

CORES, CALLS, PAGE_MB = 0.5, 20.0, 5.0


class CountingStore(LocalStore):
    """Counts the calls that would be requests of S3: reads, writes and lists."""

    calls = 0

    def __getattribute__(self, name: str) -> Any:
        if name in ("get", "list", "put", "put_if_absent", "put_if_match", "delete", "delete_prefix"):
            CountingStore.calls += 1
        return super().__getattribute__(name)


class Slots:
    """A cluster with so many slots."""

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def total(self) -> int:
        """Number of slots."""
        return self.slots

    def request(self, trials: int, min_workers: int) -> None:
        """Does nothing: there are no nodes to bring up."""

    def cancel(self, run: str) -> None:
        """Does nothing."""


def main() -> None:
    """Run the benchmark."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=100, help="trials at once")
    parser.add_argument("--leg-s", type=float, default=10.0, help="seconds that a leg is taken to last")
    options = parser.parse_args()
    with harness.scratch() as folder:
        os.chdir(folder)  # recipes of trials are remembered in the working folder
        overrides = [f"storage={folder}", f"searcher.trials={options.trials}", "data.sources=[{path: none}]"]
        sweep = load_sweep(RECIPE, overrides)
        store = CountingStore(str(folder / "sweep"))
        record = claim(sweep, store, takeover=False).record
        book = TrialBook(store)
        coordinator = TrialCoordinator(sweep, book, Slots(options.slots))  # type: ignore[arg-type]
        began = time.process_time()
        legs = play(coordinator, options.slots)
        cpu_s = time.process_time() - began
        calls = CountingStore.calls
        began = time.process_time()
        summary = summary_of(sweep, record, list(book))
        summary_s = time.process_time() - began
        began = time.process_time()
        page = html(summary)
        page_s = time.process_time() - began
    cores = cpu_s / (legs * options.leg_s / options.slots) + summary_s
    verdicts = [
        Verdict.at_most("driver's share of a core", cores, CORES),
        Verdict.without_bound("  CPU time for a leg", 1000 * cpu_s / legs, "ms"),
        Verdict.without_bound("  CPU time for a summary", 1000 * summary_s, "ms"),
        Verdict.at_most("store calls for a trial", calls / options.trials, CALLS),
        Verdict.at_most("report", len(page.encode()) / 1e6, PAGE_MB, "MB"),
        Verdict.without_bound("  CPU time for it", page_s, "s"),
    ]
    harness.report("sweep_scale", vars(options), verdicts, {"legs": legs, "cpu_s": cpu_s})


def play(coordinator: TrialCoordinator, slots: int) -> int:
    """Runs all legs, in the order in which they end; returns their number."""
    scheduler, draw, legs = RecordingScheduler(coordinator), random.Random(5), 0
    running: dict[str, tuple[Any, Any]] = {}
    losses: dict[str, float] = {}
    while not coordinator.is_settled:
        while len(running) < slots and (leg := coordinator.next_assignment()) is not None:
            trial = SimpleNamespace(config={"trial": leg.id})
            scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
            running[leg.id] = trial, leg
        trial, leg = running.pop(draw.choice(list(running)))
        loss = losses.setdefault(leg.id, draw.uniform(1, 5))
        for step in range(leg.reported + 6, leg.until, 6):
            report(scheduler, trial, step, loss + 50 / step)
        report(scheduler, trial, leg.until, loss + 50 / leg.until)
        scheduler.on_trial_complete(None, trial, {"done": True, "reason": "", "status": "done"})  # type: ignore[arg-type]
        legs += 1
    return legs


def report(scheduler: RecordingScheduler, trial: Any, step: int, loss: float) -> None:
    """Reports a made-up loss, as Tune passes it on."""
    result = {"at_step": step, "step": step, "loss": loss, "worker_s": 1.0}
    scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
