"""`manta cluster up`, `status`, `env`, `reclaim` and `down`: a spec as real nodes on this machine."""

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
from cluster.local.background import bring_up as keep_up
from cluster.local.background import take_down as end_kept
from cluster.local.spot import notice, power_off
from cluster.spec import GPU_STAND_IN, ClusterSpec
from data.errors import InputError
from orchestrator.commands.jobs import STOP_GRACE_S
from orchestrator.console import Console


def bring_up(spec: ClusterSpec) -> None:
    """Start it, and say how to use it.

    Raises:
        ClusterError: see `cluster.local.background.bring_up`.
    """
    console = Console()
    console.line(f"cluster {spec.cluster}: starting its head")
    kept = keep_up(spec)
    groups = ", ".join(f"{group.min} to {group.max} nodes of {group.name}" for group in spec.groups)
    console.line(f"cluster {spec.cluster}: up, {groups}; its dashboard is at {kept.dashboard}")
    if any(group.gpus for group in spec.groups):
        console.line(
            f"GPUs are stood in for, which `manta submit` sees to; other commands take --set "
            f"scaling.gpu_resource={GPU_STAND_IN}"
        )
    join = f'eval "$(manta cluster env {spec.cluster})"'
    console.line(f"now: manta submit RECIPE; or in a shell: {join}; manta train RECIPE")


def show_status(name: str | None, as_json: bool) -> None:
    """Print nodes and what is waited for."""
    kept = find_cluster(name)
    state = state_of(kept)
    if as_json:
        told = {"cluster": kept.name, "address": kept.address, "dashboard": kept.dashboard, **asdict(state)}
        print(json.dumps(told, indent=2))
        return
    table = Table("group", "node", "state", "in use", title=f"cluster {kept.name}", title_justify="left")
    for node in sorted(state.nodes, key=lambda each: (each.group != "head", each.group, each.node_id)):
        idle = f"idle for {node.idle_s:.0f} s" if node.state == "idle" else node.state
        table.add_row(node.group, node.node_id[-12:], idle, _usage(node))
    for group, details in state.starting.items():
        for detail in details:
            table.add_row(group, "", "starting" + (f": {detail}" if detail else ""), "")
    console = Console()
    console.rich.print(table)
    up = state.nodes_by_group()
    for spec in kept.spec.groups:
        kind = "spot" if spec.spot else "on demand"
        print(f"{spec.name}: {up[spec.name]} of {spec.min} to {spec.max} nodes, {kind}")
    for group, ago_s, why in state.failures:
        print(f"{group}: a start failed {ago_s:.0f} s ago: {why}")
    for bundle, count in state.demands:
        print(f"waiting for room: {count} times {', '.join(f'{amount:g} {kind}' for kind, amount in bundle.items())}")


def print_environment(name: str | None) -> None:
    """Print `export` lines for a shell."""
    kept = find_cluster(name)
    variables = {**kept.environment, "RAY_API_SERVER_ADDRESS": kept.dashboard}
    print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items()))


def reclaim(name: str | None, group: str, grace_s: float | None) -> None:
    """Give a node of the group notice, and end it when its grace is over.

    Raises:
        InputError: there is no such group.
        ClusterError: none of its nodes is up.
    """
    kept = find_cluster(name)
    if kept.spec.group(group) is None:
        names = ", ".join(each.name for each in kept.spec.groups)
        raise InputError(f"Cluster {kept.name} has no group {group!r}; it has {names}.")
    grace_s = kept.spec.grace_s if grace_s is None else grace_s
    nodes = [node for node in state_of(kept).nodes if node.group == group]
    if not nodes:
        raise ClusterError(f"No node of {group} is up: there is none to reclaim. See manta cluster status {kept.name}")
    # One in use, where there is one: that is what makes a difference.
    node = min(nodes, key=lambda each: (each.state != "busy", each.node_id))
    console = Console()
    notice(kept.address, node.node_id, grace_s, kept.environment)
    console.line(f"node {node.node_id[-12:]} of {group}: has notice, and {grace_s:.0f} s")
    deadline = time.monotonic() + grace_s
    try:
        while (early := time.monotonic() < deadline) and _is_up(kept, node.node_id):
            time.sleep(0.5)
    finally:  # also on Ctrl-C: who has had notice goes
        power_off(kept.session, node.node_id)
    console.line(f"node {node.node_id[-12:]}: " + ("gone before its time was over" if early else "ended"))


def take_down(name: str | None, *, at_once: bool) -> None:
    """Let jobs save, unless `at_once`, and end the cluster."""
    kept, console = find_cluster(name), Console()
    if not at_once:
        _stop_jobs(kept, console)
    end_kept(kept)
    console.line(f"cluster {kept.name}: down")


def state_of(kept: BackgroundCluster) -> AutoscalerState:
    """What its autoscaler says.

    Raises:
        ClusterError: it does not answer.
    """
    kept.join()
    try:
        return read_autoscaler_state(kept.address)
    except Exception as error:  # Ray's own, of many kinds
        raise ClusterError(f"Cluster {kept.name} does not answer at {kept.address}: {error}") from None


def _stop_jobs(kept: BackgroundCluster, console: Console) -> None:
    kept.join()
    with suppress(ClusterError):  # a cluster that does not answer is ended all the same
        jobs = Jobs(kept.dashboard)
        live = [job for job in jobs.list() if not job.has_ended]
        for job in live:
            console.line(f"job {job.id}: asked to save and stop")
            jobs.stop(job.id)
        patience_s = max(STOP_GRACE_S, kept.spec.grace_s)
        deadline = time.monotonic() + patience_s
        late = [job for job in live if not jobs.wait(job.id, deadline - time.monotonic()).has_ended]
        if late:
            console.line(f"{len(late)} jobs have not ended within {patience_s:.0f} s, and are ended now")


def _is_up(kept: BackgroundCluster, node_id: str) -> bool:
    try:
        return any(node.node_id == node_id for node in state_of(kept).nodes)
    except ClusterError:  # too busy to answer, which is no sign of its end
        return True


def _usage(node: NodeState) -> str:
    return ", ".join(f"{node.used[kind]:g}/{total:g} {kind}" for kind, total in sorted(node.total.items()))
