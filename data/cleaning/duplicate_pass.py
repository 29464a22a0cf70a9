"""Finds the duplicates in a data set before anything is tokenized.

    fingerprints/<k>/<key>.arrow   the fingerprints of a unit's documents, see data.cleaning.fingerprint
    duplicates/<digest>.arrow      the documents to remove, by unit and step; immutable
    duplicates/for/<key>           names the digest for a manifest and steps

Fingerprints are made as `data.ray_data` makes any rows of units. One process compares them in a fixed order: held-out
documents first, then in the manifest's order. So the result does not depend on the cluster, and no copy of a held-out
document, exact or near, is trained on.

Memory of that process per document: 6 bytes and its fingerprints (16 bytes for `dedup`, 128 by default for
`near_dedup`), about three times as much during a comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa

from data.cleaning.clean import cleaner
from data.cleaning.config import DedupStep, DedupSteps, NearDedupStep, Step
from data.cleaning.duplicates import Mask, duplicates
from data.cleaning.fingerprint import Bytes, fingerprint, width
from data.cleaning.identity import identity, refuse_other_code
from data.cleaning.units import FOLDER, Documents, Removed, load_removed, store_removed
from data.config import DataConfig, StoreConfig
from data.errors import BadShardError, CleaningError, DamagedObjectError
from data.ray_data import chunks, rows_in_order
from data.readers.documents import documents_depend_on, is_for_training, read_documents
from data.shards.manifest import Manifest, Unit
from data.shards.unit_rows import Log, load_cached, load_or_make, row_key, with_progress
from data.stores.artifact import json_digest, read_pointer, write_pointer
from data.stores.store import Store

FORMAT_VERSION = 1
"""Part of every key. Raise it when fingerprints of the same texts, or their comparison, change."""

SCHEMA = pa.schema(
    [
        ("documents", pa.large_binary()),  # (n,) uint32, index in the unit
        ("held_out", pa.large_binary()),  # (n,) bool
        (
            "reached",
            pa.list_(pa.large_binary()),
        ),  # for every deduplicating step (n,) bool: not removed by an earlier step
        ("prints", pa.list_(pa.large_binary())),  # and (n, width) uint8, zeros where not reached
        ("problem", pa.string()),
    ]
)


def up_to_last_dedup(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps that decide what a duplicate is: all up to the last deduplicating one."""
    last = max((index for index, step in enumerate(steps) if isinstance(step, DedupSteps)), default=-1)
    return tuple(steps[: last + 1])


@dataclass(frozen=True)
class FingerprintJob:
    """Everything a task needs to make the fingerprints of a unit; picklable.

    Attributes:
        steps: the steps that decide what a duplicate is.
        code: their `identity` where the run was started.
        cache: where fingerprints are cached.
    """

    data: DataConfig
    store_config: StoreConfig
    steps: tuple[Step, ...]
    code: str
    cache: Store

    def cache_key(self, unit: Unit) -> str:
        """Key of the unit's fingerprints: a hash of everything they depend on."""
        depends_on = documents_depend_on(unit, self.data) | {"version": FORMAT_VERSION, "steps": self.code}
        return row_key(depends_on)

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of a unit's row."""
        return SCHEMA


def find_duplicates(
    data: DataConfig,
    store_config: StoreConfig,
    store: Store,
    manifest: Manifest,
    *,
    ahead: bool,
    log: Log,
    start_ray: Callable[[], None],
) -> str:
    """Finds or makes the artifact that lists the duplicates; returns its digest.

    Args:
        store: the recipe's storage.
        ahead: whether units are tokenized before training; if not, a line says that all are read anyway.

    Raises:
        BadShardError: shards cannot be read, and `on_bad_shard` is refuse; all are named.
        CleaningError: a user's function failed on a document.
        MantaError: see data.errors.
    """
    steps = up_to_last_dedup(data.cleaning)
    job = FingerprintJob(data, store_config, steps, identity(steps), store.child("fingerprints"))
    firsts = [units.start for source in range(len(data.sources)) if (units := manifest.units_of_source(source))]
    made_from = [manifest.digest, *(job.cache_key(manifest.unit(first)) for first in firsts)]
    pointer = f"{FOLDER}/for/{json_digest(made_from)}"
    if (digest := read_pointer(store, pointer)) is not None:
        try:
            load_removed(store, digest)
            log("duplicates: found from an earlier run")
            return digest
        except DamagedObjectError as damage:
            log(f"duplicates: {damage} Making it again.")
    if not ahead:
        log(f"duplicates: data.prepare = {data.prepare}, but all units are read now: any may hold a copy of another's")
    log(f"duplicates: comparing the documents of {manifest.num_units:,} units")
    rows = _fingerprints(job, manifest, log, start_ray)
    problems = [row["problem"][0].as_py() for row in rows if row["problem"][0].as_py() is not None]
    if problems and data.on_bad_shard == "refuse":
        raise BadShardError(bad_shards_message(problems))
    removed, total = decide(rows, job.steps)
    digest = store_removed(store, removed)
    if not problems:  # a later version of the reader may read bad shards
        write_pointer(store, pointer, digest)
    gone = sum(len(documents) for steps in removed.values() for documents in steps.values())
    log(f"duplicates: {gone:,} of {total:,} documents")
    return digest


