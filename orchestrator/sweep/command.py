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
from data.errors import InputError, MantaError
from data.prepared import PreparedData
from data.stores.patience import Patience, telling
from data.stores.store import Store
from orchestrator.config.load import load_recipe
from orchestrator.config.portability import refuse_keys_for_nodes
from orchestrator.config.recipe import RunConfig
from orchestrator.console import Console
from orchestrator.driver.train import train
from orchestrator.errors import NoResultError
from orchestrator.nodes.capacity import refuse_small_cluster
from orchestrator.observe.trackers import refuse_missing_packages
from orchestrator.run.fence import Fence, when_free
from orchestrator.run.first_contact import reach_storage
from orchestrator.run.heartbeat import Heartbeat
from orchestrator.run.record import load_record
from orchestrator.run.run import reaching_storage, stores
from orchestrator.snapshots.agent import free_node_memory
from orchestrator.sweep.best import remember_sweep, write_best
from orchestrator.sweep.capacity import WorkerSlots
from orchestrator.sweep.claim import claim
from orchestrator.sweep.coordinator import TrialCoordinator
from orchestrator.sweep.earlier import earlier_store, take_over
from orchestrator.sweep.load import load_sweep
from orchestrator.sweep.observe.observer import observing
from orchestrator.sweep.prepare import prepare_once
from orchestrator.sweep.records import TrialBook
from orchestrator.sweep.report.table import print_sweep, spread_text
from orchestrator.sweep.schedule.repeated import deviation_of
from orchestrator.sweep.show import Watch, live, write_report
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.summary import SweepSummary, best_of, summary_of
from orchestrator.sweep.trial_record import TrialRecord
from orchestrator.sweep.tune.fit import fit


def tune(
    recipe: Path,
    overrides: list[str],
    *,
    resume_best: bool = False,
    retry_failed: bool = False,
    takeover: bool = False,
    wait_s: float = 0.0,
    watch: Watch | None = None,
) -> SweepSummary:
    """Runs or continues a sweep, and prints its progress; returns its summary.

    Args:
        recipe: the sweep's file.
        overrides: `dotted.name=value` each.
        resume_best: whether to train the best trial to its full length afterwards.
        retry_failed: whether trials that have failed for good are tried again.
        takeover: whether to fence off an attempt at the sweep that seems alive.
        wait_s: seconds to wait until such an attempt ends or misses its heartbeats; after them it is an error.
        watch: gets a summary about once a second; None: a live table, if the output is a terminal.

    Raises:
        ConfigChangedError: the sweep was started with other settings, which decide its result.
        RunInUseError: a live attempt holds the sweep.
        NoResultError: every trial failed.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; all progress is saved.
        MantaError: see `orchestrator.errors`.
    """
    sweep, console = load_sweep(recipe, overrides, tries_points=True), Console()
    refuse_missing_packages(sweep.base.observe)
    refuse_keys_for_nodes(sweep.base)
    remember_sweep(sweep)
    with reaching_storage(sweep.base) as base:
        sweep = sweep.reaching(base)
        root, _ = stores(base)
        reach_storage(root, base, console.line)
        store = root.child(f"sweeps/{sweep.name}")
        patience = Patience(base.store.patience, telling(console.line, "the sweep's records"))
        fence = when_free(lambda: patience.call(lambda: claim(sweep, store, takeover)), wait_s, console.line)
        book = patience.call(lambda: TrialBook(store, fence.record.last.number, patience))  # with the newest reports
        try:
            if retry_failed:
                retry(sweep, book)
            tell = telling(console.line, "writing the sweep's record")
            with Heartbeat(fence, base.store.patience, tell) as heartbeat, live(console) as screen:
                summary = run_sweep(sweep, root, heartbeat, book, console, watch or screen, patience)
        except BaseException as error:
            close_sweep(fence, error, console, recipe)
            raise
        print_sweep(summary, console.rich)
        report = patience.call(lambda: write_report(summary, store))
        console.line(f"report: {report}")
    if summary["best"] is None:
        why = summary["message"].rstrip(".")
        raise NoResultError(f"{why}. `manta tune {recipe} --retry-failed` tries them again.")
    if resume_best:
        console.line(f"training the best trial: {summary['best']['recipe']}")
        train(load_recipe(summary["best"]["recipe"]))
    return summary


def retry(sweep: Sweep, book: TrialBook) -> None:
    """Lets trials that have failed for good begin again where they were; not those that no recipe allows.

    Raises:
        InputError: the states that it would need are not kept.
    """
    if sweep.spec.scheduler.name == "pbt":
        raise InputError("--retry-failed: not with pbt, which does not keep the states that others went on from.")
    for record in book:
        if record.status == "failed" and record.started_at is not None:
            record.status, record.failures, record.failures_of_leg, record.ended_at = "paused", [], 0, None
            book.save(record)


