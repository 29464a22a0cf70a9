"""Checks and measures training on one GPU without Ray: results, speed, snapshots and process groups.

    python bench/gpu_check.py --out DIR --budget 340
    python bench/gpu_check.py --out DIR --device cpu --tiny     to test the check itself

It runs the project's own training step, snapshot and process group, with stand-ins in place of Ray. Stages are in order
of importance. A stage is left out if less of the budget remains than it needs, and DIR/gpu_check.json says so; that
file is written again after every stage. docs/gpu.md explains each stage.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from gpu.correctness import correctness
from gpu.kernels import attention_alone, loss_alone
from gpu.machine import machine
from gpu.peers import lost_peers, regrouping
from gpu.setting import Setting, free_port
from gpu.snapshots import snapshots
from gpu.speed import host_syncs, speed_124m, speed_350m, speed_760m, speed_encoder_decoder, top_kernels
from gpu.stages import Report, Stage, run_stages

from orchestrator.workers.process_group import join_group

STAGES = (
    Stage("machine", 5, machine),
    Stage("correctness", 45, correctness),
    Stage("speed_124m", 45, speed_124m),
    Stage("top_kernels", 25, top_kernels),
    Stage("host_syncs", 10, host_syncs),
    Stage("lost_peers", 45, lost_peers),
    Stage("snapshots", 15, snapshots),
    Stage("loss_alone", 15, loss_alone),
    Stage("speed_350m", 45, speed_350m),
    Stage("speed_encoder_decoder", 40, speed_encoder_decoder),
    Stage("regrouping", 45, regrouping),
    Stage("attention_alone", 10, attention_alone),
    Stage("speed_760m", 55, speed_760m),
)


def main() -> None:
    """Runs the stages; exits with 1 if one failed."""
    options = arguments()
    setting = Setting.of(options.device, tiny=options.tiny)
    if setting.tiny:
        torch.set_num_threads(1)  # tiny shapes are no faster with more threads, and much slower on shared cores
        torch.compiler.set_stance(force_backend="aot_eager")  # traces only: generating code for a CPU takes a minute
    chosen = [stage for stage in STAGES if not options.only or stage.name in options.only]
    settings = {"device": options.device, "tiny": options.tiny, "budget_s": options.budget}
    report = Report(options.out / "gpu_check.json", settings)
    # Both: the reference of `correctness` is computed on the CPU.
    backend = "cpu:gloo,cuda:nccl" if setting.on_gpu else "gloo"
    join_group(backend, f"tcp://127.0.0.1:{free_port()}", 0, 1, 60.0)
    run_stages(chosen, setting, options.budget, report)
    if report.failed:
        print(f"failed: {', '.join(report.failed)}", file=sys.stderr)
    sys.stdout.flush()
    os._exit(1 if report.failed else 0)  # threads of NCCL that hang are not waited for


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_check.json")
    parser.add_argument("--budget", type=float, default=340.0, help="seconds for all stages together")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a CPU")
    parser.add_argument("--only", nargs="+", choices=[stage.name for stage in STAGES], help="these stages alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
