"""The runs of one `manta chaos` command: their cluster, their process, and the faults while they train."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.local.faulty_proxy import FaultyProxy
from cluster.local.nodes import LocalNodes
from cluster.strict_yaml import override
from data.errors import MantaError
from data.stores.config import SECRET
from data.stores.s3_access import TOKEN_VARIABLES, S3Access
from data.stores.store import Store
from orchestrator.chaos.faults import Injected, Injector
from orchestrator.chaos.plan import KINDS, Plan
from orchestrator.chaos.process import Command
from orchestrator.config.recipe import RunConfig
from orchestrator.console import Console
from orchestrator.run.record import load_record
from orchestrator.run.run import open_run, stores
from orchestrator.run.stored import read_state
from orchestrator.run.summary import summary_of_run

POLL_INTERVAL_S = 0.5
"""Seconds between two reads of the run's record, which is written every few seconds."""

RECOVERY_S = 180.0
"""Seconds to wait for a new step after a fault before the next fault is injected anyway."""

TARGET_S = 30.0
"""Seconds in which a fault of a soak must find a target."""

ENDS_WITHIN_S = 60.0
"""Seconds after a fault is over in which the command may still end because of it."""

Progress = Callable[[], tuple[int, bool]]
"""Returns the newest reported step, 0 before the first, and whether the run trains."""

_KEYS = tuple(f"store.{name}=" for name in SECRET)


@dataclass(frozen=True)
class Runs:
    """The runs of one `manta chaos` command, and what they share.

    Attributes:
        memory: folder of the nodes' snapshots, if faults may fill it.
    """

    recipe: Path
    overrides: Sequence[str]
    config: RunConfig
    plan: Plan
    folder: Path
    memory: Path | None
    console: Console

    def name(self, which: str) -> str:
        """Name of one of the runs."""
        return f"{self.config.run}-{which}-{time.strftime('%m%d-%H%M%S')}"

    def proxy(self, stack: ExitStack) -> FaultyProxy | None:
        """Starts a proxy in front of the recipe's object store; None if the recipe uses none."""
        endpoint_url = self.config.store.endpoint_url
        return stack.enter_context(FaultyProxy(endpoint_url, self.plan.seed)) if endpoint_url else None

    def injector(self, nodes: LocalNodes, command: Command, proxy: FaultyProxy | None, run: str) -> Injector:
        """The injector of faults into a run."""
        return Injector(nodes, command, proxy, self.store_of(run), random.Random(self.plan.seed), memory=self.memory)

    @contextmanager
    def cluster(self, name: str, *, stock: bool = False) -> Iterator[LocalNodes]:
        """Starts a head and nodes; `stock`: with Ray's default settings."""
        folder = self.folder / name
        folder.mkdir()
        access = S3Access.of(self.config.store)  # a server that this command started: the run knows its address only
        keys = {"AWS_ACCESS_KEY_ID": access.access_key_id, "AWS_SECRET_ACCESS_KEY": access.secret_access_key}
        own = {name: value for name, value in keys.items() if value}
        if own:  # variables of temporary keys do not belong to these
            own |= {name: "" for name in TOKEN_VARIABLES if name in os.environ}
        with LocalNodes(folder, environment=own, stock=stock) as nodes:
            self.console.line(f"cluster: starting a head and {self.plan.nodes} nodes of one CPU")
            nodes.add(self.plan.nodes)
            yield nodes

    def training(self, run: str, nodes: LocalNodes, proxy: FaultyProxy | None = None) -> Command:
        """The command `manta train` on the cluster, which reaches its store through the proxy if there is one."""
        endpoint_url = proxy.endpoint_url if proxy else self.config.store.endpoint_url
        without_keys = [f"store.{name}=null" for name in SECRET]  # they are in the environment of all of them
        sets = [*self.overrides, *without_keys, override("run", run), "store.serve=null"]
        sets = [each for each in sets if each in without_keys or not each.startswith(_KEYS)]
        if endpoint_url:
            sets.append(override("store.endpoint_url", endpoint_url))
        scaling = self.config.scaling
        if scaling.effective_min_workers == scaling.effective_max_workers:
            sets += ["scaling.min_workers=1", f"scaling.max_workers={self.plan.nodes}"]
        options = [part for each in sets for part in ("--set", each)]
        arguments = [sys.executable, "-m", "manta_start", "train", str(self.recipe), *options]
        return Command(run, arguments, nodes.environment, self.console)

    def config_of(self, run: str) -> RunConfig:
        """The recipe's config under another run's name."""
        return self.config.model_copy(update={"run": run})

    def store_of(self, run: str) -> Store:
        """Folder of a run."""
        return stores(self.config_of(run))[1]

    def progress_of(self, run: str) -> tuple[int, bool]:
        """See `Progress`; of the run's record."""
        with suppress(MantaError):
            attempt = load_record(self.store_of(run)).last
            return attempt.step, attempt.phase == "training"
        return 0, False

    def summary(self, run: str) -> dict[str, Any]:
        """The part of a run's summary that the report holds, with losses and times of all steps, start and attempts."""
        opened = open_run(self.config_of(run))
        stored = read_state(opened.store, opened.record)
        summary: Mapping[str, Any] = summary_of_run(opened, stored, audits_all=True)
        wanted = ("run", "status", "samples", "world_sizes", "goodput", "tokens_per_s", "disruptions", "skipped_steps")
        return {name: summary[name] for name in wanted} | {
            "losses": stored.rows["loss"].to_pylist(),
            "steps_at": stored.rows["at"].to_pylist(),
            "started_at": opened.record.attempts[0].started_at,
            "attempt_records": opened.record.attempts,
        }


