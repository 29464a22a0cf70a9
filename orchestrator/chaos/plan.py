"""Which faults, in which order: a function of the seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from data.errors import InputError

KINDS = {
    "kill-worker": "SIGKILL to a training worker",
    "kill-node": "SIGKILL to a node, raylet and workers",
    "drain-node": "a node is told that it will be reclaimed, and killed at the deadline",
    "remove-node": "SIGTERM to a node, as a pod that is deleted gets it",
    "add-node": "a node joins",
    "hang-worker": "SIGSTOP to a training worker",
    "store-errors": "for some seconds, requests to the object store fail or are cut off",
    "store-slow": "for some seconds, the object store answers late",
    "corrupt-checkpoint": "a byte of the newest checkpoint is flipped, and all nodes with workers are killed",
}

LOSING = frozenset({"kill-node", "drain-node", "remove-node"})
"""Faults after which there is a node less."""


def refuse_unknown(kinds: Sequence[str]) -> None:
    """Raises InputError for a kind that there is not, naming those that there are."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        listed = "\n".join(f"  {kind:<20}{what}" for kind, what in KINDS.items())
        raise InputError(f"No such fault: {', '.join(unknown) or 'none given'}. There are:\n{listed}")


def draw_faults(kinds: Sequence[str], seed: int, nodes: int, min_workers: int, max_workers: int) -> Iterator[str]:
    """Kinds of faults without end: each once before any comes again, in an order that the seed decides.

    A fault that would leave fewer than `min_workers` nodes or more than `max_workers` is put off; where only such are left, a node
    is added, or lost, in between.

    Args:
        nodes: nodes there are at the beginning.
    """
    draw = random.Random(seed)
    deck: list[str] = []
    while True:
        if not deck:
            deck = list(kinds)
            draw.shuffle(deck)
        possible = [kind for kind in deck if not _refused(kind, nodes, min_workers, max_workers)]
        if possible:
            kind = possible[0]
            deck.remove(kind)
        else:
            kind = "add-node" if nodes <= min_workers else "remove-node"
        nodes += (kind == "add-node") - (kind in LOSING)
        yield kind


def _refused(kind: str, nodes: int, min_workers: int, max_workers: int) -> bool:
    return (kind in LOSING and nodes <= min_workers) or (kind == "add-node" and nodes >= max_workers)
