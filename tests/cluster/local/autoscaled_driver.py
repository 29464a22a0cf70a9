"""Driver that `test_autoscaled.py` runs in an autoscaled cluster, in its own process. Prints a line of JSON."""

from __future__ import annotations

import json
import logging
import time

import ray
from ray.util import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.demand import PlacementGroupDemand, remove_placement_groups

WAIT_S = 60.0
CPU = {"CPU": 1.0}


def workers() -> list[str]:
    """Ids of the live nodes without the head."""
    head = ray.get_runtime_context().get_node_id()
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != head]


def await_workers(count: int) -> float:
    """Seconds until there are `count` nodes; -1.0 if that does not happen."""
    began = time.monotonic()
    while len(workers()) != count:
        if time.monotonic() - began > WAIT_S:
            return -1.0
        time.sleep(0.1)
    return round(time.monotonic() - began, 1)


@ray.remote(num_cpus=1)
class Pinned:
    """An actor with one CPU, tied to one node, like the project's workers."""

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


@ray.remote(num_cpus=1)
def work() -> str:
    return ray.get_runtime_context().get_node_id()


def main() -> None:
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    found: dict[str, object] = {"at first": len(workers())}
    bundles = PlacementGroupDemand("of three")
    bundles.request([(CPU, CPU, CPU)])
    found["bundles: up"] = await_workers(3)
    *used, _ = workers()
    actors = [
        Pinned.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in used
    ]
    found["actors are where they were placed"] = sorted(ray.get([a.node.remote() for a in actors])) == sorted(used)
    bundles.request([])
    found["one unused: down to 2"] = await_workers(2)

    greedy, modest = PlacementGroupDemand("of four"), PlacementGroupDemand("of one")
    greedy.request([(CPU, CPU, CPU, CPU)])
    modest.request([(CPU,)])
    found["with an impossible request pending: up to 3"] = await_workers(3)
    found["new capacity is left to others"] = ray.get(work.remote()) in workers()
    remove_placement_groups("of four")
    modest.request([])
    states = [group["state"] for group in placement_group_table().values()]
    found["placement groups left"] = sum(state != "REMOVED" for state in states)
    ray.kill(actors.pop())
    del actors
    found["all released: down"] = await_workers(0)
    print(json.dumps(found))


main()
