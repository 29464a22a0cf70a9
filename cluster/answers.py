"""Waiting for answers of actors, which may hang or have died."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

ANSWER_S = 2.0
"""Seconds within which an actor that does not hang answers a call that takes no time."""


def later_than(seconds: float, answers: Sequence[ray.ObjectRef[Any]]) -> set[ray.ObjectRef[Any]]:
    """Those of the answers that do not come within `seconds` from now; a failed call has its answer."""
    return set(ray.wait(list(answers), num_returns=len(answers), timeout=seconds)[1]) if answers else set()


def is_true(answer: ray.ObjectRef[bool]) -> bool:
    """The value of an answer; False if the call failed."""
    try:
        return ray.get(answer)
    except ray.exceptions.RayError:
        return False
