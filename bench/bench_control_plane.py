"""What the books of a long run cost: 1,024 workers, a million steps, 1,000 restarts, without training and without Ray.

    start-up    what an attempt reads of the run before its first step
    show        `manta show --json`, a real process on one core, and `manta report`; and `show` of a run with 8 samples
                a step, which are audited (more than ten million are not, without --audit)
    save        merging the ledger's segments, in the saves of the whole run
    step        rank 0, between two steps: its decisions, the row of the ledger, reports, stragglers; and a report in
                the monitor, which keeps its state on disk
    restart     from a lost node to the first new step: policies, agents and beats of all workers, the node with the
                newest snapshot, the progress as the driver reads it, and the run's record

Policies, monitor, rank 0, ledger, record and commands are the real ones; actors are called as objects. Required: a step
under 5 ms, show under 5 s, a restart under 2 s.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import numpy as np
from harness import Verdict
from harness.long_run import LongRun, make_long_run
from ray import cloudpickle

from orchestrator.monitor import kept_state
from orchestrator.monitor import state as monitor_state
from orchestrator.monitor.monitor import Monitor
from orchestrator.policy.hang import Beat
from orchestrator.policy.scaling import Observation, ScalingPolicy
from orchestrator.run.checkpoint import PROGRESS, fetch_newest
from orchestrator.run.fence import Fence
from orchestrator.run.goodput import GoodputClock
from orchestrator.run.job import Owner
from orchestrator.run.ledger import StepLedger, StepRow
from orchestrator.run.progress import GroupStart, LoopRequests
from orchestrator.run.record import EVALUATIONS
from orchestrator.run.run import open_run
from orchestrator.run.state import START, RunState
from orchestrator.snapshots.resume_point import newest_holder
from orchestrator.train import checkpoint_saver, rank_zero
from orchestrator.train.loop import add_row

STEP_MS, SHOW_S, RESTART_S = 5.0, 5.0, 2.0
"""Required at most."""

AUDITED_BATCH = 8
"""Samples of a step in the run whose samples are audited."""


def main() -> None:
    """Run the benchmark."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--workers", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--save-every", type=int, default=1000, help="steps between two saves")
    parser.add_argument("--disruptions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of show and of start-up")
    parser.add_argument("--measured-steps", type=int, default=3000)
    options = parser.parse_args()
    workers = options.workers
    lived = {"steps": options.steps, "save_every": options.save_every, "disruptions": options.disruptions}
    with harness.scratch() as folder:
        narrow = make_long_run(folder / "narrow", workers=AUDITED_BATCH, is_real=True, **lived)
        run = make_long_run(folder / "wide", workers=workers, is_real=False, **lived)
        startup_s = [timed(lambda: read_at_start(run, folder)) for _ in range(options.rounds)]
        before = cpu_s()
        show_s = [timed(lambda: command("show", run.recipe, "--json")) for _ in range(options.rounds)]
        show_cpu_s = (cpu_s() - before) / options.rounds
        audited_s = [timed(lambda: command("show", narrow.recipe, "--json")) for _ in range(options.rounds)]
        report_s = timed(lambda: command("report", run.recipe))
        old, restart_s = measure_monitor(run, folder, workers, options.disruptions, options.rounds)
        record_bytes = len(old.fence.record.to_json())
    step_ms = measure_steps(workers, options.measured_steps)
    verdicts = [
        Verdict.without_bound("start-up reads", statistics.median(startup_s), "s"),
        Verdict.at_most("manta show --json", statistics.median(show_s), SHOW_S, "s"),
        Verdict.without_bound("  of it on the core", show_cpu_s, "s"),
        Verdict.at_most("  with an audit of 8 samples a step", statistics.median(audited_s), SHOW_S, "s"),
        Verdict.without_bound("manta report", report_s, "s"),
        Verdict.without_bound("segments of the ledger, at most", max(run.segments)),
        Verdict.without_bound("a save's ledger, median", statistics.median(run.save_s), "s"),
        Verdict.without_bound("  all saves together", sum(run.save_s), "s"),
        Verdict.without_bound("  the longest", max(run.save_s), "s"),
        Verdict.at_most("a step on rank 0, mean", statistics.mean(step_ms), STEP_MS, "ms"),
        Verdict.without_bound("  99 of 100 below", sorted(step_ms)[int(0.99 * len(step_ms))], "ms"),
        Verdict.without_bound("a report in the monitor", statistics.median(old.report_ms), "ms"),
        Verdict.without_bound("agents of all nodes, in the beginning", old.first_agents_s, "s"),
        *(Verdict.without_bound(f"  restart: {name}", value, "s") for name, value in restart_s.items()),
        Verdict.at_most("a restart", sum(restart_s.values()), RESTART_S, "s"),
        Verdict.without_bound("progress, as it is sent to the driver", old.tell_driver() / 1e3, "KB"),
        Verdict.without_bound("run.json", record_bytes / 1e3, "KB"),
    ]
    details = {
        "show_s": show_s,
        "audited_s": audited_s,
        "startup_s": startup_s,
        "step_ms": harness.spread(step_ms),
        "segments": run.segments,
    }
    harness.report("control_plane", options, verdicts, details)


