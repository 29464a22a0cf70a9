"""Seconds from no node to the first step on an autoscaled cluster of this machine, and until idle nodes are removed.

The cluster is started by `manta cluster up`: a head without CPUs and groups of 1-CPU nodes that Ray's own autoscaler
starts. A run of two workers is submitted to it, without any prepared data. The time of its first step is read from its
record (`first_step_s` counts from the start of the job's command) and from the output of the submitting command. After
the job's end, `manta cluster status` is called until only the head is left; that time is counted from the job's end.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import harness
from harness import Command, Verdict

FIRST_STEP_S = 30.0
IDLE_AND_S = 15.0

POLL_INTERVAL_S = 0.5


def main() -> None:
    """Run the benchmark."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs, each on the cluster without nodes")
    parser.add_argument("--idle", type=float, default=10.0, help="idle_timeout_s of the cluster")
    parser.add_argument("--workers", type=int, default=2, help="workers of the run")
    options = parser.parse_args()
    name = f"bench-{os.getpid()}"
    with harness.scratch() as folder:
        spec = {
            "cluster": name,
            "idle_timeout_s": options.idle,
            "groups": [{"name": "train", "cpus": 1, "max": options.workers + 1}],
        }
        (folder / "cluster.yaml").write_text(json.dumps(spec))
        with Command(*harness.manta("cluster", "up", "cluster.yaml"), folder=folder) as command:
            up_s = command.wait()
        try:
            rounds = [measure(folder, name, number, options.workers) for number in range(options.rounds)]
        finally:
            with Command(*harness.manta("cluster", "down", name, "--now"), folder=folder) as command:
                command.wait()
    first, gone = ([each[what] for each in rounds] for what in ("first_step_s", "gone_s"))
    verdicts = [
        Verdict.at_most("from no node to the first step", statistics.median(first), FIRST_STEP_S, "s"),
        Verdict.at_most("idle nodes gone after the run", statistics.median(gone), options.idle + IDLE_AND_S, "s"),
        Verdict.without_bound("manta cluster up", up_s, "s"),
    ]
    details = {"rounds": rounds, "idle_timeout_s": options.idle}
    harness.report("cluster", options, verdicts, details)


def measure(folder: Path, name: str, number: int, workers: int) -> dict[str, Any]:
    """Measures one run from no nodes to none."""
    recipe = write_recipe(folder, f"round-{number}", workers)
    with Command(*harness.manta("submit", recipe, "--address", name), folder=folder) as command:
        command.wait()
        step = next(at for at, line in command.lines if "step 1/" in line)
    ended = time.monotonic()
    while len(nodes := status(folder, name)["nodes"]) > 1:
        if time.monotonic() - ended > 300:
            sys.exit(f"these nodes do not go: {nodes}")
        time.sleep(POLL_INTERVAL_S)
    gone_s = time.monotonic() - ended
    with Command(*harness.manta("show", recipe, "--json"), folder=folder) as command:
        command.wait()
        summary = json.loads("\n".join(line for _, line in command.lines))
    return {
        "first_step_s": step,
        "from_job_s": summary["first_step_s"],
        "gone_s": gone_s,
        "goodput": summary["goodput"],
    }


def status(folder: Path, name: str) -> dict[str, Any]:
    """The state of the cluster from `manta cluster status`."""
    with Command(*harness.manta("cluster", "status", name, "--json"), folder=folder) as command:
        command.wait()
        state: dict[str, Any] = json.loads("\n".join(line for _, line in command.lines))
    return state


def write_recipe(folder: Path, run: str, workers: int) -> str:
    """Writes the recipe of a small model on a few files of the standard library, without prepared data."""
    corpus = folder / f"corpus-{run}"
    corpus.mkdir()
    library = Path(sysconfig.get_paths()["stdlib"])
    for module in ("argparse", "csv", "heapq", "shlex"):
        (corpus / f"{module}.txt").write_text((library / f"{module}.py").read_text("utf-8"))
    fields = {
        "run": run,
        "storage": f"kept-{run}",
        "data": {"sources": [{"path": str(corpus)}], "tokenizer": {"kind": "bpe", "vocab_size": 512}, "seq_len": 64},
        "model": {"n_layers": 2, "d_model": 64, "n_heads": 2},
        "train": {"steps": 50, "global_batch_size": 16, "micro_batch_size": 4, "lr": 1e-3},
        "scaling": {"num_workers": workers},
    }
    (folder / f"{run}.yaml").write_text(json.dumps(fields))
    return f"{run}.yaml"


if __name__ == "__main__":
    main()
