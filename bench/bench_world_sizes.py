"""Per-step losses and sample digests of one recipe at several world sizes.

The quickstart recipe's model in fp32, M = 8 micro-batches a step, the same seed, trained by 1, 2, 3 and 4 workers of
one thread each. Reported: for every world size, the largest relative difference of any step's loss from that of one
worker, max |loss_W - loss_1| / |loss_1| (required: 1e-6), and whether the digests of all sample ids, in training order,
are identical. The difference grows with the steps, as training amplifies rounding; it is also given for the first
half.
"""

from __future__ import annotations

from pathlib import Path

import harness
from harness import FinishedRun, Verdict

from orchestrator.config.load import load_recipe
from orchestrator.run.run import reaching_storage

MICRO_BATCHES = 8
TOLERANCE = 1e-6


def main() -> None:
    """Run the benchmark."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=200, help="steps of every run")
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[1, 2, 3, 4], help="the first is the reference")
    options = parser.parse_args()
    with harness.scratch() as folder:
        recipe = harness.quickstart_overrides(folder)
        with reaching_storage(load_recipe(harness.RECIPE, recipe)):
            harness.prepare_quickstart(folder)
            runs = {}
            for world_size in options.world_sizes:
                print(f"  {world_size} worker(s)", flush=True)
                runs[world_size] = train_at(folder, recipe, options.steps, world_size)
    first, *others = options.world_sizes
    differences = {size: relative_differences(runs[first], runs[size]) for size in others}
    digests = {size: run.summary["samples"]["digest"] for size, run in runs.items()}
    in_order = all(run.summary["samples"]["in_order"] for run in runs.values())
    verdicts = [
        Verdict.at_most(f"W={size}: largest relative difference of a loss", max(values), TOLERANCE)
        for size, values in differences.items()
    ]
    verdicts += [
        Verdict.at_most("distinct sample digests", len(set(digests.values())), 1),
        Verdict.at_least("runs that trained on the samples of the order, in order", float(in_order), 1),
    ]
    details = {
        "digests": digests,
        "largest_difference_first_half": {
            size: max(values[: len(values) // 2]) for size, values in differences.items()
        },
        "steps_with_equal_loss": {size: values.count(0.0) for size, values in differences.items()},
        "last_loss": {size: run.losses()[-1] for size, run in runs.items()},
        "relative_differences": differences,
    }
    harness.report("world_sizes", options, verdicts, details)


def train_at(folder: Path, recipe: list[str], steps: int, world_size: int) -> FinishedRun:
    """Trains the recipe at one world size."""
    batch = load_recipe(harness.RECIPE).train.global_batch_size
    overrides = [
        *recipe,
        f"run=world-size-{world_size}",
        f"train.steps={steps}",
        f"train.micro_batch_size={batch // MICRO_BATCHES}",
        "train.precision=fp32",
        f"train.schedule.warmup_steps={min(20, steps - 1)}",
        f"scaling.num_workers={world_size}",
        "scaling.cpus_per_worker=1",
        "data.validation_sequences=4",
    ]
    return harness.train(harness.RECIPE, overrides, folder)


def relative_differences(reference: FinishedRun, run: FinishedRun) -> list[float]:
    """|loss - reference| / |reference| of every step."""
    return [abs(b - a) / abs(a) for a, b in zip(reference.losses(), run.losses(), strict=True)]


if __name__ == "__main__":
    main()
