"""`manta tune`: runs a sweep and writes the best trial's recipe; run again, it continues an interrupted sweep."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster.known_secrets import struck
from cluster.local.ray import joins_cluster, ray_cluster
from data.errors import MantaError
from data.prepared import PreparedData
from data.stores.patience import Patience, telling
from data.stores.store import Store
from orchestrator.config.load import load_recipe
from orchestrator.config.portability import refuse_keys_for_nodes
from orchestrator.config.recipe import RunConfig
from orchestrator.config.result_fields import differing_fields
from orchestrator.console import Console
from orchestrator.driver.prepare import prepared
from orchestrator.driver.train import train
from orchestrator.errors import ConfigChangedError, RunInUseError, UnknownRunError
from orchestrator.nodes.capacity import refuse_small_cluster
from orchestrator.observe.trackers import refuse_missing_packages
from orchestrator.run.fence import Fence
from orchestrator.run.first_contact import reach_storage
from orchestrator.run.heartbeat import Heartbeat
from orchestrator.run.record import load_record
from orchestrator.run.run import reaching_storage, stores
from orchestrator.snapshots.agent import free_node_memory
from orchestrator.sweep.best import remember_sweep, write_best
from orchestrator.sweep.capacity import WorkerSlots, concurrent_trials
from orchestrator.sweep.coordinator import TrialCoordinator
from orchestrator.sweep.load import load_sweep
from orchestrator.sweep.records import RECORD, TrialBook, TrialRecord
from orchestrator.sweep.report.table import print_sweep
from orchestrator.sweep.show import Watch, live, write_report
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.summary import SweepSummary, best_of, summary_of
from orchestrator.sweep.tuning import fit


def tune(
    recipe: Path, overrides: list[str], *, resume_best: bool = False, takeover: bool = False, watch: Watch | None = None
) -> SweepSummary:
    """Runs or continues a sweep, and prints its progress; returns its summary.

    Args:
        recipe: the sweep's file.
        overrides: `dotted.name=value` each.
        resume_best: whether to train the best trial to its full length afterwards.
        takeover: whether to fence off an attempt at the sweep that seems alive.
        watch: gets a summary about once a second; None: a live table, if the output is a terminal.

    Raises:
        ConfigChangedError: the sweep was started with other settings, which decide its result.
        RunInUseError: a live attempt holds the sweep.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; all progress is saved.
        MantaError: see `orchestrator.errors`.
    """
    sweep, console = load_sweep(recipe, overrides), Console()
    refuse_missing_packages(sweep.base.observe)
    refuse_keys_for_nodes(sweep.base)
    remember_sweep(sweep)
    with reaching_storage(sweep.base) as base:
        sweep = sweep.reaching(base)
        root, _ = stores(base)
        reach_storage(root, base, console.line)
        store = root.child(f"sweeps/{sweep.name}")
        book = TrialBook(store)
        refuse_changed(sweep, store, book)
        fence = claim(sweep, store, book, takeover)
        saving = Patience(base.store.patience, telling(console.line, "writing the records of trials"))
        book = TrialBook(store, fence.record.last.number, saving)  # again: an older attempt may just have reported
        try:
            tell = telling(console.line, "writing the sweep's record")
            with Heartbeat(fence, base.store.patience, tell) as heartbeat, live(console) as screen:
                summary = run_sweep(sweep, root, heartbeat, book, console, watch or screen)
        except BaseException as error:
            close_sweep(fence, error)
            if isinstance(error, KeyboardInterrupt):
                console.line(f"the sweep is saved; `manta tune {recipe}` continues it")
            raise
        print_sweep(summary, console.rich)
        console.line(f"report: {write_report(summary, store)}")
    if resume_best and summary["best"] is not None:
        console.line(f"training the best trial: {summary['best']['recipe']}")
        train(load_recipe(summary["best"]["recipe"]))
    return summary


def refuse_changed(sweep: Sweep, store: Store, book: TrialBook) -> None:
    """Raises ConfigChangedError if the sweep has trials that were started with other settings."""
    with suppress(UnknownRunError):
        record = load_record(store, RECORD)
        changes = differing_fields(record.result_fields, sweep.result_fields())
        if len(book) and changes:
            lines = "\n".join(f"  {name}: {old!r} in the sweep, {new!r} now" for name, old, new in changes)
            raise ConfigChangedError(
                f"Sweep {sweep.name!r} was started with other settings, and these decide its result:\n{lines}\n"
                f"Set them back to continue it, or choose another `sweep:` name (--set sweep=NAME). "
                f"searcher.trials, max_concurrent and scaling may change."
            )


def claim(sweep: Sweep, store: Store, book: TrialBook, takeover: bool) -> Fence:
    """Claims the sweep for this process. Raises RunInUseError if another attempt holds it."""
    try:
        return Fence.claim(
            store, sweep.name, sweep.result_fields(), keep_pins=bool(len(book)), takeover=takeover, key=RECORD
        )
    except RunInUseError as error:
        text = (
            str(error).replace("Run ", "Sweep ", 1).replace("manta train", "manta tune").replace("`run:`", "`sweep:`")
        )
        raise RunInUseError(text) from None


def run_sweep(
    sweep: Sweep, root: Store, heartbeat: Heartbeat, book: TrialBook, console: Console, watch: Watch | None
) -> SweepSummary:
    """Prepares the data, runs the remaining trials, and writes the best trial's recipe."""
    fence = heartbeat.fence
    coordinator = TrialCoordinator(sweep, book, _worker_slots(sweep))
    if coordinator.remaining:
        config = sweep.base
        with _ray_for_sweep(config):
            data = prepare_once(sweep, root, heartbeat, console)
            fence.update(attempt={"status": "running"})
            ended = len(book) - len(coordinator.to_resume)
            console.line(
                f"sweep {sweep.name}: {sweep.trials} trials of {sweep.steps} steps, {sweep.spec.searcher.name} search, "
                f"{sweep.spec.scheduler.name}"
                + (f"; {ended} have ended, {len(coordinator.to_resume)} continue" if ended else "")
            )
            run_trials(sweep, root, heartbeat, coordinator, data, console, watch)
    if coordinator.interrupted:
        raise KeyboardInterrupt
    best = best_of(book)
    if best is not None:
        path = write_best(sweep, best)
        fence.update(result={**fence.record.result, "recipe": str(path)})
        root.child(f"sweeps/{sweep.name}").put("best.yaml", path.read_bytes())
        console.line(f"best: trial {best.id}, loss {best.loss:.4f}; `manta train {path}` trains it")
    fence.update(attempt={"status": "finished"})
    summary = summary_of(sweep, fence.record, list(book))
    cost = summary["cost"]
    console.line(
        f"{cost['steps']:,} steps in all, {cost['share']:.0%} of the steps of running all trials to the end; "
        f"{cost['worker_s']:,.0f} worker-seconds"
    )
    return summary


