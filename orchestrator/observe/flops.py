"""Model FLOPs of a run that goes on, whose pairs are known by and by."""

from __future__ import annotations

from typing import Any

import ray

from orchestrator.config import RunConfig
from orchestrator.observe.utilization import model_flops_per_token
from orchestrator.vocabulary import Vocabulary


class Flops:
    """For a target token; of pairs by the mean lengths of those made so far, which the feeder is asked for.

    Args:
        feeder: handle of the actor `data.feeder.Feeder`.
    """

    def __init__(self, config: RunConfig, vocabulary: Vocabulary, feeder: Any) -> None:
        self._config, self._rows, self._feeder = config, vocabulary.rows, feeder
        self._asked: Any = None
        self._per_token = None if config.data.has_pairs else self._count(None)

    @property
    def per_token(self) -> float | None:
        """The newest that is known; None before anything is. Never waits."""
        if self._config.data.has_pairs:
            if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
                self._take()
            if self._asked is None:
                self._asked = self._feeder.mean_lengths.remote()
        return self._per_token

    def _take(self) -> None:
        asked, self._asked = self._asked, None
        try:
            lengths = ray.get(asked)
        except ray.exceptions.RayError:  # the feeder has died, and is made anew
            return
        self._per_token = self._per_token if lengths is None else self._count(lengths)

    def _count(self, lengths: tuple[float, float] | None) -> float:
        config = self._config
        return model_flops_per_token(config.model, self._rows, config.data.seq_len, lengths)
