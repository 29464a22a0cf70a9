"""`manta eval`: a checkpoint scored on a split of the run's data."""

from __future__ import annotations

import math
import sys
from itertools import islice
from typing import TYPE_CHECKING, Any

from model.seq2seq import Seq2Seq
from orchestrator.config.recipe import RunConfig
from orchestrator.evaluation.scores import held_out_scores
from orchestrator.evaluation.translate import scores_of
from orchestrator.inference.partial import evaluate_part

if TYPE_CHECKING:
    from data.feed.spec import FeedSpec


def evaluate(
    config: RunConfig, split: str = "validation", step: int | None = None, workers: int = 0, *, nearest: bool = False
) -> dict[str, Any]:
    """Score a checkpoint of the recipe's run on a split of its data.

    The first `data.validation_sequences` samples of the split count, and of pairs the first `eval.translate` are
    translated.

    Args:
        split: "train", "validation" or "test".
        step: of the checkpoint; None: the newest.
        workers: processes that share the work, on the cluster that this one joins or on this machine; 0: this process
            does it. The result is the same, on devices of one kind.
        nearest: also score the texts that retrieval finds, see `NearestPair`.

    Raises:
        UnknownRunError: there is no such run, or it has no such checkpoint.
        InputError: the split is empty, or there is nothing to retrieve for.
    """
    from data.errors import InputError
    from data.feed.held_out import fixed_batches, measure_held_out, pairs_to_translate
    from orchestrator.inference.trained_model import load_trained
    from orchestrator.nodes.ray_session import RayWhenNeeded
    from orchestrator.run.run import feed_spec, open_run, reaching_storage

    with reaching_storage(config) as config:
        run = open_run(config)
        trained = load_trained(config, run, step)
        spec = feed_spec(run, trained.data)
        with RayWhenNeeded(config, lambda line: print(line, file=sys.stderr)) as start_ray:
            batches = fixed_batches(spec, split, start_ray)
            translates = isinstance(trained.model, Seq2Seq) and config.eval.translate
            asked = pairs_to_translate(spec, split, config.eval.translate, start_ray) if translates else None
            if nearest and (asked is None or split == "train"):
                raise InputError(
                    "--nearest is for pairs that the model has not been trained on, and eval.translate > 0."
                )
            retrieved = _nearest(spec, split, config) if nearest else {}
        if not batches:
            raise InputError(
                f"The {split} split is empty: data.validation_fraction = {config.data.validation_fraction}, and "
                f"data.sources have split = {', '.join(source.split for source in config.data.sources)}."
            )
        inputs = [] if asked is None else asked.batches
        if workers:
            from orchestrator.inference.parallel import evaluate_apart

            part = evaluate_apart(run, trained.step, batches, inputs, workers)
        else:
            part = evaluate_part(config, trained, dict(enumerate(batches)), inputs)
    target_tokens, text_bytes = measure_held_out(batches, trained.data.tokenizer.token_bytes)
    scores = {
        "val_tokens": target_tokens,
        "val_bytes": text_bytes,
        **held_out_scores(math.fsum(part.losses.values()), target_tokens, text_bytes),
    }
    if asked is not None:
        scores |= scores_of(part.texts, asked, config)
    if asked is not None and nearest:
        found = scores_of(retrieved, asked, config)
        scores |= {f"val_nearest_{name}": found[f"val_{name}"] for name in ("bleu", "chrf")}
    prefix = {"validation": "val"}.get(split, split)
    named = {f"{prefix}_{name.removeprefix('val_')}": value for name, value in scores.items()}
    weights = "averaged" if trained.averaged else "as trained"
    return {"run": config.run, "step": trained.step, "weights": weights, **named}


def _nearest(spec: FeedSpec, split: str, config: RunConfig) -> dict[int, str]:
    """For every pair that is translated, by its place, the text of the training pair whose input is nearest."""
    from data.feed.held_out import raw_pairs
    from orchestrator.evaluation.retrieval import NearestPair

    asked = islice(raw_pairs(spec, split), config.eval.translate)
    return dict(enumerate(NearestPair(raw_pairs(spec, "train")).texts([read for read, _ in asked])))
