"""The recipe's section `data`: where the shards are, what a document is, and how text becomes training sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from data.cleaning.config import Step, TextStep
from data.readers.formats import FORMATS
from data.section import Section, StoreUrlOrPath, UrlOrPath
from data.stores.config import SECRET, StoreConfig

__all__ = ["SECRET", "DataConfig", "SourceConfig", "StoreConfig", "TokenizerConfig"]

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal["auto", *FORMATS]  # so that the schema and messages list the names


class SourceConfig(Section):
    """One source of text: the shards below a path, and how to read documents from them."""

    path: UrlOrPath = Field(
        description="File, folder, or prefix: s3://bucket/prefix, gs://…, file://… or a plain path; * and ? match."
    )
    format: FormatName = Field(
        "auto", description="Format of the shards; auto goes by the file's ending, .gz and .zst included."
    )
    text_column: str = Field("text", description="Column or JSON key that holds the text.")
    input_column: str | None = Field(
        None,
        description="Column or JSON key that holds the input of an encoder; documents are then pairs, and the model "
        "learns to write the text from the input.",
    )
    input_path: UrlOrPath | None = Field(
        None,
        description="Files of lines that an encoder reads, as many as path has and in the same order; line n is the "
        "input of line n of path.",
    )
    split: Literal["hash", "train", "validation", "test"] = Field(
        "hash",
        description="What the documents are for: hash holds validation_fraction of them out, train and validation use "
        "all, and test is used by `manta eval --split test` only.",
    )
    split_column: str | None = Field(
        None,
        description="Column or JSON key whose hashed value decides what is held out, so that equal ones stay together; "
        "default a pair's input, else the text.",
    )
    header: bool = Field(
        True,
        description="Whether the first row of csv and tsv names the columns; else their names are 1, 2, 3 and so on.",
    )
    quotes: bool = Field(
        True, description="Whether fields of csv and tsv may be quoted; else a quote is an ordinary character."
    )
    document: Literal["file", "paragraph", "line"] = Field(
        "file", description="One document of a txt shard: the file, a block between blank lines, or a line."
    )
    weight: float = Field(
        1.0, gt=0, description="Share of this source in the mixture, relative to the others' weights."
    )

    @property
    def has_pairs(self) -> bool:
        """Whether documents are pairs of an input and a text."""
        return self.input_column is not None or self.input_path is not None

    @property
    def known_format(self) -> str:
        """The format of all shards; "auto" where their endings decide."""
        return "txt" if self.input_path is not None else self.format

    @property
    def columns(self) -> dict[str, str]:
        """The columns to read, by the field that names them."""
        named = {"text_column": self.text_column, "input_column": self.input_column, "split_column": self.split_column}
        return {field: name for field, name in named.items() if name is not None}


class TokenizerConfig(Section):
    """How text becomes token ids."""

    kind: Literal["bpe", "bytes", "chars"] = Field(
        "bpe", description="Byte-level BPE, single bytes, or the characters of the corpus."
    )
    vocab_size: int = Field(
        8192, ge=257, le=1_000_000, description="Entries of a BPE vocabulary, end-of-text included."
    )
    path: StoreUrlOrPath | None = Field(
        None,
        description="Tokenizer file (URL or path) to use instead of learning a vocabulary: Manta's own, or a "
        "tokenizer.json that `manta export` wrote or that is GPT-2's.",
    )
    train_bytes: int = Field(
        64_000_000,
        gt=0,
        description="Training text, in bytes, from which the vocabulary is learned (read in manifest order).",
    )


class DataConfig(Section):
    """From shards to training sequences. All of it decides what the model sees, so a run cannot change it."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="One or more sources of text.")
    cleaning: tuple[Step, ...] = Field(
        (), description="Steps applied to every document before it is tokenized, in this order; none by default."
    )
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig, description="How text becomes token ids.")
    input_tokenizer: TokenizerConfig | None = Field(
        None, description="How the inputs of pairs become token ids, where they have their own vocabulary."
    )
    seq_len: int = Field(
        512, ge=2, le=1_048_576, description="Tokens in one training sequence; of a pair, in its text."
    )
    input_len: int | None = Field(
        None, ge=2, le=1_048_576, description="Most tokens in the input of a pair (null means seq_len)."
    )
    bucket_steps: int = Field(
        16, ge=1, description="Steps whose pairs are sorted by length together, so that batches have little padding."
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
        description="Whether every epoch cuts a unit into sequences from another position, so that their boundaries "
        "move; for small corpora that are read many times.",
    )
    on_bad_shard: Literal["refuse", "skip"] = Field(
        "refuse", description="Stop at a shard that cannot be read, or skip it and count it."
    )
    invalid_utf8: Literal["replace", "refuse"] = Field(
        "refuse", description="Replace invalid UTF-8 with U+FFFD and count it, or treat the shard as bad."
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
        """Whether any documents are held out for evaluation."""
        splits = {source.split for source in self.sources}
        return "validation" in splits or ("hash" in splits and self.validation_fraction > 0)

    def sources_of(self, split: str) -> list[int]:
        """Indices of the sources that have documents for "train", "validation" or "test"."""
        also = ("hash",) if split != "test" else ()
        return [index for index, source in enumerate(self.sources) if source.split in (split, *also)]

    @property
    def most_input_tokens(self) -> int:
        """Most tokens that an encoder reads, the end-of-text included."""
        return self.seq_len if self.input_len is None else self.input_len

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        problems = [problem for index, source in enumerate(self.sources) for problem in _contradictions(index, source)]
        if self.has_pairs and not all(source.has_pairs for source in self.sources):
            alone = next(index for index, source in enumerate(self.sources) if not source.has_pairs)
            problems.append(
                f"sources.{alone}: its documents have no input, but those of other sources do. "
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
            problems.append("rotate_units is for packed text; a pair is one whole sequence. Leave it false.")
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _contradictions(index: int, source: SourceConfig) -> Iterator[str]:
    if source.input_path is None:
        return
    if source.input_column is not None:
        yield f"sources.{index}: input_column and input_path both name the input. Leave one out."
    if source.format not in ("auto", "txt") or source.split_column is not None:
        yield f"sources.{index}: input_path goes with files of lines. Leave format and split_column out."
