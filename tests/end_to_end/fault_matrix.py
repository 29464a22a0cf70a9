"""A cluster, a store and runs to which faults are done in a chosen phase, and what each of them cost: see `Cell`."""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from cluster.local.faulty_proxy import FaultyProxy
from cluster.local.nodes import LocalNodes
from data.errors import MantaError
from data.stores.store import Store
from orchestrator.chaos.faults import WORKER, Injector
from orchestrator.chaos.plan import KINDS
from orchestrator.chaos.process import Command
from orchestrator.cli.main import app
from orchestrator.run.record import Attempt, load_record
from orchestrator.snapshots.store import snapshot_roots

NODES = 3

PATIENCE_S = 120.0


class Lines:
    """Takes the lines of a command in place of a console."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclass
class Cell:
    """A fault in a phase.

    Attributes:
        told: lines of the run from the fault to the first new step.
        at: when it was done, seconds since the epoch.
        until: when the run trained again.
        standstill_s: longest time between two new steps meanwhile.
        problem: why the cell failed; "" if it did not.
    """

    phase: str
    fault: str
    target: str = ""
    told: list[str] = field(default_factory=list)
    at: float = 0.0
    until: float = 0.0
    standstill_s: float | None = None
    problem: str = ""

    def done_by(self, injector: Injector) -> bool:
        """Does the fault, if there is a target for it now."""
        injected = injector.inject(self.fault)
        if injected is not None:
            self.at, self.target = injected.at, injected.target
        return injected is not None


@dataclass
class Site:
    """Where the runs of the matrix train.

    Attributes:
        store: the bucket, past the proxy.
    """

    folder: Path
    nodes: LocalNodes
    proxy: FaultyProxy
    store: Store
    recipe: Path

    def refill(self) -> None:
        """Starts nodes in place of those that are gone; for a cluster without a run."""
        self.nodes.add(NODES - len(self.nodes.living()))

    def run(self, name: str, *sets: str) -> DisturbedRun:
        return DisturbedRun(self, name, sets)


class DisturbedRun:
    """An endless run, its command, and the faults that are done to it."""

    def __init__(self, site: Site, name: str, sets: tuple[str, ...]) -> None:
        self.site, self.name, self.console = site, name, Lines()
        storage = next((each for each in sets if each.startswith("storage=")), "storage=s3://matrix/kept")
        sets = (*sets, storage, f"run={name}", "train.steps=1000000")
        self.options = [part for each in sets for part in ("--set", each)]
        self.root = site.store.child(storage.removeprefix("storage=s3://matrix/"))
        self.store = self.root.child(f"runs/{name}")
        arguments = [sys.executable, "-m", "manta_start", "train", str(site.recipe), *self.options]
        self.command = Command(name, arguments, site.nodes.environment, self.console)  # type: ignore[arg-type]

    def injector(self, seed: int, title: str = WORKER) -> Injector:
        site = self.site
        return Injector(site.nodes, self.command, site.proxy, self.store, random.Random(seed), title=title)

    def attempt(self) -> Attempt | None:
        try:
            return load_record(self.store).last
        except MantaError:
            return None

    def step(self) -> int:
        """Newest step that has been reported."""
        attempt = self.attempt()
        return attempt.step if attempt else 0

    def wait(
        self, condition: Callable[[], object], what: str, poll_s: float = 0.2, patience_s: float = PATIENCE_S
    ) -> None:
        """Waits for a condition; the command must live until then."""
        deadline = time.monotonic() + patience_s
        while not condition():
            assert self.command.status is None, f"ended with {self.command.status} before {what}:\n{self.console.text}"
            assert time.monotonic() < deadline, f"{what}: not within {patience_s:.0f} s:\n{self.console.text}"
            time.sleep(poll_s)

    def await_new_step(self, workers: int | None = None) -> None:
        """Waits until the run trains after the step that it has reached, with so many workers if told."""
        before, number = self.step(), len(self.command.sessions)

        def trains() -> bool:
            attempt = self.attempt()
            return bool(
                attempt
                and attempt.pid == self.command.sessions[number - 1]
                and attempt.phase in ("training", "evaluating")
                and attempt.step > before
                and (workers is None or attempt.world_size == workers)
            )

        self.wait(trains, f"a step after {before}")

    def three_nodes(self) -> None:
        """Brings the cluster back to its size, and waits for the run to have it too."""
        nodes = self.site.nodes
        for node in nodes.living()[NODES:]:
            node.terminate()
        self.wait(lambda: len(nodes.living()) <= NODES, "nodes to go")
        if (missing := NODES - len(nodes.living())) > 0:
            nodes.add(missing)
        self.await_new_step(NODES)

    def do(self, phase: str, fault: str, arrive: Callable[[DisturbedRun], object], injector: Injector) -> Cell:
        """Does a fault once the run has arrived in a phase, and waits until it trains again."""
        cell = Cell(phase, fault)
        try:
            arrive(self)
            told = len(self.console.lines)
            self.wait(lambda: cell.done_by(injector), f"a target for {fault}", poll_s=0.02)
            if KINDS[fault].ends_command:
                self.command.start()
            self.await_new_step()
            injector.settle()
            self.await_new_step()
            cell.told = [line.strip() for line in self.console.lines[told:]]
        except (AssertionError, MantaError) as error:
            cell.problem = str(error)
            if self.command.status is not None:
                self.command.start()
        cell.until = time.time()
        return cell

    def show(self) -> dict[str, Any]:
        """What `manta show --json` says."""
        done = CliRunner().invoke(app, ["show", str(self.site.recipe), "--json", *self.options])
        assert done.exit_code == 0, done.output
        shown: dict[str, Any] = json.loads(done.output)
        return shown

    def rows(self) -> list[dict[str, Any]]:
        """Metrics by step, from step 1."""
        rows = [json.loads(line) for line in self.store.get("metrics.jsonl").splitlines()]
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        return rows


# How a run arrives in a phase.


def training(run: DisturbedRun) -> None:
    run.three_nodes()


def snapshot(run: DisturbedRun) -> None:
    """A snapshot is being written on one of the nodes."""
    run.three_nodes()
    roots = snapshot_roots(run.store.url_of(""))
    run.wait(lambda: any(any(root.glob("a*/*/unfinished")) for root in roots), "a snapshot", poll_s=0.001)


def save(run: DisturbedRun) -> None:
    """A checkpoint is in the store that has no manifest yet."""
    run.three_nodes()

    def is_partial() -> bool:
        keys = [info.key for info in run.store.list("checkpoints/")]
        folders = {key.rpartition("/")[0] for key in keys}
        return any(f"{folder}/manifest.json" not in keys for folder in folders)

    run.wait(is_partial, "a save", poll_s=0.02)


def evaluation(run: DisturbedRun) -> None:
    """An evaluation has ended, and the next one takes most of the time until the one after it."""
    run.three_nodes()
    told = run.console.text.count("held-out loss")
    run.wait(lambda: run.console.text.count("held-out loss") > told, "an evaluation", poll_s=0.02)


def resize(run: DisturbedRun) -> None:
    """A node has joined, and the run moves onto it."""
    run.three_nodes()
    moving = rf"from {NODES} workers to {NODES + 1}:"
    told = len(re.findall(moving, run.console.text))
    run.site.nodes.add()
    run.wait(lambda: len(re.findall(moving, run.console.text)) > told, "a resize", poll_s=0.02)


def restart(run: DisturbedRun) -> None:
    """A worker was killed, and the group starts again."""
    run.three_nodes()
    again = "starting the workers again"
    told = run.console.text.count(again)
    injector = run.injector(seed=0)
    run.wait(lambda: injector.inject("kill-worker"), "a worker", poll_s=0.02)
    run.wait(lambda: run.console.text.count(again) > told, "a restart", poll_s=0.02)


def starting(run: DisturbedRun) -> None:
    """The command has been started again, and its workers start."""
    known = {pid for node in run.site.nodes.living() for pid in node.workers(WORKER)}
    run.command.start()

    def starts() -> bool:
        return bool({pid for node in run.site.nodes.living() for pid in node.workers(WORKER)} - known)

    run.wait(starts, "workers to start", poll_s=0.05)


def tokenizing(run: DisturbedRun) -> None:
    """Some units are tokenized, and others are not."""
    run.command.start()
    run.wait(lambda: any(run.root.list("tokens/")), "tokens", poll_s=0.05)


def write_results(cells: list[Cell], path: Path) -> None:
    """Adds cells to those that are in the file, as JSON, and writes a table of all beside it, as Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    known |= {f"{cell.phase} {cell.fault}": asdict(cell) for cell in cells}
    path.write_text(json.dumps(known, indent=1))
    phases = list(dict.fromkeys(cell["phase"] for cell in known.values()))
    faults = list(dict.fromkeys(cell["fault"] for cell in known.values()))
    rows = [["fault", *phases], ["---"] * (len(phases) + 1)]
    for fault in faults:
        cells_of_fault = (known.get(f"{phase} {fault}") for phase in phases)
        rows.append([fault, *(_shown(cell) for cell in cells_of_fault)])
    path.with_suffix(".md").write_text("".join(f"| {' | '.join(row)} |\n" for row in rows))


def _shown(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    if cell["problem"]:
        return "failed"
    return "?" if cell["standstill_s"] is None else f"{cell['standstill_s']:.1f}"
