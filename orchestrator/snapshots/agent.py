"""The node agent: one actor a node with workers, between the node's memory and object storage.

It outlives worker groups and never imports torch. Workers write their state into the node's memory and go on; the
agent uploads it as a checkpoint, hands it to other nodes, and fetches a checkpoint where no node has anything newer.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray
from safetensors.numpy import save_file

from cluster.ray_nodes import on_node
from data.errors import MantaError, ObjectNotFoundError
from orchestrator.errors import CheckpointDamagedError
from orchestrator.observe.event_files import TrainingEvents
from orchestrator.run.checkpoint import (
    MODEL,
    PROGRESS,
    CheckpointName,
    fetch_checkpoint,
    fetch_newest,
    newest_undamaged,
    prune,
    quarantine,
    tensor_files,
    weights_file,
    write_checkpoint,
)
from orchestrator.run.fence import check_fence
from orchestrator.run.job import TrainJob, initial_weights_key
from orchestrator.run.ledger import StepLedger
from orchestrator.run.record import load_record
from orchestrator.run.state import START, RunState
from orchestrator.snapshots.store import NodeMemory, forget

ANSWER_S = 2.0
"""Seconds that nodes without workers have to say what they hold."""


class Origin(NamedTuple):
    """What a worker group goes on from.

    Attributes:
        saved: state.json of the newest checkpoint, or that of step 0.
        name: the checkpoint; None where there is none.
        holder: node that has a snapshot which is at least as new, and the snapshot's step; None where no node does.
    """

    saved: dict[str, Any]
    name: CheckpointName | None
    holder: tuple[str, int] | None


class SnapshotAgent:
    """Body of the actor. Its methods run side by side: an upload may last."""

    def __init__(self, job: TrainJob, node_id: str) -> None:
        self._job, self._store, self._node_id = job, job.store, node_id
        self._memory: NodeMemory | None = None
        self._saving = threading.Lock()
        self._events = TrainingEvents(job.store)
        self._origin: tuple[dict[str, Any], StepLedger] | None = None

    def open_memory(self, state_bytes: int) -> NodeMemory:
        """Where the node's workers keep their state, of which one takes `state_bytes`; always the same place."""
        if self._memory is None:
            self._memory = NodeMemory.on_this_node(
                self._store.url_of(""), self._job.attempt, self._node_id, state_bytes
            )
        return self._memory

    def choose(self, held: Mapping[str, tuple[int, int]]) -> Origin:
        """Choose what the group goes on from, given `NodeMemory.newest` of each of its nodes; asked by rank 0.

        Where it is a checkpoint, it is in this node's memory afterwards.

        Raises:
            CheckpointDamagedError: there are checkpoints, and every one is damaged.
        """
        with tempfile.TemporaryDirectory(prefix="manta-state-") as scratch:
            damaged: list[CheckpointName] = []

            def consider(name: CheckpointName) -> Origin:
                damaged.append(name)
                saved = fetch_checkpoint(self._store, name, (), Path(scratch))
                holder = self._newest_holder(held, saved["step"])
                if holder is None:
                    self.fetch(name)
                damaged.remove(name)
                return Origin(saved, name, holder)

            record = load_record(self._store)
            origin = newest_undamaged(self._store, record, consider, self._job.monitor.log.remote)
            for name in damaged:  # else the next group, which may read less of it, would go on from it
                quarantine(self._store, name)
            origin = origin or Origin(START, None, self._newest_holder(held, 0))
            self._go_on_from(origin.saved)
            return origin

    def fetch(self, name: CheckpointName) -> None:
        """Put a checkpoint into this node's memory.

        Raises:
            CheckpointDamagedError: it is damaged.
        """
        files = tensor_files(averaged=self._job.config.train.ema_decay is not None)
        with self._memory_here().writing(name.step, ()) as folder:
            fetch_checkpoint(self._store, name, files, folder)

    def fetch_initial(self) -> None:
        """Put the weights that the run begins with into this node's memory, as all there is of the state of step 0.

        Raises:
            CheckpointDamagedError: they are not those that were kept.
        """
        assert self._job.init is not None
        key = initial_weights_key(self._job.init)
        try:
            content = self._store.get(key)
        except ObjectNotFoundError:
            content = b""
        if hashlib.sha256(content).hexdigest() != self._job.init:
            raise CheckpointDamagedError(
                f"{self._store.url_of(key)}, which the run begins with, is not what was written there. Delete it, and "
                "start the run again: it is made anew from train.init_from."
            )
        with self._memory_here().writing(0, ()) as folder:
            (folder / MODEL).write_bytes(content)

    def newest(self) -> tuple[int, int]:
        """See `NodeMemory.newest`; (-1, -1) too where no worker has come here yet."""
        return self._memory.newest() if self._memory else (-1, -1)

    def files(self, step: int) -> dict[str, NDArray[Any]]:
        """A snapshot, for a node that lacks it."""
        return self._memory_here().files(step)

    def weights(self, step: int) -> dict[str, NDArray[Any]]:
        """The weights of a snapshot that are evaluated, as the file they are in, for whoever evaluates them."""
        name = weights_file(averaged=self._job.config.train.ema_decay is not None)
        with self._memory_here().pinned(step) as folder:
            return {name: np.fromfile(folder / name, np.uint8)}

    def save(self, step: int) -> int:
        """Have the snapshot of `step` in object storage, as a checkpoint, when this returns; returns `step`.

        Raises:
            FencedError: a newer attempt has taken the run over.
            TransientStoreError: the store does not answer; may be tried again.
            MantaError: see `data.store`.
        """
        job, store, memory = self._job, self._store, self._memory_here()
        began = time.monotonic()
        with self._saving, memory.pinned(step) as folder:
            check_fence(store, job.attempt)  # before metrics.jsonl, which a newer attempt may have written since
            origin = self._origin or self._go_on_from(self._newest_state())
            saved, ledger = origin
            now = RunState(saved, [row for row in memory.rows(step) if row.step > saved["step"]])
            known = ray.get(job.feeder.known.remote())
            ledger.write(now.rows)
            save_file({"counts": known.counts}, folder / PROGRESS)
            state = {
                "step": step,
                "tokens": now.tokens,
                "step_seconds": now.step_seconds,
                "recent_losses": now.recent_losses,
                "skipped_steps": sorted(now.skipped_steps),
                "samples": step * job.config.train.global_batch_size,
                "seed": job.config.seed,
                "ledger": ledger.segments,
                "skipped": known.skipped,
                "excluded": asdict(known.excluded),
                "saved_at": time.time(),
                **job.facts,
            }
            size = write_checkpoint(
                store,
                CheckpointName(step, job.attempt),
                state,
                folder,
                before_commit=lambda: check_fence(store, job.attempt),
            )
            if self._origin is origin:  # else a group has started meanwhile, and goes on from what it found saved
                self._origin = state, ledger
            job.monitor.saved.remote(step, state["saved_at"])
            job.monitor.log.remote(
                f"step {step}: checkpoint saved ({size / 1e6:.1f} MB in {time.monotonic() - began:.1f} s)"
            )
            prune(store, check_fence(store, job.attempt), job.config.checkpoint.keep)
            if job.config.observe.tensorboard:
                self._write_events(step, ledger.segments)
        return step

    def _write_events(self, step: int, segments: Sequence[str]) -> None:
        """Have TensorBoard's files for the steps up to `step`; where that fails, the next save makes up for it."""
        try:
            self._events.follow(segments)
        except MantaError as error:
            said = " ".join(str(error).split())[-300:]
            self._job.monitor.log.remote(f"step {step}: not in TensorBoard's files yet: {said}")

    def free(self) -> None:
        """Free the node's memory."""
        if self._memory is not None:
            self._memory.free()

    def _newest_holder(self, held: Mapping[str, tuple[int, int]], saved_step: int) -> tuple[str, int] | None:
        """`newest_holder`, also among nodes that have no workers any more, where those that do have nothing."""
        return newest_holder(held, saved_step) or newest_holder(self._held_elsewhere(held), saved_step)

    def _held_elsewhere(self, nodes: Container[str]) -> dict[str, tuple[int, int]]:
        """What the memory of other nodes has; of those that are gone there is no answer."""
        agents = ray.get(self._job.monitor.agents.remote())
        asked = {agent.newest.remote(): node_id for node_id, agent in agents.items() if node_id not in nodes}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
        held = {}
        for answer in answered:
            with suppress(ray.exceptions.RayError):
                held[asked[answer]] = ray.get(answer)
        return held

    def _go_on_from(self, saved: dict[str, Any]) -> tuple[dict[str, Any], StepLedger]:
        self._origin = saved, StepLedger(self._store, self._job.attempt, saved["step"], saved["ledger"])
        return self._origin

    def _newest_state(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="manta-state-") as scratch:
            newest = fetch_newest(self._store, load_record(self._store), (), Path(scratch))
        return newest[1] if newest else START

    def _memory_here(self) -> NodeMemory:
        if self._memory is None:
            raise MantaError("This node keeps no state of the run yet.")  # no worker has been here
        return self._memory


def newest_holder(held: Mapping[str, tuple[int, int]], saved_step: int) -> tuple[str, int] | None:
    """Node with the newest snapshot that is no older than the checkpoint and joins on to it, and its step; or None.

    Rows between the two would be missing from the ledger where the checkpoint at which the snapshot's rows begin has
    turned out to be damaged.
    """
    joining = {node_id: step for node_id, (step, first) in held.items() if first <= saved_step + 1}
    best = max(joining, key=lambda node_id: joining[node_id], default=None)
    return (best, joining[best]) if best is not None and joining[best] >= max(saved_step, 1) else None


TIMEOUT_S = 10.0
"""Seconds that nodes may take; those that are gone never answer."""


def free_node_memory(run_urls: Sequence[str]) -> None:
    """Have every node let go of the snapshots of these runs, none of which is being trained."""
    if not run_urls:
        return
    task = ray.remote(num_cpus=0)(forget)
    tasks = [
        task.options(**on_node(node["NodeID"])).remote(list(run_urls))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    with suppress(ray.exceptions.RayError):
        ray.wait(tasks, num_returns=len(tasks), timeout=TIMEOUT_S)
