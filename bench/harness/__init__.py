"""Shared by the benchmarks: a scratch folder, `manta` as a process, contestants in turn, results as JSON and a table.

Machines are shared and noisy, so results of different days are not compared. Contestants take turns within one
benchmark, A B A B ..., and the result is the median of the ratios of neighbours.
"""

from harness.memory import Memory, MemoryWatch
from harness.processes import Command, manta, scratch
from harness.results import Verdict, arguments, in_turn, ratios, report, spread
from harness.runs import RECIPE, FinishedRun, as_options, prepare_quickstart, quickstart_overrides, train

__all__ = [
    "RECIPE",
    "Command",
    "FinishedRun",
    "Memory",
    "MemoryWatch",
    "Verdict",
    "arguments",
    "as_options",
    "in_turn",
    "manta",
    "prepare_quickstart",
    "quickstart_overrides",
    "ratios",
    "report",
    "scratch",
    "spread",
    "train",
]
