"""`manta eval`: scores a checkpoint on a split of the run's data."""

from __future__ import annotations

import math
import sys
from itertools import islice
from typing import Any

from data.errors import InputError
from data.feed.held_out import fixed_batches, measure_held_out, pairs_to_translate, raw_pairs
from data.feed.spec import FeedSpec, ToTranslate
from orchestrator.config.portability import refuse_keys_for_nodes
from orchestrator.config.recipe import RunConfig
from orchestrator.evaluation.retrieval import NearestPair
from orchestrator.evaluation.scores import held_out_scores
from orchestrator.evaluation.translate import scores_of_texts
from orchestrator.inference.parallel import Part, evaluate_in_tasks, evaluate_part
from orchestrator.inference.trained_model import load_trained
from orchestrator.nodes.ray_session import RaySession
from orchestrator.printable import printable
from orchestrator.run.run import feed_spec, open_run, reaching_storage


def evaluate(
    config: RunConfig, split: str = "validation", step: int | None = None, workers: int = 0, *, nearest: bool = False
) -> dict[str, Any]:
    """Scores a checkpoint of the recipe's run on a split of its data.

    Loss is over the first `data.validation_sequences` samples of the split, BLEU over the first `eval.translate` pairs.

    Args:
        split: "train", "validation" or "test".
        step: step of the checkpoint; None: the newest.
        workers: tasks that share the work, on the cluster that this process joins or on this machine; 0: this process
            does all. The result is the same on devices of one kind.
        nearest: whether to score the texts of the nearest training pairs too, see `NearestPair`.

    Raises:
        UnknownRunError: there is no such run, or it has no such checkpoint.
        InputError: the split is empty, or `nearest` is asked for where nothing is translated.
    """
    refuse_keys_for_nodes(config)
    with reaching_storage(config) as config:
        run = open_run(config)
        trained = load_trained(config, run, step)
        spec = feed_spec(run, trained.data)
        with RaySession(config, lambda line: print(printable(line), file=sys.stderr)) as start_ray:
            batches = fixed_batches(spec, split, start_ray)
            translates = config.data.has_pairs and config.eval.translate
            pairs = pairs_to_translate(spec, split, config.eval.translate, start_ray) if translates else None
            if nearest and (pairs is None or split == "train"):
                raise InputError(
                    "--nearest is for pairs that the model has not been trained on, and eval.translate > 0."
                )
            retrieved = _nearest_texts(spec, split, config.eval.translate) if nearest else {}
        if not batches:
            raise InputError(
                f"The {split} split is empty: data.validation_fraction = {config.data.validation_fraction}, and "
                f"data.sources have split = {', '.join(source.split for source in config.data.sources)}."
            )
        inputs = [] if pairs is None else pairs.batches
        if workers:
            part = evaluate_in_tasks(run, trained.step, batches, inputs, workers)
        else:
            part = evaluate_part(config, trained, dict(enumerate(batches)), inputs)
    sizes = measure_held_out(batches, trained.data.tokenizer.token_bytes)
    scores = _scores(part, sizes, pairs, retrieved, config)
    prefix = {"validation": "val"}.get(split, split)
    named = {f"{prefix}_{name.removeprefix('val_')}": value for name, value in scores.items()}
    weights = "averaged" if trained.averaged else "as trained"
    return {"run": config.run, "step": trained.step, "weights": weights, **named}


def _scores(
    part: Part, sizes: tuple[int, int], pairs: ToTranslate | None, retrieved: dict[int, str], config: RunConfig
) -> dict[str, Any]:
    """All scores by name, `val_...`.

    Args:
        sizes: target tokens and bytes of text in the split.
        retrieved: texts of the nearest training pairs, by position; {} for no scores of them.
    """
    target_tokens, text_bytes = sizes
    scores: dict[str, Any] = {
        "val_tokens": target_tokens,
        "val_bytes": text_bytes,
        **held_out_scores(math.fsum(part.losses.values()), target_tokens, text_bytes),
    }
    if pairs is not None:
        scores |= scores_of_texts(part.texts, pairs, config)
        if retrieved:
            found = scores_of_texts(retrieved, pairs, config)
            scores |= {f"val_nearest_{name}": found[f"val_{name}"] for name in ("bleu", "chrf")}
    return scores


def _nearest_texts(spec: FeedSpec, split: str, count: int) -> dict[int, str]:
    """For each of the first `count` pairs of the split, by position, the text of the nearest training pair."""
    inputs = [read for read, _ in islice(raw_pairs(spec, split), count)]
    return dict(enumerate(NearestPair(raw_pairs(spec, "train")).texts(inputs)))