def prepare_once(sweep: Sweep, root: Store, heartbeat: Heartbeat, console: Console) -> PreparedData:
    """Prepares the data of all trials: tokenizes each unit here, once. Waits for a store that fails."""
    fence = heartbeat.fence
    patience = Patience(sweep.base.store.patience, telling(console.line, "preparing"))

    def log(line: str) -> None:
        console.line(line)
        heartbeat.check()

    data_config = sweep.base.data.model_copy(update={"prepare": "ahead"})
    config = sweep.base.model_copy(update={"data": data_config})
    before = sum(1 for _ in root.list("tokens/"))
    data = patience.call(lambda: prepared(config, root, fence.record.pins, log, lambda: None))
    made = sum(1 for _ in root.list("tokens/")) - before
    known = fence.record.result.get("tokenized", {})
    units, tokenized = data.manifest.num_units, known.get("tokenized", 0) + made
    counted = {"units": units, "tokenized": tokenized, "cached": units - tokenized}
    fence.update(
        **data.digests,
        result={**fence.record.result, "tokenized": counted},
    )
    console.line(f"data: {data.summary()}")
    console.line(f"units tokenized: {units}, each once, for all trials ({units - tokenized} were cached before)")
    return data


def run_trials(
    sweep: Sweep,
    root: Store,
    heartbeat: Heartbeat,
    coordinator: TrialCoordinator,
    data: PreparedData,
    console: Console,
    watch: Watch | None,
) -> None:
    """Runs the remaining trials with Ray Tune, until they have ended or a signal stops the sweep."""
    refuse_small_cluster(sweep.base.scaling, tokenizes=False)
    free_node_memory([root.child(f"runs/{run}").url_of("") for run in runs_of_the_past(coordinator.book)])
    at_once = concurrent_trials(
        coordinator.slots, coordinator.remaining, sweep.base.scaling.effective_min_workers, sweep.spec.max_concurrent
    )
    with stopping(coordinator, console), closing(coordinator):
        fit(sweep, root, heartbeat, coordinator, data, at_once, console, watch)
    record_last_steps(coordinator, root)
    failed = [record for record in coordinator.book if record.status == "failed"]
    free_node_memory([root.child(f"runs/{record.trial_run.run}").url_of("") for record in failed])


