"""Prepares the data of a run before the first step: manifest, tokenizer, and the table of units.

    manifests/<digest>.parquet     the shards, immutable
    tokenizers/<digest>.json       a vocabulary; tokenizers/for/<key> names the one learned from a given input
    unit-tables/<key>.parquet      a row per unit: tokens, documents, bytes, problems; exists once all are tokenized
    tokens/<k>/<key>.arrow         a tokenized unit, see data.tokens.unit
    duplicates/, fingerprints/     where a recipe removes duplicates, see data.cleaning.duplicate_pass

The key of each artifact is a hash of what it was made from, so a second preparation only finds what the first made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.cleaning.clean import check_steps, named_rows, report_lines
from data.cleaning.duplicate_pass import bad_shards_message, find_duplicates, up_to_last_dedup
from data.cleaning.identity import differences, identity
from data.cleaning.units import FOLDER, Cleaning
from data.config import DataConfig, StoreConfig
from data.errors import BadShardError, InputError, ObjectNotFoundError
from data.order.known_units import ExcludedDocuments, KnownUnits
from data.order.packing import count_sequences
from data.order.sample_order import UNKNOWN, Ints
from data.shards.build import build_manifest
from data.shards.listing import check_unchanged
from data.shards.manifest import Manifest
from data.shards.unit_rows import Log, json_digest, with_progress
from data.stores.store import Store
from data.tokens.tokenizer import Tokenizer
from data.tokens.unit import TokenizeJob, excluded_columns, excluded_of
from data.tokens.vocabularies import SIDES, Vocabularies

AHEAD_LIMIT_BYTES = 1 << 30
"""Most shard bytes for which `prepare: auto` tokenizes everything before the first step."""

UNIT_COLUMNS = (
    "train_tokens",
    "validation_tokens",
    "documents",
    "validation_documents",
    "text_bytes",
    "validation_bytes",
    "invalid_utf8",
    "problem",
)

_NO_SUMS = ("ordinal", "problem", "steps")


@dataclass(frozen=True)
class PreparedData:
    """The prepared data of a run.

    Attributes:
        unit_table: a row per unit with UNIT_COLUMNS, and with `steps` where the recipe cleans documents; None where
            units are tokenized as training needs them.
    """

    manifest: Manifest
    job: TokenizeJob
    unit_table: pa.Table | None

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return self.job.tokenizer

    @property
    def digests(self) -> dict[str, Any]:
        """The digests that pin a run to these data, by the fields of `Pins`."""
        job = self.job
        inputs = None if job.input_tokenizer is None else job.input_tokenizer.digest
        return {
            "manifest": self.manifest.digest,
            "tokenizer": job.tokenizer.digest,
            "input_tokenizer": inputs,
            "cleaning": self.cleaning_pin(),
        }

    def counts(self) -> Ints:
        """(units,) int64: training samples in each unit, UNKNOWN where it has not been tokenized."""
        data, manifest = self.job.data, self.manifest
        if self.unit_table is None:
            counts = np.zeros(manifest.num_units, np.int64)
            for source in data.sources_of("train"):
                counts[manifest.units_of_source(source)] = UNKNOWN
            return counts
        if data.has_pairs:
            return np.array(self.unit_table["documents"].to_pylist(), np.int64)
        tokens = self.unit_table["train_tokens"].to_pylist()
        return np.array([count_sequences(each, data.seq_len) for each in tokens], np.int64)

    def skipped(self) -> dict[int, str]:
        """Units known to be skipped because their shard cannot be read, with the reason."""
        problems = [] if self.unit_table is None else self.unit_table["problem"].to_pylist()
        return {unit: problem for unit, problem in enumerate(problems) if problem is not None}

    def known(self) -> KnownUnits:
        """The counts, skipped units and excluded documents known before the first step."""
        return KnownUnits(self.counts(), self.skipped(), self._excluded())

    def _excluded(self) -> ExcludedDocuments:
        return ExcludedDocuments() if self.unit_table is None else excluded_of(self.unit_table, self.job)

    def step_report(self) -> list[dict[str, Any]]:
        """What every step of `data.cleaning` received and removed over all units; empty where that is not known."""
        return named_rows(self._excluded().steps, self.job.data.cleaning)

    def cleaning_pin(self) -> dict[str, Any]:
        """The run's pin to its cleaning steps (see `Pins`), with their report; empty where there are no steps."""
        cleaning = self.job.cleaning
        if cleaning is None:
            return {}
        return {"code": cleaning.code, "duplicates": cleaning.duplicates, "report": self.step_report()}

    def summary(self) -> str:
        """One line for the console."""
        manifest, vocab_size = self.manifest, self.tokenizer.vocab_size
        shards = f"{manifest.num_shards:,} shards, {manifest.total_bytes / 1e6:,.1f} MB; vocabulary of {vocab_size:,}"
        if self.unit_table is None:
            return f"{shards}; tokenized as training needs them"
        table = self.unit_table
        total = {name: pc.sum(table[name]).as_py() or 0 for name in table.column_names if name not in _NO_SUMS}
        what = "pairs" if self.job.data.has_pairs else "documents"
        skipped = len(self.skipped())
        removed = sum(row["documents_removed"] for row in self.step_report())
        return (
            f"{shards}; {total['documents']:,} {what}, {total['train_tokens']:,} tokens to train on; "
            f"{total['validation_documents']:,} {what} held out"
            + (f"; {total['too_long']:,} pairs too long and excluded" if total.get("too_long") else "")
            + (f"; {removed:,} removed by data.cleaning" if removed else "")
            + (f"; {skipped} bad units skipped" if skipped else "")
            + (f"; {total['invalid_utf8']} invalid UTF-8 sequences replaced" if total["invalid_utf8"] else "")
        )


