"""Time of an optimizer's update, and of a whole step with it, against AdamW's, on the quickstart recipe's model.

One process of one thread. Gradients are those of the recipe's own step: global batch, micro-batches, clipping; tokens
are drawn at random, since what is timed does not depend on them. In every round each optimizer in turn does `--steps`
updates on its own copy of the model, so that neighbours see the same machine; a ratio is one round's optimizer over the
same round's adamw, and the median over rounds counts.

    update      the optimizer alone: `step()` on gradients that are there
    step        the update and the forward and backward passes, whose time is measured once a round

Also measured: the moving average of the weights (train.ema_decay), as `average`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import get_args

import harness
import torch
from harness import Verdict
from torch import nn

from model.optim.config import OptimizerConfig
from model.optim.optimizer import build_optimizer, clip_gradients
from model.optim.weight_average import WeightAverage
from orchestrator.config.load import load_recipe
from orchestrator.config.recipe import RunConfig
from orchestrator.evaluation.forward import build_model

END_OF_TEXT = 0


def main() -> None:
    """Run the benchmark."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of every optimizer")
    parser.add_argument("--steps", type=int, default=10, help="updates in a turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_recipe(harness.RECIPE)
    names = get_args(OptimizerConfig.model_fields["name"].annotation)

    passes = passes_of(config)
    contestants: dict[str, Callable[[], float]] = {"passes": lambda: timed(passes, 1)}
    for name in names:
        update = update_of(config, name)
        contestants[name] = lambda update=update: timed(update, options.steps)
    average = WeightAverage(model_of(config), 0.999)
    contestants["average"] = lambda: timed(lambda: average.update(1), options.steps)
    turns = harness.in_turn(options.rounds, contestants)

    steps_s = {name: [sum(each) for each in zip(turns["passes"], turns[name], strict=True)] for name in names}
    updates = {name: harness.ratios(turns[name], turns["adamw"]) for name in (*names, "average")}
    steps = {name: harness.ratios(steps_s[name], steps_s["adamw"]) for name in names}
    verdicts = [Verdict.without_bound("forward and backward", 1000 * statistics.median(turns["passes"]), "ms")]
    for name in updates:
        verdicts.append(Verdict.without_bound(f"{name}: update", 1000 * statistics.median(turns[name]), "ms"))
        verdicts.append(Verdict.without_bound("  / adamw's", statistics.median(updates[name])))
        if name in steps:
            verdicts.append(Verdict.without_bound("  whole step / adamw's", statistics.median(steps[name])))
    details = {
        "seconds": {name: harness.spread(values) for name, values in turns.items()},
        "update_ratios": {name: harness.spread(values) for name, values in updates.items()},
        "step_ratios": {name: harness.spread(values) for name, values in steps.items()},
    }
    harness.report("optimizers", options, verdicts, details)


def model_of(config: RunConfig) -> nn.Module:
    """The recipe's model, with a vocabulary of the recipe's size."""
    vocab_size = config.model.resolve_vocab_size(config.data.tokenizer.vocab_size)
    return build_model(config, vocab_size, END_OF_TEXT)


def gradients_of(config: RunConfig, model: nn.Module) -> None:
    """Forward and backward passes of one step, and clipping; leaves `.grad` in place."""
    train = config.train
    tokens = torch.randint(config.data.tokenizer.vocab_size, (train.micro_batch_size, config.data.seq_len + 1))
    for _ in range(train.micro_batches_per_step):
        loss = model(tokens[:, :-1], tokens[:, 1:])
        (loss / (train.global_batch_size * config.data.seq_len)).backward()
    clip_gradients(model.parameters(), train.grad_clip or float("inf"))


def passes_of(config: RunConfig) -> Callable[[], None]:
    """Runs one step without its update."""
    model = model_of(config)

    def passes() -> None:
        gradients_of(config, model)
        model.zero_grad(set_to_none=False)

    return passes


def update_of(config: RunConfig, name: str) -> Callable[[], None]:
    """Runs one update with the optimizer's own defaults, on gradients of the recipe's first step."""
    model = model_of(config)
    optimizer = build_optimizer(model, OptimizerConfig.model_validate({"name": name}), 1e-4)
    gradients_of(config, model)
    optimizer.step()  # makes its state
    return optimizer.step


def timed(action: Callable[[], object], times: int) -> float:
    """Mean seconds of one call."""
    began = time.perf_counter()
    for _ in range(times):
        action()
    return (time.perf_counter() - began) / times


if __name__ == "__main__":
    main()
