"""Addresses of clusters that jobs are looked for at."""

from __future__ import annotations

import pytest

from cluster.errors import ClusterError
from orchestrator.commands.jobs import reach


@pytest.mark.parametrize("address", ["http://", "http://[::1", "http://host:99999", "https://:8265", "http://host:x"])
def test_what_is_no_address_is_refused_without_trying_it(address: str) -> None:
    with pytest.raises(ClusterError, match="is no address of a dashboard"):
        reach(address)