def _fingerprints(job: FingerprintJob, manifest: Manifest, log: Log, start_ray: Callable[[], None]) -> list[pa.Table]:
    load, make = partial(load_cached, job=job), partial(load_or_fingerprint, job=job)
    rows = (row for chunk in chunks(manifest) for row in rows_in_order(chunk, load, make, start_ray))
    return list(with_progress(rows, manifest.num_units, "duplicates", log))


def load_or_fingerprint(unit: Unit, job: FingerprintJob) -> pa.Table:
    """The unit's row of SCHEMA: from the cache, or made and then cached. A row with a `problem` is not cached.

    Raises:
        MantaError: as `load_or_tokenize`.
    """
    return load_or_make(unit, job, lambda: fingerprints_of(unit, job))


def fingerprints_of(unit: Unit, job: FingerprintJob) -> pa.Table:
    """The unit's row, made from its shard; see `load_or_fingerprint`."""
    dedups = [step for step in job.steps if isinstance(step, DedupSteps)]
    documents: list[int] = []
    held_out: list[bool] = []
    reached: list[list[bool]] = [[] for _ in dedups]
    prints: list[list[bytes]] = [[] for _ in dedups]
    refuse_other_code(job.steps, job.code)
    clean, source, problem = cleaner(job.steps).clean, job.data.sources[unit.source], None
    try:
        for document in read_documents(unit, source, job.data, job.store_config):
            try:
                seen = clean(document.text, input=document.input).seen
            except CleaningError as error:
                raise CleaningError(f"{unit.path}, document {document.index}: {error}") from None
            documents.append(document.index)
            held_out.append(not is_for_training(document, source, job.data))
            for place, step in enumerate(dedups):
                reached[place].append(place < len(seen))
                prints[place].append(fingerprint(seen[place], step) if place < len(seen) else bytes(width(step)))
    except BadShardError as error:
        documents, held_out, problem = [], [], str(error)
        reached, prints = [[] for _ in dedups], [[] for _ in dedups]
    row = {
        "documents": np.array(documents, np.uint32).tobytes(),
        "held_out": np.array(held_out, np.bool_).tobytes(),
        "reached": [np.array(each, np.bool_).tobytes() for each in reached],
        "prints": [b"".join(each) for each in prints],
        "problem": problem,
    }
    return pa.Table.from_pylist([row], schema=SCHEMA)


def decide(rows: Iterable[pa.Table], steps: Sequence[Step]) -> tuple[Removed, int]:
    """The documents to remove, and the number of all documents.

    A deduplicating step compares the documents that no earlier step removes, held-out ones first, then in order.

    Args:
        rows: of all units, in the manifest's order.
    """
    dedups = [(index, step) for index, step in enumerate(steps) if isinstance(step, DedupStep | NearDedupStep)]
    units = [row.to_pylist()[0] for row in rows]
    sizes = [len(unit["documents"]) // 4 for unit in units]
    documents = np.frombuffer(b"".join(unit["documents"] for unit in units), np.uint32)
    held_out = np.frombuffer(b"".join(unit["held_out"] for unit in units), np.bool_)
    unit_of = np.repeat(np.arange(len(units)), sizes)
    order = np.argsort(~held_out, kind="stable")
    kept: Mask = np.ones(len(documents), np.bool_)
    removed: dict[int, dict[int, Documents]] = {}
    for place, (index, step) in enumerate(dedups):
        reached = np.frombuffer(b"".join(unit["reached"][place] for unit in units), np.bool_)
        prints: Bytes = np.frombuffer(b"".join(unit["prints"][place] for unit in units), np.uint8)
        compared = order[(kept & reached)[order]]
        gone = np.sort(compared[duplicates(prints.reshape(-1, width(step))[compared], step)])
        kept[gone] = False
        ordinals, starts = np.unique(unit_of[gone], return_index=True)
        for ordinal, (first, last) in zip(ordinals.tolist(), pairwise([*starts, len(gone)]), strict=True):
            removed.setdefault(ordinal, {})[index] = documents[gone[first:last]]
    return removed, len(documents)


MAX_NAMED = 10
"""Bad shards named in one message."""


def bad_shards_message(problems: Sequence[str]) -> str:
    """The message that refuses bad shards."""
    more = f"\n… and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
    remedy = "\nRepair them, or set data.on_bad_shard: skip to train without them."
    return "\n".join(problems[:MAX_NAMED]) + more + remedy
