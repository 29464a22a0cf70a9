"""Model FLOPs per target token of a live run, which the driver writes into the run's record."""

from __future__ import annotations

from typing import Any

import ray

from orchestrator.config.recipe import RunConfig
from orchestrator.run.utilization import model_flops_per_token
from orchestrator.run.vocabulary import Vocabulary


class FlopsPerToken:
    """Model FLOPs per target token; for pairs, by the mean lengths of the pairs that the feeder has made so far.

    Args:
        feeder: handle of the actor `data.feed.feeder.Feeder`.
    """

    def __init__(self, config: RunConfig, vocabulary: Vocabulary, feeder: Any) -> None:
        self._config, self._rows, self._feeder = config, vocabulary.rows, feeder
        self._pending: Any = None
        self._value = None if config.data.has_pairs else self._count(None)

    @property
    def value(self) -> float | None:
        """The newest known value; None until the feeder has answered once. Never waits."""
        if self._config.data.has_pairs:
            if self._pending is not None and ray.wait([self._pending], timeout=0)[0]:
                self._take()
            if self._pending is None:
                self._pending = self._feeder.mean_lengths.remote()
        return self._value

    def _take(self) -> None:
        pending, self._pending = self._pending, None
        try:
            lengths = ray.get(pending)
        except ray.exceptions.RayError:  # the feeder has died; Ray restarts it
            return
        self._value = self._value if lengths is None else self._count(lengths)

    def _count(self, lengths: tuple[float, float] | None) -> float:
        config = self._config
        return model_flops_per_token(config.model, self._rows, config.data.seq_len, lengths)
