"""`manta generate`: generates text with a run's newest model, or with that of an exported folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import Field, ValidationError

from data.config import StoreConfig
from data.errors import InputError
from data.section import Section
from data.tokens.tokenizer import Tokenizer
from model.decoding.beam_search import beam_search
from model.decoding.generate import generate as generate_ids
from model.hf.convert import from_hf_config
from model.seq2seq import Seq2Seq
from model.transformer import Transformer
from orchestrator.config.problems import field_problems, listed, number_problems
from orchestrator.config.recipe import RunConfig
from orchestrator.config.recipe_file import apply_overrides
from orchestrator.config.sections import SampleConfig
from orchestrator.console import Console
from orchestrator.errors import RecipeError
from orchestrator.inference.hf_folder import GENERATION_CONFIG, HfFolder
from orchestrator.inference.trained_model import TrainedModel, load_trained
from orchestrator.run.run import open_run, reaching_storage

BATCH_SIZE = 64
"""Prompts decoded at once; a file of prompts may have thousands."""


class FolderSettings(Section):
    """The sections of a recipe that apply to a folder, which has no recipe."""

    sample: SampleConfig = Field(default_factory=SampleConfig, description="Generated text.")
    store: StoreConfig = Field(default_factory=StoreConfig, description="How to reach object storage.")


def generate(config: RunConfig) -> None:
    """Prints the text that a run's model generates from the recipe's prompts, as `sample.*` says.

    Raises:
        UnknownRunError: there is no such run, or it has no checkpoint yet.
    """
    with reaching_storage(config) as config:
        trained = load_trained(config, open_run(config))
    print_samples(trained, config, Console())


def generate_from(url: str, overrides: Sequence[str]) -> None:
    """Prints the text that the model of an exported folder generates from prompts; needs no run.

    Args:
        url: path or URL of the folder.
        overrides: `sample.NAME=VALUE` and `store.NAME=VALUE`; they override the folder's generation_config.json.

    Raises:
        InputError: there is no such folder, or Manta has no counterpart of its model or vocabulary.
        RecipeError: values are out of range.
    """
    folder = HfFolder.open(url, folder_settings({}, overrides).store)
    settings = folder_settings(folder.sampling(), overrides, f", with the defaults of {folder.url}/{GENERATION_CONFIG}")
    model, tokenizer = folder_model(folder)
    texts = continuations(model, tokenizer, settings.sample)
    _print(folder.url, texts, settings.sample, Console(), apart=isinstance(model, Seq2Seq))


def folder_settings(sampling: dict[str, Any], overrides: Sequence[str], defaults: str = "") -> FolderSettings:
    """Builds a folder's settings from its sampling defaults and the overrides.

    Args:
        defaults: where `sampling` is from, for the message.

    Raises:
        RecipeError: a value is not valid; the message lists all problems.
    """
    document: dict[str, Any] = {"sample": sampling}
    problems = [*apply_overrides(document, overrides), *number_problems(document, FolderSettings)]
    try:
        settings = FolderSettings.model_validate(document)
    except ValidationError as error:
        problems += field_problems(error, FolderSettings)
    if problems:
        raise RecipeError(listed(f"manta generate --from{defaults}", problems))
    return settings


def folder_model(folder: HfFolder) -> tuple[Transformer | Seq2Seq, Tokenizer]:
    """Builds the model of a folder, and its tokenizer.

    Raises:
        InputError: a file is missing, or tokenizer and model do not fit together.
    """
    shape, tokenizer = from_hf_config(folder.fields), folder.tokenizer()
    if tokenizer is None:
        raise InputError(f"{folder.url} has no tokenizer.json, which text needs. Export the run again.")
    if tokenizer.vocab_size > shape.vocab_size:
        raise InputError(
            f"{folder.url}: tokenizer.json has {tokenizer.vocab_size} ids, but the model only {shape.vocab_size} rows. "
            "They belong to different models."
        )
    weights = folder.weights()  # first: they prove that the model is as large as config.json says
    model = shape.build(tokenizer.end_of_text)
    model.load_state_dict(weights)
    return model.eval(), tokenizer


def print_samples(trained: TrainedModel, config: RunConfig, console: Console) -> None:
    """Prints the text generated from every prompt; without prompts, a text from the start."""
    job = trained.data.job
    texts = continuations(trained.model, job.tokenizer, config.sample, job.encoder_tokenizer)
    title = f"step {trained.step}" + (", averaged weights" if trained.averaged else "")
    _print(title, texts, config.sample, console, apart=isinstance(trained.model, Seq2Seq))


def _print(title: str, texts: Sequence[str], sample: SampleConfig, console: Console, *, apart: bool) -> None:
    """Prints every prompt and its text; `apart`: on separate lines, for texts that do not continue the prompt."""
    for prompt, text in zip(sample.prompts or ("",), texts, strict=True):
        console.rich.print(title, style="bold")
        end = "\n" if apart else ""
        if console.rich.is_terminal:
            console.rich.print(prompt, style="bold", end=end, soft_wrap=True)
        else:
            console.verbatim(prompt + end)
        console.verbatim(text + "\n")


def continuations(
    model: Transformer | Seq2Seq, tokenizer: Tokenizer, sample: SampleConfig, encoder_tokenizer: Tokenizer | None = None
) -> Sequence[str]:
    """Generates the continuation of each prompt; for an encoder-decoder, the text for each input.

    Args:
        encoder_tokenizer: tokenizer of an encoder's inputs; None: the same.

    Raises:
        InputError: a prompt is longer than the encoder reads.
    """
    inputs = [_read(prompt, model, encoder_tokenizer or tokenizer) for prompt in sample.prompts or ("",)]
    if sample.beam_size is not None:
        decode = partial(beam_search, beam_size=sample.beam_size, length_penalty=sample.length_penalty)
    else:
        decode = partial(
            generate_ids, temperature=sample.temperature, top_k=sample.top_k, top_p=sample.top_p, seed=sample.seed
        )
    end_of_text, vocab_limit = tokenizer.end_of_text, tokenizer.vocab_size
    texts: list[str] = []
    for start in range(0, len(inputs), BATCH_SIZE):
        batch = inputs[start : start + BATCH_SIZE]
        written = decode(model, batch, sample.max_new_tokens, end_of_text=end_of_text, vocab_limit=vocab_limit)
        texts += [tokenizer.decode(ids) for ids in written]
    return texts


def _read(prompt: str, model: Transformer | Seq2Seq, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a prompt as the model reads it: the beginning of a document, or an encoder's whole input."""
    ids = tokenizer.encode(prompt).tolist()
    if not isinstance(model, Seq2Seq):
        return [tokenizer.end_of_text, *ids]
    if len(ids) >= model.source_len:
        raise InputError(
            f"A prompt of {len(ids) + 1} tokens is longer than the model reads, {model.source_len}. Shorten it."
        )
    return [*ids, tokenizer.end_of_text]
