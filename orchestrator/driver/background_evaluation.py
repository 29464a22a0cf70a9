"""Evaluations in the background of training, in a slot that no worker can use. The monitor starts and holds them."""

from __future__ import annotations

import os
from typing import Any

import ray

from cluster.demand import resource_options
from cluster.local.ray import joins_cluster
from orchestrator.config.recipe import RunConfig
from orchestrator.run.job import TrainJob

RESTARTS = {"max_restarts": 1, "max_task_retries": 1}
"""Ray's options of the actor: an evaluation whose process is killed begins anew, once."""


def can_evaluate_in_background(config: RunConfig) -> bool:
    """Whether evaluations may run in the background.

    A cluster of our own counts more CPUs than the machine has; there, the machine must have enough cores.
    """
    scaling = config.scaling
    cores = (scaling.effective_max_workers + 1) * scaling.cpus_per_worker
    return config.eval.background and (joins_cluster() or cores <= (os.cpu_count() or 1))


class BackgroundEvaluation:
    """An evaluation in a process of its own, started at once; it ends with the last reference to this object."""

    def __init__(self, job: TrainJob, weights: Any) -> None:
        scaling = job.config.scaling
        actor: Any = ray.remote(_Evaluator)
        self._evaluator = actor.options(**resource_options(scaling.per_worker), **RESTARTS).remote(job)
        self._scores = self._evaluator.evaluate.remote(weights)

    def scores(self) -> dict[str, Any] | None:
        """See `orchestrator.monitor.evaluations.Evaluation`."""
        if not ray.wait([self._scores], timeout=0)[0]:
            return None
        scores: dict[str, Any] = ray.get(self._scores)
        return scores

    def cancel(self) -> None:
        """See `orchestrator.monitor.evaluations.Evaluation`. Without its last handle, an actor first ends its calls."""
        ray.kill(self._evaluator)


class _Evaluator:
    """Body of the actor; imports torch in its own process only, so that the monitor does not need it."""

    def __init__(self, job: TrainJob) -> None:
        if not job.config.train.compile:
            from model.eager import skip_compiler

            skip_compiler()
        from orchestrator.inference.background_evaluator import Evaluator

        self._evaluator = Evaluator(job)

    def evaluate(self, weights: Any) -> dict[str, Any]:
        """See `orchestrator.inference.background_evaluator.Evaluator.evaluate`."""
        return self._evaluator.evaluate(weights)
