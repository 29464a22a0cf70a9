"""ResumePoint: the state a worker group resumes from, and how a node's snapshot is chosen over a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.run.checkpoint import CheckpointName


class ResumePoint(NamedTuple):
    """The newest state that a worker group can resume from.

    Attributes:
        saved: state.json of the newest checkpoint, or that of step 0.
        name: that checkpoint; None where there is none.
        holder: node with a snapshot at least as new, and the snapshot's step; None where no node has one.
    """

    saved: dict[str, Any]
    name: CheckpointName | None
    holder: tuple[str, int] | None


def newest_holder(held: Mapping[str, tuple[int, int]], saved_step: int) -> tuple[str, int] | None:
    """Finds the node whose snapshot is newest, no older than the checkpoint, and continues the checkpoint's ledger.

    A snapshot brings the ledger rows since the checkpoint that was newest when it was taken. Where that checkpoint
    turned out to be damaged, the rows between the one before it and the snapshot's first row are nowhere.

    Args:
        held: `NodeMemory.newest` by node: step of the newest snapshot, and of its first ledger row.
        saved_step: step of the newest undamaged checkpoint.

    Returns:
        the node and the step of its snapshot; None where no node qualifies.
    """
    continuing = {node_id: step for node_id, (step, first_row) in held.items() if first_row <= saved_step + 1}
    best = max(continuing, key=lambda node_id: continuing[node_id], default=None)
    return (best, continuing[best]) if best is not None and continuing[best] >= max(saved_step, 1) else None


def copy_rounds(holders: Sequence[str], lacking: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yields who copies a snapshot from whom, one round after the other: every holder serves one node in each.

    A node that has got it serves others in the next round, so the copies take `log2(nodes / holders)` rounds, and no
    node sends to all others.

    Args:
        holders: ids of nodes that have the snapshot, at least one.
        lacking: ids of nodes that are to get it.
    """
    have, waiting = list(holders), list(lacking)
    while waiting:
        served = waiting[: len(have)]
        yield dict(zip(served, have, strict=False))
        have, waiting = have + served, waiting[len(served) :]
