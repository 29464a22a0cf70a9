"""A checkpoint evaluated by several processes, wherever on a cluster there is room; the result is that of one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from cluster.demand import place_of
from cluster.local_ray import ray_cluster
from data.packing import MicroBatch
from data.pairs import InputBatch
from data.ray_internals import quiet_driver
from orchestrator.config import RunConfig
from orchestrator.evaluate import Part
from orchestrator.node_watch import watching_nodes

RETRIES = 3
"""Deaths of a process that are got over: what it does can be done again."""


def evaluate_apart(
    config: RunConfig, step: int, batches: Sequence[MicroBatch], inputs: Sequence[InputBatch], workers: int
) -> Part:
    """Have up to `workers` processes, of the resources of a training worker each, do a part, and put it together."""
    workers = min(workers, max(len(batches), len(inputs)))
    scaling = config.scaling
    gpus = workers * scaling.gpus_per_worker if scaling.on_gpu else 0
    with ray_cluster(workers * scaling.cpus_per_worker, gpus), watching_nodes(_tell) as watch:
        quiet_driver()
        watch.need = scaling.per_worker
        actor: Any = ray.remote(_Worker)
        options = {**place_of(scaling.per_worker), "max_restarts": RETRIES, "max_task_retries": RETRIES}
        actors = [actor.options(**options).remote(config, step) for _ in range(workers)]
        slots = dict(enumerate(batches))
        parts: list[Part] = ray.get(
            [
                each.part.remote({slot: slots[slot] for slot in range(at, len(slots), workers)}, inputs[at::workers])
                for at, each in enumerate(actors)
            ]
        )
    losses = {slot: loss for part in parts for slot, loss in part.losses.items()}
    return Part(losses, {place: text for part in parts for place, text in part.texts.items()})


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


class _Worker:
    """Body of the actor; torch is imported in its process alone."""

    def __init__(self, config: RunConfig, step: int) -> None:
        from model.eager import skip_compiler

        skip_compiler()
        from orchestrator.run import open_run
        from orchestrator.trained_model import load_trained

        self._config, self._trained = config, load_trained(config, open_run(config), step)

    def part(self, batches: Mapping[int, MicroBatch], inputs: Sequence[InputBatch]) -> Part:
        """See `orchestrator.evaluate.evaluate_part`."""
        from orchestrator.evaluate import evaluate_part

        return evaluate_part(self._config, self._trained, batches, inputs)
