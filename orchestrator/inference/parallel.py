"""Evaluates a checkpoint on micro-batches and inputs, in this process or shared by several tasks on a cluster.

Both ways give the same result. Torch is imported in functions: a task must call `skip_compiler` before it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import ray

from cluster.demand import resource_options
from cluster.local.ray import ray_cluster
from cluster.ray_nodes import quiet_driver
from data.order.packing import MicroBatch
from data.order.pairs import InputBatch
from model.eager import skip_compiler
from orchestrator.config.recipe import RunConfig
from orchestrator.nodes.watch import watching_nodes
from orchestrator.printable import printable
from orchestrator.run.run import Run

if TYPE_CHECKING:
    from orchestrator.inference.trained_model import TrainedModel

RETRIES = 3
"""Deaths of a task's process after which Ray runs the task again."""


class Part(NamedTuple):
    """Result of evaluating some of the micro-batches and inputs.

    Attributes:
        losses: sums of token losses, by micro-batch.
        texts: translations, by the input's position.
    """

    losses: Mapping[int, float]
    texts: Mapping[int, str]


def evaluate_part(
    config: RunConfig, trained: TrainedModel, batches: Mapping[int, MicroBatch], inputs: Sequence[InputBatch]
) -> Part:
    """Evaluates micro-batches and translates inputs in this process, on the machine's GPU if it has one.

    Each loss and text depends on its own batch alone.
    """
    import torch

    from orchestrator.evaluation.scores import loss_sums
    from orchestrator.evaluation.translate import translate

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = trained.model.to(device)
    losses = map(float, loss_sums(model, batches.values(), config, device))
    texts = translate(model, inputs, trained.data.tokenizer, config)
    return Part(dict(zip(batches, losses, strict=True)), texts)


def evaluate_in_tasks(
    run: Run, step: int, batches: Sequence[MicroBatch], inputs: Sequence[InputBatch], workers: int
) -> Part:
    """Evaluates in up to `workers` Ray tasks, each with the resources of a training worker, and joins the parts.

    Where the cluster has room for fewer, the other tasks start as those end.
    """
    workers = min(workers, max(len(batches), len(inputs)))
    scaling = run.config.scaling
    gpus = math.ceil(workers * scaling.gpus_per_worker) if scaling.on_gpu else 0
    with ray_cluster(workers * scaling.cpus_per_worker, gpus), watching_nodes(_log) as watch:
        quiet_driver()
        watch.need = scaling.per_worker
        task = ray.remote(_load_and_evaluate).options(**resource_options(scaling.per_worker), max_retries=RETRIES)
        slots = dict(enumerate(batches))
        refs = [
            task.remote(run, step, {slot: slots[slot] for slot in range(at, len(slots), workers)}, inputs[at::workers])
            for at in range(workers)
        ]
        ray.wait(refs)
        watch.need = None  # once one task has ended, the others need no further nodes
        parts: list[Part] = ray.get(refs)
    losses = {slot: loss for part in parts for slot, loss in part.losses.items()}
    return Part(losses, {position: text for part in parts for position, text in part.texts.items()})


def _load_and_evaluate(run: Run, step: int, batches: Mapping[int, MicroBatch], inputs: Sequence[InputBatch]) -> Part:
    """Body of a task: loads the checkpoint, and evaluates its part."""
    skip_compiler()
    from orchestrator.inference.trained_model import load_trained

    return evaluate_part(run.config, load_trained(run.config, run, step), batches, inputs)


def _log(line: str) -> None:
    print(printable(line), file=sys.stderr)
