"""`manta quickstart`: from nothing to a trained, evaluated model on this machine, on text every machine has."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from data.order.pairs import input_batches
from data.readers.documents import Document
from data.stores.open import open_store
from data.tokens.unit import documents_of
from orchestrator.commands.corpora import SHARDS, documented_functions, modules, write_shards
from orchestrator.config.load import load_recipe
from orchestrator.config.recipe import RunConfig
from orchestrator.console import Console
from orchestrator.driver.train import train
from orchestrator.evaluation.retrieval import NearestPair
from orchestrator.evaluation.scores import translation_scores
from orchestrator.run.run import Run, open_run, reaching_storage

RECIPES = Path(__file__).parent.parent / "recipes"

RECIPE = RECIPES / "quickstart.yaml"

SHOWN = 4
"""Summaries of functions that are printed."""


class Quickstart(NamedTuple):
    """A corpus, the recipe that trains on it, and what the outcome is held against."""

    recipe: Path
    documents: Callable[[], Iterator[tuple[str, dict[str, Any]]]]
    what: str
    judge: Callable[[Run, Console], None]


def quickstart(name: str = "modules", overrides: tuple[str, ...] = ()) -> None:
    """Make a corpus of Python's standard library, train a model on it and hold it against something simpler.

    Args:
        name: of QUICKSTARTS.

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
        chosen.judge(run, console)
        console.line(f"kept in {run.store.url_of('')}; see it again with `manta show {config.run}`")


def make_corpus(config: RunConfig, console: Console, chosen: Quickstart) -> None:
    """Write the corpus where the recipe has it; once."""
    store = open_store(config.data.sources[0].path, config.store)
    there = [info for info in store.list("") if info.key.endswith(".jsonl.zst")]
    if len(there) == SHARDS:
        console.line(f"corpus: there already, {len(there)} shards at {config.data.sources[0].path}")
        return
    count, size = write_shards(store, chosen.documents())
    console.line(f"corpus: {count:,} {chosen.what}, {size / 1e6:.1f} MB, in {SHARDS} shards")


def corpus_documents(run: Run, *, for_training: bool) -> Iterator[Document]:
    """The documents the run is pinned to: those it was trained on, or those held out."""
    prepared = run.prepare(lambda line: None)
    job = prepared.job
    for unit in map(prepared.manifest.unit, range(prepared.manifest.num_units)):
        yield from documents_of(unit, job.data, job.store_config, job.cleaning, for_training=for_training)


def compare_with_compressors(run: Run, console: Console) -> None:
    """Print the model's bits per byte on the held-out files beside those of gzip and xz, and samples of it."""
    config = run.config
    contents = [each.text.encode() for each in corpus_documents(run, for_training=False)]
    size = sum(map(len, contents))
    compressors = {
        "gzip -9, each file by itself": sum(len(gzip.compress(content, 9)) for content in contents),
        "xz -9, each file by itself": sum(len(lzma.compress(content, preset=9)) for content in contents),
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
    """Print BLEU and chrF of the model's summaries beside those of retrieval, and some summaries."""
    config, result = run.config, run.record.result
    if "val_bleu" not in result:
        console.line("nothing was translated (eval.translate = 0), so there is nothing to compare")
        return
    held_out = list(islice(corpus_documents(run, for_training=False), config.eval.translate))
    known = [(each.input or "", each.text) for each in corpus_documents(run, for_training=True)]
    retrieved = NearestPair(known).texts([each.input or "" for each in held_out])
    nearest = translation_scores(retrieved, [each.text for each in held_out], config.eval.language)
    title = f"{len(held_out)} held-out functions, of modules none of which was trained on"
    table = Table(title=title, title_justify="left")
    for column in ("", "BLEU", "chrF"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("summary of the nearest known function", f"{nearest['bleu']:.2f}", f"{nearest['chrf']:.2f}")
    model = f"run {config.run}, {run.record.last.step:,} steps"
    table.add_row(model, f"{result['val_bleu']:.2f}", f"{result['val_chrf']:.2f}")
    console.rich.print(table)
    console.line(f"BLEU is {nearest['bleu_signature']}")
    shown = held_out[:: max(1, len(held_out) // SHOWN)][:SHOWN]
    for each, written in zip(shown, summaries(run, [each.input or "" for each in shown]), strict=True):
        source = (each.input or "").splitlines()
        more = f" … ({len(source)} lines)" if len(source) > 1 else ""
        console.rich.print(source[0] + more, style="bold", markup=False, highlight=False)
        console.rich.print(f"  model: {written}\n  truth: {each.text}", markup=False, highlight=False)


def summaries(run: Run, sources: list[str]) -> list[str]:
    """What the run's newest model writes for functions."""
    from model.eager import skip_compiler

    skip_compiler()
    from model.seq2seq import Seq2Seq
    from orchestrator.evaluation.translate import translate
    from orchestrator.inference.trained_model import load_trained

    trained = load_trained(run.config, run)
    assert isinstance(trained.model, Seq2Seq)
    job, longest = trained.data.job, run.config.data.most_input_tokens
    batches = input_batches(sources, job.reads_with, longest, len(sources))
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
