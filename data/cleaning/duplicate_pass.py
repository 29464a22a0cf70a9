"""Which documents of a data set are duplicates, found out before anything is tokenized.

    fingerprints/<k>/<key>.arrow   of a unit: what deduplicating steps compare of its documents, see data.cleaning
    duplicates/<digest>.arrow      by unit and step, the documents that go; immutable
    duplicates/for/<key>           names the digest that belongs to a manifest and steps

Fingerprints are made in Ray Data tasks, unit by unit. The decision is made here, in one order: held-out documents
first, then in the manifest's order. So it does not depend on the cluster, and no copy of a held-out document, exact or
near, is trained on.

Memory of the deciding process, for each document: 6 bytes and its fingerprints (16 bytes for `dedup`, 128 by default
for `near_dedup`), about three times over while a decision is made.
"""

from __future__ import annotations

import hashlib
import json
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
from data.cleaning.units import FOLDER, Documents, Removed, store_removed
from data.config import DataConfig, StoreConfig
from data.errors import BadShardError, CleaningError, ObjectNotFoundError
from data.progress import Tell, told_of
from data.readers.documents import read_documents
from data.shards.manifest import Manifest, Unit
from data.stores.store import Store
from data.tokens.unit import documents_depend_on, is_for_training, load_cached, load_or_make, row_key

FORMAT_VERSION = 1
"""Part of every key; raise it when other fingerprints are made of the same texts, or otherwise compared."""

SCHEMA = pa.schema(
    [
        ("documents", pa.large_binary()),  # (n,) uint32, index in the unit
        ("held_out", pa.large_binary()),  # (n,) bool
        ("reached", pa.list_(pa.large_binary())),  # for every deduplicating step (n,) bool: no step before removes it
        ("prints", pa.list_(pa.large_binary())),  # and (n, width) uint8, zeros where it is not reached
        ("problem", pa.string()),
    ]
)


def up_to_last_dedup(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps that decide what is a duplicate; none where nothing deduplicates."""
    last = max((index for index, step in enumerate(steps) if isinstance(step, DedupSteps)), default=-1)
    return tuple(steps[: last + 1])


@dataclass(frozen=True)
class FingerprintJob:
    """Everything a task needs to make the fingerprints of a unit; picklable.

    Attributes:
        steps: those that decide what is a duplicate.
        code: their `identity` where the run was started.
        cache: where fingerprints are kept.
    """

    data: DataConfig
    store_config: StoreConfig
    steps: tuple[Step, ...]
    code: str
    cache: Store

    def cache_key(self, unit: Unit) -> str:
        """Key of the unit's fingerprints: a hash of all they depend on."""
        depends_on = documents_depend_on(unit, self.data) | {"version": FORMAT_VERSION, "steps": self.code}
        return row_key(depends_on)

    @property
    def schema(self) -> pa.Schema:
        """Of a unit's row."""
        return SCHEMA


def find_duplicates(
    data: DataConfig,
    store_config: StoreConfig,
    store: Store,
    manifest: Manifest,
    *,
    ahead: bool,
    tell: Tell,
    start_ray: Callable[[], None],
) -> str:
    """Find or make the artifact that says which documents are duplicates; returns its digest.

    Args:
        store: the recipe's storage.
        ahead: whether units are tokenized before training; if not, it is told that they are read all the same.

    Raises:
        BadShardError: shards cannot be read, and `on_bad_shard` is refuse; all are named.
        CleaningError: a function of the user's failed on a document.
        MantaError: see data.errors.
    """
    steps = up_to_last_dedup(data.cleaning)
    job = FingerprintJob(data, store_config, steps, identity(steps), store.child("fingerprints"))
    firsts = [units.start for source in range(len(data.sources)) if (units := manifest.units_of_source(source))]
    made_from = [manifest.digest, *(job.cache_key(manifest.unit(first)) for first in firsts)]
    pointer = f"{FOLDER}/for/{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()}"
    try:
        digest = store.get(pointer).decode()
        if store.head(f"{FOLDER}/{digest}.arrow") is not None:
            tell("duplicates: found before")
            return digest
    except ObjectNotFoundError:
        pass
    if not ahead:
        tell(f"duplicates: data.prepare = {data.prepare}, but all units are read now: any may hold a copy of another's")
    tell(f"duplicates: comparing the documents of {manifest.num_units:,} units")
    rows = _fingerprints(job, manifest, tell, start_ray)
    problems = [row["problem"][0].as_py() for row in rows if row["problem"][0].as_py() is not None]
    if problems and data.on_bad_shard == "refuse":
        raise BadShardError(named(problems))
    removed, total = decide(rows, job.steps)
    digest = store_removed(store, removed)
    if not problems:  # bad shards get another chance
        store.put(pointer, digest.encode())
    gone = sum(len(documents) for steps in removed.values() for documents in steps.values())
    tell(f"duplicates: {gone:,} of {total:,} documents")
    return digest


def _fingerprints(job: FingerprintJob, manifest: Manifest, tell: Tell, start_ray: Callable[[], None]) -> list[pa.Table]:
    from data.tokens.pipeline import chunks, rows_in_order  # imports Ray, which often is not needed

    load, make = partial(load_cached, job=job), partial(load_or_fingerprint, job=job)
    rows = (row for chunk in chunks(manifest) for row in rows_in_order(chunk, load, make, start_ray))
    return list(told_of(rows, manifest.num_units, "duplicates", tell))


def load_or_fingerprint(unit: Unit, job: FingerprintJob) -> pa.Table:
    """The unit's row of SCHEMA: from the cache, or made and then kept there; with `problem` it is not kept.

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
    """Which documents go, given the rows of all units in the manifest's order, and how many documents there are.

    A step that deduplicates sees the documents that no step before it removes, held-out ones first, then in order.
    """
    dedups = [(index, step) for index, step in enumerate(steps) if isinstance(step, DedupStep | NearDedupStep)]
    units = [row.to_pylist()[0] for row in rows]
    sizes = [len(unit["documents"]) // 4 for unit in units]
    documents = np.frombuffer(b"".join(unit["documents"] for unit in units), np.uint32)
    held_out = np.frombuffer(b"".join(unit["held_out"] for unit in units), np.bool_)
    unit_of = np.repeat(np.arange(len(units)), sizes)
    order = np.argsort(~held_out, kind="stable")
    stays: Mask = np.ones(len(documents), np.bool_)
    removed: dict[int, dict[int, Documents]] = {}
    for place, (index, step) in enumerate(dedups):
        reached = np.frombuffer(b"".join(unit["reached"][place] for unit in units), np.bool_)
        prints: Bytes = np.frombuffer(b"".join(unit["prints"][place] for unit in units), np.uint8)
        compared = order[(stays & reached)[order]]
        gone = np.sort(compared[duplicates(prints.reshape(-1, width(step))[compared], step)])
        stays[gone] = False
        ordinals, starts = np.unique(unit_of[gone], return_index=True)
        for ordinal, (first, last) in zip(ordinals.tolist(), pairwise([*starts, len(gone)]), strict=True):
            removed.setdefault(ordinal, {})[index] = documents[gone[first:last]]
    return removed, len(documents)


MAX_NAMED = 10
"""Bad shards named in one message."""


def named(problems: Sequence[str]) -> str:
    """What is wrong with shards, as a message that refuses them."""
    more = f"\n… and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
    remedy = "\nMend them, or set data.on_bad_shard: skip to train without them."
    return "\n".join(problems[:MAX_NAMED]) + more + remedy
