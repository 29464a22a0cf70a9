"""`manta train`: claims the run, prepares its data, and makes one attempt at it."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress

from cluster.local.ray import joins_cluster
from data.stores.store import Store
from orchestrator.config.recipe import RunConfig
from orchestrator.config.recipe_file import remember_recipe
from orchestrator.config.result_fields import resolved, result_fields
from orchestrator.console import Console
from orchestrator.driver.prepare import initial_weights_of
from orchestrator.errors import RunInUseError
from orchestrator.nodes.ray_session import RayWhenNeeded
from orchestrator.nodes.watch import watching_nodes
from orchestrator.observe.trackers import refuse_missing_packages
from orchestrator.run.checkpoint import list_checkpoints
from orchestrator.run.fence import HEARTBEAT_S, Fence
from orchestrator.run.record import load_record
from orchestrator.run.run import Run, open_run, reaching_storage, refuse_changed_config, stores


def train(config: RunConfig, *, takeover: bool = False, started_at: float | None = None, wait_s: float = 0.0) -> None:
    """Train the recipe's run, or go on where it stopped; prints what it does and how it ended.

    Args:
        takeover: fence off an attempt that still seems alive.
        wait_s: seconds to wait for such an attempt to end or fall silent, before it is an error.
        started_at: when the command was given, seconds since the epoch; default now.

    Raises:
        ConfigChangedError: the run was begun with other values of fields that decide its result.
        RunInUseError: a live attempt holds the run, and `takeover` is not set.
        FencedError: a newer attempt has taken the run over.
        InputError: a tracker is asked for whose package is not installed.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; everything done is saved.
        MantaError: see `orchestrator.errors`.
    """
    refuse_missing_packages(config.observe)
    # Importing Ray Train takes a second, and so does starting Ray.
    threading.Thread(target=import_quietly, args=("orchestrator.driver.attempt",), daemon=True).start()
    console = Console()
    remember_recipe(config.run, resolved(config))
    with ExitStack() as stack:
        start_ray = stack.enter_context(RayWhenNeeded(config, console.line, trains=True))
        if config.store.serve is not None:
            start_ray.begin()  # the object store takes seconds to come up, and so does Ray
        config = stack.enter_context(reaching_storage(config))
        root, store = stores(config)
        root.check()
        fence = claim_when_free(store, config, console.line, wait_s=wait_s, takeover=takeover, started_at=started_at)
        if fence is None:
            console.line(f"run {config.run!r} is finished: nothing left to do.")
        else:
            try:
                begin_attempt(Run(config, root, store, fence.record), fence, start_ray, console)
            except BaseException as error:
                close_attempt(fence, error)
                raise
        from orchestrator.report.terminal import print_run

        print_run(open_run(config), console)


def claim_when_free(
    store: Store,
    config: RunConfig,
    tell: Callable[[str], None],
    *,
    wait_s: float = 0.0,
    takeover: bool = False,
    started_at: float | None = None,
) -> Fence | None:
    """The hold on the recipe's run, made if it is new; None where the run is finished.

    Raises:
        ConfigChangedError: the run was begun with other values of fields that decide its result.
        RunInUseError: a live attempt holds the run, still after `wait_s` seconds, and `takeover` is not set.
    """
    until = time.monotonic() + wait_s
    told = False
    while True:
        begun = bool(list_checkpoints(store))
        if begun:
            refuse_changed_config(record := load_record(store), config)
            if record.last.status == "finished":
                return None
        try:
            return Fence.claim(
                store, config.run, result_fields(config), begun=begun, started_at=started_at, takeover=takeover
            )
        except RunInUseError as error:
            if time.monotonic() >= until:
                raise
            if not told:
                tell(f"{str(error).partition('. ')[0]}: waiting up to {wait_s:.0f} s for it")
                told = True
        time.sleep(HEARTBEAT_S)


def begin_attempt(run: Run, fence: Fence, start_ray: RayWhenNeeded, console: Console) -> None:
    """Prepare the run's data, pin the run to it, and train."""

    def tell(line: str) -> None:
        console.line(line)
        fence.heartbeat()  # preparing may take hours, and is no reason to be taken for dead

    if joins_cluster():
        start_ray.begin()  # nodes come while shards are listed and the tokenizer learns
    with watching_nodes(console.line) if joins_cluster() else nullcontext() as watch:
        data = run.prepare(tell, start_ray)
        console.line(f"data: {data.summary()}")
        init = initial_weights_of(run, data.tokenizer, tell)
        fence.update(**data.digests, init=init)
        start_ray()
        start_ray.workers_request_nodes()
        from orchestrator.driver.attempt import run_attempt

        run_attempt(run, fence, data, console, watch=watch)


def import_quietly(module: str) -> None:
    """Load a module ahead of its use; what is wrong with it is for the use to say."""
    with suppress(Exception):
        importlib.import_module(module)


def close_attempt(fence: Fence, error: BaseException) -> None:
    """Note in the record how the attempt ended, as far as the record can still be reached."""
    status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
    attempt = fence.record.last
    # An attempt that ended before its loop told of its seconds spent them all on getting there.
    goodput = attempt.goodput or {"startup": time.time() - attempt.started_at}
    message = "" if status == "stopped" else str(error)[:2000]
    try:
        fence.update(attempt={"status": status, "message": message, "goodput": goodput})
    except Exception:  # the error that ended the attempt is the one to be told
        return
