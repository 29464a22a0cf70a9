"""What a run needs of its data before the first step: manifest, tokenizer, and what is known of the units.

    manifests/<digest>.parquet     the shards, immutable
    tokenizers/<digest>.json       a vocabulary; tokenizers/for/<key> names the one learned from a given input
    unit-tables/<key>.parquet      a row per unit: tokens, documents, bytes, problems; there once all are tokenized
    tokens/<k>/<key>.arrow         a tokenized unit, see data.tokenized_unit
    duplicates/, fingerprints/     where a recipe removes duplicates, see data.duplicate_pass

Everything is found again under a key of what it was made from, so doing it twice costs a look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.cleaning.clean import check_steps, named_rows, told
from data.cleaning.duplicate_pass import find_duplicates, named, up_to_last_dedup
from data.cleaning.identity import differences, identity
from data.cleaning.units import FOLDER, Cleaning
from data.config import DataConfig, StoreConfig
from data.errors import BadShardError, InputError, ObjectNotFoundError
from data.order.known_units import Excluded, KnownUnits
from data.order.packing import count_sequences
from data.order.sample_order import UNKNOWN, Ints
from data.progress import Tell, told_of
from data.shards.build import build_manifest
from data.shards.listing import check_unchanged
from data.shards.manifest import Manifest
from data.stores.store import Store
from data.tokens.tokenizer import Tokenizer
from data.tokens.unit import TokenizeJob, excluded_columns, excluded_of, json_digest
from data.tokens.vocabularies import SIDES, Vocabularies

AHEAD_LIMIT_BYTES = 1 << 30
"""Shard bytes up to which `prepare: auto` tokenizes everything before the first step."""

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
    """A run's data, ready to be fed.

    Attributes:
        unit_table: a row per unit with UNIT_COLUMNS, and with `steps` where the recipe has some; None where units are
            tokenized as training needs them.
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
        """What pins a run to these data, by the names of `Pins`."""
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
        """Units known to be left out because their shard cannot be read, and why."""
        problems = [] if self.unit_table is None else self.unit_table["problem"].to_pylist()
        return {unit: problem for unit, problem in enumerate(problems) if problem is not None}

    def known(self) -> KnownUnits:
        """What is known of the units before the first step."""
        return KnownUnits(self.counts(), self.skipped(), self._excluded())

    def _excluded(self) -> Excluded:
        return Excluded() if self.unit_table is None else excluded_of(self.unit_table, self.job)

    def step_report(self) -> list[dict[str, Any]]:
        """What every step of `data.cleaning` was given and removed over all units; none where that is not known."""
        return named_rows(self._excluded().steps, self.job.data.cleaning)

    def cleaning_pin(self) -> dict[str, Any]:
        """What a run is pinned to as to its steps (see `Pins`), and their report; nothing where there are none."""
        cleaning = self.job.cleaning
        if cleaning is None:
            return {}
        return {"code": cleaning.code, "duplicates": cleaning.duplicates, "report": self.step_report()}

    def summary(self) -> str:
        """One line for a person."""
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
            + (f"; {total['too_long']:,} pairs too long and left out" if total.get("too_long") else "")
            + (f"; {removed:,} removed by data.cleaning" if removed else "")
            + (f"; {skipped} bad units skipped" if skipped else "")
            + (f"; {total['invalid_utf8']} invalid UTF-8 sequences replaced" if total["invalid_utf8"] else "")
        )


