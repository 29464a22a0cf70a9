"""Tells a person what a run waits for when it waits for nodes: which group, how long, why, as far as Ray can tell."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from orchestrator.nodes.requests import TOKENIZING

POLL_INTERVAL_S, REPEAT_S, PATIENCE_S = 2.0, 30.0, 3.0
"""Seconds from one look at the cluster to the next; until the same is said again; and of waiting that nobody minds."""


class NodeWatch:
    """What is waited for, if anything; the thread that looks asks it.

    Attributes:
        need: resources that there is no capacity for; None where nothing is waited for.
    """

    def __init__(self, tell: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._now = tell, now
        self.need: Mapping[str, float] | None = TOKENIZING
        self._since: float | None = None
        self._said, self._said_at = "", 0.0

    def saw(self, waiting: bool, why: str) -> None:
        """Tell, if there is something new to tell.

        Args:
            waiting: whether something waits for capacity that is not there.
            why: why it is not.
        """
        now = self._now()
        if not waiting or self.need is None:
            self._since, self._said = None, ""
            return
        if self._since is None:
            self._since = now
        waited_s = now - self._since
        if waited_s < PATIENCE_S or not why or (why == self._said and now - self._said_at < REPEAT_S):
            return
        self._said, self._said_at = why, now
        self._tell(f"waiting for nodes for {waited_s:.0f} s: {why}")


@contextmanager
def watching_nodes(tell: Callable[[str], None]) -> Iterator[NodeWatch]:
    """Look at the cluster that this process joins, once it has, until the end of the block."""
    watch, ended = NodeWatch(tell), threading.Event()
    thread = threading.Thread(target=_look_on, args=(watch, ended), name="node-watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()


def _look_on(watch: NodeWatch, ended: threading.Event) -> None:
    import ray

    from cluster.autoscaler_state import look, why_waiting
    from cluster.node_environment import group_limits

    while not ended.wait(POLL_INTERVAL_S):
        need = watch.need
        if need is None or not ray.is_initialized():
            watch.saw(False, "")
            continue
        with suppress(Exception):  # a cluster that does not answer now may do so later; others say when it is gone
            state = look(ray.get_runtime_context().gcs_address)
            waiting = bool(state.demands or state.starting)
            watch.saw(waiting, why_waiting(state, group_limits(), need) if waiting else "")