def timed(action: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


# ---------------------------------------------------------------------------------------------------------------------
# What is read
# ---------------------------------------------------------------------------------------------------------------------


def command(name: str, recipe: Path, *options: str) -> None:
    """Runs a command on one core."""
    core = {min(os.sched_getaffinity(0))}
    subprocess.run(
        harness.manta(name, str(recipe), *options),
        check=True,
        cwd=recipe.parent,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, core),
    )


def cpu_s() -> float:
    """CPU seconds of all commands so far."""
    times = os.times()
    return times.children_user + times.children_system


def read_at_start(run: LongRun, folder: Path) -> None:
    """Reads what driver, feeder and snapshot agent read of the run: its record, and the newest checkpoint's state."""
    opened = open_run(run.config)
    for _ in ("the feeder's start", "the choice of the state to resume from"):
        fetched = fetch_newest(opened.store, opened.record, (PROGRESS,), folder)
    assert fetched is not None
    Owner.of(opened.store.url_of(""), opened.record)
    StepLedger(opened.store, 99, fetched[0].step, fetched[1]["ledger"])


# ---------------------------------------------------------------------------------------------------------------------
# A step, and a restart
# ---------------------------------------------------------------------------------------------------------------------


class Method:
    """An actor's method: pickles what it gets, as Ray does, and answers at once."""

    def __init__(self, answer: Any = None) -> None:
        self._answer = answer

    def remote(self, *arguments: Any, **named: Any) -> Any:
        """Calls it."""
        cloudpickle.dumps((arguments, named))
        return self._answer


@contextmanager
def without_ray() -> Iterator[None]:
    """Lets modules that call actors call objects of this process."""
    ray = SimpleNamespace(get=lambda value: value, wait=lambda refs, timeout: (refs, []))
    modules = (rank_zero, checkpoint_saver, monitor_state)
    before, calls, call_id = [module.ray for module in modules], itertools.count(), kept_state.call_id
    try:
        for module in modules:
            module.ray = ray
        kept_state.call_id = lambda: str(next(calls))
        yield
    finally:
        kept_state.call_id = call_id
        for module, real in zip(modules, before, strict=True):
            module.ray = real