@dataclass
class Disturber:
    """Injects faults while a command runs, and starts it again where a fault has ended it.

    Attributes:
        always_again: whether to start it again after every end that was not in order.
        faults: those injected so far.
        ends: ends of the command: when, with which status, and the newest lines of its output.
    """

    command: Command
    injector: Injector | None
    console: Console | None = None
    always_again: bool = False
    faults: list[Injected] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)

    def disturb(self, drawn: Iterator[str], progress: Progress, every_s: float, count: int | None) -> None:
        """Injects faults until the run ends or there are `count`; each after a new step since the one before."""
        self.await_(lambda: progress()[0] > 0, RECOVERY_S)
        for kind in drawn:
            if count is not None and len(self.faults) == count:
                break
            before, _ = progress()
            self._sleep(every_s)
            self.await_(lambda before=before: _trains_after(before, progress), RECOVERY_S)  # type: ignore[misc]
            self._inject(kind, RECOVERY_S)
            if not self.runs():
                break

    def soak(
        self, drawn: Iterator[str], gaps: Iterator[float], progress: Progress, seconds: float, count: int | None
    ) -> None:
        """Injects faults for `seconds` after the first step, or until there are `count`, whatever the run does."""
        self.await_(lambda: progress()[0] > 0, RECOVERY_S)
        until = time.monotonic() + seconds
        for kind, gap_s in zip(drawn, gaps, strict=False):
            self._sleep(min(gap_s, max(0.0, until - time.monotonic())))
            if time.monotonic() >= until or len(self.faults) == count or not self.runs():
                break
            self._inject(kind, TARGET_S)
        self._sleep(max(0.0, until - time.monotonic()))

    def come_to_rest(self, progress: Progress) -> None:
        """Waits until the run trains again after the last fault."""
        before, _ = progress()
        self.await_(lambda: _trains_after(before, progress), RECOVERY_S)

    def await_end(self, name: str) -> None:
        """Waits for the end of the run.

        Raises:
            MantaError: the command failed, and not because of a fault that ends it.
        """
        while self.runs():
            time.sleep(POLL_INTERVAL_S)
        if status := self.command.status:
            raise MantaError(f"{name} ended with status {status}; what it printed is above.")

    def await_(self, condition: Callable[[], bool], patience_s: float) -> None:
        """Waits until a condition holds or the run ends, at most `patience_s` seconds."""
        deadline = time.monotonic() + patience_s
        while self.runs() and time.monotonic() < deadline and not condition():
            time.sleep(POLL_INTERVAL_S)

    def runs(self) -> bool:
        """Whether the command runs; if a fault has ended it, it is started again once the fault is over."""
        status = self.command.status
        if not status or (self.ends and self.ends[-1]["at"] > self.command.started_at):
            return status is None  # an end that has been seen before was for good
        fault = next((each for each in reversed(self.faults) if self._may_have_ended_it(each)), None)
        said = [] if status < 0 else self.command.last_lines()
        self.ends.append({"at": time.time(), "status": status, "by": fault.kind if fault else None, "said": said})
        if fault is None and (not self.always_again or self._unexplained_in_a_row() > 1):
            return False
        while fault is not None and time.time() < fault.over_at:
            time.sleep(POLL_INTERVAL_S)
        self.command.start()
        return True

    def _unexplained_in_a_row(self) -> int:
        """Ends of the command since the newest fault that no fault explains."""
        since = self.faults[-1].at if self.faults else 0.0
        return sum(each["at"] >= since and each["by"] is None for each in self.ends)

    def _may_have_ended_it(self, fault: Injected) -> bool:
        ends = KINDS[fault.kind].ends_command
        return ends and self.command.started_at < fault.at and time.time() < fault.over_at + ENDS_WITHIN_S

    def _sleep(self, seconds: float) -> None:
        due = time.monotonic() + seconds
        self.await_(lambda: time.monotonic() >= due, seconds + 1)

    def _inject(self, kind: str, patience_s: float) -> None:
        """Injects a fault once it has a target; without one for `patience_s` seconds, it is left out."""
        injector, before = self.injector, len(self.faults)
        assert injector is not None

        def injected() -> bool:
            if fault := injector.inject(kind):
                self.faults.append(fault)
            return fault is not None

        self.await_(injected, patience_s)
        if len(self.faults) > before:
            self._tell(f"fault {len(self.faults)}: {kind}, {self.faults[-1].target}")
        elif self.runs():
            self._tell(f"{kind} is left out: there was no target for it within {patience_s:.0f} s")

    def _tell(self, line: str) -> None:
        if self.console is not None:
            self.console.line(line)


def _trains_after(before: int, progress: Progress) -> bool:
    step, trains = progress()
    return trains and step > before
