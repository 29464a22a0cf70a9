"""Initial weights of a run with `train.init_from`: checks them against the recipe, pins their digest, stores a copy.

    init/<sha256>.safetensors      weights under our parameter names, in the run's folder; immutable

The driver reads the Hugging Face folder and stores a copy with the run. Workers get the copy through their node's
snapshot agent, before step 0; later steps do not need it. So the folder may be deleted once the run has begun, but it
may not change: a run is a function of its config, its data and its seed.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from data.errors import TokenizerError
from data.stores.open import open_store
from data.tokens.tokenizer import Tokenizer
from model.config import ModelConfig
from model.hf.architecture import ModelShape
from model.hf.convert import ARCHITECTURES, from_hf_config
from orchestrator.config.recipe import RunConfig
from orchestrator.errors import InitialWeightsError
from orchestrator.inference.hf_folder import CONFIG, TOKENIZER, HfFolder
from orchestrator.run.job import initial_weights_key
from orchestrator.run.run import Run
from orchestrator.run.vocabulary import vocabulary_of

# Fields that must agree in folder and recipe, defaults filled in: attribute of ModelConfig, and field of the recipe.
_SHAPE_FIELDS = {
    "architecture": "architecture",
    "preset": "preset",
    "position_kind": "positions",
    "norm_kind": "norm",
    "n_layers": "n_layers",
    "encoder_layers": "n_encoder_layers",
    "d_model": "d_model",
    "n_heads": "n_heads",
    "kv_heads": "n_kv_heads",
    "ff_width": "d_ff",
    "tie_embeddings": "tie_embeddings",
}


def pin_initial_weights(run: Run, tokenizer: Tokenizer, log: Callable[[str], object]) -> str | None:
    """Stores the weights that the run starts from in its folder.

    Args:
        run: if it has begun, its record has the digest that the weights must have.
        tokenizer: that of the run.
        log: receives lines for the console.

    Returns:
        their sha256, to be pinned; None for a run with random initial weights.

    Raises:
        InitialWeightsError: they do not fit the recipe, or differ from those that the run began with.
        InputError: the folder cannot be read.
    """
    config, pinned = run.config, run.record.init
    if config.train.init_from is None:
        return None
    source = open_store(config.train.init_from, config.store)
    if pinned is not None and source.head(CONFIG) is None and run.store.head(initial_weights_key(pinned)) is not None:
        log(f"initial weights: {source.url_of()} no longer exists; using the run's own copy.")
        return pinned
    folder = checked_folder(config, tokenizer, log)
    weights = folder.weights()
    if "positions.weight" in weights:
        weights["positions.weight"] = weights["positions.weight"][: config.data.seq_len].contiguous()
    with tempfile.TemporaryDirectory(prefix="manta-init-") as scratch:
        path = Path(scratch) / "init.safetensors"
        save_file(weights, path)
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if pinned not in (None, digest):
            raise InitialWeightsError(
                f"train.init_from = {config.train.init_from}: its weights have sha256 {digest}, and run {config.run!r} "
                f"began with {pinned}. Put those back to continue it, or choose another `run:` name (--set run=…)."
            )
        if run.store.head(initial_weights_key(digest)) is None:
            run.store.put_file(initial_weights_key(digest), path)
    hf_class = ARCHITECTURES[folder.fields["model_type"]].hf_class
    log(f"initial weights: {hf_class} of {folder.url}, sha256 {digest[:12]}…")
    return digest


def checked_folder(
    config: RunConfig, tokenizer: Tokenizer, log: Callable[[str], object] = lambda line: None
) -> HfFolder:
    """Opens the folder `train.init_from` and checks its model and vocabulary against the recipe.

    Raises:
        InitialWeightsError: they differ; lists all differences.
        InputError: the folder cannot be read, or its architecture is not supported.
    """
    assert config.train.init_from is not None
    folder = HfFolder.open(config.train.init_from, config.store)
    problems = [*shape_differences(from_hf_config(folder.fields), config, tokenizer), *_vocabulary(folder, tokenizer)]
    if problems:
        raise InitialWeightsError(
            "\n".join(
                [
                    f"train.init_from = {config.train.init_from}: the folder does not fit this recipe:",
                    *(f"  {problem}" for problem in problems),
                    "Give the recipe the folder's values, or choose another folder.",
                ]
            )
        )
    if folder.store.head(TOKENIZER) is None:
        log(f"initial weights: {folder.url} has no {TOKENIZER}, so it cannot be checked that token ids mean the same.")
    return folder


def shape_differences(theirs: ModelShape, config: RunConfig, tokenizer: Tokenizer) -> Iterator[str]:
    """Describes each field in which a folder's model differs from the recipe's, one line each."""
    both_rotate = config.model.position_kind == theirs.config.position_kind == "rotary"
    for name, field in (_SHAPE_FIELDS | ({"rope_theta": "rope_theta"} if both_rotate else {})).items():
        there, here = _value(theirs.config, name), _value(config.model, name)
        if there != here:
            yield f"model.{field}: {there} in the folder, {here} in the recipe"
    rows = vocabulary_of(config, tokenizer).rows
    if theirs.vocab_size != rows:
        null = " (null: as many as the tokenizer needs)" if config.model.vocab_size is None else ""
        yield f"model.vocab_size: {theirs.vocab_size} in the folder, {rows} in the recipe{null}"
    if theirs.input_vocab_size is not None:
        yield "data.input_tokenizer: the folder has a separate vocabulary for inputs, but only one tokenizer"
    # Rotary positions have no weights, and learned ones may be truncated.
    if theirs.config.preset == "gpt2" and theirs.seq_len < config.data.seq_len:
        yield f"data.seq_len: {theirs.seq_len} in the folder, {config.data.seq_len} in the recipe; at most the folder's"


def _value(config: ModelConfig, name: str) -> Any:
    return ("pre" if config.pre_norm else "post") if name == "norm_kind" else getattr(config, name)


def _vocabulary(folder: HfFolder, tokenizer: Tokenizer) -> Iterator[str]:
    try:
        theirs = folder.tokenizer()
    except TokenizerError as error:
        yield str(error).replace("\n", "\n  ")
        return
    if theirs is not None and theirs != tokenizer:
        yield (
            f"data.tokenizer: the folder's {theirs.kind} vocabulary of {theirs.vocab_size:,} is not the recipe's "
            f"{tokenizer.kind} vocabulary of {tokenizer.vocab_size:,}; set data.tokenizer.path: "
            f"{folder.store.url_of(TOKENIZER)}"
        )
