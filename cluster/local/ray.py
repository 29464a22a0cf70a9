"""Ray for a command: joins the cluster at RAY_ADDRESS, or starts one on this machine."""

from __future__ import annotations

import logging
import os
import secrets
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

# Read by Ray's processes when they start. None of these variables changes the result of a run.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # else a process per CPU, most of them never used
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # a run's end waits for the whole interval, by default 2 s
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor that polls for notices that are not used here
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

# Read by the processes of a cluster that is started here, whose one node reports to no other. Ray's periodic checks and
# reports, several per second, would take 1 % of two cores from training.
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
"""Seconds to wait at the end if Ray is still starting; its processes end with this one in any case."""

EXIT_S, POLL_INTERVAL_S = 5.0, 0.05
"""Seconds for workers to end after their cluster, and between two checks."""

OBJECT_STORE_BYTES = 1 << 30
"""Shared memory of a local cluster; a window of tokenized units is far smaller."""


def joins_cluster() -> bool:
    """Whether commands join an existing cluster instead of starting one."""
    return bool(os.environ.get("RAY_ADDRESS"))


def pinned_packages() -> dict[str, Any]:
    """A `runtime_env` in whose workers the names of the project's packages mean the project, see `manta_start`."""
    import ray

    # By value, because this module decides where modules are imported from.
    ray.cloudpickle.register_pickle_by_value(manta_start)  # type: ignore[no-untyped-call]
    return {"worker_process_setup_hook": manta_start.pin_packages}


@contextmanager
def ray_cluster(num_cpus: int, num_gpus: int = 0) -> Iterator[None]:
    """Ray inside the block: joined if RAY_ADDRESS names a cluster, else started here and stopped afterwards.

    Args:
        num_cpus: logical CPUs of a local cluster; they may exceed those of the machine, and are then shared.
        num_gpus: GPUs of a local cluster.

    Raises:
        ClusterError: the cluster cannot be joined or started.
    """
    # Ray asks for a token; its usual one is in a file that others can read, depending on umask and home folder.
    own_token = {"RAY_AUTH_TOKEN": secrets.token_hex(16)}
    variables = _ENVIRONMENT if joins_cluster() else _ENVIRONMENT | _OWN_CLUSTER | own_token
    os.environ.update({name: os.environ.get(name, value) for name, value in variables.items()})
    import ray

    # Ray's own handler would take SIGTERM from ours, and abort the process 3 s after one. In its workers it stays.
    ray._private.ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
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
        runtime_env=pinned_packages(),
        **local,
    )
    # A Ray without this setting, which it has for the firewalls of other systems, listens on the loopback address only.
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = bool(address)
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
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = True


class _RayThread(threading.Thread):
    """Starts Ray in a separate thread, which lives until Ray has ended.

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
            warnings.simplefilter("ignore")  # Ray announces future changes at every start
            try:
                ray.init(**self._options)
            except BaseException as error:  # raised by `wait`
                self._error = error
        self._has_started.set()
        self._may_end.wait()

    def wait(self) -> None:
        """Waits until Ray runs; raises the error of `ray.init`."""
        self._has_started.wait()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Ends Ray, or leaves its cluster; waits first if Ray is still starting, because it cannot be ended then."""
        if self._has_started.wait(START_S):
            shut_down()
        self._may_end.set()


def shut_down() -> None:
    """Leaves the cluster, or ends it with all its processes if this process has started it.

    Ray requests the end of its workers and does not check it; on a busy machine one in hundreds hangs at its exit.
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
