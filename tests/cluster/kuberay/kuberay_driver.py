"""A driver process controlled by `test_kuberay_provider.py`: a line of JSON in, a line of JSON out."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[3]


class Driver:
    """The process, from the tests' side. A context manager."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**inherited, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hold(self, count: int, **resources: float) -> None:
        """Creates `count` more actors, which are restarted when they die; does not wait for their placement."""
        self._order("hold", count, resources)

    def placed(self) -> list[str]:
        """Pods of the actors that are placed and answer at the moment, in the order of their creation."""
        return self._order("placed")

    def drop(self, pod: str) -> None:
        """Ends the actor on that pod."""
        self._order("drop", pod)

    def request(self, *bundles: Mapping[str, float]) -> None:
        """Requests capacity for these bundles together, and for no others."""
        self._order("request", [bundles] if bundles else [])

    def alive(self) -> dict[str, int]:
        """Number of live nodes by group."""
        return self._order("nodes", True)

    def idle_s(self, group: str) -> list[float]:
        """Seconds for which each live node of a group has been idle."""
        return self._order("idle", group)

    def ended(self) -> dict[str, int]:
        """Number of ended nodes by reason."""
        return self._order("nodes", False)

    def _order(self, *order: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, f"the driver ended over {order}"
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.__exit__(kind, error, traceback)


def main() -> None:
    """Executes orders until the end of standard input."""
    import ray
    from ray.core.generated.common_pb2 import NodeDeathInfo

    from cluster.autoscaler_state import read_autoscaler_state
    from cluster.demand import PlacementGroupDemand

    def pod() -> str:
        return os.environ["RAY_CLOUD_INSTANCE_ID"]

    def needing(resources: Mapping[str, float]) -> dict[str, Any]:
        own = dict(resources)
        return {"num_cpus": own.pop("CPU", 0), "num_gpus": own.pop("GPU", 0), "resources": own}

    class Held:
        def pod(self) -> str:
            return pod()

    held: list[Any] = []
    pods: dict[str, Any] = {}

    def hold(count: int, resources: Mapping[str, float]) -> None:
        held.extend(ray.remote(max_restarts=-1, **needing(resources))(Held).remote() for _ in range(count))

    def placed() -> list[str]:
        asked = {actor.pod.remote(): actor for actor in held}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0.5)
        pods.clear()
        for answer, actor in asked.items():
            with suppress(ray.exceptions.RayActorError):
                if answer in answered:
                    pods[ray.get(answer)] = actor
        return list(pods)

    def nodes(alive: bool) -> Counter[str]:
        found = [node for node in ray.nodes() if node["Alive"] == alive]
        if alive:
            return Counter(node["Labels"]["ray.io/node-group"] for node in found)
        return Counter(NodeDeathInfo.Reason.Name(node["DeathReason"]) for node in found)

    def drop(pod: str) -> None:
        held.remove(pods[pod])
        ray.kill(pods.pop(pod))

    def idle(group: str) -> list[float]:
        state = read_autoscaler_state(ray.get_runtime_context().gcs_address)
        return [node.idle_s for node in state.nodes if node.group == group]

    groups = PlacementGroupDemand("wanted")

    def request(wanted: list[list[Mapping[str, float]]]) -> None:
        groups.request([tuple(bundles) for bundles in wanted])

    orders = {"hold": hold, "placed": placed, "drop": drop, "nodes": nodes, "idle": idle, "request": request}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints on stdout
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    for line in sys.stdin:
        order, *arguments = json.loads(line)
        print(json.dumps(orders[order](*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