def runs_of_the_past(trials: Iterable[TrialRecord]) -> list[str]:
    """Runs that are not continued: an attempt that was killed has not freed their snapshots in node memory."""
    return [
        trial_run.run
        for record in trials
        for trial_run in record.trial_runs
        if record.has_ended or trial_run is not record.trial_run
    ]


def record_last_steps(coordinator: TrialCoordinator, root: Store) -> None:
    """Records the steps that stopped trials did after their last report, from the records of their runs."""
    for record in coordinator.book:
        if record.status not in ("stopped", "running"):
            continue
        with suppress(MantaError):
            last = load_record(root.child(f"runs/{record.trial_run.run}")).last
            if last.step > record.trial_run.step > 0:
                record.worker_s *= last.step / record.trial_run.step
                record.trial_run.step = last.step
            record.workers = 0
        coordinator.book.save(record)


@contextmanager
def stopping(coordinator: TrialCoordinator, console: Console) -> Iterator[None]:
    """Inside the block, Ctrl-C or SIGTERM saves all trials and stops the sweep; a second one stops at once."""

    def handle(_signal: int, _frame: Any) -> None:
        if coordinator.interrupted:
            raise KeyboardInterrupt
        coordinator.interrupted = True
        console.line("saving all trials, then stopping; Ctrl-C again stops at once, without saving")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def close_sweep(fence: Fence, error: BaseException) -> None:
    """Records how the attempt ended, if the store still answers."""
    status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
    with suppress(Exception):
        fence.update(attempt={"status": status, "message": "" if status == "stopped" else struck(str(error))[:2000]})


def _worker_slots(sweep: Sweep) -> WorkerSlots:
    scaling = sweep.base.scaling
    # A local cluster offers more CPUs than the machine has, see `_ray_for_sweep`.
    at_most = (
        None
        if joins_cluster()
        else max(scaling.effective_min_workers, (os.cpu_count() or 1) // scaling.cpus_per_worker)
    )
    return WorkerSlots(sweep.name, scaling.per_worker, at_most)


@contextmanager
def _ray_for_sweep(config: RunConfig) -> Iterator[None]:
    """Joins a Ray cluster, or starts one with a CPU for every core, and at least the CPUs of one trial."""
    scaling, cores = config.scaling, os.cpu_count() or 1
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*"))) if scaling.on_gpu else 0
    with ray_cluster(max(cores, scaling.effective_min_workers * scaling.cpus_per_worker) + 1, gpus):
        yield
