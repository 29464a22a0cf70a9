"""Applies the steps of a recipe to the documents of units, with duplicates decided beforehand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.cleaning.clean import StepCounts, cleaner
from data.cleaning.config import Step
from data.cleaning.identity import digest_of, refuse_other_code
from data.config import DataConfig, StoreConfig
from data.errors import BadShardError, CleaningError, DamagedObjectError
from data.readers.documents import Document, is_for_training, read_documents
from data.shards.manifest import Unit
from data.stores.artifact import read_artifact, sha256
from data.stores.store import Store

FOLDER = "duplicates"
"""Folder of the artifacts that list duplicates, under their digests."""

Documents = npt.NDArray[np.uint32]
"""(n,) indices of documents in a unit, ascending."""

Removed = Mapping[int, Mapping[int, Documents]]
"""The duplicates that a step removes, by unit (ordinal in the manifest) and step (index in the list)."""

_SCHEMA = pa.schema([("unit", pa.int64()), ("step", pa.int64()), ("documents", pa.large_binary())])


@dataclass(frozen=True)
class Cleaning:
    """The cleaning of the documents of a manifest; picklable.

    Attributes:
        steps: in order, at least one.
        code: `identity` of the steps where the run was started; a task on a machine with other code refuses to run.
        duplicates: digest of the artifact with the documents that deduplicating steps remove; None without such steps.
        store: the recipe's storage, where the artifact is.
    """

    steps: tuple[Step, ...]
    code: str
    duplicates: str | None
    store: Store

    @property
    def digest(self) -> str:
        """Digest of the steps, their code and the duplicates."""
        return digest_of(f"{self.code} {self.duplicates}")

    def depends_on(self, unit: Unit) -> list[str]:
        """What the unit's cleaned documents depend on besides the unit. Duplicates of other units are not included."""
        removed = self._removed_of(unit)
        lists = json.dumps([[step, removed[step].tolist()] for step in sorted(removed)])
        return [self.code, sha256(lists.encode())]

    def of_unit(self, unit: Unit) -> UnitCleaner:
        """The cleaner of the unit's documents.

        Raises:
            InputError: the code of a step is missing on this machine, or differs from the run's.
        """
        refuse_other_code(self.steps, self.code)
        return UnitCleaner(self, unit, self._removed_of(unit))

    def _removed_of(self, unit: Unit) -> Mapping[int, Documents]:
        if self.duplicates is None:
            return {}
        return load_removed(self.store, self.duplicates).get(unit.ordinal, {})


class UnitCleaner:
    """Cleans the documents of one unit, and counts what is removed."""

    def __init__(self, cleaning: Cleaning, unit: Unit, removed: Mapping[int, Documents]) -> None:
        self._unit, self._cleaner = unit, cleaner(cleaning.steps)
        self._removed = {step: frozenset(documents.tolist()) for step, documents in removed.items()}
        self._counts = StepCounts(len(cleaning.steps))

    def clean(self, document: Document) -> Document | None:
        """The document after all steps; None where one removes it.

        Raises:
            CleaningError: a user's function failed; names the document.
        """
        removed = frozenset(step for step, documents in self._removed.items() if document.index in documents)
        try:
            result = self._cleaner.clean(document.text, removed, document.input)
        except CleaningError as error:
            raise CleaningError(f"{self._unit.path}, document {document.index}: {error}") from None
        self._counts.add(result)
        return None if result.text is None else replace(document, text=result.text, input=result.input)

    def report(self) -> list[dict[str, Any]]:
        """What every step has received and removed so far."""
        return self._counts.rows()


def store_removed(store: Store, removed: Removed) -> str:
    """Stores which documents are duplicates; returns the artifact's digest."""
    rows = [
        {"unit": unit, "step": step, "documents": removed[unit][step].tobytes()}
        for unit in sorted(removed)
        for step in sorted(removed[unit])
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
    content = sink.getvalue().to_pybytes()
    digest = sha256(content)
    store.put(f"{FOLDER}/{digest}.arrow", content)
    return digest


def documents_of(
    unit: Unit, data: DataConfig, store_config: StoreConfig, cleaning: Cleaning | None, *, for_training: bool
) -> Iterator[Document]:
    """The cleaned documents of a unit that are for training, or those held out; none of a bad shard that is skipped.

    Raises:
        BadShardError: the shard cannot be read, and `on_bad_shard` is refuse.
    """
    source = data.sources[unit.source]
    cleaner = None if cleaning is None else cleaning.of_unit(unit)
    try:
        for document in read_documents(unit, source, data, store_config):
            if is_for_training(document, source, data) == for_training:
                cleaned = document if cleaner is None else cleaner.clean(document)
                if cleaned is not None:
                    yield cleaned
    except BadShardError:
        if data.on_bad_shard == "refuse":
            raise


def has_removed(store: Store, digest: str) -> bool:
    """Whether the artifact with this digest is stored, undamaged."""
    try:
        load_removed(store, digest)
    except DamagedObjectError:
        return False
    return True


_loaded: dict[str, Removed] = {}  # the artifact that this process used last; a run has one


def load_removed(store: Store, digest: str) -> Removed:
    """The inverse of `store_removed`, read once per process.

    Raises:
        DamagedObjectError: the artifact is missing or damaged.
    """
    if digest not in _loaded:
        content = read_artifact(store, f"{FOLDER}/{digest}.arrow", digest, bytes, sha256)
        with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
            rows = reader.read_all().to_pylist()
        removed: dict[int, dict[int, Documents]] = {}
        for row in rows:
            removed.setdefault(row["unit"], {})[row["step"]] = np.frombuffer(row["documents"], np.uint32)
        _loaded.clear()
        _loaded[digest] = removed
    return _loaded[digest]
