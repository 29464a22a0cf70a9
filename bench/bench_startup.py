"""Seconds from the command to the first optimizer step, with warm caches; and how long `manta --help` takes.

The quickstart recipe's corpus is prepared once. Then `manta train` is called again and again, each time under a new
run name: the interpreter starts, the local S3 server starts (nothing keeps it running between two calls), manifest,
vocabulary and tokens are found, Ray starts, the workers start and take the first step. `first_step_s` is what
`manta show --json` says; it counts from the start of the process, and is read by the driver four times a second.

Beside it stand the phases: the lines the command printed, with the seconds after which they came (medians over
runs), and what an interpreter that does nothing takes, as a measure of how busy the machine is.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import harness
from harness import FinishedRun, Verdict

FIRST_STEP_S = 15.0
HELP_S = 0.5


def main() -> None:
    """Run the benchmark."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs")
    parser.add_argument("--help-calls", type=int, default=10, help="calls of manta --help")
    options = parser.parse_args()
    with harness.scratch() as folder:
        harness.prepare_quickstart(folder)
        helps = harness.in_turn(
            options.help_calls,
            {
                "manta --help": lambda: seconds_of(harness.manta("--help"), folder),
                "python -c pass": lambda: seconds_of([sys.executable, "-c", "pass"], folder),
            },
        )
        runs = [start(folder, number) for number in range(options.rounds)]
    first_step_s = [run.summary["first_step_s"] for run in runs]
    verdicts = [
        Verdict.at_most("command to first step, warm caches", statistics.median(first_step_s), FIRST_STEP_S, "s"),
        *(
            Verdict.without_bound(f"  {phase}", statistics.median(values), "s")
            for phase, values in phases(runs).items()
            if len(values) == len(runs)
        ),
        Verdict.at_most("manta --help", statistics.median(helps["manta --help"]), HELP_S, "s"),
        Verdict.without_bound("  an interpreter that does nothing", statistics.median(helps["python -c pass"]), "s"),
    ]
    details = {
        "first_step_s": harness.spread(first_step_s),
        "help_s": {name: harness.spread(values) for name, values in helps.items()},
        "phases_s": phases(runs),
        "startup_s": [run.summary["goodput"]["startup_s"] for run in runs],
        "lines": [run.lines for run in runs],
    }
    harness.report("startup", options, verdicts, details)


def seconds_of(arguments: list[str], folder: Path) -> float:
    """Duration of a command in seconds."""
    began = time.perf_counter()
    subprocess.run(arguments, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return time.perf_counter() - began


def start(folder: Path, number: int) -> FinishedRun:
    """Runs a new run on prepared data."""
    print(f"  run {number + 1}", flush=True)
    overrides = [
        *harness.quickstart_overrides(folder),
        f"run=startup-{number}",
        "train.steps=2",
        "train.schedule.warmup_steps=0",
        "data.validation_sequences=4",
    ]
    return harness.train(harness.RECIPE, overrides, folder, serve=False)


def phases(runs: list[FinishedRun]) -> dict[str, list[float]]:
    """Seconds from the command to the first line of each kind, in each run."""
    found: dict[str, list[float]] = {}
    for run in runs:
        here: dict[str, float] = {}
        for seconds, line in run.lines:
            if match := re.match(r"\[ *[\d.]+ s\] (\w+):", line):
                here.setdefault(f"line '{match[1]}: ...'", seconds)
        for phase, seconds in here.items():
            found.setdefault(phase, []).append(seconds)
    return found


if __name__ == "__main__":
    main()
