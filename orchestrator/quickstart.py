"""`manta quickstart`: from nothing to a trained, evaluated model on this machine, on text every machine has."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import zstandard
from rich.table import Table

from data.manifest import Manifest
from data.open_store import open_store
from data.readers import read_documents
from data.tokenized_unit import is_held_out
from orchestrator.config import RunConfig, load_recipe
from orchestrator.console import Console
from orchestrator.run import Run, open_run, reaching_storage, train

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"

SHARDS = 24
"""Shards of the corpus: enough to be shuffled and read side by side, few enough to be listed at a glance."""

# Tests and generated tables are much of the library, little like the rest, and not installed everywhere.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data", "encodings"}


def quickstart(overrides: tuple[str, ...] = ()) -> None:
    """Make a corpus of Python's standard library, train the recipe's model on it and hold it against compressors.

    Raises:
        MantaError: see `orchestrator.errors`.
    """
    console = Console()
    config = load_recipe(RECIPE, overrides)
    console.line("starting the local object store" if config.store.serve else f"object store: {config.storage}")
    with reaching_storage(config) as config:
        make_corpus(config, console)
        train(config)
        run = open_run(config)
        compare_with_compressors(run, console)
        from model.eager import skip_compiler

        skip_compiler()
        from orchestrator.sample import print_samples
        from orchestrator.trained_model import load_trained

        print_samples(load_trained(config, run), config, console)
        console.line(f"kept in {run.store.url_of('')}; see it again with `manta show {config.run}`")


def make_corpus(config: RunConfig, console: Console) -> None:
    """Write the standard library's source as SHARDS shards of jsonl.zst, one file a document; once."""
    store = open_store(config.data.sources[0].path, config.store)
    there = [info for info in store.list("") if info.key.endswith(".jsonl.zst")]
    if len(there) == SHARDS:
        console.line(f"corpus: there already, {len(there)} shards at {config.data.sources[0].path}")
        return
    shards: list[list[bytes]] = [[] for _ in range(SHARDS)]
    for name, text in standard_library():
        shard = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") % SHARDS
        shards[shard].append(json.dumps({"path": name, "text": text}, ensure_ascii=False).encode())
    compressor = zstandard.ZstdCompressor()
    for number, lines in enumerate(shards):
        store.put(f"part-{number:03d}.jsonl.zst", compressor.compress(b"\n".join(lines) + b"\n"))
    size = sum(len(line) for lines in shards for line in lines)
    files = sum(map(len, shards))
    console.line(f"corpus: {files:,} files of Python's standard library, {size / 1e6:.1f} MB, in {SHARDS} shards")


def standard_library() -> Iterator[tuple[str, str]]:
    """Name and text of every module of the running interpreter's standard library, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if LEFT_OUT.isdisjoint(name.parts):
            try:
                text = path.read_text("utf-8")
            except UnicodeDecodeError:
                continue
            if text.strip():
                yield name.as_posix(), text


def corpus_documents(run: Run) -> Iterator[str]:
    """The text of every document the run is pinned to."""
    assert run.record.manifest is not None, "a finished run is pinned"
    manifest = Manifest.from_bytes(run.root.get(f"manifests/{run.record.manifest}.parquet"))
    for ordinal in range(manifest.num_units):
        unit = manifest.unit(ordinal)
        source = run.config.data.sources[unit.source]
        for document in read_documents(unit, source, run.config.data, run.config.store):
            yield document.text


def compare_with_compressors(run: Run, console: Console) -> None:
    """Print the model's bits per byte on the held-out files beside those of gzip and xz, each file by itself."""
    config = run.config
    held_out = [text for text in corpus_documents(run) if is_held_out(text, config.data.validation_fraction)]
    contents = [text.encode() for text in held_out]
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
