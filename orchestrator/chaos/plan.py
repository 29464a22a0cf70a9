"""The kinds of faults, and the order in which they are injected, a pure function of the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data.errors import InputError


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        node_change: change of the number of nodes.
        needs_workers: it hits a worker or a node with workers, so there must be one.
        needs_store: it needs an object store, in front of which a proxy can stand.
        in_baseline: whether it is also injected into stock Ray Train.
    """

    description: str
    node_change: int = 0
    needs_workers: bool = False
    needs_store: bool = False
    in_baseline: bool = True


KINDS = {
    "kill-worker": Kind("SIGKILL to a training worker", needs_workers=True),
    "kill-node": Kind("SIGKILL to a node, raylet and workers", node_change=-1, needs_workers=True),
    "drain-node": Kind("a drain notice to a node, which is killed at the deadline", node_change=-1, needs_workers=True),
    "remove-node": Kind("SIGTERM to a node, as when its pod is deleted", node_change=-1, needs_workers=True),
    "add-node": Kind("a node joins", node_change=1),
    "hang-worker": Kind("SIGSTOP to a training worker", needs_workers=True, in_baseline=False),
    "store-errors": Kind(
        "requests to the object store fail or are cut off for some seconds", needs_store=True, in_baseline=False
    ),
    "store-slow": Kind("the object store answers late for some seconds", needs_store=True, in_baseline=False),
    "store-away": Kind("the object store cannot be reached for some seconds", needs_store=True, in_baseline=False),
    "kill-monitor": Kind("SIGKILL to the actor through which driver and workers talk", in_baseline=False),
    "kill-feeder": Kind("SIGKILL to the actor that makes the batches", in_baseline=False),
    "kill-agent": Kind("SIGKILL to the actor that uploads a node's checkpoints", needs_workers=True, in_baseline=False),
    "slow-node": Kind(
        "a node's workers get half of their time for some seconds", needs_workers=True, in_baseline=False
    ),
    "corrupt-checkpoint": Kind(
        "a bit of the newest checkpoint is flipped, and all nodes with workers are killed",
        needs_workers=True,
        in_baseline=False,
    ),
}
"""The faults. To add one, add a row, and a method to `Injector` that is named after it."""


def refuse_unknown(kinds: Sequence[str]) -> None:
    """Checks that all kinds exist.

    Raises:
        InputError: a kind is unknown, or none is given; the message lists the known ones.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        listed = "\n".join(f"  {name:<20}{kind.description}" for name, kind in KINDS.items())
        raise InputError(f"No such fault: {', '.join(unknown) or 'none given'}. There are:\n{listed}")


def draw_faults(kinds: Sequence[str], seed: int, nodes: int, min_nodes: int, max_nodes: int) -> Iterator[str]:
    """Yields kinds of faults without end: every kind once, in an order drawn from the seed, then again.

    A fault that would leave fewer than `min_nodes` or more than `max_nodes` nodes is postponed. If all remaining faults
    are such, an extra "add-node" or "remove-node" comes in between.

    Args:
        nodes: nodes at the start.
    """
    draw = random.Random(seed)
    deck: list[str] = []
    while True:
        if not deck:
            deck = list(kinds)
            draw.shuffle(deck)
        possible = [kind for kind in deck if not _refused(kind, nodes, min_nodes, max_nodes)]
        if possible:
            kind = possible[0]
            deck.remove(kind)
        else:
            kind = "add-node" if nodes <= min_nodes else "remove-node"
        nodes += KINDS[kind].node_change
        yield kind


def _refused(kind: str, nodes: int, min_nodes: int, max_nodes: int) -> bool:
    change = KINDS[kind].node_change
    return (change < 0 and nodes + change < min_nodes) or (change > 0 and nodes + change > max_nodes)
