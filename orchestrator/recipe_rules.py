"""What must hold between fields of a recipe that are each right by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.config import RunConfig

# Entries of the "bytes" vocabulary: every byte, and end-of-text.
BYTES_VOCAB_SIZE = 257


def contradictions(config: RunConfig) -> Iterator[str]:
    """Problems between fields that are each right by themselves.

    A rule that reads a field which `config` does not have is passed over, so that the valid part of a wrong
    recipe can be checked too.
    """
    for rule in (
        _batch_divides,
        _workers_in_order,
        _workers_have_work,
        _schedule_fits,
        _vocabulary_fits,
        _inputs_have_a_vocabulary,
        _shape_fits_data,
        _evaluation_has_text,
    ):
        try:
            problem = rule(config)
        except AttributeError:
            continue
        if problem:
            yield problem


def _batch_divides(config: RunConfig) -> str | None:
    size, micro = config.train.global_batch_size, config.train.micro_batch_size
    whole, left = divmod(size, micro)
    if not left:
        return None
    nearest = ", ".join(str(n * micro) for n in (whole, whole + 1) if n)
    return (
        f"train.global_batch_size = {size}: not a multiple of train.micro_batch_size = {micro} "
        f"({whole} micro-batches and {left} sequences over). Nearest that are: {nearest}. "
        "It is never rounded: that would be another experiment."
    )


def _workers_in_order(config: RunConfig) -> str | None:
    scaling = config.scaling
    fewest, most = scaling.min_workers or scaling.num_workers, scaling.max_workers or scaling.num_workers
    if fewest <= most:
        return None
    lower = "min_workers" if scaling.min_workers else "num_workers"
    upper = "max_workers" if scaling.max_workers else "num_workers"
    return (
        f"scaling.{lower} = {fewest}: more than scaling.{upper} = {most}. "
        f"Set scaling.min_workers and scaling.max_workers so that the first is not above the second."
    )


def _workers_have_work(config: RunConfig) -> str | None:
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


def _schedule_fits(config: RunConfig) -> str | None:
    schedule, steps = config.train.schedule, config.train.steps
    if schedule.warmup_steps >= steps:
        return (
            f"train.schedule.warmup_steps = {schedule.warmup_steps}: not shorter than the run, train.steps = {steps}; "
            f"the peak would never be reached. At most {steps - 1}."
        )
    decay = schedule.decay_steps or 0
    if schedule.warmup_steps + decay > steps:
        return (
            f"train.schedule.decay_steps = {decay}: with train.schedule.warmup_steps = {schedule.warmup_steps} "
            f"longer than the run, train.steps = {steps}. At most {steps - schedule.warmup_steps}."
        )
    return None


def _vocabulary_fits(config: RunConfig) -> str | None:
    rows, tokenizer = config.model.vocab_size, config.data.tokenizer
    tokens = {"bpe": tokenizer.vocab_size, "bytes": BYTES_VOCAB_SIZE}.get(tokenizer.kind)
    if rows is None or tokens is None or tokens <= rows or tokenizer.path is not None:  # a file's size is seen later
        return None
    by = "data.tokenizer.vocab_size =" if tokenizer.kind == "bpe" else "data.tokenizer.kind = bytes gives"
    return (
        f"model.vocab_size = {rows}: fewer rows than the tokenizer has tokens, {by} {tokens}. "
        f"At least {tokens}, or null for what fits."
    )


def _inputs_have_a_vocabulary(config: RunConfig) -> str | None:
    rows = config.model.input_vocab_size
    if rows is None or config.data.input_tokenizer is not None:
        return None
    return (
        f"model.input_vocab_size = {rows}: inputs share the vocabulary of texts, and its rows. "
        f"Set data.input_tokenizer to give them one of their own, or leave it null."
    )


def _shape_fits_data(config: RunConfig) -> str | None:
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


def _evaluation_has_text(config: RunConfig) -> str | None:
    every, splits = config.eval.every_steps, {source.split for source in config.data.sources}
    has_held_out = "validation" in splits or ("hash" in splits and config.data.validation_fraction > 0)
    if every is None or has_held_out:
        return None
    why = "data.validation_fraction = 0" if "hash" in splits else "no source has split: hash or validation"
    return (
        f"eval.every_steps = {every}: nothing is held out to evaluate on, {why}. "
        "Hold some out (0.01 is usual), or leave eval.every_steps null."
    )
