"""Tokens/s of a run against a plain single-file torch loop with the same model, batch and threads.

Contestants, one after the other in every round, on the quickstart recipe's model, batch and micro-batch size:

    manta 1 x 1    one worker of 1 thread, as the recipe has it
    plain 1 x 1    plain_loop.py: one process of 1 thread
    manta 1 x 2    one worker of 2 threads
    plain 1 x 2    plain_loop.py: one process of 2 threads
    manta 2 x 1    two workers of 1 thread
    plain 2 x 1    plain_loop.py: two processes of 1 thread under DDP

"Same threads" for two workers can mean two things, so both are reported: the single process with 2 threads (what the
two workers replace) and the DDP loop (the same split of work, without Ray, feeder, ledgers and checkpoints). On two
cores, "1 x 2" is the hardest: the two threads wait for each other at every operation, so whatever else runs for a
moment on either core stops both.

A ratio is one round's manta over the same round's plain; the median over rounds counts. "By the median step" is the
same with the median step in place of the mean: it is not affected by a few steps that other programs slow
down, nor by anything that is slow only now and then, so it has no bound. The first steps are left out
on both sides. manta's time is `step_s` of metrics.jsonl, which contains the wait for data, plus what the loop spends
between steps (known exactly from the goodput ledger: training + data_wait - sum of step_s, shared out
over all steps). Checkpoints are saved at the recipe's interval and slow the steps they overlap; the moments in which
the loop stands still for one are in neither side's rate and reported by themselves.

The wait for data is its share of training + data_wait in the goodput ledger, from the first heartbeat after the
warm-up steps to the end of the run: steady state, without the first step's wait for a feeder that is just starting.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Command, FinishedRun, Verdict

from data.prepare import prepare_data
from data.prepared import Pins
from data.shards.unit_rows import load_cached
from data.tokens.unit import stream_of
from orchestrator.config.load import load_recipe
from orchestrator.config.result_fields import resolved
from orchestrator.run.run import reaching_storage, stores

RATIO = 0.95
WAIT_PERCENT = 2.0


def main() -> None:
    """Run the benchmark."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contestant")
    parser.add_argument("--steps", type=int, default=60, help="steps of a run")
    parser.add_argument("--warmup", type=int, default=10, help="first steps that do not count")
    options = parser.parse_args()
    tokens_per_step, turns = run_in_turn(options)
    report(options, tokens_per_step, turns)


def run_in_turn(options: argparse.Namespace) -> tuple[int, dict[str, list[Any]]]:
    """Target tokens of a step, and the results of all contestants: `FinishedRun`, or the output of plain_loop."""
    with harness.scratch() as folder:
        recipe = harness.quickstart_overrides(folder)
        with reaching_storage(load_recipe(harness.RECIPE, recipe)):  # one server for all runs
            harness.prepare_quickstart(folder)
            base = plain_settings(folder, recipe, options.steps)

            def run_manta(workers: int, threads: int) -> FinishedRun:
                return train_once(folder, recipe, options.steps, workers, threads)

            def run_plain(processes: int, threads: int) -> dict[str, Any]:
                return train_plainly(folder, base | {"processes": processes, "threads": threads})

            turns: dict[str, list[Any]] = harness.in_turn(
                options.rounds,
                {
                    "manta 1 x 1": lambda: run_manta(1, 1),
                    "plain 1 x 1": lambda: run_plain(1, 1),
                    "manta 1 x 2": lambda: run_manta(1, 2),
                    "plain 1 x 2": lambda: run_plain(1, 2),
                    "manta 2 x 1": lambda: run_manta(2, 1),
                    "plain 2 x 1": lambda: run_plain(2, 1),
                },
            )
    return base["global_batch_size"] * base["seq_len"], turns


def report(options: argparse.Namespace, tokens_per_step: int, turns: dict[str, list[Any]]) -> None:
    """Computes rates and ratios, and reports them."""
    rates = {
        name: [
            manta_rate(result, options.warmup)
            if isinstance(result, FinishedRun)
            else tokens_per_step / statistics.fmean(result["step_s"][options.warmup :])
            for result in results
        ]
        for name, results in turns.items()
    }
    waits = {
        name: [wait_percent(run, options.warmup) for run in turns[name]] for name in turns if name.startswith("manta")
    }
    compared = {
        "W=1 / plain, 1 thread": ("manta 1 x 1", "plain 1 x 1"),
        "W=1 / plain, 2 threads": ("manta 1 x 2", "plain 1 x 2"),
        "W=2 / plain, 2 threads": ("manta 2 x 1", "plain 1 x 2"),
        "W=2 / plain DDP, 2 x 1 thread": ("manta 2 x 1", "plain 2 x 1"),
    }
    shares = {name: harness.ratios(rates[above], rates[below]) for name, (above, below) in compared.items()}
    typical_s = {name: [typical_step_s(result, options.warmup) for result in turns[name]] for name in turns}
    typical = {name: harness.ratios(typical_s[below], typical_s[above]) for name, (above, below) in compared.items()}
    verdicts = [Verdict.without_bound(name, statistics.median(values), "tokens/s") for name, values in rates.items()]
    for name, values in shares.items():
        verdicts.append(Verdict.at_least(name, statistics.median(values), RATIO))
        verdicts.append(Verdict.without_bound("  by the median step", statistics.median(typical[name])))
    verdicts += [
        Verdict.at_most(f"{name}: wait for data", statistics.median(values), WAIT_PERCENT, "%")
        for name, values in waits.items()
    ]
    details = {
        "tokens_per_s": {name: harness.spread(values) for name, values in rates.items()},
        "ratios": {name: harness.spread(values) for name, values in shares.items()},
        "ratios_by_median_step": {name: harness.spread(values) for name, values in typical.items()},
        "data_wait_percent": {name: harness.spread(values) for name, values in waits.items()},
        "books_s_per_step": {name: [books_s(run) for run in turns[name]] for name in waits},
        "goodput": {name: [run.summary["goodput"] for run in turns[name]] for name in waits},
        "first_and_last_loss": {name: [ends_of(result) for result in results] for name, results in turns.items()},
    }
    harness.report("training", options, verdicts, details)


