"""What of Ray Data is not public API; `tests/data/test_ray_data.py` holds Ray to it by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from ray.data import Dataset


def ordered_block_refs(dataset: Dataset) -> Iterator[ray.ObjectRef[Any]]:
    """References to the blocks of a data set in order, without moving the blocks.

    `Dataset.iter_internal_ref_bundles` yields bundles in order when `preserve_order` is set on the context in which the
    data set was made.
    """
    for bundle in dataset.iter_internal_ref_bundles():
        for block in bundle.blocks:
            yield block.ref


def use_ordered_quiet_data() -> None:
    """Set this process's Ray Data to keep blocks in order, whole and without its own progress bars."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    # Half of the cluster would be held back for operators other than the one there is: with two CPUs, one of them.
    context.op_resource_reservation_enabled = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # A block is a whole unit: splitting one would break "one block, one unit".
    context.target_max_block_size = None
