"""Helpers of the tests that check Ray for the internals this project uses, and an actor that fails."""

import importlib
from typing import Any

import pytest
import ray

from cluster.ray_nodes import driver_node_id
from data.errors import BadShardError

MESSAGE = "s3://bucket/x.gz is cut off. Write it again."
"""Of the error that `fail` raises."""


def assert_ray_has(name: str) -> None:
    """Fails where there is no module, class, method or attribute of this dotted name."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            assert hasattr(found, part), f"Ray {ray.__version__} has no {name}"
            found = getattr(found, part)
        return
    pytest.fail(f"Ray {ray.__version__} has no {name}")


def fail() -> None:
    """A task that fails."""
    raise BadShardError(MESSAGE)


class Failing:
    """Body of an actor."""

    def fail(self) -> None:
        fail()

    def fail_through(self, other: Any) -> None:
        ray.get(other.fail.remote())

    def node(self) -> str:
        return driver_node_id()
