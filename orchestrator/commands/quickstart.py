"""`manta quickstart`: builds a corpus from Python's standard library, trains a model on it, and compares the model."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from data.cleaning.units import documents_of
from data.order.pairs import input_batches
from data.readers.documents import Document
from data.stores.open import open_store
from orchestrator.commands.corpora import SHARDS, documented_functions, modules, write_shards
from orchestrator.config.load import load_recipe
from orchestrator.config.recipe import RunConfig
from orchestrator.console import Console
from orchestrator.driver.train import train
from orchestrator.evaluation.bleu import translation_scores
from orchestrator.evaluation.retrieval import NearestPair
from orchestrator.run.run import Run, open_run, reaching_storage

RECIPES = Path(__file__).parents[2] / "recipes"

RECIPE = RECIPES / "quickstart.yaml"

PRINTED_SUMMARIES = 4
"""Functions whose generated summaries are printed."""


class Quickstart(NamedTuple):
    """A corpus, the recipe that trains on it, and the comparison of the trained model.

    Attributes:
        recipe: path of the recipe.
        documents: yields key and fields of every document.
        what: name of the documents, for the log.
        compare: compares the trained run with a simple baseline, and prints the result.
    """

    recipe: Path
    documents: Callable[[], Iterator[tuple[str, dict[str, Any]]]]
    what: str
    compare: Callable[[Run, Console], None]


def quickstart(name: str = "modules", overrides: tuple[str, ...] = ()) -> None:
    """Builds a corpus of Python's standard library, trains a model on it, and compares it with a simple baseline.

    Args:
        name: a key of QUICKSTARTS.
        overrides: `dotted.name=value` each.

    Raises:
        MantaError: see `orchestrator.errors`.
    """
    chosen, console = QUICKSTARTS[name], Console()
    config = load_recipe(chosen.recipe, overrides)
    console.line("starting the local object store" if config.store.serve else f"object store: {config.storage}")
    with reaching_storage(config) as config:
        make_corpus(config, console, chosen)
        train(config)
        run = open_run(config)
        chosen.compare(run, console)
        console.line(f"the run is stored in {run.store.url_of('')}; to show it again: manta show {config.run}")


def make_corpus(config: RunConfig, console: Console, chosen: Quickstart) -> None:
    """Writes the corpus to the recipe's data source, unless it is there already."""
    store = open_store(config.data.sources[0].path, config.store)
    shards = [info for info in store.list("") if info.key.endswith(".jsonl.zst")]
    if len(shards) == SHARDS:
        console.line(f"corpus: exists, {len(shards)} shards at {config.data.sources[0].path}")
        return
    count, size = write_shards(store, chosen.documents())
    console.line(f"corpus: {count:,} {chosen.what}, {size / 1e6:.1f} MB, in {SHARDS} shards")


def corpus_documents(run: Run, *, for_training: bool) -> Iterator[Document]:
    """Yields the documents that the run was trained on, or those that were held out."""
    prepared = run.prepare(lambda line: None)
    job = prepared.job
    for unit in map(prepared.manifest.unit, range(prepared.manifest.num_units)):
        yield from documents_of(unit, job.data, job.store_config, job.cleaning, for_training=for_training)


def compare_with_compressors(run: Run, console: Console) -> None:
    """Prints the bits per byte of the model, gzip and xz on the held-out files, and samples from the model."""
    config = run.config
    contents = [each.text.encode() for each in corpus_documents(run, for_training=False)]
    size = sum(map(len, contents))
    compressors = {
        "gzip -9, file by file": sum(len(gzip.compress(content, 9)) for content in contents),
        "xz -9, file by file": sum(len(lzma.compress(content, preset=9)) for content in contents),
    }
    table = Table(title=f"{len(contents)} held-out files, {size / 1e6:.2f} MB", title_justify="left")
    table.add_column("")
    table.add_column("bits per byte", justify="right")
    rows = {name: 8 * compressed / size for name, compressed in compressors.items()}
    rows[f"run {config.run}, {run.record.last.step:,} steps"] = run.record.result["val_bits_per_byte"]
    for name, bits in sorted(rows.items(), key=lambda row: -row[1]):
        table.add_row(name, f"{bits:.3f}")
    console.rich.print(table)
    from model.eager import skip_compiler

    skip_compiler()
    from orchestrator.inference.generate import print_samples
    from orchestrator.inference.trained_model import load_trained

    print_samples(load_trained(config, run), config, console)


def compare_with_nearest(run: Run, console: Console) -> None:
    """Prints BLEU and chrF of the model's summaries and of retrieval, and some summaries."""
    config, result = run.config, run.record.result
    if "val_bleu" not in result:
        console.line("no summaries were generated (eval.translate = 0), so there is nothing to compare")
        return
    held_out = list(islice(corpus_documents(run, for_training=False), config.eval.translate))
    known = [(each.input or "", each.text) for each in corpus_documents(run, for_training=True)]
    retrieved = NearestPair(known).texts([each.input or "" for each in held_out])
    nearest = translation_scores(retrieved, [each.text for each in held_out], config.eval.language)
    title = f"{len(held_out)} held-out functions, from modules without training data"
    table = Table(title=title, title_justify="left")
    for column in ("", "BLEU", "chrF"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("summary of the nearest training function", f"{nearest['bleu']:.2f}", f"{nearest['chrf']:.2f}")
    model = f"run {config.run}, {run.record.last.step:,} steps"
    table.add_row(model, f"{result['val_bleu']:.2f}", f"{result['val_chrf']:.2f}")
    console.rich.print(table)
    console.line(f"BLEU signature: {nearest['bleu_signature']}")
    shown = held_out[:: max(1, len(held_out) // PRINTED_SUMMARIES)][:PRINTED_SUMMARIES]
    for each, written in zip(shown, summaries(run, [each.input or "" for each in shown]), strict=True):
        source = (each.input or "").splitlines()
        more = f" … ({len(source)} lines)" if len(source) > 1 else ""
        console.rich.print(source[0] + more, style="bold")
        console.rich.print(f"  model: {written}\n  truth: {each.text}")


def summaries(run: Run, sources: list[str]) -> list[str]:
    """The summaries that the run's newest model generates for functions."""
    from model.eager import skip_compiler

    skip_compiler()
    from model.seq2seq import Seq2Seq
    from orchestrator.evaluation.translate import translate
    from orchestrator.inference.trained_model import load_trained

    trained = load_trained(run.config, run)
    assert isinstance(trained.model, Seq2Seq)
    job, longest = trained.data.job, run.config.data.most_input_tokens
    batches = input_batches(sources, job.encoder_tokenizer, longest, len(sources))
    texts = translate(trained.model, batches, job.tokenizer, run.config)
    return [texts[place] for place in range(len(sources))]


QUICKSTARTS = {
    "modules": Quickstart(RECIPE, modules, "files of Python's standard library", compare_with_compressors),
    "docstrings": Quickstart(
        RECIPES / "docstrings.yaml",
        documented_functions,
        "documented functions of Python's standard library",
        compare_with_nearest,
    ),
}
