"""The newest collectives of this process, from PyTorch's flight recorder: which of them a rank waits in."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

NEWEST = 8
"""Collectives that are told of each process group, besides those that have not ended."""

MOST_LINES = 40

RECORDERS = ("_dump_nccl_trace_json", "_dump_fr_trace_json")
"""Functions of PyTorch that read its two recorders; NCCL's own is not in every build, and gloo writes to the other."""


def newest_collectives() -> str:
    """A line for each of the newest collectives, oldest first; "" where none is recorded.

    Of a hang, the ranks' lines differ: one rank has not begun what the others wait in, or waits in another one.
    """
    module = sys.modules.get("torch._C._distributed_c10d")  # not imported here: the training thread may be at it
    for name in RECORDERS:
        dump = getattr(module, name, None)
        if dump is None:
            continue
        recorded = json.loads(dump())
        if entries := recorded.get("entries"):
            return "\n".join(["Newest collectives:", *_lines(entries)[-MOST_LINES:], ""])
    return ""


def _lines(entries: list[Mapping[str, Any]]) -> list[str]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(" ".join(entry["process_group"]), []).append(entry)
    told = []
    for group, recorded in groups.items():
        for back, entry in zip(range(len(recorded), 0, -1), recorded, strict=True):
            if back <= NEWEST or not entry["retired"]:
                number, sizes = entry["collective_seq_id"], entry["input_sizes"]
                state = entry["state"] if not entry["retired"] else "ended"
                told.append(f"  group {group}, {number}: {entry['profiling_name']} of {sizes}, {state}")
    return told
