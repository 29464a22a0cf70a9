"""A head and a worker with the options of KubeRay's operator for a manifest: they are healthy, and require a token."""

from __future__ import annotations

import json
import secrets
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cluster.local.nodes import STORE_BYTES, LocalNode, free_port
from cluster.render.kuberay import ray_cluster
from cluster.spec import GROUP_LABEL, MARKET_LABEL, ClusterSpec
from tests.waiting import wait_until

pytestmark = pytest.mark.ray

SPEC = ClusterSpec.model_validate(
    {
        "cluster": "night",
        "image": "registry/manta:1",
        "grace_s": 5,
        "groups": [
            {
                "name": "train",
                "max": 1,
                "cpus": 3,
                "gpus": 1,
                "spot": True,
                "resources": {"fast_disk": 2},
                "labels": {"tier": "cheap"},
            }
        ],
    }
)
TOKEN = secrets.token_hex(16)


def options_of(group: dict[str, Any], probe_port: int) -> list[str]:
    """Options of `ray start` that the operator derives from a group's fields, without addresses."""
    given = dict(group["rayStartParams"])
    counted = dict(group.get("resources", {}))
    for name, parameter in (("CPU", "num-cpus"), ("GPU", "num-gpus")):
        if name in counted:
            given[parameter] = counted.pop(name)
    if counted:
        given["resources"] = json.dumps({name: float(amount) for name, amount in counted.items()})
    given["labels"] = ",".join(f"{key}={value}" for key, value in sorted(group["labels"].items()))
    given |= {"dashboard-agent-listen-port": str(probe_port), "object-store-memory": str(STORE_BYTES)}
    return [f"--{name}={value}" for name, value in given.items()]


def environment_of(group: dict[str, Any]) -> dict[str, str]:
    """The pod's variables, and those of the operator that require a token."""
    container = group["template"]["spec"]["containers"][0]
    return {each["name"]: each["value"] for each in container["env"]} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }


def ask(url: str, token: str | None = None) -> tuple[int, str]:
    """Status and text of the answer; 0 if there is none yet."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """Ports of a head's dashboard and of the two probes, while both nodes run."""
    cluster = ray_cluster(SPEC)["spec"]
    head_group, [worker_group] = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    with tempfile.TemporaryDirectory(prefix="manta-kr-", dir="/tmp") as folder, ExitStack() as stack:
        ports = {name: free_port() for name in ("gcs", "dashboard", "client", "head", "worker")}
        head = [
            "--head",
            f"--port={ports['gcs']}",
            f"--dashboard-port={ports['dashboard']}",
            f"--ray-client-server-port={ports['client']}",
            f"--temp-dir={folder}/ray",
        ]
        for name, options, group in (
            ("head", head, head_group),
            ("worker", [f"--address=127.0.0.1:{ports['gcs']}"], worker_group),
        ):
            options += options_of(group, ports[name])
            node = LocalNode(name, options, environment_of(group), Path(folder))
            stack.callback(node.kill)
            node.await_raylet()
            node.await_ready()
        yield ports


@pytest.mark.parametrize(("node", "group"), [("head", "headGroupSpec"), ("worker", "workerGroupSpecs")])
def test_the_probes_find_a_node_well_without_a_token(ports: dict[str, int], node: str, group: str) -> None:
    found = ray_cluster(SPEC)["spec"][group]
    container = (found[0] if isinstance(found, list) else found)["template"]["spec"]["containers"][0]
    for probe in ("readinessProbe", "livenessProbe"):
        url = f"http://127.0.0.1:{ports[node]}{container[probe]['httpGet']['path']}"
        wait_until(lambda url=url: ask(url)[0] == 200, f"{probe} of the {node}")


def test_jobs_are_taken_from_nobody_without_the_token(ports: dict[str, int]) -> None:
    url = f"http://127.0.0.1:{ports['dashboard']}/api/jobs/"
    wait_until(lambda: ask(url, TOKEN)[0] == 200, "the dashboard")
    assert ask(url)[0] == 401 and ask(url, "another")[0] in (401, 403)


def test_nodes_have_the_resources_and_labels_of_their_group(ports: dict[str, int]) -> None:
    url = f"http://127.0.0.1:{ports['dashboard']}/api/v0/nodes?detail=true"
    wait_until(lambda: ask(url, TOKEN)[0] == 200, "the dashboard")
    nodes = json.loads(ask(url, TOKEN)[1])["data"]["result"]["result"]
    [head] = [node for node in nodes if node["is_head_node"]]
    [worker] = [node for node in nodes if not node["is_head_node"]]
    assert not head["resources_total"].keys() & {"CPU", "GPU"}
    assert head["labels"][MARKET_LABEL] == "on-demand"
    assert {name: worker["resources_total"][name] for name in ("CPU", "GPU", "fast_disk")} == {
        "CPU": 3,
        "GPU": 1,
        "fast_disk": 2,
    }
    labels = {name: worker["labels"][name] for name in (MARKET_LABEL, GROUP_LABEL, "tier")}
    assert labels == {MARKET_LABEL: "spot", GROUP_LABEL: "train", "tier": "cheap"}
