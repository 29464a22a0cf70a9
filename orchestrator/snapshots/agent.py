"""SnapshotAgent: the actor of a node with workers that moves state between the node's memory and object storage.

It outlives worker groups and never imports torch. Workers write snapshots into the node's memory and go on training;
the agent uploads them as checkpoints, hands them to other nodes, and downloads a checkpoint if it is the newest state.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from safetensors.numpy import save_file

from cluster.answers import ANSWER_S, later_than
from cluster.ray_nodes import on_node
from data.errors import MantaError, ObjectNotFoundError
from data.order.known_units import KnownUnits
from data.stores.patience import Patience
from orchestrator.errors import CheckpointDamagedError
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
from orchestrator.run.ledger import StepLedger, StepRow
from orchestrator.run.metrics_file import newest_step
from orchestrator.run.progress import RESTORING
from orchestrator.run.record import load_record
from orchestrator.run.state import START, RunState
from orchestrator.snapshots.housekeeping import Housekeeping
from orchestrator.snapshots.resume_point import ResumePoint, newest_holder
from orchestrator.snapshots.store import NodeMemory, remove_runs

AGENT_THREADS = 4
"""Concurrent calls of an agent: an upload, and the calls of a group that starts at the same time."""

REMOVAL_TIMEOUT_S = 10.0
"""Seconds to wait for nodes to delete snapshots; nodes that are gone never answer."""


class SnapshotAgent:
    """Body of the actor. Its methods run concurrently, as an upload may take long."""

    def __init__(self, job: TrainJob, node_id: str) -> None:
        self._job, self._store, self._node_id = job, job.store, node_id
        self._memory = NodeMemory.found_on_this_node(job.owner, node_id)
        if self._memory is not None:  # another agent was here before, and died
            self._memory.unpin()
        self._saving = threading.Lock()
        self._housekeeping = Housekeeping(job)
        self._base: tuple[dict[str, Any], StepLedger] | None = None  # newest checkpoint's state.json, and the ledger

    def open_memory(self, state_bytes: int) -> NodeMemory:
        """Returns the node's memory, the same at every call.

        Args:
            state_bytes: size of one snapshot.
        """
        if self._memory is None:
            self._memory = NodeMemory.on_this_node(self._job.owner, self._node_id, state_bytes)
        return self._memory

    def choose_resume_point(self, held: Mapping[str, tuple[int, int]]) -> ResumePoint:
        """Chooses the newest state to resume from; called by rank 0. A chosen checkpoint is downloaded to this node.

        The storage is asked only where no node's memory has the newest state: no other attempt may have written
        there since this one began.

        Args:
            held: `NodeMemory.newest` of each of the group's nodes.

        Raises:
            CheckpointDamagedError: there are checkpoints, and every one is damaged.
            TransientStoreError: the storage is needed, and has failed for `store.patience`.
        """
        base: dict[str, Any] | None = ray.get(self._job.monitor.newest_checkpoint.remote())
        if base is not None and (holder := self._newest_holder(held, base["step"])) is not None:
            self._continue_from(base)
            return ResumePoint(base, None, holder)
        return self._patience(RESTORING).call(lambda: self._choose_from_storage(held))

    def _choose_from_storage(self, held: Mapping[str, tuple[int, int]]) -> ResumePoint:
        with tempfile.TemporaryDirectory(prefix="manta-state-") as scratch:
            damaged: list[CheckpointName] = []

            record = load_record(self._store)

            def consider(name: CheckpointName) -> ResumePoint:
                damaged.append(name)
                saved = fetch_checkpoint(self._store, name, (), Path(scratch), record)
                holder = self._newest_holder(held, saved["step"])
                if holder is None:
                    self._fetch(name)
                damaged.remove(name)
                return ResumePoint(saved, name, holder)

            point = newest_undamaged(self._store, record, consider, self._job.monitor.log.remote)
            for name in damaged:  # else the next group, which may read less of it, would resume from it
                quarantine(self._store, name)
            point = point or ResumePoint(START, None, self._newest_holder(held, 0))
            self._continue_from(point.saved)
            self._job.monitor.report_restored.remote(point.saved)
            return point

    def fetch(self, name: CheckpointName) -> None:
        """Downloads a checkpoint, which rank 0's node has fetched already, into this node's memory.

        Raises:
            CheckpointDamagedError: the checkpoint is damaged.
            TransientStoreError: the storage has failed for `store.patience`.
        """
        try:
            self._patience(RESTORING).call(lambda: self._fetch(name))
        except CheckpointDamagedError:
            # An upload that ended meanwhile may have pruned it. The other node has it whole.
            steps = {node_id: newest for node_id, (newest, _) in self._held_elsewhere({self._node_id}).items()}
            holder = next((node_id for node_id, newest in steps.items() if newest == name.step), None)
            if holder is None:
                raise
            agent = ray.get(self._job.monitor.agents.remote())[holder]
            self._memory_here().receive(name.step, ray.get(agent.files.remote(name.step)))

    def _fetch(self, name: CheckpointName) -> None:
        files = tensor_files(averaged=self._job.config.train.ema_decay is not None)
        with self._memory_here().writing(name.step, ()) as folder:
            fetch_checkpoint(self._store, name, files, folder)

    def fetch_initial(self) -> None:
        """Downloads the run's initial weights into this node's memory, as a snapshot of step 0 without optimizer state.

        Raises:
            CheckpointDamagedError: the stored weights are missing or changed.
        """
        assert self._job.init is not None
        key = initial_weights_key(self._job.init)
        try:
            content = self._patience("fetching the initial weights").call(lambda: self._store.get(key))
        except ObjectNotFoundError:
            content = b""
        if hashlib.sha256(content).hexdigest() != self._job.init:
            raise CheckpointDamagedError(
                f"{self._store.url_of(key)}, the initial weights of the run, is missing or changed. Delete it and "
                "start the run again, which writes it anew from train.init_from."
            )
        with self._memory_here().writing(0, ()) as folder:
            (folder / MODEL).write_bytes(content)

    def newest(self) -> tuple[int, int]:
        """Returns `NodeMemory.newest`; (-1, -1) also before the first worker of this node."""
        return self._memory.newest() if self._memory else (-1, -1)

    def files(self, step: int) -> dict[str, NDArray[Any]]:
        """Returns the files of a snapshot, for a node that lacks it."""
        return self._memory_here().files(step)

    def weights(self, step: int) -> dict[str, NDArray[Any]]:
        """Returns the file with the weights to evaluate of a snapshot, by its name; see `background_evaluator`."""
        name = weights_file(averaged=self._job.config.train.ema_decay is not None)
        with self._memory_here().pinned(step) as (folder, _):
            return {name: np.fromfile(folder / name, np.uint8)}

    def save(self, step: int) -> int:
        """Uploads the snapshot of `step` as a checkpoint; returns `step`.

        Raises:
            FencedError: a newer attempt has taken over the run.
            SnapshotGoneError: newer snapshots have replaced it.
            TransientStoreError: the store does not answer; a retry may succeed.
            MantaError: see `data.stores.store`.
        """
        job, store, memory = self._job, self._store, self._memory_here()
        with self._saving, memory.pinned(step) as (folder, rows):
            check_fence(store, job.attempt)
            base = self._base or self._continue_from(
                ray.get(job.monitor.newest_checkpoint.remote()) or self._newest_state()
            )
            state, ledger = base
            continued, name = state["ledger"], CheckpointName(step, job.attempt)
            if state["step"] != step:  # else an agent that died before it could say so has saved it
                state = self._write(name, base, folder, rows)
            kept = prune(store, check_fence(store, job.attempt), job.config.checkpoint.keep)
            self._housekeeping.after_save(name, state, ledger, continued, kept)
        return step

    def _write(
        self, name: CheckpointName, base: tuple[dict[str, Any], StepLedger], folder: Path, rows: Sequence[StepRow]
    ) -> dict[str, Any]:
        """Writes the checkpoint `name` and tells the monitor; returns its state.json.

        Args:
            base: state.json of the checkpoint before it, and the ledger.
            folder: the snapshot.
            rows: the snapshot's.
        """
        job, store, step, (saved, ledger), began = self._job, self._store, name.step, base, time.monotonic()
        now = RunState(saved, [row for row in rows if row.step > saved["step"]])
        known: KnownUnits = ray.get(job.feeder.known.remote())
        ledger.write(now.rows)
        self._housekeeping.before_state(step, ledger)
        save_file({"counts": known.counts}, folder / PROGRESS)
        state = self._state_of(step, now, ledger, known)
        size = write_checkpoint(store, name, state, folder, before_commit=lambda: check_fence(store, job.attempt))
        if self._base is base:  # else a group has started meanwhile, and continues from the checkpoint it found
            self._base = state, ledger
        # Whoever saves next must know it: rows up to this step are dropped once this method returns.
        ray.get(job.monitor.report_checkpoint.remote(step, state["saved_at"], state))
        job.monitor.log.remote(
            f"step {step}: checkpoint saved ({size / 1e6:.1f} MB in {time.monotonic() - began:.1f} s)"
        )
        return state

    def _state_of(self, step: int, now: RunState, ledger: StepLedger, known: KnownUnits) -> dict[str, Any]:
        """Content of a checkpoint's state.json."""
        config, saved = self._job.config, now.saved
        is_last = step == config.train.steps
        return {
            "step": step,
            "tokens": now.tokens,
            "step_seconds": now.step_seconds,
            "recent_losses": now.recent_losses,
            "skipped_steps": sorted(now.skipped_steps),
            "samples": step * config.train.global_batch_size,
            "seed": config.seed,
            **ledger.fields,
            "metrics": newest_step(step, saved.get("metrics", saved["step"]), is_last=is_last),
            "skipped": known.skipped,
            "excluded": asdict(known.excluded),
            "saved_at": time.time(),
            **self._job.facts,
        }

    def keep_stacks(self, texts: Mapping[str, str]) -> None:
        """Writes the stacks of workers that hung into the run's folder, by key; a store that fails gets none."""
        with suppress(MantaError):
            for key, text in texts.items():
                self._store.put(key, text.encode())

    def free(self) -> None:
        """Deletes the node's snapshots, after an upload of one of them."""
        with self._saving:
            if self._memory is not None:
                self._memory.free()

    def _patience(self, doing: str) -> Patience:
        return Patience(self._job.config.store.patience, partial(self._job.monitor.report_outage.remote, doing))

    def _newest_holder(self, held: Mapping[str, tuple[int, int]], saved_step: int) -> tuple[str, int] | None:
        """`newest_holder` among the group's nodes; where none qualifies, among nodes that have no workers any more."""
        return newest_holder(held, saved_step) or newest_holder(self._held_elsewhere(held), saved_step)

    def _held_elsewhere(self, nodes: Container[str]) -> dict[str, tuple[int, int]]:
        """`NodeMemory.newest` of all other nodes that answer within ANSWER_S; nodes that are gone never do."""
        agents = ray.get(self._job.monitor.agents.remote())
        calls = {agent.newest.remote(): node_id for node_id, agent in agents.items() if node_id not in nodes}
        held = {}
        for answer in calls.keys() - later_than(ANSWER_S, list(calls)):
            with suppress(ray.exceptions.RayError):
                held[calls[answer]] = ray.get(answer)
        return held

    def _continue_from(self, saved: dict[str, Any]) -> tuple[dict[str, Any], StepLedger]:
        segments, digests = saved["ledger"], saved.get("ledger_digests", {})
        self._base = saved, StepLedger(self._store, self._job.attempt, saved["step"], segments, digests)
        return self._base

    def _newest_state(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="manta-state-") as scratch:
            newest = fetch_newest(self._store, load_record(self._store), (), Path(scratch))
        return newest[1] if newest else START

    def _memory_here(self) -> NodeMemory:
        if self._memory is None:
            raise MantaError("This node has no snapshots: no worker of the run has started on it.")
        return self._memory


def free_node_memory(run_urls: Sequence[str]) -> None:
    """Deletes the snapshots of these runs, none of which is in training, on every node."""
    if not run_urls:
        return
    task = ray.remote(num_cpus=0)(remove_runs)
    tasks = [
        task.options(**on_node(node["NodeID"])).remote(list(run_urls))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    with suppress(ray.exceptions.RayError):
        ray.wait(tasks, num_returns=len(tasks), timeout=REMOVAL_TIMEOUT_S)
