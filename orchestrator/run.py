"""A run from the outside: where it is kept, whether it may be written, and the commands `prepare` and `train`."""

from __future__ import annotations

import importlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from safetensors.numpy import load_file

from cluster.demand import Knock
from cluster.local_ray import joins_cluster, ray_cluster
from cluster.local_s3 import LocalS3
from data.feeder import FeedSpec
from data.known_units import KnownUnits, LeftOut
from data.open_store import open_store
from data.prepare import Pins, PreparedData, prepare_data
from data.store import Store
from data.tokenizer import Tokenizer
from orchestrator.checkpoint import PROGRESS, fetch_newest, list_checkpoints
from orchestrator.config import RunConfig, differing_fields, resolved, result_fields
from orchestrator.console import Console
from orchestrator.errors import ConfigChangedError, RunInUseError
from orchestrator.node_watch import watching_nodes
from orchestrator.observe.trackers import refuse_missing_packages
from orchestrator.recipe_file import remember_recipe
from orchestrator.run_record import HEARTBEAT_S, Fence, RunRecord, load_record
from orchestrator.scaling_policy import scaling_policy
from orchestrator.vocabulary import vocabulary_of


@dataclass(frozen=True)
class Run:
    """A run that exists: its record, and where it and the data it was made from are kept.

    Attributes:
        root: the recipe's `storage`.
        store: the run's own folder in it.
    """

    config: RunConfig
    root: Store
    store: Store
    record: RunRecord

    def prepare(self, tell: Callable[[str], None], start_ray: Callable[[], None] = lambda: None) -> PreparedData:
        """The data this run is pinned to, see `prepared`."""
        return prepared(self.config, self.root, self.record.pins, tell, start_ray)


def open_run(config: RunConfig) -> Run:
    """The run the recipe names.

    Raises:
        UnknownRunError: it was never started.
        StoreAccessError: its storage cannot be reached.
    """
    root, store = stores(config)
    root.check()
    return Run(config, root, store, load_record(store))


def stores(config: RunConfig) -> tuple[Store, Store]:
    """The recipe's storage, and the run's folder in it."""
    root = open_store(config.storage, config.store)
    return root, root.child(f"runs/{config.run}")


@contextmanager
def reaching_storage(config: RunConfig) -> Iterator[RunConfig]:
    """The config with its object store within reach: where the recipe asks to serve one, it runs inside the block."""
    if config.store.serve is None:
        yield config
        return
    with LocalS3(Path(config.store.serve)) as server:
        paths = (path for source in config.data.sources for path in (source.path, source.input_path) if path)
        urls = [config.storage, *paths]
        for bucket in {urlsplit(url).netloc for url in urls if url.startswith("s3://")}:
            server.ensure_bucket(bucket)
        reach = {
            "endpoint_url": server.endpoint_url,
            "access_key_id": server.access_key_id,
            "secret_access_key": server.secret_access_key,
        }
        yield config.model_copy(update={"store": config.store.model_copy(update=reach)})


