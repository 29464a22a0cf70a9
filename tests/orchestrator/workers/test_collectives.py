"""The collectives that are told of a hang, as PyTorch recorded them."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from orchestrator.workers.collectives import MOST_LINES, NEWEST, newest_collectives
from tests.waiting import wait_until

C10D = "torch._C._distributed_c10d"


def test_what_a_process_group_has_done_is_told() -> None:
    store = dist.HashStore()
    gloo = dist.ProcessGroupGloo(store, 0, 1)
    sizes = range(1, 3 * NEWEST)
    for size in sizes:
        gloo.allreduce([torch.ones(size)]).wait()
    newest = f"gloo:all_reduce of [[{sizes[-1]}]], ended"  # which the recorder notes a moment later
    wait_until(lambda: newest in newest_collectives(), "the newest one's end")
    lines = newest_collectives().splitlines()
    assert lines[0] == "Newest collectives:"
    found = [line for line in lines if newest in line]
    assert len(found) == 1 and len(lines) <= MOST_LINES + 2


def entry(number: int, **values: Any) -> dict[str, Any]:
    return {
        "process_group": ["0", "default_pg"],
        "collective_seq_id": number,
        "profiling_name": "nccl:all_reduce",
        "input_sizes": [[number]],
        "state": "started",
        "retired": True,
        **values,
    }


def test_what_has_not_ended_is_told_however_old_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [entry(number, retired=number != 2) for number in range(1, 20)]
    recorder = SimpleNamespace(_dump_nccl_trace_json=lambda: json.dumps({"entries": entries}).encode())
    monkeypatch.setitem(sys.modules, C10D, recorder)
    lines = newest_collectives().splitlines()[1:]
    assert lines[0] == "  group 0 default_pg, 2: nccl:all_reduce of [[2]], started"
    assert [line.split(", ")[1].split(":")[0] for line in lines[1:]] == [str(number) for number in range(12, 20)]


@pytest.mark.parametrize("recorded", [{}, {"entries": []}])
def test_nothing_is_told_where_nothing_is_recorded(recorded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = SimpleNamespace(_dump_fr_trace_json=lambda: json.dumps(recorded).encode())
    monkeypatch.setitem(sys.modules, C10D, recorder)
    assert newest_collectives() == ""
    monkeypatch.delitem(sys.modules, C10D)
    assert newest_collectives() == ""
