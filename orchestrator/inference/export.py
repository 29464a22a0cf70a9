"""`manta export`: writes a run's model and tokenizer as a folder that `transformers` loads."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from data.errors import InputError
from data.stores.open import open_store
from data.stores.store import Store
from data.tokens.hf_tokenizer import to_tokenizer_config, to_tokenizer_json
from model.hf.architecture import ModelShape, NoSuchModelError
from model.hf.convert import to_hf_config, to_hf_weights
from model.seq2seq import Seq2Seq
from orchestrator.config.recipe import RunConfig
from orchestrator.config.sections import SampleConfig
from orchestrator.console import Console
from orchestrator.inference.hf_folder import CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS
from orchestrator.inference.trained_model import TrainedModel, load_trained
from orchestrator.run.run import Run, open_run, reaching_storage, refuse_changed_config

CARD = "README.md"


def export(config: RunConfig, to: str, step: int | None = None) -> None:
    """Writes a run's model into a new folder, and prints how to load it.

    Args:
        to: path or URL of the folder, which must be empty or missing.
        step: step of the checkpoint; None: the newest.

    Raises:
        UnknownRunError: there is no such run, or no such checkpoint.
        InputError: the model has no exact counterpart in transformers, or the folder is not empty.
        ConfigChangedError: the recipe differs from the run's.
    """
    console = Console()
    with reaching_storage(config) as config:
        run = open_run(config)
        refuse_changed_config(run.record, config)
        target = open_store(to, config.store)
        if next(iter(target.list()), None) is not None:
            raise InputError(f"--to {to}: the folder is not empty. Name one that does not exist yet.")
        trained = load_trained(config, run, step)
        write_folder(target, trained, config, card(run, trained))
    console.line(f"run {config.run!r}, step {trained.step}: written to {target.url_of()}")
    elsewhere = "" if "://" in to else f"load it with {loader(trained)}.from_pretrained({to!r}), or "
    console.line(f"{elsewhere}manta generate --from {to}")


def loader(trained: TrainedModel) -> str:
    """The class of transformers that loads the model."""
    return "AutoModelForSeq2SeqLM" if isinstance(trained.model, Seq2Seq) else "AutoModelForCausalLM"


def write_folder(target: Store, trained: TrainedModel, config: RunConfig, model_card: str) -> None:
    """Writes all files, config.json last, so that an incomplete folder is not taken for a model.

    Raises:
        InputError: the model has no exact counterpart in transformers.
        TokenizerError: the vocabulary has none.
    """
    model, tokenizer = trained.model, trained.data.tokenizer
    shape = ModelShape.of(model)
    if shape.input_vocab_size is not None:
        raise InputError(
            f"data.input_tokenizer: inputs have a vocabulary of their own, and a folder has one {TOKENIZER}."
        )
    try:
        fields = to_hf_config(shape, tokenizer.end_of_text)
    except NoSuchModelError as error:
        raise InputError(str(error)) from None
    with tempfile.TemporaryDirectory(prefix="manta-export-") as scratch:
        path = Path(scratch) / WEIGHTS
        save_file(to_hf_weights(shape, model.state_dict()), path, {"format": "pt"})
        target.put_file(WEIGHTS, path)
    target.put(TOKENIZER, to_tokenizer_json(tokenizer, closes_texts=shape.source_len is not None))
    sampling = generation_config(config.sample, tokenizer.end_of_text, range(tokenizer.vocab_size, shape.vocab_size))
    for name, content in ((TOKENIZER_CONFIG, to_tokenizer_config(model.seq_len)), (GENERATION_CONFIG, sampling)):
        target.put(name, _json(content))
    target.put(CARD, model_card.encode())
    target.put(CONFIG, _json(fields))


def generation_config(sample: SampleConfig, end_of_text: int, padding: range) -> dict[str, Any]:
    """Content of generation_config.json: the recipe's `sample`, as arguments of transformers' `generate`.

    Args:
        padding: rows of the embedding without a token, which must not be generated.
    """
    sampled = {
        "do_sample": True,
        "temperature": sample.temperature,
        "top_k": sample.top_k or 0,
        "top_p": sample.top_p or 1.0,
    }
    greedy = {"do_sample": False} | ({"num_beams": sample.beam_size} if sample.beam_size else {})
    return {
        **(sampled if sample.temperature > 0 and sample.beam_size is None else greedy),
        "max_new_tokens": sample.max_new_tokens,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "decoder_start_token_id": end_of_text,  # read for encoder-decoders only
        **({"suppress_tokens": list(padding)} if padding else {}),
    }


def card(run: Run, trained: TrainedModel) -> str:
    """The model card, in Markdown: training steps, held-out loss, and how to generate text."""
    config, tokenizer = run.config, trained.data.tokenizer
    loss = run.record.result.get("val_loss") if trained.step == config.train.steps else None
    score = f" Held-out loss {loss:.4f}." if loss is not None else ""
    apart = (
        ""
        if config.model.cross_document_attention
        else "\nAttention did not cross documents in training: give the model one document at a time.\n"
    )
    begins = (
        f"A text begins with end-of-text (id {tokenizer.end_of_text}), which the tokenizer does not put there by itself"
    )
    call = 'tokenizer(tokenizer.bos_token + prompt, split_special_tokens=False, return_tensors="pt")'
    if isinstance(trained.model, Seq2Seq):
        begins = f"The tokenizer closes inputs with end-of-text (id {tokenizer.end_of_text}), as the model was trained"
        call = 'tokenizer(input, return_tensors="pt")'
    return f"""# {config.run}

Trained by Manta for {trained.step:,} of {config.train.steps:,} steps.{score}

{begins}:

```python
from transformers import {loader(trained)}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = {loader(trained)}.from_pretrained(FOLDER)
ids = {call}
print(tokenizer.decode(model.generate(**ids)[0], skip_special_tokens=True))
```
{apart}"""


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode()
