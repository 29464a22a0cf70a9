"""Runs `manta chaos`: an undisturbed and a disturbed run, and optionally stock Ray Train under the same faults."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.local.faulty_proxy import FaultyProxy
from cluster.local.nodes import LocalNodes
from cluster.local.processes import calling
from data.errors import InputError, MantaError
from orchestrator.chaos.cost import costs, gaps_after, largest_difference
from orchestrator.chaos.faults import STOCK_WORKER, Injected, Injector
from orchestrator.chaos.plan import KINDS, draw_faults, refuse_unknown
from orchestrator.config.load import load_recipe
from orchestrator.config.recipe import RunConfig
from orchestrator.config.result_fields import resolved
from orchestrator.console import Console
from orchestrator.driver.prepare import prepare
from orchestrator.run.record import load_record
from orchestrator.run.run import open_run, reaching_storage, stores
from orchestrator.run.stored import read_state
from orchestrator.run.summary import summary_of_run

POLL_INTERVAL_S = 0.5
"""Seconds between two reads of the run's record, which is written every few seconds."""

RECOVERY_S = 180.0
"""Seconds to wait for a new step after a fault before the next fault is injected anyway."""

MIN_NODES = 2
"""Nodes that faults leave at least: one to lose, and one to continue on."""

TOLERANCE = 1e-5
"""Largest relative difference of losses that counts as rounding, of fp32 sums in another order."""


@dataclass(frozen=True)
class Plan:
    """The faults to inject, and the cluster to run on.

    Attributes:
        every_s: seconds from one fault to the next; longer if the run has not completed a new step since.
        count: most faults; None: no limit until the run ends.
        nodes: one-CPU nodes of the cluster.
    """

    kinds: Sequence[str]
    every_s: float
    seed: int
    count: int | None
    nodes: int


