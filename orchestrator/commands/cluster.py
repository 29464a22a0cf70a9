"""`manta cluster up`, `status`, `env`, `reclaim` and `down`: local clusters of real Ray nodes on this machine."""

from __future__ import annotations

import json
import shlex
import time
from contextlib import suppress
from dataclasses import asdict

from rich.table import Table

from cluster.autoscaler_state import AutoscalerState, NodeState, read_autoscaler_state
from cluster.errors import ClusterError
from cluster.jobs import Jobs
from cluster.local.background import BackgroundCluster, find_cluster
from cluster.local.background import bring_up as start_cluster
from cluster.local.background import take_down as end_cluster
from cluster.local.spot import notice, power_off
from cluster.spec import GPU_STAND_IN, ClusterSpec
from data.errors import InputError
from orchestrator.commands.jobs import STOP_GRACE_S
from orchestrator.console import Console
from orchestrator.printable import printable


def bring_up(spec: ClusterSpec) -> None:
    """Starts a local cluster, and prints how to use it.

    Raises:
        ClusterError: see `cluster.local.background.bring_up`.
    """
    console = Console()
    console.line(f"cluster {spec.cluster}: starting its head")
    local = start_cluster(spec)
    groups = ", ".join(f"{group.min} to {group.max} nodes of {group.name}" for group in spec.groups)
    console.line(f"cluster {spec.cluster}: up, {groups}; dashboard: {local.dashboard}")
    if any(group.gpus for group in spec.groups):
        console.line(
            f"The resource {GPU_STAND_IN} takes the place of GPUs: manta submit sets scaling.gpu_resource, other "
            f"commands need --set scaling.gpu_resource={GPU_STAND_IN}"
        )
    join = f'eval "$(manta cluster env {spec.cluster})"'
    console.line(f"next: manta submit RECIPE; or in a shell: {join}; manta train RECIPE")


def show_status(name: str | None, as_json: bool) -> None:
    """Prints the nodes of a local cluster and the resources that are requested."""
    local = find_cluster(name)
    state = state_of(local)
    if as_json:
        status = {"cluster": local.name, "address": local.address, "dashboard": local.dashboard, **asdict(state)}
        print(json.dumps(status, indent=2))
        return
    table = Table("group", "node", "state", "in use", title=f"cluster {local.name}", title_justify="left")
    for node in sorted(state.nodes, key=lambda each: (each.group != "head", each.group, each.node_id)):
        idle = f"idle for {node.idle_s:.0f} s" if node.state == "idle" else node.state
        table.add_row(node.group, node.node_id[-12:], idle, _usage(node))
    for group, details in state.starting.items():
        for detail in details:
            table.add_row(group, "", "starting" + (f": {detail}" if detail else ""), "")
    console = Console()
    console.rich.print(table)
    up = state.nodes_by_group()
    for spec in local.spec.groups:
        kind = "spot" if spec.spot else "on demand"
        print(f"{spec.name}: {up[spec.name]} of {spec.min} to {spec.max} nodes, {kind}")
    for group, ago_s, why in state.failures:
        print(printable(f"{group}: a start failed {ago_s:.0f} s ago: {why}"))
    for bundle, count in state.demands:
        print(f"requested: {count} times {', '.join(f'{amount:g} {kind}' for kind, amount in bundle.items())}")


def print_environment(name: str | None) -> None:
    """Prints `export` lines with which a shell joins a local cluster."""
    local = find_cluster(name)
    variables = {**local.environment, "RAY_API_SERVER_ADDRESS": local.dashboard}
    print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items()))


def reclaim(name: str | None, group: str, grace_s: float | None) -> None:
    """Reclaims a node as a cloud reclaims a spot machine: notice first, the end after the grace period.

    Raises:
        InputError: there is no such group.
        ClusterError: the group has no running node.
    """
    local = find_cluster(name)
    if local.spec.group(group) is None:
        names = ", ".join(each.name for each in local.spec.groups)
        raise InputError(f"Cluster {local.name} has no group {group!r}; it has {names}.")
    grace_s = local.spec.grace_s if grace_s is None else grace_s
    nodes = [node for node in state_of(local).nodes if node.group == group]
    if not nodes:
        raise ClusterError(f"No node of {group} is running. See manta cluster status {local.name}")
    # A busy node if there is one, since reclaiming an idle node disturbs nothing.
    node = min(nodes, key=lambda each: (each.state != "busy", each.node_id))
    console = Console()
    notice(local.address, node.node_id, grace_s, local.environment)
    console.line(f"node {node.node_id[-12:]} of {group}: notice given; it ends in {grace_s:.0f} s")
    deadline = time.monotonic() + grace_s
    try:
        while (early := time.monotonic() < deadline) and _is_up(local, node.node_id):
            time.sleep(0.5)
    finally:  # also on Ctrl-C: a node that was given notice ends
        power_off(local.session, node.node_id)
    console.line(f"node {node.node_id[-12:]}: " + ("gone before the grace period was over" if early else "ended"))


def take_down(name: str | None, *, at_once: bool) -> None:
    """Ends a local cluster; first lets its jobs save and stop, unless `at_once`."""
    local, console = find_cluster(name), Console()
    if not at_once:
        _stop_jobs(local, console)
    end_cluster(local)
    console.line(f"cluster {local.name}: down")


def state_of(local: BackgroundCluster) -> AutoscalerState:
    """The state of a cluster's autoscaler.

    Raises:
        ClusterError: the cluster does not answer.
    """
    local.join()
    try:
        return read_autoscaler_state(local.address)
    except Exception as error:  # Ray's own, of many kinds
        raise ClusterError(f"Cluster {local.name} does not answer at {local.address}: {error}") from None


def _stop_jobs(local: BackgroundCluster, console: Console) -> None:
    local.join()
    with suppress(ClusterError):  # a cluster that does not answer is ended as well
        jobs = Jobs(local.dashboard)
        live = [job for job in jobs.list() if not job.has_ended]
        for job in live:
            console.line(f"job {job.id}: asked to save and stop")
            jobs.stop(job.id)
        limit_s = max(STOP_GRACE_S, local.spec.grace_s)
        deadline = time.monotonic() + limit_s
        late = [job for job in live if not jobs.wait(job.id, deadline - time.monotonic()).has_ended]
        if late:
            console.line(f"{len(late)} jobs have not stopped within {limit_s:.0f} s and are killed now")


def _is_up(local: BackgroundCluster, node_id: str) -> bool:
    try:
        return any(node.node_id == node_id for node in state_of(local).nodes)
    except ClusterError:  # the cluster may be too busy to answer, so the node counts as running
        return True


def _usage(node: NodeState) -> str:
    return ", ".join(f"{node.used[kind]:g}/{total:g} {kind}" for kind, total in sorted(node.total.items()))
