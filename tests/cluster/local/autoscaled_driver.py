"""What `test_autoscaled.py` runs against an autoscaled cluster, in a process of its own. Prints a line of JSON."""

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

    bundles = PlacementGroupDemand("of three")
    bundles.want([(CPU, CPU, CPU)])
    told["bundles: up"] = await_workers(3)
    *used, _ = workers()
    actors = [
        Pinned.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in used
    ]
    told["actors where they were put"] = sorted(ray.get([a.node.remote() for a in actors])) == sorted(used)
    bundles.want([])
    told["one not used: down to 2"] = await_workers(2)

    greedy, modest = PlacementGroupDemand("of more than there may be"), PlacementGroupDemand("of one")
    greedy.want([(CPU, CPU, CPU, CPU)])
    modest.want([(CPU,)])
    told["beside one that waits in vain: up to 3"] = await_workers(3)
    told["what has come is left to others"] = ray.get(work.remote()) in workers()
    remove_placement_groups("of more than there may be")
    modest.want([])
    states = [group["state"] for group in placement_group_table().values()]
    told["placement groups left"] = sum(state != "REMOVED" for state in states)
    ray.kill(actors.pop())
    del actors
    told["all given back: down"] = await_workers(0)
    print(json.dumps(told))


main()
