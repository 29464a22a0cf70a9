"""The cost of a sweep: recipes/sweep.yaml with early stopping, against the same trials run to their ends.

The quickstart's corpus is prepared once. Then `manta tune recipes/sweep.yaml` runs twice: with its own scheduler and,
under another name, without one, so that every one of the 16 trials is done to the end and it is known which is best.
Compute is counted in optimizer steps, which are the same for all trials, and in worker-seconds.

What a trial adds before its first step beyond a plain run's is the time from the moment the sweep decides on the trial
to that at which its run starts, as `manta train` would from there on: a process that imports Ray Tune, and the run's
claim. `--rounds` trials of two steps follow each other for that, one at a time, with nothing else on the machine, and
plain runs of the same recipe stand beside them, from prepared data to the first step.

With `--folder` the sweeps are kept there, and an interrupted benchmark continues them.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import harness
from harness import Verdict

from orchestrator.run.run import reaching_storage, stores
from orchestrator.sweep.load import load_sweep
from orchestrator.sweep.records import TrialBook
from orchestrator.sweep.summary import SweepSummary, describe_sweep

RECIPE = Path(__file__).parents[1] / "recipes" / "sweep.yaml"

SHARE, LOSS_SHARE, OVERHEAD_S = 0.33, 0.01, 3.0


def main() -> None:
    """Run the benchmark."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--folder", type=Path, help="where to keep the sweeps; default: a folder that is deleted")
    parser.add_argument("--rounds", type=int, default=3, help="trials, and plain runs, to time the start of")
    options = parser.parse_args()
    with harness.scratch() as scratch:
        folder = (options.folder or scratch).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "prepared").exists():
            harness.prepare_quickstart(folder)
            (folder / "prepared").touch()
        early = tune(folder, "asha")
        full = tune(folder, "full", "scheduler.name=none")
        tune(folder, "starts", *start_overrides(options.rounds))
        setups = setup_seconds(folder)
        plain = [plain_start_s(folder, number) for number in range(options.rounds)]
    losses = {trial["id"]: trial["loss"] for trial in full["trials"]}
    best, winner = full["best"], early["best"]
    assert best is not None and winner is not None
    excess = losses[winner["id"]] / best["loss"] - 1
    trials = [trial["first_step_s"] for trial in summary(folder, "starts")["trials"]]
    verdicts = [
        Verdict.at_most("steps of the sweep to those of all trials to the end", early["cost"]["share"], SHARE),
        Verdict.without_bound("  worker-seconds", early["cost"]["worker_s"] / full["cost"]["worker_s"]),
        Verdict.at_most("loss of its winner, beyond the best of all", excess * 100, LOSS_SHARE * 100, "%"),
        Verdict.without_bound("  same winner", float(winner["id"] == best["id"])),
        Verdict.at_most("a trial adds before its run starts", statistics.median(setups), OVERHEAD_S, "s"),
        Verdict.without_bound("  from a trial's start to its first step", statistics.median(trials), "s"),
        Verdict.without_bound("  a plain run, from prepared data to its first step", statistics.median(plain), "s"),
        Verdict.at_most("units tokenized by the later sweeps", full["tokenized"]["tokenized"], 0),
    ]
    details = {
        "early": early,
        "full": full,
        "setup_s": harness.spread(setups),
        "trial_first_step_s": trials,
        "plain_first_step_s": plain,
    }
    harness.report("sweep", {**vars(options), "folder": str(options.folder)}, verdicts, details)


def overrides_of(folder: Path, name: str) -> list[str]:
    """Overrides that give the sweep its own name, and a store in `folder`."""
    return [f"sweep={name}", *harness.quickstart_overrides(folder)]


def tune(folder: Path, name: str, *overrides: str) -> SweepSummary:
    """Runs a sweep, or continues it."""
    print(f"  sweep {name}", flush=True)
    options = harness.as_options([*overrides_of(folder, name), *overrides])
    with harness.Command(*harness.manta("tune", str(RECIPE), *options), folder=folder) as command:
        command.wait()
    return summary(folder, name, *overrides)


def summary(folder: Path, name: str, *overrides: str) -> SweepSummary:
    """Summary of a sweep."""
    sweep = load_sweep(RECIPE, [*overrides_of(folder, name), *overrides])
    with reaching_storage(sweep.base) as config:
        return describe_sweep(sweep, stores(config)[0])


def start_overrides(rounds: int) -> list[str]:
    """Overrides for trials of two steps, one after the other."""
    few = ["train.steps=2", "train.schedule.warmup_steps=0", "scheduler.name=none", "max_concurrent=1"]
    return [*few, f"searcher.trials={rounds}"]


def setup_seconds(folder: Path) -> list[float]:
    """Seconds from each trial's start to its run's."""
    sweep = load_sweep(RECIPE, overrides_of(folder, "starts"))
    with reaching_storage(sweep.base) as config:
        book = TrialBook(stores(config)[0].child("sweeps/starts"))
        return [record.setup_s for record in book if record.setup_s is not None]


def plain_start_s(folder: Path, number: int) -> float:
    """Seconds from prepared data to the first step of a plain run of the same recipe."""
    print(f"  plain run {number + 1}", flush=True)
    sweep = load_sweep(RECIPE, [*overrides_of(folder, "plain"), *start_overrides(1)])
    recipe = folder / "plain.yaml"
    fields: dict[str, Any] = {**sweep.document, "run": f"plain-{number}"}
    recipe.write_text(json.dumps(fields))  # JSON is YAML
    run = harness.train(recipe, harness.quickstart_overrides(folder), folder, serve=False)
    [prepared] = [seconds for seconds, line in run.lines if "data: " in line][:1]
    return float(run.rows[0]["at"] - run.records[-1].started_at - prepared)


if __name__ == "__main__":
    main()