@dataclass(frozen=True)
class Pins:
    """What a run was pinned to when it was made; None before.

    Attributes:
        manifest, tokenizer: digests.
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
    tell: Tell,
    check_tokenizers: Callable[[Tokenizer, Tokenizer | None], object],
    start_ray: Callable[[], None],
) -> PreparedData:
    """Find or make everything; `tokenized_units` in Ray Data only where something is missing.

    Args:
        store: where the artifacts are kept.
        tell: gets a line for every part, said to be there already or made.
        check_tokenizers: called once the tokenizer, and one for inputs alone, are known; raises to refuse them before
            anything is tokenized.
        start_ray: called if Ray is needed; it runs when this returns.

    Raises:
        InputError: shards cannot be read (all of them named), changed, or hold nothing to train on; steps of the
            recipe cannot work here (all of them named), or failed on a document.
        TransientStoreError: the store failed in a way that may pass.
    """
    check_steps(config.cleaning)
    manifest = _manifest(config, store_config, store, pins.manifest, tell)
    ahead = config.prepare == "ahead" or (config.prepare == "auto" and manifest.total_bytes <= AHEAD_LIMIT_BYTES)
    cleaning = _cleaning(config, store_config, store, manifest, pins.cleaning, ahead, tell, start_ray)
    vocabularies = Vocabularies(config, store_config, store, manifest, cleaning, tell)
    tokenizer = vocabularies.find(config.tokenizer, pins.tokenizer, ("text",) if config.input_tokenizer else SIDES)
    reads_with = None
    if config.input_tokenizer is not None:
        reads_with = vocabularies.find(config.input_tokenizer, pins.input_tokenizer, ("input",))
    check_tokenizers(tokenizer, reads_with)
    job = TokenizeJob(config, store_config, tokenizer, store.child("tokens"), reads_with, cleaning)
    table = _unit_table(job, store, manifest, make=ahead, tell=tell, start_ray=start_ray)
    if table is not None:
        _refuse_unusable(config, manifest, table)
    data = PreparedData(manifest, job, table)
    for line in told(data.step_report()):
        tell(line)
    return data


def _manifest(config: DataConfig, store_config: StoreConfig, store: Store, pinned: str | None, tell: Tell) -> Manifest:
    if pinned is not None:
        manifest = Manifest.from_bytes(store.get(f"manifests/{pinned}.parquet"))
        new = check_unchanged(manifest, store_config)
        tell(
            f"manifest: {manifest.num_shards:,} shards, unchanged"
            + (f"; {new} newer ones are not part of this run" if new else "")
        )
        return manifest
    manifest = build_manifest(config.sources, store_config)
    if manifest.num_units == 0:
        raise InputError("The shards of data.sources hold nothing at all: parquet files without a row group?")
    key = f"manifests/{manifest.digest}.parquet"
    if store.head(key) is None:
        store.put(key, manifest.to_bytes())
    tell(f"manifest: {manifest.num_shards:,} shards, {manifest.total_bytes / 1e6:,.1f} MB")
    return manifest


def _cleaning(
    config: DataConfig,
    store_config: StoreConfig,
    store: Store,
    manifest: Manifest,
    pinned: Mapping[str, Any] | None,
    ahead: bool,
    tell: Tell,
    start_ray: Callable[[], None],
) -> Cleaning | None:
    """What is done to documents, with duplicates found; None for a recipe without steps."""
    if not config.cleaning:
        return None
    code = identity(config.cleaning)
    if pinned and pinned["code"] != code:
        raise InputError(
            f"The run was begun with other code behind data.cleaning, and goes on only with the same: "
            f"{differences(code, pinned['code'])}. Restore it, or begin a new run (--set run=NAME)."
        )
    duplicates = pinned["duplicates"] if pinned else None
    is_missing = not pinned or (duplicates is not None and store.head(f"{FOLDER}/{duplicates}.arrow") is None)
    if is_missing and up_to_last_dedup(config.cleaning):
        found = find_duplicates(config, store_config, store, manifest, ahead=ahead, tell=tell, start_ray=start_ray)
        if pinned and found != duplicates:
            raise InputError(f"Other duplicates are found now ({found[:12]}) than those the run is pinned to.")
        duplicates = found
    return Cleaning(config.cleaning, code, duplicates, store)


def _unit_table(
    job: TokenizeJob,
    store: Store,
    manifest: Manifest,
    *,
    make: bool,
    tell: Tell,
    start_ray: Callable[[], None],
) -> pa.Table | None:
    # A unit of every source: each may be read in its own way.
    firsts = [units.start for source in range(len(job.data.sources)) if (units := manifest.units_of_source(source))]
    made_from = {"manifest": manifest.digest, "units": [job.cache_key(manifest.unit(first)) for first in firsts]}
    if job.cleaning is not None:  # another unit may have lost other documents
        made_from["steps"] = job.cleaning.digest
    key = f"unit-tables/{json_digest(made_from)}.parquet"
    try:
        table = pq.read_table(pa.BufferReader(store.get(key)))
        tell(f"tokens: there already, {pc.sum(table['train_tokens']).as_py():,} to train on")
        return table
    except ObjectNotFoundError:
        if not make:
            return None
    start_ray()
    from data.tokens.pipeline import tokenized_units_in_chunks  # imports Ray, which often is not needed

    tell(f"tokens: tokenizing {manifest.num_units:,} units")
    columns = (*UNIT_COLUMNS, *excluded_columns(job))
    rows = tokenized_units_in_chunks(manifest, job, columns)
    table = pa.concat_tables(told_of(rows, manifest.num_units, "tokens", tell))
    if table["problem"].null_count == len(table):  # bad shards get another chance with another version of the reader
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        store.put(key, sink.getvalue().to_pybytes())
    return table


def _refuse_unusable(config: DataConfig, manifest: Manifest, table: pa.Table) -> None:
    problems = table["problem"].drop_null().to_pylist()
    if problems and config.on_bad_shard == "refuse":
        raise BadShardError(named(problems))
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
