"""Tells Ray's autoscaler how many nodes are wanted.

An actor that is placed on one node by hard affinity waits for that node and no other, so it is no demand to the
autoscaler. What is wanted is said in so many words instead, as public `ray.autoscaler.sdk.request_resources` does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


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


@contextmanager
def nodes_asked_for(places: int, each: Mapping[str, float]) -> Iterator[None]:
    """Ask inside the block, and for nothing after it, however it is left."""
    ask_for_nodes(places, each)
    try:
        yield
    finally:
        ask_for_nodes(0, each)
