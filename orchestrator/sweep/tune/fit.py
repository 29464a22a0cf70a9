"""Runs the trials with Ray Tune: configures it, places the trials' actors, and watches the sweep while it runs."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from ray.tune import Callback, PlacementGroupFactory, RunConfig, Stopper, TuneConfig, Tuner

from cluster.known_secrets import held_in, looks_secret
from cluster.local.ray import joins_cluster
from data.errors import MantaError
from data.prepared import PreparedData
from data.stores.shard_file import filesystem_for
from data.stores.store import Store
from orchestrator.console import Console
from orchestrator.driver.shared_hosts import SharedHosts
from orchestrator.run.heartbeat import Heartbeat
from orchestrator.sweep.coordinator import TrialCoordinator
from orchestrator.sweep.observe.observer import SweepObserver
from orchestrator.sweep.schedule.choice import STOPPING
from orchestrator.sweep.summary import SweepSummary
from orchestrator.sweep.trial import TrialContext
from orchestrator.sweep.tune.adapters import CoordinatorSearcher, RecordingScheduler
from orchestrator.sweep.tune.internals import HEAD_NODE, pass_on_no_secrets
from orchestrator.sweep.tune.trial_actor import TrialDriver

HEAD_SHARE = 0.001
"""Amount of the head node's own resource that a trial's actor reserves; it reserves no CPU."""

TUNE_FOLDER = "ray-tune"
"""Folder of Tune's own state on a cluster that was joined; a sweep does not use it, and deletes it."""

WATCH_INTERVAL_S = 1.0
"""Seconds between two heartbeats of the sweep, and between two summaries for the live table."""

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_MAX_PENDING_TRIALS_PG": "8",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "60",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints even with verbose=0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # so that relative paths of a recipe mean the same in a trial
}

_PASSED_ON = ("AWS_", "RAY_TRAIN_", "RAY_ADDRESS", "TOKENIZERS_")
"""Prefixes of environment variables that trials' actors get, but for secrets: nodes have keys of their own."""


