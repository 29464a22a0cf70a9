"""The prepared data of a run, and the digests that pin a run to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.cleaning.clean import named_rows
from data.config import DataConfig
from data.order.known_units import ExcludedDocuments, KnownUnits
from data.order.packing import count_sequences
from data.order.sample_order import UNKNOWN, Ints
from data.shards.manifest import Manifest
from data.tokens.tokenizer import Tokenizer
from data.tokens.unit import TokenizeJob, excluded_of

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

    def with_weights(self, config: DataConfig) -> PreparedData:
        """These data for a run with the weights of another config's sources, on which nothing prepared depends."""
        weighted = zip(self.job.data.sources, config.sources, strict=True)
        sources = tuple(source.model_copy(update={"weight": other.weight}) for source, other in weighted)
        return replace(self, job=replace(self.job, data=self.job.data.model_copy(update={"sources": sources})))

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