def chaos(
    recipe: Path, overrides: Sequence[str], plan: Plan, baseline: bool, publish: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Trains the recipe's run undisturbed and disturbed, and reports the cost of every fault; see `costs`.

    Args:
        publish: called with the report as soon as there is one, and again with the baseline, which takes long.

    Raises:
        InputError: a fault is unknown, or needs an object store that the recipe does not use.
        MantaError: one of the runs failed.
    """
    refuse_unknown(plan.kinds)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM also ends the nodes
    console = Console()
    config = load_recipe(recipe, overrides)
    store_faults = [kind for kind in plan.kinds if KINDS[kind].needs_store]
    if store_faults and not config.storage.startswith("s3://"):
        raise InputError(f"{', '.join(store_faults)} need `storage: s3://…`; this recipe has {config.storage}")
    with ExitStack() as stack:
        config = stack.enter_context(reaching_storage(config))
        prepare(config)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="manta-chaos-")))
        runs = _Runs(recipe, overrides, config, plan, folder, console)
        report = runs.compare()
        publish(report)
        if baseline:
            report["baseline"] = runs.baseline()
            publish(report)
        return report


def is_same_run(report: Mapping[str, Any]) -> bool:
    """Whether the disturbed run equals the undisturbed one: every sample once, and losses equal up to rounding."""
    samples, difference = report["samples"], report["loss_max_rel_diff"]
    return bool(
        report["status"] == "finished"
        and report["same_digest"]
        and samples["duplicated"] == samples["missing"] == 0
        and difference is not None
        and difference <= TOLERANCE
    )


@dataclass(frozen=True)
class _Runs:
    """The runs of one `manta chaos` command, and what they share."""

    recipe: Path
    overrides: Sequence[str]
    config: RunConfig
    plan: Plan
    folder: Path
    console: Console

    def compare(self) -> dict[str, Any]:
        """Trains the undisturbed and then the disturbed run on one cluster; returns the report."""
        stamp = time.strftime("%m%d-%H%M%S")
        names = {which: f"{self.config.run}-{which}-{stamp}" for which in ("undisturbed", "disturbed")}
        with ExitStack() as stack:
            proxy = None
            if self.config.store.endpoint_url:
                proxy = stack.enter_context(FaultyProxy(self.config.store.endpoint_url, self.plan.seed))
            nodes = stack.enter_context(self.cluster("tuned"))
            with self.training(names["undisturbed"], nodes, self.config.store.endpoint_url) as process:
                _await_end(process, names["undisturbed"])
            through = proxy.endpoint_url if proxy else None
            with self.training(names["disturbed"], nodes, through) as process:
                injector = Injector(nodes, proxy, self.store_of(names["disturbed"]), random.Random(self.plan.seed))
                faults = self.disturb(process, injector, lambda: self.progress_of(names["disturbed"]))
                _await_end(process, names["disturbed"])
                injector.settle()
        undisturbed, disturbed = (self.summary(names[which]) for which in ("undisturbed", "disturbed"))
        return {
            "faults": costs(faults, disturbed["disruptions"], disturbed["started_at"]),
            "loss_max_rel_diff": largest_difference(undisturbed.pop("losses"), disturbed.pop("losses")),
            "same_digest": undisturbed["samples"]["digest"] == disturbed["samples"]["digest"],
            "undisturbed": undisturbed,
            **disturbed,
        }

    def baseline(self) -> dict[str, Any]:
        """Trains on stock Ray Train under the same faults, without those of the store and those it cannot survive."""
        kinds = [kind for kind in self.plan.kinds if KINDS[kind].in_baseline]
        log, config = self.folder / "steps.jsonl", self.folder / "config.json"
        config.write_text(json.dumps(resolved(self.config)))
        log.touch()

        def steps() -> list[dict[str, Any]]:
            return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]

        def newest() -> tuple[int, bool]:
            return max((each["step"] for each in steps()), default=0), True

        program = calling("orchestrator.chaos.stock_ray", "main")
        command = [*program, str(config), str(log), "1", str(self.plan.nodes)]
        with self.cluster("stock", stock=True) as nodes, self.program(command, nodes, "stock Ray") as process:
            store, draw = stores(self.config)[1], random.Random(self.plan.seed)
            injector = Injector(nodes, None, store, draw, title=STOCK_WORKER)
            faults = self.disturb(process, injector, newest, kinds, count=self.plan.count or len(kinds))
            after, _ = newest()
            _await(process, lambda: newest()[0] > after, RECOVERY_S)
        return {"faults": gaps_after(faults, steps())}

    def disturb(
        self,
        process: subprocess.Popen[str],
        injector: Injector,
        progress: Callable[[], tuple[int, bool]],
        kinds: Sequence[str] | None = None,
        count: int | None = None,
    ) -> list[Injected]:
        """Injects faults until the run ends or `count` is reached.

        Args:
            progress: newest reported step, and whether the run trains.
        """
        plan, faults = self.plan, list[Injected]()

        def advanced(before: int) -> bool:
            step, trains = progress()
            return trains and step > before

        count = count or plan.count
        drawn = draw_faults(kinds or plan.kinds, plan.seed, plan.nodes, MIN_NODES, plan.nodes + 1)
        _await(process, lambda: progress()[0] > 0, RECOVERY_S)
        for kind in drawn:
            if count is not None and len(faults) == count:
                break
            due, (before, _) = time.monotonic() + plan.every_s, progress()
            _await(process, lambda due=due: time.monotonic() >= due, plan.every_s + 1)  # type: ignore[misc]
            _await(process, lambda before=before: advanced(before), RECOVERY_S)  # type: ignore[misc]
            _await(process, lambda kind=kind: injector.can(kind), RECOVERY_S)  # type: ignore[misc]
            if process.poll() is not None or not injector.can(kind):
                break
            faults.append(injector.inject(kind))
            self.console.line(f"fault {len(faults)}: {kind}, {faults[-1].target}")
        return faults

    @contextmanager
    def cluster(self, name: str, *, stock: bool = False) -> Iterator[LocalNodes]:
        """Starts a head and nodes; `stock`: with Ray's default settings."""
        folder = self.folder / name
        folder.mkdir()
        keys = {
            "AWS_ACCESS_KEY_ID": self.config.store.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.config.store.secret_access_key,
        }
        own = {name: value for name, value in keys.items() if value}
        with LocalNodes(folder, environment=own, stock=stock) as nodes:
            self.console.line(f"cluster: starting a head and {self.plan.nodes} nodes of one CPU")
            nodes.add(self.plan.nodes)
            yield nodes

    def training(self, run: str, nodes: LocalNodes, endpoint_url: str | None) -> Any:
        """Starts `manta train` on the cluster."""
        sets = [*self.overrides, f"run={run}", "store.serve=null"]
        if endpoint_url:
            sets.append(f"store.endpoint_url={endpoint_url}")
        scaling = self.config.scaling
        if scaling.effective_min_workers == scaling.effective_max_workers:
            sets += ["scaling.min_workers=1", f"scaling.max_workers={self.plan.nodes}"]
        options = [part for each in sets for part in ("--set", each)]
        return self.program([sys.executable, "-m", "manta_start", "train", str(self.recipe), *options], nodes, run)

    @contextmanager
    def program(self, command: Sequence[str], nodes: LocalNodes, name: str) -> Iterator[subprocess.Popen[str]]:
        """Starts a command, shows its output, and ends it with the block."""
        environment = {**os.environ, **nodes.environment, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process: subprocess.Popen[str] = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
        self.console.line(f"{name}: starts")
        assert process.stdout is not None
        output = process.stdout

        def show() -> None:
            for line in output:
                self.console.line(f"  {line.rstrip()}")

        reader = threading.Thread(target=show, daemon=True)
        reader.start()
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(RECOVERY_S / 6)
                process.kill()
            process.wait()
            reader.join(5)

    def config_of(self, run: str) -> RunConfig:
        """The recipe's config under another run's name."""
        return self.config.model_copy(update={"run": run})

    def store_of(self, run: str) -> Any:
        """Folder of a run."""
        return stores(self.config_of(run))[1]

    def progress_of(self, run: str) -> tuple[int, bool]:
        """Newest step that a run has reported, 0 before the first, and whether it trains."""
        with suppress(MantaError):
            attempt = load_record(self.store_of(run)).last
            return attempt.step, attempt.phase == "training"
        return 0, False

    def summary(self, run: str) -> dict[str, Any]:
        """The part of a run's summary that the report holds, with the run's losses and start."""
        opened = open_run(self.config_of(run))
        stored = read_state(opened.store, opened.record)
        summary: Mapping[str, Any] = summary_of_run(opened, stored, audits_all=True)
        wanted = ("run", "status", "samples", "world_sizes", "goodput", "tokens_per_s", "disruptions", "skipped_steps")
        return {name: summary[name] for name in wanted} | {
            "losses": stored.rows["loss"].to_pylist(),
            "started_at": opened.record.attempts[0].started_at,
        }


def _await(process: subprocess.Popen[str], condition: Callable[[], bool], patience_s: float) -> None:
    """Waits until a condition holds or the program ends, at most `patience_s` seconds."""
    deadline = time.monotonic() + patience_s
    while process.poll() is None and time.monotonic() < deadline and not condition():
        time.sleep(POLL_INTERVAL_S)


def _await_end(process: subprocess.Popen[str], name: str) -> None:
    status = process.wait()
    if status:
        raise MantaError(f"{name} ended with status {status}; what it printed is above.")
