"""One of two ranks, in a separate process: rank 1 dies or never comes, and rank 0 reports how it left the group.

    python -m gpu.rank '{"rank": 0, "how": "dies", "way": "leave_group", "device": "cpu", "port": 1, "next_port": 2}'

Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _abort_process_group

from orchestrator.workers.process_group import join_group, leave_group

_GROUP_TIMEOUT_S = 600.0
"""Longer than anybody waits here: what ends a collective is never its timeout."""

_WAITS_S = 1.5
"""Seconds that rank 0 waits in its collective before it leaves."""

_LEAVES_WITHIN_S, _RETURNS_WITHIN_S, _JOINS_WITHIN_S = 7.0, 3.0, 10.0


class Call(threading.Thread):
    """A call that may never return, in a thread of its own."""

    def __init__(self, body: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._body = body
        self._outcome: dict[str, Any] = {}
        self.start()

    def run(self) -> None:
        """Calls, and keeps the result or the error."""
        began = time.perf_counter()
        try:
            outcome: dict[str, Any] = {"returned": self._body()}
        except Exception as error:
            outcome = {"raised": repr(error)[:400]}
        self._outcome = outcome | {"after_s": round(time.perf_counter() - began, 3)}

    def within(self, seconds: float) -> dict[str, Any]:
        """The result or the error, if there is one within so many seconds."""
        self.join(seconds)
        return {"hangs": True} if self.is_alive() else self._outcome


def main() -> None:
    """Runs the rank that the argument describes."""
    case = json.loads(sys.argv[1])
    backend = "nccl" if case["device"] == "cuda" else "gloo"
    join_group(backend, f"tcp://127.0.0.1:{case['port']}", case["rank"], 2, _GROUP_TIMEOUT_S)
    found: dict[str, Any] = {}
    if case["how"] == "dies":
        found["first_sum"] = Call(lambda: sum_over_ranks(case["device"])).within(20.0)
    if case["rank"] == 1:
        if case["how"] == "never_comes":
            time.sleep(60.0)  # until it is killed
        os._exit(9)
    if "first_sum" not in found or found["first_sum"].get("returned") == 2.0:
        found |= get_out(case["way"], case["device"], backend, case["next_port"])
    print(json.dumps(found), flush=True)
    os._exit(0)  # threads that hang are not waited for


def get_out(way: str, device: str, backend: str, next_port: int) -> dict[str, Any]:
    """Waits in a collective for a rank that does not come, leaves the group, and joins one without it."""
    time.sleep(0.5)  # by now the other is dead
    collective = Call(lambda: sum_over_ranks(device))
    time.sleep(_WAITS_S)
    found: dict[str, Any] = {"was_waiting": collective.is_alive()}
    leaving = Call(leave_group if way == "leave_group" else _abort_process_group)
    found["leaving"] = leaving.within(_LEAVES_WITHIN_S)
    # A value here was computed by no rank: it must not be returned without an error.
    found["collective"] = collective.within(_RETURNS_WITHIN_S)
    if leaving.is_alive():
        return found

    def join_next() -> float:
        join_group(backend, f"tcp://127.0.0.1:{next_port}", 0, 1, _GROUP_TIMEOUT_S)
        return sum_over_ranks(device)

    return found | {"next_group": Call(join_next).within(_JOINS_WITHIN_S)}


def sum_over_ranks(device: str) -> float:
    """Sums a one from every rank."""
    ones = torch.ones(1 << 20, device=device)
    dist.all_reduce(ones)
    return float(ones[0])


if __name__ == "__main__":
    main()