@dataclass(frozen=True)
class Pins:
    """What a run was pinned to when it was created; None before.

    Attributes:
        manifest, tokenizer, input_tokenizer: digests.
        cleaning: `PreparedData.cleaning_pin`.
    """

    manifest: str | None = None
    tokenizer: str | None = None
    input_tokenizer: str | None = None
    cleaning: Mapping[str, Any] | None = None


def prepare_data(
    config: DataConfig,
    store_config: StoreConfig,
    store: Store,
    pins: Pins,
    log: Log,
    check_tokenizers: Callable[[Tokenizer, Tokenizer | None], object],
    start_ray: Callable[[], None],
) -> PreparedData:
    """Finds or makes all artifacts. Starts Ray only where units have to be read.

    Args:
        store: where the artifacts are kept.
        log: receives a line for every artifact, found or made.
        check_tokenizers: called with the tokenizer, and the one for inputs alone, before anything is tokenized; raises
            to refuse them.
        start_ray: called if Ray is needed; Ray runs when it returns.

    Raises:
        InputError: shards cannot be read (all are named), changed, or hold nothing to train on; steps of the recipe
            cannot work here (all are named), or failed on a document.
        TransientStoreError: the store failed temporarily.
    """
    check_steps(config.cleaning)
    manifest = _manifest(config, store_config, store, pins.manifest, log)
    ahead = config.prepare == "ahead" or (config.prepare == "auto" and manifest.total_bytes <= AHEAD_LIMIT_BYTES)
    cleaning = _cleaning(config, store_config, store, manifest, pins.cleaning, ahead, log, start_ray)
    vocabularies = Vocabularies(config, store_config, store, manifest, cleaning, log)
    tokenizer = vocabularies.find(config.tokenizer, pins.tokenizer, ("text",) if config.input_tokenizer else SIDES)
    input_tokenizer = None
    if config.input_tokenizer is not None:
        input_tokenizer = vocabularies.find(config.input_tokenizer, pins.input_tokenizer, ("input",))
    check_tokenizers(tokenizer, input_tokenizer)
    job = TokenizeJob(config, store_config, tokenizer, store.child("tokens"), input_tokenizer, cleaning)
    table = _unit_table(job, store, manifest, make=ahead, log=log, start_ray=start_ray)
    if table is not None:
        _refuse_unusable(config, manifest, table)
    data = PreparedData(manifest, job, table)
    for line in report_lines(data.step_report()):
        log(line)
    return data


