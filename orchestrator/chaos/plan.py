"""The kinds of faults, and the order in which they are injected, a pure function of the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data.errors import InputError

MIN_NODES = 2
"""Nodes that faults leave at least: one to lose, and one to continue on."""

FULL_S = 15.0
"""Seconds for which a store or memory is full."""


@dataclass(frozen=True)
class Plan:
    """The faults to inject, and the cluster to run on.

    Attributes:
        every_s: seconds from one fault to the next; longer if the run has not completed a new step since. With
            `soak_s`: their mean, and nothing is waited for.
        count: most faults; None: no limit until the run ends.
        nodes: one-CPU nodes of the cluster.
        soak_s: seconds for which faults are drawn by their rates, see `draw_by_rates`; None: see `draw_faults`.
    """

    kinds: Sequence[str]
    every_s: float
    seed: int
    count: int | None
    nodes: int
    soak_s: float | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        node_change: change of the number of nodes.
        needs_store: it needs an object store, in front of which a proxy can stand.
        needs_mount: it needs the right to mount a small file system.
        ends_command: the command may end with it, and is started again once it is over.
        lasts_s: seconds until it is over, of those that end the command.
        in_baseline: whether it is also injected into stock Ray Train.
    """

    description: str
    node_change: int = 0
    needs_store: bool = False
    needs_mount: bool = False
    ends_command: bool = False
    lasts_s: float = 0.0
    in_baseline: bool = False


KINDS = {
    "kill-worker": Kind("SIGKILL to a training worker", in_baseline=True),
    "kill-node": Kind("SIGKILL to a node, raylet and workers", node_change=-1, in_baseline=True),
    "drain-node": Kind(
        "a drain notice to a node, which is killed at the deadline",
        node_change=-1,
        in_baseline=True,
    ),
    "remove-node": Kind("SIGTERM to a node, as when its pod is deleted", node_change=-1, in_baseline=True),
    "add-node": Kind("a node joins", node_change=1, in_baseline=True),
    "hang-worker": Kind("SIGSTOP to a training worker"),
    "partition": Kind(
        "a node is frozen, and silent, until the others count it as lost; then it wakes up",
        node_change=-1,
    ),
    "clock-skew": Kind("a node joins whose clock is minutes off", node_change=1),
    "slow-node": Kind("a node's workers get half of their time for some seconds"),
    "store-errors": Kind("requests to the object store fail or are cut off for some seconds", needs_store=True),
    "store-slow": Kind("the object store answers late for some seconds", needs_store=True),
    "store-away": Kind("the object store cannot be reached for some seconds", needs_store=True),
    "full-disk": Kind(
        "the object store takes nothing more for some seconds", needs_store=True, ends_command=True, lasts_s=FULL_S
    ),
    "full-shm": Kind(
        "the memory in which nodes keep snapshots is full for some seconds",
        needs_mount=True,
        ends_command=True,
        lasts_s=FULL_S,
    ),
    "corrupt-checkpoint": Kind("a bit of the newest checkpoint is flipped, and all nodes with workers are killed"),
    "kill-monitor": Kind("SIGKILL to the actor through which driver and workers talk"),
    "kill-feeder": Kind("SIGKILL to the actor that makes the batches"),
    "kill-agent": Kind("SIGKILL to the actor that uploads a node's checkpoints"),
    "kill-driver": Kind("SIGKILL to the command, which is started again", ends_command=True),
    "kill-head": Kind(
        "SIGKILL to the head, the command and all nodes, which cannot outlive it; all start again", ends_command=True
    ),
}
"""The faults. To add one, add a row, and a method to `Injector` that is named after it."""


@dataclass(frozen=True)
class Cause:
    """A cause of interruptions.

    Attributes:
        interruptions: how many it had in the published count.
        kinds: the faults that imitate it, each as often as the others.
    """

    name: str
    interruptions: int
    kinds: tuple[str, ...]


CAUSES = (
    Cause("GPUs and their memory", 262, ("kill-worker",)),
    Cause("software", 56, ("kill-monitor", "kill-feeder", "kill-agent", "kill-driver")),
    Cause("network", 42, ("partition", "slow-node", "store-away", "store-errors", "store-slow")),
    Cause("maintenance of hosts", 32, ("drain-node", "remove-node")),
    Cause("other parts of hosts", 14, ("kill-node", "kill-head", "full-disk", "full-shm")),
    Cause("hanging collectives", 7, ("hang-worker",)),
    Cause("silent data corruption", 6, ("corrupt-checkpoint",)),
)
"""The 419 unexpected interruptions of 54 days of training on 16,384 GPUs, by cause: The Llama 3 Herd of Models
(arXiv:2407.21783), Table 5. Its rows are added up: GPU 148 + HBM3 72 + SRAM 19 + system processor 17 + thermal and
sensor 6; software bugs 54 + dependencies 2; switches and cables 35 + network cards 7; unplanned maintenance 32; disks
3, power 3, chassis 2, IO boards 2, CPUs 2, memory 2; NCCL watchdog 7; silent data corruption 6."""


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


def rates(kinds: Sequence[str]) -> dict[str, float]:
    """Share of each kind among the faults of a soak: that of its cause in CAUSES, evenly among the cause's `kinds`.

    Causes without any of these kinds are left out. Nodes join as often as nodes go.

    Raises:
        InputError: none of the kinds imitates a cause.
    """
    weights = dict[str, float]()
    for cause in CAUSES:
        present = [kind for kind in cause.kinds if kind in kinds]
        weights |= {kind: cause.interruptions / len(present) for kind in present}
    if not weights:
        raise InputError(f"{', '.join(kinds)}: no cause of interruptions is like these; --soak needs others, or all.")
    joining = [kind for kind in kinds if KINDS[kind].node_change > 0]
    leaving = sum(weight for kind, weight in weights.items() if KINDS[kind].node_change < 0)
    weights |= {kind: leaving / len(joining) for kind in joining if leaving}
    total = sum(weights.values())
    return {kind: weight / total for kind, weight in weights.items()}


def draw_by_rates(kinds: Sequence[str], seed: int, nodes: int, min_nodes: int, max_nodes: int) -> Iterator[str]:
    """Yields kinds of faults without end, drawn by their `rates`; a node joins before too few are left.

    Args:
        nodes: nodes at the start.
    """
    draw, shares = random.Random(seed), rates(kinds)
    while True:
        [kind] = draw.choices(list(shares), list(shares.values()))
        if _refused(kind, nodes, min_nodes, max_nodes):
            if KINDS[kind].node_change > 0:
                continue
            kind = "add-node"
        nodes += KINDS[kind].node_change
        yield kind


def gaps(mean_s: float, seed: int) -> Iterator[float]:
    """Yields seconds between two faults without end, as those of faults that know nothing of each other."""
    draw = random.Random(seed)
    while True:
        yield draw.expovariate(1 / mean_s)


def _refused(kind: str, nodes: int, min_nodes: int, max_nodes: int) -> bool:
    change = KINDS[kind].node_change
    return (change < 0 and nodes + change < min_nodes) or (change > 0 and nodes + change > max_nodes)
