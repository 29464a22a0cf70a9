"""Evaluations that run background training, in a place that no worker can use; decided on and kept by the monitor."""

from __future__ import annotations

import os
from typing import Any

import ray

from cluster.demand import place_of
from cluster.local.ray import joins_cluster
from orchestrator.config.recipe import RunConfig
from orchestrator.run.job import TrainJob


def has_room_for_background_evaluation(config: RunConfig) -> bool:
    """Whether evaluations may run background training: on a cluster of our own, which counts more CPUs than there are, only
    where the machine has cores for it."""
    scaling = config.scaling
    cores = (scaling.effective_max_workers + 1) * scaling.cpus_per_worker
    return config.eval.background and (joins_cluster() or cores <= (os.cpu_count() or 1))


class BackgroundEvaluation:
    """An evaluation in a place of its own, from now on; kept by the monitor, with which it ends."""

    def __init__(self, job: TrainJob, weights: Any) -> None:
        scaling = job.config.scaling
        place = place_of(scaling.per_worker)
        actor: Any = ray.remote(_Evaluator)
        self._evaluator = actor.options(**place).remote(job)  # it lives as long as somebody has this handle
        self._scores = self._evaluator.evaluate.remote(weights)

    def scores(self) -> dict[str, Any] | None:
        """See `orchestrator.driver.monitor.Evaluation`."""
        if not ray.wait([self._scores], timeout=0)[0]:
            return None
        scores: dict[str, Any] = ray.get(self._scores)
        return scores


class _Evaluator:
    """Body of the actor; torch is imported in its process alone, as the monitor does without."""

    def __init__(self, job: TrainJob) -> None:
        if not job.config.train.compile:
            from model.eager import skip_compiler

            skip_compiler()
        from orchestrator.inference.background_evaluator import Evaluator

        self._evaluator = Evaluator(job)

    def evaluate(self, weights: Any) -> dict[str, Any]:
        """See `orchestrator.train.evaluate.Evaluator.evaluate`."""
        return self._evaluator.evaluate(weights)
