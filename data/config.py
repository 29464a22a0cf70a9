"""Configuration of the data side of a run: where bytes are, what a document is, how text becomes sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from data.cleaning.config import Step, TextStep
from data.section import Place, Section

__all__ = ["SECRET", "DataConfig", "Section", "SourceConfig", "StoreConfig", "TokenizerConfig"]

SECRET = ("access_key_id", "secret_access_key")
"""Fields that are never printed, and never written where a run is kept, which is shared more freely than keys."""


class StoreConfig(Section):
    """How to reach S3-compatible object storage. What is left out comes from the standard AWS variables."""

    endpoint_url: Place | None = Field(None, description="URL of the S3 endpoint; default AWS_ENDPOINT_URL, else AWS.")
    region: str | None = Field(None, description="Region of the bucket; default AWS_DEFAULT_REGION, else us-east-1.")
    access_key_id: str | None = Field(None, description="Access key; default the standard AWS credential chain.")
    secret_access_key: str | None = Field(
        None, description="Secret key; prefer AWS_SECRET_ACCESS_KEY in the environment."
    )
    serve: str | None = Field(
        None,
        description="Folder of a local S3 server, started when a command needs it and stopped after the last one.",
    )
    timeout_s: float = Field(5.0, gt=0, le=60, description="Seconds to wait for a connection before giving up on it.")

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What is printed of it, in a traceback for one: no keys."""
        yield from (each for each in super().__repr_args__() if each[0] not in SECRET)


class SourceConfig(Section):
    """One body of text: the shards below a path, and how to read a document out of them."""

    path: Place = Field(
        description="File, folder, or prefix: s3://bucket/prefix, gs://…, file://… or a plain path; * and ? match."
    )
    format: Literal["auto", "txt", "jsonl", "csv", "tsv", "parquet"] = Field(
        "auto", description="Format of the shards; auto goes by the file's ending, .gz and .zst included."
    )
    text_column: str = Field("text", description="Column or JSON key that holds the text.")
    input_column: str | None = Field(
        None,
        description="Column or JSON key that holds what an encoder reads; a document is a pair then, and the model "
        "learns to write its text from its input.",
    )
    input_path: Place | None = Field(
        None,
        description="Files of lines that an encoder reads, as many as path has and in the same order; line n is the "
        "input of line n.",
    )
    split: Literal["hash", "train", "validation", "test"] = Field(
        "hash",
        description="What its documents are for; hash holds validation_fraction of them out, train and validation take "
        "all, and those of test are only looked at by `manta eval --split test`.",
    )
    split_column: str | None = Field(
        None,
        description="Column or JSON key by whose value documents are held out, so that equal ones stay together; "
        "default a pair's input, else the text.",
    )
    header: bool = Field(
        True,
        description="Whether the first row of csv and tsv names the columns; else they are called 1, 2, 3 and so on.",
    )
    quotes: bool = Field(
        True, description="Whether a field of csv and tsv may be quoted; else a quote is a character like any other."
    )
    document: Literal["file", "paragraph", "line"] = Field(
        "file", description="What one document is in a txt shard: the file, a block between blank lines, or a line."
    )
    weight: float = Field(
        1.0, gt=0, description="Share of this source in the mixture, relative to the others' weights."
    )

    @property
    def has_pairs(self) -> bool:
        """Whether its documents are pairs of an input and a text."""
        return self.input_column is not None or self.input_path is not None

    @property
    def known_format(self) -> str:
        """What format its shards are taken to have, "auto" where their endings tell."""
        return "txt" if self.input_path is not None else self.format

    @property
    def columns(self) -> dict[str, str]:
        """Columns to read, by the field that names them."""
        named = {"text_column": self.text_column, "input_column": self.input_column, "split_column": self.split_column}
        return {field: name for field, name in named.items() if name is not None}


class TokenizerConfig(Section):
    """How text becomes token ids."""

    kind: Literal["bpe", "bytes", "chars"] = Field(
        "bpe", description="Byte-level BPE, plain bytes, or the corpus's characters."
    )
    vocab_size: int = Field(
        8192, ge=257, le=1_000_000, description="Entries of a BPE vocabulary, end-of-text included."
    )
    path: Place | None = Field(
        None,
        description="Tokenizer file to use as it is (URL or path), instead of learning one: manta's own, or a "
        "tokenizer.json that `manta export` wrote or that is GPT-2's.",
    )
    train_bytes: int = Field(
        64_000_000,
        gt=0,
        description="Training text, in bytes, from which the vocabulary is learned (read in manifest order).",
    )


