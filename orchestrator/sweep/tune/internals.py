"""The parts of Ray Tune that are not public API. `tests/orchestrator/sweep/tune/test_internals.py` checks them."""

from __future__ import annotations

from typing import Any

from ray.tune.execution import class_cache
from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

from cluster.known_secrets import looks_secret

HEAD_NODE = "node:__internal_head__"
"""Resource that only the head node has, with amount 1; equals `HEAD_NODE_RESOURCE_NAME` of Ray's constants."""


def pass_on_no_secrets() -> None:
    """Keeps AWS keys out of the runtime environment of Tune's actors, which Ray's state API shows to every client."""
    passed_on = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in passed_on if not looks_secret(name)}


def median_rule(**arguments: Any) -> Any:
    """Tune's median rule without pauses, since a paused trial would lose its state."""

    class UnpausedRule(MedianStoppingRule):
        def _on_insufficient_samples(self, *_: Any) -> str:
            return str(TrialScheduler.CONTINUE)

    return UnpausedRule(**arguments)
