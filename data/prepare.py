"""Prepares the data of a run before the first step: manifest, tokenizer, and the table of units.

    manifests/<digest>.parquet     the shards, immutable
    tokenizers/<digest>.json       a vocabulary; tokenizers/for/<key> names the one learned from a given input
    unit-tables/<key>.arrow        a row per unit: tokens, documents, bytes, problems; exists once all are tokenized
    tokens/<k>/<key>.arrow         a tokenized unit, see data.tokens.unit
    duplicates/, fingerprints/     where a recipe removes duplicates, see data.cleaning.duplicate_pass

The key of each artifact is a hash of what it was made from, so a second preparation only finds what the first made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.cleaning.clean import check_steps, report_lines
from data.cleaning.duplicate_pass import bad_shards_message, find_duplicates, up_to_last_dedup
from data.cleaning.identity import differences, identity
from data.cleaning.units import Cleaning, has_removed
from data.config import DataConfig, StoreConfig
from data.errors import BadShardError, DamagedObjectError, InputError, ObjectNotFoundError
from data.prepared import UNIT_COLUMNS, Pins, PreparedData
from data.shards.build import build_manifest
from data.shards.listing import check_unchanged
from data.shards.manifest import Manifest, read_manifest
from data.shards.unit_rows import Log, deserialize, load_cached, serialize, with_progress
from data.stores.artifact import json_digest
from data.stores.patience import telling
from data.stores.store import Store
from data.tokens.pipeline import tokenized_units_in_chunks
from data.tokens.tokenizer import Tokenizer
from data.tokens.unit import TokenizeJob, excluded_columns
from data.tokens.vocabularies import SIDES, Vocabularies

AHEAD_LIMIT_BYTES = 1 << 30
"""Most shard bytes for which `prepare: auto` tokenizes everything before the first step."""


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
    preparation = _Preparation(config, store_config, store, log, start_ray)
    manifest = preparation.manifest(pins.manifest)
    ahead = config.prepare == "ahead" or (config.prepare == "auto" and manifest.total_bytes <= AHEAD_LIMIT_BYTES)
    cleaning = preparation.cleaning(manifest, pins.cleaning, ahead=ahead)
    vocabularies = Vocabularies(config, store_config, store, manifest, cleaning, log)
    tokenizer = vocabularies.find(config.tokenizer, pins.tokenizer, ("text",) if config.input_tokenizer else SIDES)
    input_tokenizer = None
    if config.input_tokenizer is not None:
        input_tokenizer = vocabularies.find(config.input_tokenizer, pins.input_tokenizer, ("input",))
    check_tokenizers(tokenizer, input_tokenizer)
    job = TokenizeJob(config, store_config, tokenizer, store.child("tokens"), input_tokenizer, cleaning)
    table = preparation.unit_table(job, manifest, make=ahead)
    if table is not None:
        _refuse_unusable(config, manifest, table)
    data = PreparedData(manifest, job, table)
    for line in report_lines(data.step_report()):
        log(line)
    return data


@dataclass(frozen=True)
class _Preparation:
    """Finds or makes single artifacts; the fields are the arguments of `prepare_data`."""

    config: DataConfig
    store_config: StoreConfig
    store: Store
    log: Log
    start_ray: Callable[[], None]

    def manifest(self, pinned: str | None) -> Manifest:
        """The pinned manifest, its shards unchanged; or a new one."""
        if pinned is not None:
            manifest = self._pinned(pinned)
            new = check_unchanged(manifest, self.store_config)
            self.log(
                f"manifest: {manifest.num_shards:,} shards, unchanged"
                + (f"; {new} newer shards are not part of this run" if new else "")
            )
            return manifest
        manifest = build_manifest(self.config.sources, self.store_config)
        if manifest.num_units == 0:
            raise InputError("The shards of data.sources hold no units. Are they parquet files without row groups?")
        try:
            read_manifest(self.store, manifest.digest)
        except DamagedObjectError:
            self.store.put(f"manifests/{manifest.digest}.parquet", manifest.to_bytes())
        self.log(f"manifest: {manifest.num_shards:,} shards, {manifest.total_bytes / 1e6:,.1f} MB")
        return manifest

    def _pinned(self, digest: str) -> Manifest:
        """The manifest with this digest; made again where it is missing from the storage or damaged there."""
        try:
            return read_manifest(self.store, digest)
        except DamagedObjectError as error:
            damage = error
        self.log(f"manifest: {damage} Making it again.")
        try:
            manifest = build_manifest(self.config.sources, self.store_config)
        except InputError as error:
            raise DamagedObjectError(f"{damage} It cannot be made again: {error}") from error
        if manifest.digest != digest:
            raise DamagedObjectError(
                f"{damage} It cannot be made again, because the shards of data.sources are others now. Restore the "
                "object or the shards, or start a new run (--set run=NAME)."
            )
        self.store.put(f"manifests/{digest}.parquet", manifest.to_bytes())
        return manifest

    def cleaning(self, manifest: Manifest, pinned: Mapping[str, Any] | None, *, ahead: bool) -> Cleaning | None:
        """The cleaning of documents, with duplicates found; None for a recipe without steps."""
        steps = self.config.cleaning
        if not steps:
            return None
        code = identity(steps)
        if pinned and pinned["code"] != code:
            raise InputError(
                f"The run was started with other code behind data.cleaning, and continues only with the same: "
                f"{differences(code, pinned['code'])}. Restore it, or start a new run (--set run=NAME)."
            )
        duplicates = pinned["duplicates"] if pinned else None
        if (duplicates is None or not has_removed(self.store, duplicates)) and up_to_last_dedup(steps):
            found = self._duplicates(manifest, ahead=ahead)
            if pinned and found != duplicates:
                raise InputError(f"The duplicates found now ({found[:12]}) differ from those the run is pinned to.")
            duplicates = found
        return Cleaning(steps, code, duplicates, self.store)

    def _duplicates(self, manifest: Manifest, *, ahead: bool) -> str:
        return find_duplicates(
            self.config,
            self.store_config,
            self.store,
            manifest,
            ahead=ahead,
            log=self.log,
            start_ray=self.start_ray,
        )

    def unit_table(self, job: TokenizeJob, manifest: Manifest, *, make: bool) -> pa.Table | None:
        """The table of units; None where it is missing and not to be made. Made by tokenizing every unit."""
        # The first unit of every source: sources differ in how they are read.
        firsts = [units.start for source in range(len(job.data.sources)) if (units := manifest.units_of_source(source))]
        made_from = {"manifest": manifest.digest, "units": [job.cache_key(manifest.unit(first)) for first in firsts]}
        if job.cleaning is not None:  # the units' own keys depend on their own duplicates only
            made_from["steps"] = job.cleaning.digest
        key = f"unit-tables/{json_digest(made_from)}.arrow"
        columns = [*UNIT_COLUMNS, *excluded_columns(job)]
        is_right = partial(_is_of_units, columns=columns, manifest=manifest, job=job, firsts=firsts)
        if (table := self._stored_table(key, is_right)) is not None:
            self.log(f"tokens: found, {pc.sum(table['train_tokens']).as_py():,} to train on")
            return table
        if not make:
            return None
        self.log(f"tokens: tokenizing {manifest.num_units:,} units")
        rows = tokenized_units_in_chunks(manifest, job, columns, self.start_ray, tell=telling(self.log, "tokenizing"))
        table = pa.concat_tables(with_progress(rows, manifest.num_units, "tokens", self.log))
        if table["problem"].null_count == len(table):  # a later version of the reader may read bad shards
            self.store.put(key, serialize(table, key))
        return table

    def _stored_table(self, key: str, is_right: Callable[[pa.Table], bool]) -> pa.Table | None:
        """The table under `key`, or one that version 0.2.0 wrote, without a digest; None where there is none."""
        for name in (key, f"{key.removesuffix('.arrow')}.parquet"):
            with suppress(ObjectNotFoundError):
                content = self.store.get(name)
                table = deserialize(content, key) if name == key else _of_parquet(content)
                if table is not None and is_right(table):
                    return table
                self.log(f"tokens: {self.store.url_of(name)} is damaged, and is made again from tokenized units")
        return None


def _of_parquet(content: bytes) -> pa.Table | None:
    try:
        return pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError):
        return None


def _is_of_units(
    table: pa.Table, columns: list[str], manifest: Manifest, job: TokenizeJob, firsts: Sequence[int]
) -> bool:
    """Whether a table has a row for every unit, and for `firsts` the rows that are cached, as far as they are."""
    if len(table) != manifest.num_units or not set(columns) <= set(table.column_names):
        return False
    cached = ((first, load_cached(manifest.unit(first), job)) for first in firsts)
    return all(
        row is None or row.select(columns).to_pylist() == table.slice(first, 1).select(columns).to_pylist()
        for first, row in cached
    )


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
