"""Makes rows of units in order: in Ray Data tasks, or in this process where there is little to make.

Two functions use parts of Ray Data that are not public API; `tests/data/test_ray_data.py` checks that Ray still has
them.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from data.errors import MantaError, TransientStoreError
from data.shards.manifest import Manifest, Unit

if TYPE_CHECKING:
    import ray
    from ray.data import Dataset

READERS = 8
"""Cached rows fetched at once; the threads wait for the store, not for a core."""

SEGMENT_UNITS = 256
"""Most units in one execution of Ray Data: each is a task and a block."""

SEGMENT_BYTES = 64_000_000
"""Shard bytes of one execution of Ray Data: enough to hide its start-up, few enough to follow what is needed."""

SMALL_BYTES = 2_000_000
"""Shard bytes up to which missing rows are made in this process: in about the time in which Ray Data starts."""


def rows_in_order(
    units: Sequence[Unit],
    load: Callable[[Unit], pa.Table | None],
    make: Callable[[Unit], pa.Table],
    start_ray: Callable[[], None],
) -> Iterator[pa.Table]:
    """One-row tables of the units, in order: found by `load`, or else made by `make`, in a task where there are many.

    Where the store fails for a unit, the rows before it are yielded first, so that a caller that tries again gets on.

    Args:
        load: reads a unit's row from the cache; None where it is missing.
        make: makes a unit's row and caches it; picklable.
        start_ray: called if rows are made in tasks; Ray runs when it returns.
    """
    with ThreadPoolExecutor(READERS, thread_name_prefix="read-cached") as readers:
        cached = list(readers.map(partial(_loaded_or_failed, load), units))
    failure = next((found for found in cached if isinstance(found, TransientStoreError)), None)
    readable = cached if failure is None else cached[: cached.index(failure)]
    missing = [unit for unit, table in zip(units, readable, strict=False) if table is None]
    made: Iterator[pa.Table]
    if sum(unit.unit_bytes for unit in missing) <= SMALL_BYTES:
        made = map(make, missing)
    else:
        start_ray()
        made = _made_in_ray_data(missing, make)
    for table in readable:
        yield next(made) if table is None else table
    if failure is not None:
        raise failure


def _loaded_or_failed(load: Callable[[Unit], pa.Table | None], unit: Unit) -> pa.Table | TransientStoreError | None:
    try:
        return load(unit)
    except TransientStoreError as error:
        return error


def _made_in_ray_data(units: Sequence[Unit], make: Callable[[Unit], pa.Table]) -> Iterator[pa.Table]:
    """The units' rows in order, each made by its own Ray Data task."""
    import ray.data  # takes a second and a half, which is not needed where little has to be made

    use_ordered_quiet_data()

    def row_of(batch: pa.Table) -> pa.Table:
        try:
            return make(Unit(**batch["unit"][0].as_py()))
        except MantaError as error:  # raised in the task, it would lose its class and message in Ray Data's error
            return pa.table({"error": [pickle.dumps(error)]})

    items = [{"unit": asdict(unit)} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        row_of, batch_size=None, batch_format="pyarrow"
    )
    for ref in ordered_block_refs(dataset):
        row = ray.get(ref)
        if "error" in row.column_names:
            raise pickle.loads(row["error"][0].as_py())  # noqa: S301 (written by the task above)
        yield row


def chunks(manifest: Manifest, ordinals: Sequence[int] | None = None) -> Iterator[list[Unit]]:
    """Units in order, all or those of `ordinals`, in lists that fill a few executions of Ray Data."""
    ordinals = range(manifest.num_units) if ordinals is None else ordinals
    chunk: list[Unit] = []
    chunk_bytes = 0
    for done, ordinal in enumerate(ordinals, start=1):
        chunk.append(manifest.unit(ordinal))
        chunk_bytes += chunk[-1].unit_bytes
        if chunk_bytes >= 4 * SEGMENT_BYTES or len(chunk) == 16 * SEGMENT_UNITS or done == len(ordinals):
            yield chunk
            chunk, chunk_bytes = [], 0


def ordered_block_refs(dataset: Dataset) -> Iterator[ray.ObjectRef[Any]]:
    """References to the blocks of a data set in order, without moving the blocks.

    `Dataset.iter_internal_ref_bundles` yields bundles in order when `preserve_order` is set on the context in which the
    data set was made.
    """
    for bundle in dataset.iter_internal_ref_bundles():
        for block in bundle.blocks:
            yield block.ref


def use_ordered_quiet_data() -> None:
    """Sets this process's Ray Data to keep blocks in order and whole, without progress bars."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    # It would reserve half of the cluster for other operators, of which there are none: with two CPUs, one of them.
    context.op_resource_reservation_enabled = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # A block is a whole unit: splitting one would break "one block, one unit".
    context.target_max_block_size = None
