"""Ray for a command: the cluster it was pointed at, or one of its own on this machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import manta_start
from cluster.errors import ClusterError
from cluster.local.processes import RAYLET, children, command_line, is_alive

# Read by Ray's processes when they start. None of them changes what a run computes.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # a process for every CPU, most of them never used
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # the default of 2 s is waited for in full when a run ends
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor that looks for notices which nothing here acts on
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

# Read by the processes of a cluster of our own, whose one node has nobody to report to: what Ray looks after and writes
# down several times a second takes 1 % of two cores away from training.
_OWN_CLUSTER = {
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_debug_dump_period_milliseconds": "0",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_kill_idle_workers_interval_ms": "2000",
    "RAY_memory_monitor_refresh_ms": "1000",
}

START_S = 30.0
"""Seconds to wait at the end for a Ray that is still starting; its processes end with this one anyway."""

EXIT_S, POLL_INTERVAL_S = 5.0, 0.05
"""Seconds that workers have to end when their cluster does, and from one look at them to the next."""

OBJECT_STORE_BYTES = 1 << 30
"""Shared memory of a local cluster; a window of tokenized units takes far less."""


def joins_cluster() -> bool:
    """Whether commands join a cluster that is there, instead of starting one of their own."""
    return bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def ray_cluster(num_cpus: int, num_gpus: int = 0) -> Iterator[None]:
    """Ray inside the block: joined if RAY_ADDRESS names a cluster, else started here and stopped afterwards.

    Args:
        num_cpus: logical CPUs a local cluster offers; more than the machine has only means that they share.

    Raises:
        ClusterError: the cluster cannot be joined or started.
    """
    variables = _ENVIRONMENT if joins_cluster() else _ENVIRONMENT | _OWN_CLUSTER
    os.environ.update({name: os.environ.get(name, value) for name, value in variables.items()})
    import ray

    # Ray's own handler would take SIGTERM from ours, and abort the process 3 s after one. In its workers it stays.
    ray._private.ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    # By value: where it would be imported from is what it settles.
    ray.cloudpickle.register_pickle_by_value(manta_start)  # type: ignore[no-untyped-call]
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = (
        {}
        if address
        else {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    )
    thread = _RayThread(
        address=address or "local",
        namespace="manta",
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"worker_process_setup_hook": manta_start.pin_packages},
        **local,
    )
    thread.start()
    try:
        try:
            thread.wait()
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = f"join the Ray cluster at RAY_ADDRESS={address}" if address else "start Ray on this machine"
            raise ClusterError(f"Could not {where}: {error}. `manta doctor` says more.") from error
        yield
    finally:
        thread.end()


class _RayThread(threading.Thread):
    """Starts Ray in a thread of its own, which lives until Ray has ended.

    In the main thread, `ray.init` would handle SIGTERM itself and end the process with status 15, and Ctrl-C would
    interrupt it half-way. Ray's processes end with the thread that started them.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(name="ray", daemon=True)
        self._options = options
        self._error: BaseException | None = None
        self._has_started, self._may_end = threading.Event(), threading.Event()

    def run(self) -> None:
        """The thread's body."""
        import ray

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray announces its own future changes on every start
            try:
                ray.init(**self._options)
            except BaseException as error:  # raised by `wait`
                self._error = error
        self._has_started.set()
        self._may_end.wait()

    def wait(self) -> None:
        """Wait until Ray runs; raises what `ray.init` raised."""
        self._has_started.wait()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """End Ray, or leave its cluster; where it is still starting, wait first: half a cluster cannot be ended."""
        if self._has_started.wait(START_S):
            shut_down()
        self._may_end.set()


def shut_down() -> None:
    """Leave the cluster, and end it if it is this process's own, without a process left behind.

    Ray asks its workers to end and does not look whether they do; on a busy machine one in hundreds hangs at its exit.
    """
    import ray

    raylets = [pid for pid in children(os.getpid()) if RAYLET in command_line(pid).partition("\0")[0]]
    workers = [pid for raylet in raylets for pid in children(raylet)]
    ray.shutdown()
    deadline = time.monotonic() + EXIT_S
    while (left := [pid for pid in workers if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL_S)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
