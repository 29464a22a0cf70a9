"""A checkpoint evaluated by several processes, wherever on a cluster there is room; the result is that of one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from cluster.demand import resource_options
from cluster.local.ray import ray_cluster
from cluster.ray_nodes import quiet_driver
from data.order.packing import MicroBatch
from data.order.pairs import InputBatch
from orchestrator.inference.partial import Part
from orchestrator.nodes.watch import watching_nodes
from orchestrator.run.run import Run

RETRIES = 3
"""Deaths of a process that are got over: what it does can be done again."""


def evaluate_apart(
    run: Run, step: int, batches: Sequence[MicroBatch], inputs: Sequence[InputBatch], workers: int
) -> Part:
    """Have up to `workers` tasks, of the resources of a training worker each, do a part, and put it together.

    Where there is room for fewer, those that wait begin when others have ended.
    """
    workers = min(workers, max(len(batches), len(inputs)))
    scaling = run.config.scaling
    gpus = workers * scaling.gpus_per_worker if scaling.on_gpu else 0
    with ray_cluster(workers * scaling.cpus_per_worker, gpus), watching_nodes(_tell) as watch:
        quiet_driver()
        watch.need = scaling.per_worker
        task = ray.remote(_evaluate_part).options(**resource_options(scaling.per_worker), max_retries=RETRIES)
        slots = dict(enumerate(batches))
        refs = [
            task.remote(run, step, {slot: slots[slot] for slot in range(at, len(slots), workers)}, inputs[at::workers])
            for at in range(workers)
        ]
        ray.wait(refs)
        watch.need = None  # the rest has its turn
        parts: list[Part] = ray.get(refs)
    losses = {slot: loss for part in parts for slot, loss in part.losses.items()}
    return Part(losses, {place: text for part in parts for place, text in part.texts.items()})


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _evaluate_part(run: Run, step: int, batches: Mapping[int, MicroBatch], inputs: Sequence[InputBatch]) -> Any:
    """Body of the task; torch is imported in its process alone."""
    from model.eager import skip_compiler

    skip_compiler()
    from orchestrator.inference.partial import evaluate_part
    from orchestrator.inference.trained_model import load_trained

    return evaluate_part(run.config, load_trained(run.config, run, step), batches, inputs)
