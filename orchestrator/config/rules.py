"""The rules of a recipe: conditions between fields that are each valid by themselves.

A rule declares the fields it reads, so that the valid part of a wrong recipe can be checked too: a rule is skipped
where one of its fields is missing. `tests/orchestrator/config/test_rules.py` holds the declarations to what is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from data.config import DataConfig
from model.config import ModelConfig
from orchestrator.config.sections import EvalConfig, ScalingConfig, TrainConfig

BYTES_VOCAB_SIZE = 257
"""Tokens of the "bytes" vocabulary: every byte, and end-of-text."""


class RecipeFields(Protocol):
    """The sections that rules read. A `RunConfig` has them, and so has the valid part of a wrong recipe."""

    @property
    def train(self) -> TrainConfig: ...

    @property
    def scaling(self) -> ScalingConfig: ...

    @property
    def data(self) -> DataConfig: ...

    @property
    def model(self) -> ModelConfig: ...

    @property
    def eval(self) -> EvalConfig: ...


Check = Callable[[RecipeFields], str | None]
"""Returns the problem with its remedy, or None where the rule holds."""


@dataclass(frozen=True)
class Rule:
    """A condition between fields.

    Attributes:
        reads: dotted names of the fields that `problem` reads.
        problem: the check itself.
    """

    reads: tuple[str, ...]
    problem: Check


RULES: list[Rule] = []


def contradictions(config: RecipeFields) -> Iterator[str]:
    """Yields the problems of all rules whose fields `config` has."""
    for rule in RULES:
        if all(_has(config, name) for name in rule.reads) and (problem := rule.problem(config)):
            yield problem


def _has(section: Any, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(section, part):
            return False
        section = getattr(section, part)
    return True


def _rule(*reads: str) -> Callable[[Check], Check]:
    """Decorator: adds the function to RULES as a rule that reads these fields."""

    def add(problem: Check) -> Check:
        RULES.append(Rule(reads, problem))
        return problem

    return add


@_rule("train.global_batch_size", "train.micro_batch_size")
def _batch_divides(config: RecipeFields) -> str | None:
    size, micro = config.train.global_batch_size, config.train.micro_batch_size
    whole, left = divmod(size, micro)
    if not left:
        return None
    nearest = ", ".join(str(n * micro) for n in (whole, whole + 1) if n)
    return (
        f"train.global_batch_size = {size}: not a multiple of train.micro_batch_size = {micro} "
        f"({whole} micro-batches and {left} sequences left over). Nearest that are: {nearest}. "
        "It is never rounded: that would be another experiment."
    )


@_rule("scaling.num_workers", "scaling.min_workers", "scaling.max_workers")
def _workers_in_order(config: RecipeFields) -> str | None:
    scaling = config.scaling
    min_workers, max_workers = scaling.min_workers or scaling.num_workers, scaling.max_workers or scaling.num_workers
    if min_workers <= max_workers:
        return None
    lower = "min_workers" if scaling.min_workers else "num_workers"
    upper = "max_workers" if scaling.max_workers else "num_workers"
    return (
        f"scaling.{lower} = {min_workers}: more than scaling.{upper} = {max_workers}. "
        "Set scaling.min_workers to at most scaling.max_workers."
    )


@_rule("scaling.gpus_per_worker", "scaling.num_workers", "scaling.max_workers")
def _gpus_are_shared_evenly(config: RecipeFields) -> str | None:
    gpus, workers = config.scaling.gpus_per_worker, config.scaling.max_workers or config.scaling.num_workers
    if gpus in (0, 1):
        return None
    share = 10_000 // round(1 / gpus) / 10_000  # Ray counts in steps of 0.0001
    if not 0.99 * share <= gpus <= share:
        return (
            f"scaling.gpus_per_worker = {gpus:g}: a GPU is shared by equal parts, and cannot lend what is left over. "
            f"Nearest: {share:g}."
        )
    if workers > 1:
        return (
            f"scaling.gpus_per_worker = {gpus:g}: with {workers} workers, two of them could be on one GPU, which NCCL "
            "refuses. Set scaling.num_workers and scaling.max_workers to 1, or scaling.gpus_per_worker to 1."
        )
    return None


@_rule("scaling.num_workers", "scaling.max_workers", "train.global_batch_size", "train.micro_batch_size")
def _workers_have_work(config: RecipeFields) -> str | None:
    workers = config.scaling.max_workers or config.scaling.num_workers
    name = "max_workers" if config.scaling.max_workers else "num_workers"
    per_step, left = divmod(config.train.global_batch_size, config.train.micro_batch_size)
    if left or workers <= per_step:
        return None
    return (
        f"scaling.{name} = {workers}: more than the {per_step} micro-batches of a step "
        f"(train.global_batch_size / train.micro_batch_size), so some workers would have nothing to do. "
        f"At most {per_step}, or a smaller train.micro_batch_size."
    )


@_rule("train.steps", "train.schedule.warmup_steps", "train.schedule.decay_steps")
def _schedule_fits(config: RecipeFields) -> str | None:
    schedule, steps = config.train.schedule, config.train.steps
    if schedule.warmup_steps >= steps:
        return (
            f"train.schedule.warmup_steps = {schedule.warmup_steps}: not shorter than the run, train.steps = {steps}, "
            f"so the peak learning rate would never be reached. At most {steps - 1}."
        )
    decay = schedule.decay_steps or 0
    if schedule.warmup_steps + decay > steps:
        return (
            f"train.schedule.decay_steps = {decay}: with train.schedule.warmup_steps = {schedule.warmup_steps} "
            f"longer than the run, train.steps = {steps}. At most {steps - schedule.warmup_steps}."
        )
    return None


@_rule("model.vocab_size", "data.tokenizer.kind", "data.tokenizer.vocab_size", "data.tokenizer.path")
def _vocabulary_fits(config: RecipeFields) -> str | None:
    rows, tokenizer = config.model.vocab_size, config.data.tokenizer
    if tokenizer.path is not None:  # the size of a tokenizer's file is known only once it is read
        return None
    tokens = {"bpe": tokenizer.vocab_size, "bytes": BYTES_VOCAB_SIZE}.get(tokenizer.kind)
    if rows is None or tokens is None or tokens <= rows:
        return None
    by = "data.tokenizer.vocab_size =" if tokenizer.kind == "bpe" else "data.tokenizer.kind = bytes gives"
    return (
        f"model.vocab_size = {rows}: fewer rows than the tokenizer has tokens, {by} {tokens}. "
        f"At least {tokens}, or null, which takes as many rows as there are tokens."
    )


@_rule("model.input_vocab_size", "data.input_tokenizer")
def _inputs_have_a_vocabulary(config: RecipeFields) -> str | None:
    rows = config.model.input_vocab_size
    if rows is None or config.data.input_tokenizer is not None:
        return None
    return (
        f"model.input_vocab_size = {rows}: inputs and texts share one vocabulary and its rows. "
        "Set data.input_tokenizer to give inputs a vocabulary of their own, or leave model.input_vocab_size null."
    )


@_rule("model.architecture", "data.sources")
def _architecture_fits_data(config: RecipeFields) -> str | None:
    has_encoder = config.model.architecture == "encoder_decoder"
    has_pairs = any(source.has_pairs for source in config.data.sources)
    if has_encoder == has_pairs:
        return None
    if has_encoder:
        return (
            "model.architecture = encoder_decoder: its encoder has nothing to read. "
            "Set input_column or input_path for data.sources, or leave model.architecture at decoder."
        )
    return (
        "model.architecture = decoder: the inputs of data.sources would not be read. "
        "Set model.architecture to encoder_decoder, or leave input_column and input_path out."
    )


@_rule("eval.every_steps", "data.sources", "data.validation_fraction")
def _evaluation_has_text(config: RecipeFields) -> str | None:
    every, splits = config.eval.every_steps, {source.split for source in config.data.sources}
    has_held_out = "validation" in splits or ("hash" in splits and config.data.validation_fraction > 0)
    if every is None or has_held_out:
        return None
    why = "data.validation_fraction = 0" if "hash" in splits else "no source has split: hash or validation"
    return (
        f"eval.every_steps = {every}: no text is held out to evaluate on, {why}. "
        "Hold some out (0.01 is usual), or leave eval.every_steps null."
    )