def fit(
    root: Store,
    heartbeat: Heartbeat,
    coordinator: TrialCoordinator,
    data: PreparedData,
    console: Console,
    watch: Callable[[SweepSummary], None] | None,
    observer: SweepObserver,
) -> None:
    """Runs the remaining trials.

    Raises:
        FencedError: another attempt has taken the sweep over.
    """
    sweep = coordinator.sweep
    os.environ.update({name: os.environ.get(name, value) for name, value in _SETTINGS.items()})
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # trials that fail are told of in lines of ours
    pass_on_no_secrets()
    hosts, _handles = SharedHosts.start(resources={HEAD_NODE: HEAD_SHARE})
    context = TrialContext(sweep, data, passed_on(os.environ), hosts, observer.group)
    trainable = tune.with_resources(
        tune.with_parameters(TrialDriver, context=context),
        PlacementGroupFactory([{"CPU": 0, HEAD_NODE: HEAD_SHARE}]),
    )
    watcher = _SweepWatch(heartbeat, coordinator, console, watch, observer, hosts)
    with tempfile.TemporaryDirectory(prefix="manta-tune-") as scratch:
        storage: dict[str, Any] = {"storage_path": scratch}
        if joins_cluster() and sweep.base.store.serve is None:  # the head may be on another machine
            filesystem, path = filesystem_for(root.url_of(f"sweeps/{sweep.name}/{TUNE_FOLDER}"), sweep.base.store)
            storage = {"storage_path": path, "storage_filesystem": filesystem}
        tuner = Tuner(
            trainable,
            tune_config=TuneConfig(
                search_alg=CoordinatorSearcher(coordinator),
                scheduler=RecordingScheduler(coordinator),
                num_samples=-1,  # until the searcher says that it has finished
                reuse_actors=sweep.spec.scheduler.name not in STOPPING,  # Tune does not end a stopped trial's run then
                trial_name_creator=lambda trial: str(trial.config["name"]),
                trial_dirname_creator=lambda trial: str(trial.config["name"]),
            ),
            run_config=RunConfig(name=sweep.name, stop=_AtEnd(coordinator), callbacks=[watcher], verbose=0, **storage),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of settings that are made here on purpose
            try:
                tuner.fit()
            except Exception:
                if coordinator.error is None:
                    raise
    watcher.log_notices()
    watcher.log_changes()
    if "storage_filesystem" in storage:
        root.delete_prefix(f"sweeps/{sweep.name}/{TUNE_FOLDER}/")
    if coordinator.error is not None:
        raise coordinator.error


def passed_on(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of this process's environment variables that trials' actors get; none with a secret name or value."""
    return {
        name: value
        for name, value in variables.items()
        if name.startswith(_PASSED_ON) and not looks_secret(name) and not held_in(value)
    }


class _AtEnd(Stopper):
    """Ends the experiment once the coordinator is interrupted, or needs no leg that still runs."""

    def __init__(self, coordinator: TrialCoordinator) -> None:
        self._coordinator = coordinator

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        coordinator = self._coordinator
        return coordinator.interrupted or coordinator.is_settled or bool(coordinator.ends_early)


class _SweepWatch(Callback):
    """Ends the sweep where its heartbeat has ended, logs changes of trials, and passes summaries to who watches."""

    def __init__(
        self,
        heartbeat: Heartbeat,
        coordinator: TrialCoordinator,
        console: Console,
        watch: Callable[[SweepSummary], None] | None,
        observer: SweepObserver,
        hosts: SharedHosts,
    ) -> None:
        self._heartbeat, self._coordinator, self._hosts = heartbeat, coordinator, hosts
        self._console, self._watch, self._observer = console, watch, observer
        self._logged: dict[str, tuple[str, int, int, int]] = {}
        self._watched_at, self._noticed = time.monotonic(), 0

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()  # see `TrialCoordinator`

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Tune after every event, at least ten times a second."""
        now = time.monotonic()
        if now - self._watched_at < WATCH_INTERVAL_S or self._coordinator.error is not None:
            return
        self._watched_at = now
        try:
            self._heartbeat.check()
        except MantaError as error:
            self._coordinator.fail(error)
            return
        self.log_notices()
        summary = self._observer.summary()
        self._observer.follow(summary)
        if self._watch is not None:
            self._watch(summary)
        else:
            self.log_changes()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when the process of a leg has ended, which may have had no time to clean up."""
        self._hosts.forget(trial.config["assignment"].run)

    def log_notices(self) -> None:
        """Logs the lines that trials had for the sweep's terminal since the last call."""
        for line in list(self._coordinator.notices.values())[self._noticed :]:
            self._console.line(line)
        self._noticed = len(self._coordinator.notices)

    def log_changes(self) -> None:
        """Logs a line for every trial that has started, taken another trial's state or ended since the last call."""
        for record in self._coordinator.book:
            state = (record.status, len(record.trial_runs), len(record.rungs), len(record.failures))
            if self._logged.get(record.id, ("pending", 1, 0, 0)) == state:
                continue
            self._logged[record.id] = state
            sweep = self._coordinator.sweep
            seed = {"seed": f"seed {sweep.seed_of(record.number)}"} if sweep.spec.searcher.repeats > 1 else {}
            point = ", ".join(
                f"{name.rpartition('.')[2]} {value:.3g}" if isinstance(value, float) else f"{value}"
                for name, value in (record.point | seed).items()
            )
            loss = "" if record.loss is None else f"  loss {record.loss:.4f}"
            why = f": {record.reason.splitlines()[0][:160]}" if record.reason else ""
            donor = record.trial_run.donor
            origin = f" from {donor.id} at step {donor.step}" if donor is not None else ""
            self._console.line(f"{record.id} {record.status}{origin}, step {record.step}{loss}  ({point}){why}")
