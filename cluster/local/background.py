"""Clusters on this machine that stay up in the background, from `manta cluster up` to `manta cluster down`.

A process of its own, the holder, is inside the `AutoscaledCluster` and writes down how to reach it; commands find the
file. When the holder ends, however it ends, so does the cluster.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cluster.errors import ClusterError
from cluster.local.autoscaled import AutoscaledCluster
from cluster.local.nodes import START_TIMEOUT_S
from cluster.local.processes import calling, end_session, start_time
from cluster.spec import ClusterSpec

DOWN_S = 30.0
"""Seconds that the processes of a cluster may take to end before they are killed."""

_POLL_INTERVAL_S = 0.1

_HOLDER = calling("cluster.local.background", "hold")


@dataclass(frozen=True)
class KeptCluster:
    """A cluster that is up.

    Attributes:
        pid, pid_started: the holder.
        session: of the cluster's own processes, see `cluster.local.processes`.
        environment: variables with which a process joins it; a token is among them.
        folder: where Ray's files are.
    """

    spec: ClusterSpec
    pid: int
    pid_started: str
    session: int
    address: str
    dashboard: str
    environment: Mapping[str, str] = field(repr=False)
    folder: str
    started_at: float

    @property
    def name(self) -> str:
        """What it is called."""
        return self.spec.cluster

    @property
    def is_up(self) -> bool:
        """Whether its holder lives."""
        return start_time(self.pid) == self.pid_started

    def join(self) -> None:
        """Have Ray in this process find it; before Ray is imported, as only then it reads whether to send a token."""
        os.environ.update(self.environment)


def known_folder() -> Path:
    """Where clusters of this user are written down, for nobody else to read: there are tokens in it.

    Raises:
        ClusterError: somebody else has made it.
    """
    folder = Path(f"/tmp/manta-clusters-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
        raise ClusterError(f"{folder} is not this user's alone, and what is in it is not to be trusted. Remove it.")
    return folder


def kept_clusters() -> list[KeptCluster]:
    """Those that are up; what is left of others is forgotten."""
    found = []
    for file in sorted(known_folder().glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            fields = json.loads(file.read_text())
            kept = KeptCluster(**{**fields, "spec": ClusterSpec.model_validate(fields["spec"])})
            if kept.is_up:
                found.append(kept)
            else:
                file.unlink()
    return found


def find_kept(name: str | None) -> KeptCluster:
    """The cluster of that name; None: the only one that is up.

    Raises:
        ClusterError: there is none, or more than one to choose from.
    """
    kept = {each.name: each for each in kept_clusters()}
    if name is None and len(kept) == 1:
        return next(iter(kept.values()))
    if name is None or name not in kept:
        if kept and name is None:
            raise ClusterError(f"Which cluster is meant? Up on this machine: {', '.join(kept)}. Name one of them.")
        what = f"no cluster {name}" if name else "no cluster"
        raise ClusterError(
            f"There is {what} up on this machine{', but ' + ', '.join(kept) if kept else ''}. Start one with `manta "
            "cluster up SPEC`, or name one elsewhere by its dashboard: --address http://HOST:8265"
        )
    return kept[name]


def bring_up(spec: ClusterSpec) -> KeptCluster:
    """Start the cluster, which stays when this process ends; returns when it can be joined.

    Raises:
        ClusterError: one of this name is up, or it does not start.
    """
    if any(each.name == spec.cluster for each in kept_clusters()):
        raise ClusterError(
            f"Cluster {spec.cluster} is up already. See it with `manta cluster status {spec.cluster}`, end it with "
            f"`manta cluster down {spec.cluster}`, or start another: --set cluster=NAME"
        )
    log = known_folder() / f"{spec.cluster}.log"
    with log.open("wb") as output:
        holder = subprocess.Popen(
            _HOLDER,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    assert holder.stdin is not None
    holder.stdin.write(spec.model_dump_json().encode())
    holder.stdin.close()
    deadline = time.monotonic() + 2 * START_TIMEOUT_S
    try:
        while True:
            for kept in kept_clusters():
                if kept.pid == holder.pid:
                    return kept
            if holder.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(f"Cluster {spec.cluster} did not start:\n{log.read_text(errors='replace').strip()}")
            time.sleep(_POLL_INTERVAL_S)
    except BaseException:
        holder.terminate()
        holder.wait()
        raise


def take_down(kept: KeptCluster) -> None:
    """End all processes of the cluster; none is left when this returns."""
    with suppress(ProcessLookupError):
        os.kill(kept.pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_S
    while kept.is_up and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL_S)
    if kept.is_up:
        os.kill(kept.pid, signal.SIGKILL)
    end_session(kept.session)
    shutil.rmtree(kept.folder, ignore_errors=True)  # where the holder could not
    _file(kept.name).unlink(missing_ok=True)


def hold() -> None:
    """Body of the holder: the spec comes by standard input; ends at SIGTERM, or with the cluster's head."""
    spec = ClusterSpec.model_validate_json(sys.stdin.read())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir("/")
    # Held for life: of two that are started at the same time, one finds it taken.
    with (known_folder() / f"{spec.cluster}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("another of this name is starting, or about to end")
        _hold(spec, stop)


def _hold(spec: ClusterSpec, stop: threading.Event) -> None:
    try:
        with AutoscaledCluster(spec, with_dashboard=True) as cluster:
            _write_down(cluster)
            while not stop.wait(_POLL_INTERVAL_S) and not cluster.has_ended():
                pass
    except ClusterError as error:
        sys.exit(str(error))
    finally:
        _file(spec.cluster).unlink(missing_ok=True)


def _write_down(cluster: AutoscaledCluster) -> None:
    kept = KeptCluster(
        spec=cluster.spec,
        pid=os.getpid(),
        pid_started=start_time(os.getpid()) or "",
        session=cluster.session,
        address=cluster.address,
        dashboard=cluster.dashboard,
        environment=cluster.environment,
        folder=str(cluster.folder),
        started_at=time.time(),
    )
    file = _file(kept.name)
    new = file.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(json.dumps({**asdict(kept), "spec": kept.spec.model_dump(mode="json")}))
    new.replace(file)


def _file(name: str) -> Path:
    return known_folder() / f"{name}.json"