def _manifest(config: DataConfig, store_config: StoreConfig, store: Store, pinned: str | None, log: Log) -> Manifest:
    if pinned is not None:
        manifest = Manifest.from_bytes(store.get(f"manifests/{pinned}.parquet"))
        new = check_unchanged(manifest, store_config)
        log(
            f"manifest: {manifest.num_shards:,} shards, unchanged"
            + (f"; {new} newer shards are not part of this run" if new else "")
        )
        return manifest
    manifest = build_manifest(config.sources, store_config)
    if manifest.num_units == 0:
        raise InputError("The shards of data.sources hold no units. Are they parquet files without row groups?")
    key = f"manifests/{manifest.digest}.parquet"
    if store.head(key) is None:
        store.put(key, manifest.to_bytes())
    log(f"manifest: {manifest.num_shards:,} shards, {manifest.total_bytes / 1e6:,.1f} MB")
    return manifest


def _cleaning(
    config: DataConfig,
    store_config: StoreConfig,
    store: Store,
    manifest: Manifest,
    pinned: Mapping[str, Any] | None,
    ahead: bool,
    log: Log,
    start_ray: Callable[[], None],
) -> Cleaning | None:
    """The cleaning of documents, with duplicates found; None for a recipe without steps."""
    if not config.cleaning:
        return None
    code = identity(config.cleaning)
    if pinned and pinned["code"] != code:
        raise InputError(
            f"The run was started with other code behind data.cleaning, and continues only with the same: "
            f"{differences(code, pinned['code'])}. Restore it, or start a new run (--set run=NAME)."
        )
    duplicates = pinned["duplicates"] if pinned else None
    is_missing = not pinned or (duplicates is not None and store.head(f"{FOLDER}/{duplicates}.arrow") is None)
    if is_missing and up_to_last_dedup(config.cleaning):
        found = find_duplicates(config, store_config, store, manifest, ahead=ahead, log=log, start_ray=start_ray)
        if pinned and found != duplicates:
            raise InputError(f"The duplicates found now ({found[:12]}) differ from those that the run is pinned to.")
        duplicates = found
    return Cleaning(config.cleaning, code, duplicates, store)


def _unit_table(
    job: TokenizeJob,
    store: Store,
    manifest: Manifest,
    *,
    make: bool,
    log: Log,
    start_ray: Callable[[], None],
) -> pa.Table | None:
    # The first unit of every source: sources differ in how they are read.
    firsts = [units.start for source in range(len(job.data.sources)) if (units := manifest.units_of_source(source))]
    made_from = {"manifest": manifest.digest, "units": [job.cache_key(manifest.unit(first)) for first in firsts]}
    if job.cleaning is not None:  # the units' own keys depend on their own duplicates only
        made_from["steps"] = job.cleaning.digest
    key = f"unit-tables/{json_digest(made_from)}.parquet"
    try:
        table = pq.read_table(pa.BufferReader(store.get(key)))
        log(f"tokens: found, {pc.sum(table['train_tokens']).as_py():,} to train on")
        return table
    except ObjectNotFoundError:
        if not make:
            return None
    start_ray()
    from data.tokens.pipeline import tokenized_units_in_chunks  # imports Ray, which is often not needed

    log(f"tokens: tokenizing {manifest.num_units:,} units")
    columns = (*UNIT_COLUMNS, *excluded_columns(job))
    rows = tokenized_units_in_chunks(manifest, job, columns)
    table = pa.concat_tables(with_progress(rows, manifest.num_units, "tokens", log))
    if table["problem"].null_count == len(table):  # a later version of the reader may read bad shards
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        store.put(key, sink.getvalue().to_pybytes())
    return table


def _refuse_unusable(config: DataConfig, manifest: Manifest, table: pa.Table) -> None:
    problems = table["problem"].drop_null().to_pylist()
    if problems and config.on_bad_shard == "refuse":
        raise BadShardError(bad_shards_message(problems))
    tokens = table["train_tokens"].to_numpy()
    for index in config.sources_of("train"):
        source = config.sources[index]
        units = manifest.units_of_source(index)
        if tokens[units.start : units.stop].sum() == 0:
            raise InputError(
                f"data.sources.{index}.path={source.path!r} holds nothing to train on: "
                f"its documents are empty, held out (data.validation_fraction={config.validation_fraction}) or skipped"
                + (", or data.cleaning removes them" if config.cleaning else "")
                + (f"; or all pairs are too long for {_longest_pair(config)}." if config.has_pairs else ".")
            )


def _longest_pair(config: DataConfig) -> str:
    return f"data.input_len={config.most_input_tokens} and data.seq_len={config.seq_len}"
