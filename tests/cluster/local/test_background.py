"""Clusters that are up are found, whatever the rules of the version that started them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cluster.local import background
from cluster.local.background import find_cluster, running_clusters
from cluster.local.processes import start_time


def test_a_cluster_whose_spec_would_be_refused_now_can_still_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "records_folder", lambda: tmp_path)
    spec = {
        "cluster": "night",
        "image": "Not An Image",
        "head": {"cpus": 2, "memory": "1Gi"},
        "groups": [{"name": "train", "max": 99999999999, "min": 0, "gpus": 0, "cpus": 1, "memory": "1Gi"}],
    }
    fields = {
        "spec": spec,
        "address": "127.0.0.1:1",
        "dashboard": "",
        "pid": os.getpid(),
        "pid_started": start_time(os.getpid()),
        "session": 1,
        "folder": str(tmp_path),
        "started_at": 0.0,
        "environment": {},
    }
    (tmp_path / "night.json").write_text(json.dumps(fields))
    [found] = running_clusters()
    assert found.name == "night" and [group.name for group in found.spec.groups] == ["train"]
    assert find_cluster("night").pid == os.getpid()
