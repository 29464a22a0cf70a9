"""Fetches held-out micro-batches that the feeder has made, also from its successor where it has died since."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import ray

from data.feed.spec import HeldOut
from data.order.packing import MicroBatch

FETCH_TRIES = 3
"""Feeders that may die, one after the other, between their answer and the arrival of a micro-batch."""


def held_out_batches(feeder: Any, held_out: HeldOut, slots: Iterable[int]) -> Iterator[MicroBatch]:
    """The micro-batches of the held-out set at these positions.

    Args:
        feeder: handle of the actor `data.feed.feeder.Feeder`.
        held_out: its answer.
    """
    for slot in slots:
        for tries_left in reversed(range(FETCH_TRIES)):
            try:
                batch = ray.get(held_out.refs[slot])
                break
            except ray.exceptions.ObjectLostError:  # with the feeder; Ray restarts it, and it makes the same ones
                if not tries_left:
                    raise
                held_out = ray.get(feeder.held_out.remote())
        yield batch
