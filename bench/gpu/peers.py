"""Process groups that lose a rank, and consecutive groups; in separate processes, because some may hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from gpu.setting import Setting, free_port
from gpu.stages import Found

_PEERS_TIMEOUT_S = 40.0
_REGROUPING_TIMEOUT_S = 60.0

# Two ranks on one card are refused without the first. The others keep NCCL's watchdog from ending a process by itself
# while another thread is about to abort the group.
_TWO_RANKS_ON_A_CARD = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
_WITHOUT_WATCHDOG = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}


def lost_peers(setting: Setting) -> Found:
    """Measures how a rank leaves a collective whose other rank died or never comes, and joins its next group.

    With `leave_group` as the project has it, and on a GPU also by aborting the group. NCCL may refuse two ranks on one
    card: then only the cases of a rank that never comes say something.
    """
    ways = ("leave_group", "abort") if setting.on_gpu else ("leave_group",)
    running = {}
    for how, way in product(("dies", "never_comes"), ways):
        environment = _TWO_RANKS_ON_A_CARD | (_WITHOUT_WATCHDOG if way == "abort" else {})
        case = {"how": how, "way": way, "device": setting.device.type, "port": free_port(), "next_port": free_port()}
        other = started("gpu.rank", case | {"rank": 1}, environment)
        running[f"{how}, {way}"] = started("gpu.rank", case | {"rank": 0}, environment), other
    deadline = time.monotonic() + _PEERS_TIMEOUT_S
    found = {}
    try:
        for name, (survivor, _) in running.items():
            found[name] = outcome(survivor, deadline - time.monotonic())
    finally:
        for pair in running.values():
            for process in pair:
                process.kill()
                process.wait()
    return found


def regrouping(setting: Setting) -> Found:
    """The cost of each process group of a worker: joining, the first step, leaving, and memory that is not freed."""
    process = started("gpu.regroup", {"device": setting.device.type, "tiny": setting.tiny}, {})
    try:
        found = outcome(process, _REGROUPING_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    if "ended" in found:
        raise RuntimeError(f"The process that regroups printed no result: {found}")
    return found


def started(module: str, arguments: Mapping[str, Any], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Starts a module of this package in a separate process."""
    return subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(dict(arguments))],
        cwd=Path(__file__).resolve().parents[1],  # where -m finds this package
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcome(process: subprocess.Popen[str], timeout_s: float) -> Found:
    """The JSON on the last line of a process's output; else its exit status and the end of its output."""
    try:
        printed, _ = process.communicate(timeout=max(0.1, timeout_s))
        ended: int | str = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
        ended = "not in time"
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    found: Found = json.loads(lines[-1]) if lines else {"ended": ended, "last_words": printed[-1500:]}
    return found
