"""A worker with several consecutive process groups, in a separate process: it joins, trains and leaves each.

    python -m gpu.regroup '{"device": "cpu", "tiny": true}'

Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time

import torch

from gpu.setting import Setting, free_port
from gpu.stages import Found
from gpu.training import GPT2_124M, Training, sized
from orchestrator.workers.process_group import join_group, leave_group

_GROUPS = 4


def main() -> None:
    """Runs all groups."""
    arguments = json.loads(sys.argv[1])
    setting = Setting.of(arguments["device"], tiny=arguments["tiny"])
    lives = [one_group(setting) for _ in range(_GROUPS)]
    print(json.dumps({key: [life[key] for life in lives] for key in lives[0]}), flush=True)
    os._exit(0)


def one_group(setting: Setting) -> Found:
    """Runs one group; code compiled in an earlier one is kept, as in a worker."""
    began = time.perf_counter()
    join_group(setting.collectives, f"tcp://127.0.0.1:{free_port()}", 0, 1, 60.0)
    join_s = time.perf_counter() - began
    training = Training(sized(GPT2_124M.with_model(n_layers=2), setting), setting, compiled=setting.on_gpu)
    first, second = training.step(), training.step()
    began = time.perf_counter()
    leave_group()
    leave_s = time.perf_counter() - began
    del training
    setting.release()
    return {
        "join_s": round(join_s, 3),
        "first_step_s": round(first.seconds, 3),
        "second_step_s": round(second.seconds, 3),
        "leave_s": round(leave_s, 3),
        "allocated_mb": round(torch.cuda.memory_allocated() / 1e6, 1) if setting.on_gpu else None,
        "reserved_mb": round(torch.cuda.memory_reserved() / 1e6, 1) if setting.on_gpu else None,
        "most_host_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


if __name__ == "__main__":
    main()
