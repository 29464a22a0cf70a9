"""Logs what a run waits for while it waits for nodes: which node group, how long and why, as far as Ray knows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from orchestrator.nodes.requests import TOKENIZING

POLL_INTERVAL_S, REPEAT_S, PATIENCE_S = 2.0, 30.0, 3.0
"""Seconds between two polls of the cluster; until the same message is repeated; and of waiting before the first one."""


class NodeWatch:
    """Decides when to log about waiting.

    Attributes:
        need: resources of the task or worker that the run may be waiting for; None: it waits for nothing.
    """

    def __init__(self, log: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self._log, self._now = log, now
        self.need: Mapping[str, float] | None = TOKENIZING
        self._since: float | None = None
        self._logged, self._logged_at = "", 0.0

    def observe(self, waiting: bool, why: str) -> None:
        """Logs a line if there is something new.

        Args:
            waiting: whether a task, actor or placement group is pending because capacity is missing.
            why: why it is missing.
        """
        now = self._now()
        if not waiting or self.need is None:
            self._since, self._logged = None, ""
            return
        if self._since is None:
            self._since = now
        waited_s = now - self._since
        if waited_s < PATIENCE_S or not why or (why == self._logged and now - self._logged_at < REPEAT_S):
            return
        self._logged, self._logged_at = why, now
        self._log(f"waiting for nodes for {waited_s:.0f} s: {why}")


@contextmanager
def watching_nodes(log: Callable[[str], None]) -> Iterator[NodeWatch]:
    """Watches the cluster that this process joins, in a thread, until the end of the block."""
    watch, ended = NodeWatch(log), threading.Event()
    thread = threading.Thread(target=_poll_cluster, args=(watch, ended), name="node-watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()


def _poll_cluster(watch: NodeWatch, ended: threading.Event) -> None:
    import ray

    from cluster.autoscaler_state import read_autoscaler_state, why_waiting
    from cluster.node_environment import group_limits

    while not ended.wait(POLL_INTERVAL_S):
        need = watch.need
        if need is None or not ray.is_initialized():
            watch.observe(False, "")
            continue
        with suppress(Exception):  # a cluster that does not answer now may do so later; its loss is reported elsewhere
            state = read_autoscaler_state(ray.get_runtime_context().gcs_address)
            waiting = bool(state.demands or state.starting)
            watch.observe(waiting, why_waiting(state, group_limits(), need) if waiting else "")