class RayWhenNeeded:
    """Ray, started at most once and ended with the block.

    Called, it returns when Ray runs. `begin` only sets out, so that other things can be waited for meanwhile.

    Args:
        trains: workers will be started, and may have nodes come for them from the beginning.
    """

    def __init__(self, config: RunConfig, tell: Callable[[str], None], *, trains: bool = False) -> None:
        self._scaling, self._tell, self._trains = config.scaling, tell, trains
        self._of_use = scaling_policy(config).most_of_use
        self._stack, self._lock, self._started = ExitStack(), threading.Lock(), False
        self._ended = threading.Event()
        self._knock: Knock | None = None

    def __call__(self) -> None:
        with self._lock:
            if not self._started:
                self._tell("ray: starting")
                workers = self._scaling.most
                # Tokenizing gets CPUs of its own: Ray Train reserves first, and Ray Data would starve on what is left.
                num_cpus = workers * self._scaling.cpus_per_worker + (os.cpu_count() or 1)
                num_gpus = workers * self._scaling.gpus_per_worker if self._scaling.on_gpu else 0
                self._stack.enter_context(ray_cluster(num_cpus, num_gpus))
                self._started = True
                if joins_cluster() and self._trains:
                    from data.ray_internals import quiet_driver  # imports Ray

                    quiet_driver()  # of tasks that wait for nodes Ray says that they never will have any
                    self._knock = Knock(self._scaling.per_worker)
                    self._knock.want(self._of_use)

    def begin(self) -> None:
        """Start in the background; what goes wrong there is found again, and said, by the call that needs Ray."""

        def start_quietly() -> None:
            with suppress(Exception):
                self()
            self._ended.wait()  # Ray's processes die with the thread that started them

        threading.Thread(target=start_quietly, name="start-ray", daemon=True).start()

    def knocked(self) -> None:
        """The workers' own controller asks for nodes from now on."""
        if self._knock is not None:
            self._knock.want(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stack.close()
        self._ended.set()


def prepare(config: RunConfig) -> None:
    """Check the shards, learn the tokenizer and tokenize, as far as that has not been done."""
    console = Console()
    with reaching_storage(config) as config, RayWhenNeeded(config, console.line) as start_ray:
        root, _ = stores(config)
        root.check()
        data = prepared(config, root, Pins(), console.line, start_ray)
        console.line(f"ready: {data.summary()}")


def prepared(
    config: RunConfig, root: Store, pins: Pins, tell: Callable[[str], None], start_ray: Callable[[], None]
) -> PreparedData:
    """`prepare_data` for the recipe; what the model cannot be or be trained with is refused before anything is done.

    Raises:
        InputError: a pattern of train.optimizer.groups matches none of the model's parameters.
        InitialWeightsError: `train.init_from` is not of the recipe's model.
    """
    if config.train.optimizer.groups:  # else torch is not needed here
        from orchestrator.parameter_names import refuse_unmatched_groups

        refuse_unmatched_groups(config)

    def check(tokenizer: Tokenizer, input_tokenizer: Tokenizer | None) -> None:
        vocabulary_of(config, tokenizer, input_tokenizer)
        if config.train.init_from is not None and pins.manifest is None:  # a run that has begun looks when it goes on
            _initial_weights().checked_folder(config, tokenizer)

    return prepare_data(config.data, config.store, root, pins, tell, check, start_ray)


def _initial_weights() -> Any:
    """What reads `train.init_from`, which takes torch: commands on any other run do without it."""
    from model.eager import skip_compiler

    skip_compiler()
    return importlib.import_module("orchestrator.initial_weights")


def initial_weights_of(run: Run, tokenizer: Tokenizer, tell: Callable[[str], object]) -> str | None:
    """`pin_initial_weights` where there is something to pin."""
    if run.config.train.init_from is None:
        return None
    digest: str | None = _initial_weights().pin_initial_weights(run, tokenizer, tell)
    return digest


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
    threading.Thread(target=import_quietly, args=("orchestrator.attempt",), daemon=True).start()
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
        from orchestrator.show import print_run

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
        fence.sign_of_life()  # preparing may take hours, and is no reason to be taken for dead

    if joins_cluster():
        start_ray.begin()  # nodes come while shards are listed and the tokenizer learns
    with watching_nodes(console.line) if joins_cluster() else nullcontext() as watch:
        data = run.prepare(tell, start_ray)
        console.line(f"data: {data.summary()}")
        init = initial_weights_of(run, data.tokenizer, tell)
        fence.update(**data.digests, init=init)
        start_ray()
        start_ray.knocked()
        from orchestrator.attempt import run_attempt

        run_attempt(run, fence, data, console, watch=watch)


def import_quietly(module: str) -> None:
    """Load a module ahead of its use; what is wrong with it is for the use to say."""
    with suppress(Exception):
        importlib.import_module(module)


def refuse_changed_config(
    record: RunRecord, config: RunConfig, of: tuple[str, ...] = ("",), but: tuple[str, ...] = ()
) -> None:
    """Raises ConfigChangedError if the run was begun with other values of fields that decide its result.

    Args:
        of: how the names of the fields begin that are looked at, if not all are.
        but: names that may differ.
    """
    differing = [
        each
        for each in differing_fields(record.result_fields, result_fields(config))
        if each[0].startswith(of) and each[0] not in but
    ]
    if differing:
        changes = "\n".join(f"  {name}: {old!r} in the run, {new!r} now" for name, old, new in differing)
        raise ConfigChangedError(
            f"Run {config.run!r} was begun with other settings, and these decide its result:\n{changes}\n"
            f"Set them back to continue it, or choose another `run:` name (--set run=NAME) to begin a new one."
        )


def feed_spec(run: Run, data: PreparedData) -> FeedSpec:
    """What the run's feeder has to know: the run's data and, from its newest checkpoint, how far it is known."""
    train, known, step = run.config.train, data.known(), 0
    with tempfile.TemporaryDirectory(prefix="manta-progress-") as scratch:
        fetched = fetch_newest(run.store, run.record, (PROGRESS,), Path(scratch))
        if fetched is not None:
            step, state = fetched[0].step, fetched[1]
            saved = load_file(Path(scratch) / PROGRESS)["counts"]
            if data.unit_table is None:
                skipped = {int(unit): reason for unit, reason in state["skipped"].items()}
                known = KnownUnits(saved, skipped, LeftOut.of_json(state.get("left_out", {})))
    return FeedSpec(
        data.manifest, data.job, run.config.seed, train.global_batch_size, train.micro_batch_size, known, step
    )


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
