"""Tells Ray's autoscaler how many nodes are wanted.

An actor that is placed on one node by hard affinity waits for that node and no other, so it is no demand to the
autoscaler. What is wanted is said in so many words instead, as public `ray.autoscaler.sdk.request_resources` does it,
or shown by tasks that wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any


def place_of(resources: Mapping[str, float]) -> dict[str, Any]:
    """Options of an actor or a task that takes these resources, by Ray's names."""
    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    return {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0), "resources": others}


def ask_for_nodes(places: int, each: Mapping[str, float]) -> None:
    """Have the autoscaler keep room for so many workers in all, those that run included.

    It holds until the next call, for the whole cluster: whoever calls last is who is heard. Nodes that are needed for
    it are not let go, idle or not; with 0 places each goes when it has been idle for long enough. In a cluster without
    an autoscaler nothing comes of it.

    Args:
        places: workers there is to be room for.
        each: resources of one, such as {"CPU": 1}.
    """
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(each)] * places)


class Knock:
    """Has nodes come for so many workers, ahead of their need, where an autoscaler brings nodes.

    Tasks that do nothing wait for the workers' resources. They reserve nothing, so whoever needs a place sooner has it,
    and where there is room they are over at once.
    """

    def __init__(self, places: int, each: Mapping[str, float]) -> None:
        import ray

        from cluster.autoscaler_state import look

        is_looked_after = False
        with suppress(Exception):  # Ray's own, where it is slow to answer; the workers' controller asks later
            is_looked_after = look(ray.get_runtime_context().gcs_address).is_looked_after
        task = ray.remote(_nothing).options(**place_of(each), max_retries=0)
        self._waiting = [task.remote() for _ in range(places)] if is_looked_after else []

    def end(self) -> None:
        """Whoever needs the nodes asks for them from now on; those that are on their way come."""
        import ray

        for each in self._waiting:
            ray.cancel(each)
        self._waiting = []


def _nothing() -> None:
    """Body of a task that is only to wait for its place."""


@contextmanager
def nodes_asked_for(places: int, each: Mapping[str, float]) -> Iterator[None]:
    """Ask inside the block, and for nothing after it, however it is left."""
    ask_for_nodes(places, each)
    try:
        yield
    finally:
        ask_for_nodes(0, each)
