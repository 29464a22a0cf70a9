"""Hosts of snapshot agents: one a node, for as long as there are agents."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.host import Hosted
from orchestrator.driver import shared_hosts as module
from orchestrator.driver.shared_hosts import AgentHosts
from orchestrator.run.job import Owner
from tests.waiting import wait_until

NODE, OTHER = "0a" * 28, "0b" * 28  # ids, in the form that Ray checks


class Remote:
    """An actor's method that notes its calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def remote(self, key: str, *args: Any) -> None:
        self.calls.append(key)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Hosts by name, in the order of their start."""
    hosts: dict[str, Any] = {}

    def start_host(body: type, name: str, **options: Any) -> Any:
        hosts[name] = SimpleNamespace(place=Remote(), drop=Remote())
        return hosts[name]

    monkeypatch.setattr(module, "start_host", start_host)
    monkeypatch.setattr(module, "is_there", hosts.__contains__)
    return hosts


def job_of(run: str) -> Any:
    return SimpleNamespace(config=SimpleNamespace(run=run), owner=Owner("file:///r", 1, "i"))


def test_the_agents_of_a_node_share_a_host(started: dict[str, Any]) -> None:
    hosts = AgentHosts()
    one, two = hosts.place(NODE, job_of("r1")), hosts.place(NODE, job_of("r2"))
    elsewhere = hosts.place(OTHER, job_of("r1"))
    assert one.host == two.host != elsewhere.host
    assert started[one.host].place.calls == [one.key, two.key]
    assert (one.key, two.key) == ("r1/a1-i/agent-1", "r2/a1-i/agent-2")


def test_another_agent_of_a_run_on_a_node_takes_nothing_from_the_others(started: dict[str, Any]) -> None:
    """The one before may still upload, or have met an error."""
    hosts = AgentHosts()
    before, other = hosts.place(NODE, job_of("r1")), hosts.place(NODE, job_of("r2"))
    after = hosts.place(NODE, job_of("r1"))
    assert before.host == other.host == after.host and before.key != after.key
    hosts.drop(NODE, before)
    assert started[after.host].drop.calls == [before.key]


def test_a_host_that_has_died_has_a_successor(started: dict[str, Any]) -> None:
    hosts = AgentHosts()
    died, other = hosts.place(NODE, job_of("r1")), hosts.place(NODE, job_of("r2"))
    lost = started.pop(died.host)
    successor = hosts.place(NODE, job_of("r1"))
    assert successor.host != died.host
    hosts.drop(NODE, other)
    assert lost.drop.calls == started[successor.host].drop.calls == [], "it was not there"


def test_a_host_ends_some_time_after_its_last_agent(started: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 3600.0)
    hosts = AgentHosts()
    first = hosts.place(NODE, job_of("r1"))
    hosts.drop(NODE, first)
    assert started[first.host].drop.calls == [first.key]
    second = hosts.place(NODE, job_of("r2"))
    assert second.host == first.host
    monkeypatch.setattr(module, "IDLE_S", 0.01)
    hosts.drop(NODE, Hosted(second.host, second.key))
    wait_until(lambda: not hosts._hosts, "the end of the host")
    assert hosts.place(NODE, job_of("r3")).host != first.host
