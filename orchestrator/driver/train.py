"""`manta train`: claims the run, prepares its data, and makes one attempt at it."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress

from cluster.known_secrets import struck
from cluster.local.ray import joins_cluster
from data.errors import InputError
from data.stores.patience import Patience, telling
from data.stores.store import Store
from orchestrator.config.portability import refuse_keys_for_nodes
from orchestrator.config.recipe import RunConfig
from orchestrator.config.recipe_file import remember_recipe
from orchestrator.config.result_fields import resolved, result_fields
from orchestrator.console import Console
from orchestrator.driver.prepare import initial_weights_of, prepared
from orchestrator.driver.stop_requests import StopRequests, stop_requests
from orchestrator.errors import CheckpointsLostError
from orchestrator.nodes.ray_session import RaySession
from orchestrator.nodes.watch import watching_nodes
from orchestrator.observe.trackers import refuse_missing_packages
from orchestrator.run.checkpoint import list_checkpoints, refuse_lost_checkpoints
from orchestrator.run.fence import Fence, when_free
from orchestrator.run.first_contact import reach_storage
from orchestrator.run.heartbeat import Heartbeat
from orchestrator.run.record import RECORD, load_record
from orchestrator.run.run import Run, open_run, reaching_storage, refuse_changed_config, stores


def train(
    config: RunConfig,
    *,
    takeover: bool = False,
    started_at: float | None = None,
    wait_s: float = 0.0,
    from_step: int | None = None,
) -> None:
    """Trains the recipe's run, or continues it where it stopped; prints its progress and its end.

    Args:
        takeover: fence off an attempt that still seems to be alive.
        wait_s: seconds to wait until such an attempt ends or misses its heartbeats; after them it is an error.
        started_at: start of the command, seconds since the epoch; default now.
        from_step: step of the checkpoint to continue from, 0 to begin anew; default the newest state.

    Raises:
        CheckpointsLostError: the run's record knows a checkpoint that is not in its storage.
        ConfigChangedError: the run began with other values of fields that change its result.
        RunInUseError: a live attempt holds the run, and `takeover` is not set.
        FencedError: a newer attempt has taken over the run.
        InputError: the package of a configured tracker is not installed.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; all completed steps are saved.
        MantaError: see `orchestrator.errors`.
    """
    with stop_requests() as requests:
        _train(config, requests, takeover=takeover, started_at=started_at, wait_s=wait_s, from_step=from_step)


def _train(
    config: RunConfig,
    requests: StopRequests,
    *,
    takeover: bool,
    started_at: float | None,
    wait_s: float,
    from_step: int | None,
) -> None:
    refuse_missing_packages(config.observe)
    refuse_keys_for_nodes(config)
    # Importing Ray Train takes a second, and so does starting Ray.
    importing = threading.Thread(target=import_quietly, args=("orchestrator.driver.attempt",), daemon=True)
    importing.start()
    console = Console()
    fields = resolved(config)
    with ExitStack() as stack:
        stack.callback(importing.join)  # a process that ends amid an import may abort, with a status of its own
        ray_session = stack.enter_context(RaySession(config, console.line, trains=True))
        if config.store.serve is not None:
            ray_session.begin()  # the object store takes seconds to come up, and so does Ray
        config = stack.enter_context(reaching_storage(config))
        root, store = stores(config)
        reach_storage(root, config, console.line)
        remember_recipe(config.run, fields)
        fence = claim_when_free(
            store,
            config,
            console.line,
            wait_s=wait_s,
            takeover=takeover,
            started_at=started_at,
            from_step=from_step,
        )
        if fence is None:
            console.line(f"run {config.run!r} is finished: nothing left to do.")
        else:
            try:
                run = Run(config, root, store, fence.record)
                tell = telling(console.line, "writing the run's record")
                with Heartbeat(fence, config.store.patience, tell) as heartbeat:
                    begin_attempt(run, heartbeat, ray_session, console, requests)
            except BaseException as error:
                close_attempt(fence, error)
                raise
        from orchestrator.report.terminal import print_run

        print_run(open_run(config), console)


def claim_when_free(
    store: Store,
    config: RunConfig,
    log: Callable[[str], None],
    *,
    wait_s: float = 0.0,
    takeover: bool = False,
    started_at: float | None = None,
    from_step: int | None = None,
) -> Fence | None:
    """Claims the recipe's run, which is created if it is new; None if the run is finished.

    Raises:
        ConfigChangedError: the run began with other values of fields that change its result.
        RunInUseError: a live attempt holds the run, still after `wait_s` seconds, and `takeover` is not set.
    """

    def claim() -> Fence | None:
        begun = _continues(store, config, from_step)
        if begun and from_step is None and load_record(store, name=config.run).last.status == "finished":
            return None
        return Fence.claim(
            store,
            config.run,
            result_fields(config),
            keep_pins=begun,
            started_at=started_at,
            takeover=takeover,
            from_step=from_step,
        )

    return when_free(claim, wait_s, log)


def _continues(store: Store, config: RunConfig, from_step: int | None) -> bool:
    """Whether an attempt continues from a checkpoint, and may; see `claim_when_free`."""
    if store.head(RECORD) is None:
        if list_checkpoints(store):
            raise CheckpointsLostError(
                f"There are checkpoints in {store.url_of('checkpoints')}, but no record of their run: "
                f"{store.url_of(RECORD)} is missing. Restore it, delete what is there, or choose another `run:` name."
            )
        return False
    if from_step == 0:
        return False
    record = load_record(store, name=config.run)
    names = list_checkpoints(store, record)
    if from_step is None:
        refuse_lost_checkpoints(store, record)
    elif from_step not in [name.step for name in names]:
        steps = ", ".join(str(name.step) for name in names) or "none"
        raise InputError(f"--from-step {from_step}: run {config.run!r} has no checkpoint of it. There are: {steps}.")
    if names:
        refuse_changed_config(record, config)
    return bool(names)


def begin_attempt(
    run: Run, heartbeat: Heartbeat, ray_session: RaySession, console: Console, requests: StopRequests
) -> None:
    """Prepares the run's data, pins the run to it, and trains. Waits for a store that fails."""
    patience = Patience(run.config.store.patience, telling(console.line, "preparing"))

    def log(line: str) -> None:
        console.line(line)
        heartbeat.check()  # preparing may take hours

    if joins_cluster():
        ray_session.begin()  # nodes start while shards are listed and the tokenizer is trained
    with watching_nodes(console.line) if joins_cluster() else nullcontext() as watch:
        # What has been prepared is in storage, and found there by the next try.
        data = patience.call(lambda: prepared(run.config, run.root, run.record.pins, log, ray_session))
        console.line(f"data: {data.summary()}")
        init = patience.call(lambda: initial_weights_of(run, data.tokenizer, log))
        patience.call(lambda: heartbeat.fence.update(**data.digests, init=init))
        ray_session()
        ray_session.workers_request_nodes()
        from orchestrator.driver.attempt import run_attempt

        run_attempt(run, heartbeat, data, console, requests, watch=watch)


def import_quietly(module: str) -> None:
    """Imports a module ahead of its use; errors are left to the import that uses it."""
    with suppress(Exception):
        importlib.import_module(module)


def close_attempt(fence: Fence, error: BaseException) -> None:
    """Records how the attempt ended, if the record can still be written."""
    status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
    attempt = fence.record.last
    if attempt.status == "finished":  # interrupted while it cleaned up: the run has ended all the same
        return
    # An attempt that ended before its loop reported goodput spent all its time on starting.
    goodput = attempt.goodput or {"startup": time.time() - attempt.started_at}
    message = "" if status == "stopped" else struck(str(error))[:2000]
    try:
        fence.update(attempt={"status": status, "message": message, "goodput": goodput})
    except Exception:  # the error that ended the attempt matters more
        return