def measure_steps(workers: int, steps: int) -> list[float]:
    """Milliseconds of rank 0's bookkeeping in each of `steps` steps. A checkpoint is saved every 1,000."""
    train = SimpleNamespace(steps=10**9, ema_decay=None)
    config = SimpleNamespace(
        train=train,
        checkpoint=SimpleNamespace(every_steps=None, every_s=1e9),
        store=SimpleNamespace(patience=1e9),
        evaluates_after=lambda step: False,
    )
    methods = ("log", "report_checkpoint", "report_outage")
    monitor = SimpleNamespace(
        **{name: Method() for name in methods}, report=Method(LoopRequests()), begin_group=Method(GroupStart(0, 0.0))
    )
    job: Any = SimpleNamespace(monitor=monitor, until=10**9, done_before=0, report_every_s=1.0, config=config)
    node: Any = SimpleNamespace(nodes=[f"{rank:056x}" for rank in range(workers)], agent=None)
    draw, ids, unsaved, taken = random.Random(1), np.arange(workers), list[StepRow](), []
    with without_ray():
        zero = rank_zero.RankZero(job, node, RunState(START), GoodputClock("training"))
        zero.begin(0, "cpu")
        for step in range(1, steps + 1):
            seconds = [0.5 + 0.1 * draw.random() for _ in range(workers)]
            seconds[7] = 3.0 if step > steps // 2 else 0.5
            began = time.perf_counter()
            directive = zero.directive(step)
            row = StepRow(step, 2.0, 1e-3, 1.0, 256 * step, workers, 1.0, time.time(), ids)
            add_row(unsaved, row, max(directive.saved_step, step // 1000 * 1000 - 5))
            zero.step_done(row, seconds)
            taken.append(1000 * (time.perf_counter() - began))
    return taken


class OldMonitor:
    """The monitor of an attempt that has lost many nodes, and what is around it.

    Attributes:
        report_ms: milliseconds of each report of rank 0 to it.
    """

    def __init__(self, run: LongRun, folder: Path, workers: int, disruptions: int) -> None:
        scaling = ScalingPolicy(1, workers, micro_batches=workers, restart_s=20.0)
        agent = SimpleNamespace(free=Method())
        self.monitor = Monitor(scaling, 10**9, lambda node, job: agent, folder=folder / "monitor")
        self.workers, self.step, self.report_ms = workers, 0, list[float]()
        self.nodes = [f"{rank:056x}" for rank in range(workers)]
        self.first_agents_s = timed(self.call_agents)
        opened = open_run(run.config)
        self.fence = Fence.claim(opened.store, "long", opened.record.result_fields, keep_pins=True)
        for number in range(EVALUATIONS):
            self.monitor.report_evaluation(number, {"val_loss": 2.5, "val_bits_per_byte": 1.25}, False)
        for _ in range(disruptions):
            self.train()
            self.lose_node()

    def train(self) -> None:
        """A group begins and reports its first new step."""
        self.monitor.begin_group(self.step, self.nodes, 0.0, "cpu")
        self.step += 10
        row = {"step": self.step, "step_s": 1.0, "world_size": self.workers}
        losses = [(self.step - each, 2.0) for each in range(10)]
        seconds = {"training": 1.0, "startup": 2.0}
        report = partial(self.monitor.report, phase="training", row=row, losses=losses, goodput=seconds)
        self.report_ms.append(1000 * timed(report))

    def lose_node(self) -> None:
        """The policy decides about a lost node."""
        assert self.monitor.restart_after_failure("node", "worker 0 on node 1 died", nodes=frozenset(self.nodes))

    def call_agents(self) -> None:
        """The agent of every rank's node is asked for."""
        for node in self.nodes:
            self.monitor.agent_of(node, "the job")  # type: ignore[arg-type]

    def take_new_node(self) -> None:
        """One of the nodes has been replaced."""
        self.nodes = [*self.nodes[1:], f"{self.step:056x}"]
        self.call_agents()

    def start(self) -> None:
        """The policies decide to start workers, and that none hangs."""
        seen = Observation(workers=0, slots=self.workers, total_slots=self.workers)
        assert self.monitor.decide_start(seen) is not None
        for node in self.nodes:
            self.monitor.beat(Beat(f"worker on {node}", node, 0, self.step, "step", self.step, 0.1, 2.0))
        assert self.monitor.decide_starting([f"worker on {node}" for node in self.nodes]) is None

    def choose_snapshot(self) -> None:
        """Chooses the newest snapshot among those of all nodes."""
        held = {node: (self.step - rank % 3, 1) for rank, node in enumerate(self.nodes)}
        assert newest_holder(held, 0) is not None

    def tell_driver(self) -> int:
        """Sends the progress to the driver; returns its bytes."""
        return len(cloudpickle.dumps(self.monitor.progress(10**9)))

    def write_record(self) -> None:
        """The driver writes the run's record."""
        progress = self.monitor.progress()
        happened = [each.summary() for each in progress.disruptions]
        counts, evaluations = progress.restart_counts, progress.evaluations
        self.fence.update(attempt={"disruptions": happened, "restart_counts": counts, "evaluations": evaluations})


def measure_monitor(
    run: LongRun, folder: Path, workers: int, disruptions: int, rounds: int
) -> tuple[OldMonitor, dict[str, float]]:
    """Seconds of the parts of a restart, the median of some."""
    with without_ray():
        old = OldMonitor(run, folder, workers, disruptions)
        parts: dict[str, Callable[[], object]] = {
            "decision about the failure": old.lose_node,
            "agents of all nodes, one new": old.take_new_node,
            "start, with a beat of each worker": old.start,
            "choosing a snapshot": old.choose_snapshot,
            "begin and first step": old.train,
            "progress to the driver": old.tell_driver,
            "the run's record": old.write_record,
        }
        old.train()
        taken = [{name: timed(part) for name, part in parts.items()} for _ in range(rounds)]
    return old, {name: statistics.median(each[name] for each in taken) for name in parts}


if __name__ == "__main__":
    main()
