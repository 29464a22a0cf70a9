"""What `test_autoscaled.py` runs against an autoscaled cluster, in a process of its own. Prints a line of JSON."""

from __future__ import annotations

import json
import logging
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.demand import ask_for_nodes, nodes_asked_for

WAIT_S = 60.0


def workers() -> list[str]:
    """Ids of the nodes besides the head that are there."""
    head = ray.get_runtime_context().get_node_id()
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != head]


def await_workers(count: int) -> float:
    """Seconds until there are so many; -1.0 where they do not come or go."""
    began = time.monotonic()
    while len(workers()) != count:
        if time.monotonic() - began > WAIT_S:
            return -1.0
        time.sleep(0.1)
    return round(time.monotonic() - began, 1)


@ray.remote(num_cpus=1)
class Pinned:
    """An actor as the project places them: one CPU, on one node and no other."""

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


@ray.remote(num_cpus=1)
def work() -> str:
    time.sleep(2)
    return ray.get_runtime_context().get_node_id()


def main() -> None:
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    told: dict[str, object] = {"at first": len(workers())}
    refs = [work.remote() for _ in range(3)]
    told["tasks: up"] = await_workers(3)
    told["tasks: on nodes"] = len(set(ray.get(refs)))
    del refs
    told["tasks: down"] = await_workers(0)

    with nodes_asked_for(2, {"CPU": 1}):
        told["asked: up"] = await_workers(2)
        actors = [
            Pinned.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
            for node in workers()
        ]
        told["asked: actors where they were put"] = sorted(ray.get([a.node.remote() for a in actors])) == sorted(
            workers()
        )
    time.sleep(8)  # longer than idle nodes are kept
    told["in use, asked for no more: there"] = len(workers())
    ray.kill(actors.pop())
    told["one given back: down to 1"] = await_workers(1)
    del actors
    told["all given back: down"] = await_workers(0)
    ask_for_nodes(0, {"CPU": 1})
    print(json.dumps(told))


main()
