"""Finds the vocabularies of a data set by what they were learned from, or learns them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data.cleaning.units import Cleaning, documents_of
from data.config import DataConfig, SourceConfig, StoreConfig, TokenizerConfig
from data.errors import DamagedObjectError, InputError, ObjectNotFoundError, TokenizerError
from data.shards.manifest import Manifest, Unit
from data.shards.unit_rows import Log
from data.stores.artifact import json_digest, read_artifact, read_pointer, write_pointer
from data.stores.open import open_store
from data.stores.store import Store
from data.tokens.hf_tokenizer import read_tokenizer
from data.tokens.tokenizer import Tokenizer, train_tokenizer

SIDES = ("input", "text")
"""The sides of a pair; other documents have only a text."""


@dataclass(frozen=True)
class Vocabularies:
    """Finds or learns the tokenizers for the documents of a manifest."""

    data: DataConfig
    store_config: StoreConfig
    store: Store
    manifest: Manifest
    cleaning: Cleaning | None
    log: Log

    def find(self, config: TokenizerConfig, pinned: str | None, sides: Sequence[str]) -> Tokenizer:
        """The pinned tokenizer, the one in a file, or one learned from these sides of the documents.

        Args:
            pinned: digest of the tokenizer that the run is pinned to. Where it is missing from the storage or damaged
                there, it is made again.

        Raises:
            DamagedObjectError: the pinned one is missing or damaged, and the data now give another one.
        """
        name = "input tokenizer" if "text" not in sides else "tokenizer"
        if pinned is not None:
            try:
                return self._stored(pinned)
            except DamagedObjectError as damage:
                self.log(f"{name}: {damage} Making it again.")
                return self._again(config, pinned, sides, damage)
        if config.path is not None:
            tokenizer = self._in_file(config.path)
            self._put(tokenizer)
            return tokenizer
        pointer = f"tokenizers/for/{json_digest(self._learned_from(config, sides))}"
        if (digest := read_pointer(self.store, pointer)) is not None:
            try:
                tokenizer = self._stored(digest)
                self.log(f"{name}: found, {tokenizer.vocab_size:,} entries")
                return tokenizer
            except DamagedObjectError as damage:
                self.log(f"{name}: {damage} Making it again.")
        self.log(f"{name}: learning a {config.kind} vocabulary")
        tokenizer = self._learned(config, sides)
        self._put(tokenizer)
        write_pointer(self.store, pointer, tokenizer.digest)
        self.log(f"{name}: learned, {tokenizer.vocab_size:,} entries")
        return tokenizer

    def _again(
        self, config: TokenizerConfig, pinned: str, sides: Sequence[str], damage: DamagedObjectError
    ) -> Tokenizer:
        try:
            tokenizer = self._in_file(config.path) if config.path is not None else self._learned(config, sides)
        except (InputError, ObjectNotFoundError) as error:
            raise DamagedObjectError(f"{damage} It cannot be made again: {error}") from error
        if tokenizer.digest != pinned:
            source = config.path if config.path is not None else "data.sources"
            raise DamagedObjectError(
                f"{damage} It cannot be made again: {source} now gives another one, {tokenizer.digest[:12]}…. "
                "Restore the object, or start a new run (--set run=NAME)."
            )
        self._put(tokenizer)
        return tokenizer

    def _stored(self, digest: str) -> Tokenizer:
        key = f"tokenizers/{digest}.json"
        return read_artifact(self.store, key, digest, Tokenizer.from_bytes, lambda tokenizer: tokenizer.digest)

    def _put(self, tokenizer: Tokenizer) -> None:
        self.store.put(f"tokenizers/{tokenizer.digest}.json", tokenizer.to_bytes())

    def _in_file(self, path: str) -> Tokenizer:
        folder, _, file = path.rstrip("/").rpartition("/")
        store = open_store(folder or ("/" if path.startswith("/") else "."), self.store_config)
        try:
            return read_tokenizer(store.get(file))
        except ObjectNotFoundError as error:
            inside = next((each.key for each in store.list(f"{file}/")), None)
            if inside is None:
                raise InputError(f"The vocabulary {path} does not exist: {error}") from None
            raise InputError(
                f"The vocabulary {path} is a folder. Name the file in it, such as {path.rstrip('/')}/tokenizer.json."
            ) from None
        except TokenizerError as error:
            raise TokenizerError(f"{store.url_of(file)}: {error}") from None

    def _learned(self, config: TokenizerConfig, sides: Sequence[str]) -> Tokenizer:
        return train_tokenizer(config, self._training_texts(config.train_bytes, sides))

    def _learned_from(self, config: TokenizerConfig, sides: Sequence[str]) -> dict[str, object]:
        data = self.data
        learned_from: dict[str, object] = {
            "manifest": self.manifest.digest,
            "tokenizer": config.model_dump(),
            "read": [_reading_of(source) for source in data.sources],
            "clean": [data.invalid_utf8, data.max_document_bytes, data.validation_fraction],
        }
        steps = {} if self.cleaning is None else {"steps": self.cleaning.digest}
        return learned_from | ({"sides": list(sides)} if data.has_pairs else {}) | steps

    def _training_texts(self, train_bytes: int, sides: Sequence[str]) -> Iterator[str]:
        """Cleaned texts of training documents; sources take turns, unit by unit."""
        left, data, manifest = train_bytes, self.data, self.manifest
        sources = data.sources_of("train")
        longest = max(len(manifest.units_of_source(source)) for source in sources)
        for turn in range(longest):
            for source in sources:
                units = manifest.units_of_source(source)
                if turn >= len(units):
                    continue
                for text in self._texts_of(manifest.unit(units[turn]), sides):
                    yield text
                    left -= len(text.encode())
                    if left <= 0:
                        return

    def _texts_of(self, unit: Unit, sides: Sequence[str]) -> Iterator[str]:
        for document in documents_of(unit, self.data, self.store_config, self.cleaning, for_training=True):
            yield from (text for side in sides if (text := getattr(document, side)) is not None)


def _reading_of(source: SourceConfig) -> dict[str, object]:
    """The fields that decide how a source is read. Fields that older versions lacked are included only where set."""
    always = {"path", "format", "text_column", "document"}
    return {
        name: value
        for name, value in source.model_dump(exclude={"weight"}).items()
        if name in always or value != SourceConfig.model_fields[name].default
    }
