"""The steps of a recipe as tasks apply them to units: with the code they were checked with, and duplicates decided."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.cleaning.clean import StepCounts, cleaner
from data.cleaning.config import Step
from data.cleaning.identity import digest_of, refuse_other_code
from data.errors import CleaningError, InputError, ObjectNotFoundError
from data.readers.documents import Document
from data.shards.manifest import Unit
from data.stores.store import Store

FOLDER = "duplicates"
"""Where the artifacts are kept that say which documents are duplicates, under their digests."""

Documents = npt.NDArray[np.uint32]
"""(n,) documents of a unit by their index in it, ascending."""

Removed = Mapping[int, Mapping[int, Documents]]
"""By unit (ordinal in the manifest) and step (index in the list): the duplicates that the step removes there."""

_SCHEMA = pa.schema([("unit", pa.int64()), ("step", pa.int64()), ("documents", pa.large_binary())])


@dataclass(frozen=True)
class Cleaning:
    """What is done to the documents of a manifest; picklable.

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
        """Equal where all that is done is."""
        return digest_of(f"{self.code} {self.duplicates}")

    def depends_on(self, unit: Unit) -> list[str]:
        """What the unit's cleaned documents depend on, apart from its own: not on the duplicates of other units."""
        removed = self._removed_of(unit)
        lists = json.dumps([[step, removed[step].tolist()] for step in sorted(removed)])
        return [self.code, hashlib.sha256(lists.encode()).hexdigest()]

    def of_unit(self, unit: Unit) -> UnitCleaner:
        """Ready to clean the unit's documents.

        Raises:
            InputError: the code of a step is missing on this machine, or is not what the run was started with.
        """
        refuse_other_code(self.steps, self.code)
        return UnitCleaner(self, unit, self._removed_of(unit))

    def _removed_of(self, unit: Unit) -> Mapping[int, Documents]:
        if self.duplicates is None:
            return {}
        return load_removed(self.store, self.duplicates).get(unit.ordinal, {})


class UnitCleaner:
    """Cleans the documents of one unit, and counts what that takes away."""

    def __init__(self, cleaning: Cleaning, unit: Unit, removed: Mapping[int, Documents]) -> None:
        self._unit, self._cleaner = unit, cleaner(cleaning.steps)
        self._removed = {step: frozenset(documents.tolist()) for step, documents in removed.items()}
        self._counts = StepCounts(len(cleaning.steps))

    def clean(self, document: Document) -> Document | None:
        """The document after all steps; None where one removes it.

        Raises:
            CleaningError: a function of the user's failed; with the document.
        """
        removed = frozenset(step for step, documents in self._removed.items() if document.index in documents)
        try:
            result = self._cleaner.clean(document.text, removed, document.input)
        except CleaningError as error:
            raise CleaningError(f"{self._unit.path}, document {document.index}: {error}") from None
        self._counts.add(result)
        return None if result.text is None else replace(document, text=result.text, input=result.input)

    def report(self) -> list[dict[str, Any]]:
        """What every step was given and removed so far."""
        return self._counts.rows()


def store_removed(store: Store, removed: Removed) -> str:
    """Keep which documents are duplicates; returns the digest under which they are found again."""
    rows = [
        {"unit": unit, "step": step, "documents": removed[unit][step].tobytes()}
        for unit in sorted(removed)
        for step in sorted(removed[unit])
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
    content = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(content).hexdigest()
    store.put(f"{FOLDER}/{digest}.arrow", content)
    return digest


_loaded: dict[str, Removed] = {}  # the artifact this process used last; a run has one


def load_removed(store: Store, digest: str) -> Removed:
    """What `store_removed` kept, read once a process.

    Raises:
        InputError: it is gone or damaged.
    """
    if digest not in _loaded:
        key = f"{FOLDER}/{digest}.arrow"
        try:
            content = store.get(key)
        except ObjectNotFoundError:
            raise InputError(f"{store.url_of(key)}, which says what is a duplicate, is gone. {_REMEDY}") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise InputError(f"{store.url_of(key)}, which says what is a duplicate, is damaged. {_REMEDY}")
        with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
            rows = reader.read_all().to_pylist()
        removed: dict[int, dict[int, Documents]] = {}
        for row in rows:
            removed.setdefault(row["unit"], {})[row["step"]] = np.frombuffer(row["documents"], np.uint32)
        _loaded.clear()
        _loaded[digest] = removed
    return _loaded[digest]


_REMEDY = "Delete the folder `duplicates` of the storage: it is made again, and is the same."
