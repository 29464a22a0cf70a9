"""A Ray that a command starts is for this user and this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local.processes import children
from cluster.local.ray import ray_cluster

pytestmark = pytest.mark.ray

LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
"""127.0.0.1, ::1 and ::ffff:127.0.0.1 as the kernel writes them."""


def descendants(pid: int) -> Iterator[int]:
    yield pid
    for child in children(pid):
        yield from descendants(child)


def listening() -> list[tuple[str, str]]:
    """Title and address of every TCP socket on which this process or one below it listens."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    addresses = {f"socket:[{row[9]}]": row[1].partition(":")[0] for row in rows if row[3] == "0A"}
    found = []
    for pid in descendants(os.getpid()):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if (address := addresses.get(os.readlink(descriptor))) is not None:
                    found.append((Path(f"/proc/{pid}/comm").read_text().strip(), address))
            except OSError:
                continue
    return found


def test_it_listens_on_the_loopback_address_only() -> None:
    before = listening()
    with ray_cluster(2):
        import ray

        assert ray.get(ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"]).remote()) == os.environ["RAY_AUTH_TOKEN"]
        found = [each for each in listening() if each not in before]
        assert any("gcs_server" in title for title, _ in found) and any("raylet" in title for title, _ in found)
        assert [each for each in found if each[1] not in LOOPBACK] == []