def run_sweep(
    sweep: Sweep,
    root: Store,
    heartbeat: Heartbeat,
    book: TrialBook,
    console: Console,
    watch: Watch | None,
    patience: Patience,
) -> SweepSummary:
    """Prepares the data, runs the remaining trials, and writes the best trial's recipe."""
    fence = heartbeat.fence
    earlier = fence.record.attempts[:-1]
    spent_s = sum(attempt.heartbeat_at - attempt.started_at for attempt in earlier)
    if sweep.spec.searcher.from_ is not None and not len(book):
        patience.call(lambda: earlier_store(sweep, root))  # before minutes of preparation
    coordinator = TrialCoordinator(sweep, book, _worker_slots(sweep), spent_s)
    if not coordinator.is_settled and not coordinator.ends_early:
        config = sweep.base
        with _ray_for_sweep(config):
            data = prepare_once(sweep, root, heartbeat, console)
            coordinator.sweep = patience.call(lambda: take_over(sweep, root, fence, book, console.line))
            patience.call(lambda: fence.update(attempt={"status": "running"}))
            ended = sum(record.has_ended for record in book)
            console.line(
                f"sweep {sweep.name}: {sweep.trials} trials of {sweep.steps} steps, {sweep.spec.searcher.name} search, "
                f"{sweep.spec.scheduler.name}"
                + (f"; {ended} have ended, {len(book) - ended} have begun" if len(book) else "")
            )
            run_trials(sweep, root, heartbeat, coordinator, data, console, watch, patience)
    if coordinator.interrupted:
        raise KeyboardInterrupt
    coordinator.record_outs()  # the attempt that decided may have been killed before it could
    repeats = sweep.spec.searcher.repeats
    best = best_of(book.by_number, coordinator.decisions, coordinator.levels, repeats)
    if best is not None:
        loss = f"{best.loss:.4f}" + spread_text(deviation_of(best, book.by_number, repeats))
        path = write_best(sweep, best, loss)
        result = {"recipe": str(path), "best_run": best.trial_run.run}
        patience.call(lambda: fence.add_result(result))
        patience.call(lambda: root.child(f"sweeps/{sweep.name}").put("best.yaml", path.read_bytes()))
        console.line(f"best: trial {best.id}, loss {loss}; `manta train {path}` trains it")
    early = coordinator.decisions.early if coordinator.is_settled else coordinator.ends_early
    if early:
        console.line(f"the sweep ends before its last trial: {early}")
    message = early if best else no_result(book, early)
    outcome = {"status": "finished" if best else "failed", "message": message}
    patience.call(lambda: fence.update(attempt=outcome))
    summary = summary_of(sweep, fence.record, list(book))
    cost = summary["cost"]
    console.line(
        f"{cost['steps']:,} steps in all, {cost['share']:.0%} of the steps of running all trials to the end; "
        f"{cost['worker_s']:,.0f} worker-seconds"
    )
    return summary


def no_result(book: TrialBook, early: str) -> str:
    """Why there is no best trial, with the reason of one that failed; `early` is why the sweep ended before its end."""
    if early:
        return f"No trial has a usable result yet: {early}"
    failed = [record for record in book if record.status == "failed"]  # another of its point may have been stopped
    share = "all" if len(failed) == len(book) else f"{len(failed)} of"
    known = next((record for record in failed if record.reason), None)
    example = f", such as {known.id}: {known.reason.splitlines()[0][:300]}" if known else ""
    return f"No trial has a usable result: {share} {len(book)} have failed{example}"


def run_trials(
    sweep: Sweep,
    root: Store,
    heartbeat: Heartbeat,
    coordinator: TrialCoordinator,
    data: PreparedData,
    console: Console,
    watch: Watch | None,
    patience: Patience,
) -> None:
    """Runs the remaining trials with Ray Tune, until they have ended or a signal stops the sweep."""
    refuse_small_cluster(sweep.base.scaling, tokenizes=False)
    free_node_memory([root.child(f"runs/{run}").url_of("") for run in runs_of_the_past(coordinator.book)])
    with (
        observing(coordinator, root, heartbeat.fence.record, console.line) as observer,
        stopping(coordinator, console),
        closing(coordinator),
    ):
        fit(root, heartbeat, coordinator, data, console, watch, observer)
    record_last_steps(coordinator, root, patience)
    fence = heartbeat.fence
    patience.call(lambda: fence.add_result({"trials": len(coordinator.book)}))
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


def record_last_steps(coordinator: TrialCoordinator, root: Store, patience: Patience) -> None:
    """Records the steps that trials did after their last report, where they were stopped amid a leg."""
    for name in coordinator.cut_short:
        record = coordinator.book[name]
        with suppress(MantaError):
            run = root.child(f"runs/{record.trial_run.run}")
            last = patience.call(lambda run=run: load_record(run)).last  # type: ignore[misc]
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


def close_sweep(fence: Fence, error: BaseException, console: Console, recipe: Path) -> None:
    """Records how the attempt ended, if the store still answers, and says how to go on."""
    status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
    with suppress(Exception):
        fence.update(attempt={"status": status, "message": "" if status == "stopped" else struck(str(error))[:2000]})
    if status == "stopped":
        console.line(f"the sweep is saved; `manta tune {recipe}` continues it")


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