def train_once(folder: Path, recipe: list[str], steps: int, workers: int, threads: int) -> FinishedRun:
    """Runs training under its own name."""
    train_once.count = getattr(train_once, "count", 0) + 1
    overrides = [
        *recipe,
        f"run=training-{train_once.count}",
        f"train.steps={steps}",
        f"train.schedule.warmup_steps={min(20, steps - 1)}",
        f"scaling.num_workers={workers}",
        f"scaling.cpus_per_worker={threads}",
        f"scaling.threads_per_worker={threads}",
        "data.validation_sequences=4",  # the evaluation at the end is not what is measured
    ]
    return harness.train(harness.RECIPE, overrides, folder)


def plain_settings(folder: Path, recipe: list[str], steps: int) -> dict[str, Any]:
    """Settings of plain_loop.py: the recipe's own values, and its tokens as one array."""
    with reaching_storage(load_recipe(harness.RECIPE, recipe)) as config:
        data = prepare_data(
            config.data, config.store, stores(config)[0], Pins(), lambda _: None, lambda *_: None, lambda: None
        )
        tables = [load_cached(data.manifest.unit(unit), data.job) for unit in range(data.manifest.num_units)]
        streams = [stream_of(table, "train", data.tokenizer.dtype) for table in tables if table is not None]
    path = folder / "tokens.npy"
    np.save(path, np.concatenate(streams))
    fields = resolved(config)
    assert fields["train"]["optimizer"]["name"] == "adamw", "the plain loop knows AdamW only"
    return {
        "tokens": str(path),
        "model": fields["model"],
        "vocab_size": config.model.resolve_vocab_size(data.tokenizer.vocab_size),
        "end_of_text": data.tokenizer.end_of_text,
        "seq_len": config.data.seq_len,
        "seed": config.seed,
        "steps": steps,
        "schedule_steps": steps,
        **{name: fields["train"][name] for name in ("global_batch_size", "micro_batch_size", "lr", "grad_clip")},
        "optimizer": fields["train"]["optimizer"],
        "schedule": fields["train"]["schedule"] | {"warmup_steps": min(20, steps - 1)},
    }


def train_plainly(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Runs plain_loop.py in separate processes."""
    path = folder / "plain.json"
    path.write_text(json.dumps(settings))
    script = Path(__file__).resolve().with_name("plain_loop.py")
    with Command(sys.executable, str(script), str(path), folder=folder) as command:
        command.wait()
    result: dict[str, Any] = json.loads(command.lines[-1][1])
    return result


def manta_rate(run: FinishedRun, warmup: int) -> float:
    """Target tokens/s after the first `warmup` steps, with the time between steps."""
    rows = run.rows[warmup:]
    tokens = rows[-1]["tokens"] - run.rows[warmup - 1]["tokens"]
    return tokens / (sum(row["step_s"] for row in rows) + books_s(run) * len(rows))


def typical_step_s(result: FinishedRun | dict[str, Any], warmup: int) -> float:
    """Seconds of the median step, with the time between steps."""
    if isinstance(result, FinishedRun):
        return statistics.median(row["step_s"] for row in result.rows[warmup:]) + books_s(result)
    return statistics.median(result["step_s"][warmup:])


def books_s(run: FinishedRun) -> float:
    """Seconds per step that the loop spends outside of `step_s`."""
    goodput = run.summary["goodput"]
    loop_s = goodput["training_s"] + goodput["data_wait_s"]
    return max(0.0, loop_s - sum(row["step_s"] for row in run.rows)) / len(run.rows)


def wait_percent(run: FinishedRun, warmup: int) -> float:
    """Share of the loop's time in which it waited for data, in steady state."""
    start = next(record for record in run.records if record.step >= warmup).goodput
    end = run.records[-1].goodput
    wait_s, training_s = (end.get(cause, 0.0) - start.get(cause, 0.0) for cause in ("data_wait", "training"))
    return 100 * wait_s / (wait_s + training_s) if wait_s + training_s > 0 else 0.0


def ends_of(result: FinishedRun | dict[str, Any]) -> tuple[float, float]:
    """First and last loss, to check that both sides learn."""
    losses = result.losses() if isinstance(result, FinishedRun) else result["losses"]
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
