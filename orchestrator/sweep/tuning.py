"""Ray Tune, set up: the trials' actors, where they sit, and nothing on disk that anybody would need again."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune import Callback, PlacementGroupFactory, RunConfig, Stopper, TuneConfig, Tuner

from cluster.local.ray import joins_cluster
from data.errors import MantaError, TransientStoreError
from data.prepare import PreparedData
from data.shards.file import filesystem_for
from data.stores.store import Store
from orchestrator.console import Console
from orchestrator.run.fence import PRESUMED_DEAD_S, Fence
from orchestrator.sweep.coordinator import TrialCoordinator
from orchestrator.sweep.schedulers import Suggestions, scheduler_of
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.summary import SweepSummary, summary_of
from orchestrator.sweep.trial import TrialContext, TrialDriver
from orchestrator.sweep.tune_internals import HEAD_NODE

LEAST_OF_HEAD = 0.001
"""What a trial's actor takes of the head node's own resource; it takes no CPU."""

TUNE_FOLDER = "ray-tune"
"""Where Tune keeps books of its own on a cluster that is not ours; of no use to a sweep, and deleted."""

WATCH_EVERY_S = 1.0

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_MAX_PENDING_TRIALS_PG": "8",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "60",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one says things also when it is told to be silent
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a recipe mean the same in a trial
}

_PASSED_ON = ("AWS_", "RAY_TRAIN_", "RAY_ADDRESS", "TOKENIZERS_")
"""Variables that a trial's actor gets as they are here: Tune passes on keys, but no endpoint."""


def fit(
    sweep: Sweep,
    root: Store,
    fence: Fence,
    coordinator: TrialCoordinator,
    data: PreparedData,
    at_once: int,
    console: Console,
    watch: Callable[[SweepSummary], None] | None,
) -> None:
    """Run what trials are left.

    Args:
        at_once: trials that run side by side where Tune decides on that, which it does for a population.

    Raises:
        FencedError: another attempt has taken the sweep over.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in _SETTINGS.items()})
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    passed_on = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    of_head = 1 / at_once if sweep.spec.scheduler.name == "pbt" else LEAST_OF_HEAD
    trainable = tune.with_resources(
        tune.with_parameters(TrialDriver, context=TrialContext(sweep, data, passed_on)),
        PlacementGroupFactory([{"CPU": 0, HEAD_NODE: of_head}]),
    )
    life = _Life(sweep, fence, coordinator, console, watch)
    with tempfile.TemporaryDirectory(prefix="manta-tune-") as scratch:
        storage: dict[str, Any] = {"storage_path": scratch}
        if joins_cluster():  # the head may be another machine than this one
            filesystem, path = filesystem_for(root.url_of(f"sweeps/{sweep.name}/{TUNE_FOLDER}"), sweep.base.store)
            storage = {"storage_path": path, "storage_filesystem": filesystem}
        tuner = Tuner(
            trainable,
            tune_config=TuneConfig(
                search_alg=Suggestions(coordinator),
                scheduler=scheduler_of(coordinator),
                num_samples=coordinator.left + 1,
                trial_name_creator=lambda trial: str(trial.config["trial"]),
                trial_dirname_creator=lambda trial: str(trial.config["trial"]),
            ),
            run_config=RunConfig(
                name=sweep.name, stop=_WhenInterrupted(coordinator), callbacks=[life], verbose=0, **storage
            ),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it advises against what is done here on purpose
            tuner.fit()
    life.tell()
    if joins_cluster():
        root.delete_prefix(f"sweeps/{sweep.name}/{TUNE_FOLDER}/")
    if life.error is not None:
        raise life.error


class _WhenInterrupted(Stopper):
    """Ends the experiment once the coordinator is interrupted."""

    def __init__(self, coordinator: TrialCoordinator) -> None:
        self._coordinator = coordinator

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._coordinator.interrupted


class _Life(Callback):
    """Signs of life for the sweep's record, lines for the terminal and summaries for whoever watches."""

    def __init__(
        self,
        sweep: Sweep,
        fence: Fence,
        coordinator: TrialCoordinator,
        console: Console,
        watch: Callable[[SweepSummary], None] | None,
    ) -> None:
        self._sweep, self._fence, self._coordinator, self._console, self._watch = (
            sweep,
            fence,
            coordinator,
            console,
            watch,
        )
        self._told: dict[str, tuple[str, int]] = {}
        self._watched_at = self._alive_at = time.monotonic()
        self.error: MantaError | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()  # see `TrialCoordinator`

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """After every event, ten times a second at least."""
        now = time.monotonic()
        if now - self._watched_at < WATCH_EVERY_S or self.error is not None:
            return
        self._watched_at = now
        try:
            self._fence.heartbeat()
            self._alive_at = now
        except TransientStoreError as error:
            if now - self._alive_at > PRESUMED_DEAD_S:
                self._end(error)
        except MantaError as error:
            self._end(error)
        if self._watch is not None:
            self._watch(summary_of(self._sweep, self._fence.record, list(self._coordinator.book)))
        else:
            self.tell()

    def _end(self, error: MantaError) -> None:
        self.error, self._coordinator.interrupted = error, True

    def tell(self) -> None:
        """A line for every trial that has begun, moved or ended since the last call."""
        for record in self._coordinator.book:
            state = (record.status, len(record.trial_runs))
            if self._told.get(record.id, ("pending", 1)) == state:
                continue
            self._told[record.id] = state
            point = ", ".join(
                f"{name.rpartition('.')[2]} {value:.3g}" if isinstance(value, float) else f"{value}"
                for name, value in record.point.items()
            )
            loss = "" if record.loss is None else f"  loss {record.loss:.4f}"
            why = f": {record.reason.splitlines()[0][:160]}" if record.reason else ""
            donor = record.trial_run.donor
            origin = f" from {donor.id} at step {donor.step}" if donor is not None else ""
            self._console.line(f"{record.id} {record.status}{origin}, step {record.step}{loss}  ({point}){why}")
