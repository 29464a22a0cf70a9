"""`manta generate`: text from a run's newest model."""

from __future__ import annotations

from collections.abc import Sequence

from data.pairs import input_batches
from model.generate import generate as generate_ids
from model.seq2seq import Seq2Seq
from orchestrator.config import RunConfig
from orchestrator.console import Console
from orchestrator.run import open_run, reaching_storage
from orchestrator.trained_model import TrainedModel, load_trained


def generate(config: RunConfig) -> None:
    """Print what the model makes of the recipe's prompts, `sample.*` deciding how.

    Raises:
        UnknownRunError: there is no such run, or it has no checkpoint yet.
    """
    with reaching_storage(config) as config:
        trained = load_trained(config, open_run(config))
    print_samples(trained, config, Console())


def print_samples(trained: TrainedModel, config: RunConfig, console: Console) -> None:
    """A continuation of every prompt; without prompts, of nothing. Of an encoder-decoder, what it makes of them."""
    origin = f"step {trained.step}" + (", averaged weights" if trained.averaged else "")
    for prompt, text in zip(config.sample.prompts or ("",), continuations(trained, config), strict=True):
        console.rich.print(f"[bold]{origin}[/]", highlight=False)
        console.rich.print(prompt, style="bold", end="", markup=False, highlight=False)
        console.rich.print(text, markup=False, highlight=False)


def continuations(trained: TrainedModel, config: RunConfig) -> Sequence[str]:
    """The text generated after each of the recipe's prompts."""
    sample, tokenizer = config.sample, trained.data.tokenizer
    written = generate_ids(
        trained.model,
        [_ids_of(prompt, trained, config) for prompt in sample.prompts or ("",)],
        sample.max_new_tokens,
        temperature=sample.temperature,
        top_k=sample.top_k,
        top_p=sample.top_p,
        seed=sample.seed,
        end_of_text=tokenizer.end_of_text,
        vocab_limit=tokenizer.vocab_size,
    )
    return [tokenizer.decode(ids) for ids in written]


def _ids_of(prompt: str, trained: TrainedModel, config: RunConfig) -> list[int]:
    """A prompt as the model reads it: the beginning of a document, or an encoder's whole input."""
    job = trained.data.job
    if isinstance(trained.model, Seq2Seq):
        [batch] = input_batches([prompt], job.reads_with, config.data.most_input_tokens, 1)
        return batch.inputs[0]
    return [job.tokenizer.end_of_text, *job.tokenizer.encode(prompt).tolist()]