class DataConfig(Section):
    """From shards to training sequences. Everything here shapes what the model sees, so a run may not change it."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="One or more bodies of text.")
    cleaning: tuple[Step, ...] = Field(
        (), description="What is done to every document before it is tokenized, in this order; nothing by default."
    )
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig, description="How text becomes token ids.")
    input_tokenizer: TokenizerConfig | None = Field(
        None, description="How the inputs of pairs become token ids, where they have a vocabulary of their own."
    )
    seq_len: int = Field(
        512, ge=2, le=1_048_576, description="Tokens in one training sequence; of a pair, in its text."
    )
    input_len: int | None = Field(
        None, ge=2, le=1_048_576, description="Most tokens in the input of a pair (null means seq_len)."
    )
    bucket_steps: int = Field(
        16, ge=1, description="Steps whose pairs are sorted by length together, so that little of a batch is padding."
    )
    length_multiple: int = Field(
        8, ge=1, description="Pairs are padded to the longest of their micro-batch, rounded up to a multiple of this."
    )
    shuffle_units: int = Field(
        16, ge=1, description="Units (shards or row groups) whose sequences are shuffled together as one window."
    )
    validation_fraction: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="Share of documents held out, by a hash of the text, of a pair's input, or of its split_column.",
    )
    validation_sequences: int = Field(
        4096, ge=1, description="At most this many held-out sequences are evaluated, the first in the shards' order."
    )
    prepare: Literal["auto", "ahead", "streaming"] = Field(
        "auto",
        description="Tokenize and check every shard before the first step (ahead), as training needs them (streaming), "
        "or ahead up to 1 GiB of shards (auto).",
    )
    rotate_units: bool = Field(
        False,
        description="Whether every epoch cuts a unit into sequences from another place on, so that their boundaries "
        "move; for small corpora that are read many times.",
    )
    on_bad_shard: Literal["refuse", "skip"] = Field(
        "refuse", description="Stop at a shard that cannot be read, or skip and count it."
    )
    invalid_utf8: Literal["replace", "refuse"] = Field(
        "refuse", description="Replace invalid UTF-8 by U+FFFD and count it, or treat the shard as bad."
    )
    max_document_bytes: int = Field(
        64_000_000, gt=0, description="A longer document makes its shard bad: one document must fit in memory."
    )

    @property
    def has_pairs(self) -> bool:
        """Whether documents are pairs of an input and a text."""
        return any(source.has_pairs for source in self.sources)

    @property
    def has_held_out(self) -> bool:
        """Whether there is anything to evaluate on."""
        splits = {source.split for source in self.sources}
        return "validation" in splits or ("hash" in splits and self.validation_fraction > 0)

    def sources_of(self, split: str) -> list[int]:
        """Indices of the sources that have documents for "train", "validation" or "test"."""
        also = ("hash",) if split != "test" else ()
        return [index for index, source in enumerate(self.sources) if source.split in (split, *also)]

    @property
    def most_input_tokens(self) -> int:
        """Tokens an encoder reads at most, the one that ends them included."""
        return self.seq_len if self.input_len is None else self.input_len

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        problems = [problem for index, source in enumerate(self.sources) for problem in _contradictions(index, source)]
        if self.has_pairs and not all(source.has_pairs for source in self.sources):
            alone = next(index for index, source in enumerate(self.sources) if not source.has_pairs)
            problems.append(
                f"sources.{alone}: its documents have no input, and those of others have. "
                f"Set input_column or input_path for all sources, or for none."
            )
        if not self.has_pairs and (self.input_tokenizer is not None or self.input_len is not None):
            problems.append("input_tokenizer and input_len need sources of pairs. Set input_column or input_path.")
        for index, step in enumerate(self.cleaning):
            if isinstance(step, TextStep) and step.on != "both" and not self.has_pairs:
                problems.append(f"cleaning.{index}: on = {step.on} needs sources of pairs. Leave it out.")
        if not self.sources_of("train"):
            problems.append("all sources are held out. Set split to train or hash for one of them.")
        if self.rotate_units and self.has_pairs:
            problems.append("rotate_units is for packed text; a pair is one sequence as it is. Leave it false.")
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _contradictions(index: int, source: SourceConfig) -> Iterator[str]:
    if source.input_path is None:
        return
    if source.input_column is not None:
        yield f"sources.{index}: input_column and input_path both say where the input is. Leave one out."
    if source.format not in ("auto", "txt") or source.split_column is not None:
        yield f"sources.{index}: input_path goes with files of lines. Leave format and split_column out."
