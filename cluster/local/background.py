"""Clusters on this machine that stay up in the background, from `manta cluster up` to `manta cluster down`.

A separate process, the holder, runs the `AutoscaledCluster` and writes a record with its address, which commands read.
The cluster ends with the holder, however that ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.errors import ClusterError
from cluster.local.autoscaled import AutoscaledCluster
from cluster.local.nodes import START_TIMEOUT_S
from cluster.local.processes import calling, end_session, start_time
from cluster.private_folder import private_folder
from cluster.spec import ClusterSpec, GroupSpec, HeadSpec

STOP_TIMEOUT_S = 30.0
"""Seconds for the processes of a cluster to end before they are killed."""

_POLL_INTERVAL_S = 0.1

_HOLDER = calling("cluster.local.background", "hold")


@dataclass(frozen=True)
class BackgroundCluster:
    """Record of a cluster that runs in the background.

    Attributes:
        spec: of the cluster.
        pid, pid_started: pid and start time of the holder.
        session: session id of the cluster's processes, see `cluster.local.processes`.
        address: of the cluster's GCS.
        dashboard: URL of its dashboard.
        environment: variables with which a process joins it, including a token.
        folder: folder with Ray's files.
        started_at: seconds since the epoch.
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
        """Name of the cluster."""
        return self.spec.cluster

    @property
    def is_up(self) -> bool:
        """Whether its holder is alive."""
        return start_time(self.pid) == self.pid_started

    def join(self) -> None:
        """Makes Ray in this process use the cluster. Call it before importing Ray, which reads it only once."""
        os.environ.update(self.environment)


def records_folder() -> Path:
    """Folder with the records of this user's clusters, readable by this user only, because records contain tokens.

    Raises:
        ClusterError: the folder belongs to another user, or others have access to it.
    """
    return private_folder(Path(f"/tmp/manta-clusters-{os.getuid()}"))


def running_clusters() -> list[BackgroundCluster]:
    """The clusters that are up. Removes records of others."""
    found = []
    for file in sorted(records_folder().glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            fields = json.loads(file.read_text())
            cluster = BackgroundCluster(**{**fields, "spec": _stored_spec(fields["spec"])})
            if cluster.is_up:
                found.append(cluster)
            else:
                file.unlink()
    return found


def _stored_spec(fields: dict[str, Any]) -> ClusterSpec:
    """The spec of a cluster that is up; a version with other rules may have started it."""
    try:
        return ClusterSpec.model_validate(fields)
    except ValidationError:
        groups = tuple(GroupSpec.model_construct(**group) for group in fields["groups"])
        head = HeadSpec.model_construct(**fields["head"])
        return ClusterSpec.model_construct(**{**fields, "groups": groups, "head": head})


def find_cluster(name: str | None) -> BackgroundCluster:
    """The cluster with that name, or for None the only one that is up.

    Raises:
        ClusterError: there is none, or the choice is ambiguous.
    """
    clusters = {each.name: each for each in running_clusters()}
    if name is None and len(clusters) == 1:
        return next(iter(clusters.values()))
    if name is None or name not in clusters:
        names = ", ".join(clusters)
        if clusters and name is None:
            raise ClusterError(f"Several clusters are up on this machine: {names}. Name one of them.")
        what = f"no cluster {name}" if name else "no cluster"
        raise ClusterError(
            f"There is {what} up on this machine{f', but {names}' if names else ''}. Start one with `manta cluster up "
            "SPEC`, or name another by the address of its dashboard: --address http://HOST:8265"
        )
    return clusters[name]


def bring_up(spec: ClusterSpec) -> BackgroundCluster:
    """Starts a cluster that outlives this process; returns when it can be joined.

    Raises:
        ClusterError: a cluster of this name is up, or this one does not start.
    """
    if any(each.name == spec.cluster for each in running_clusters()):
        raise ClusterError(
            f"Cluster {spec.cluster} is up already. Show it with `manta cluster status {spec.cluster}`, end it with "
            f"`manta cluster down {spec.cluster}`, or start another: --set cluster=NAME"
        )
    log = records_folder() / f"{spec.cluster}.log"
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
            for cluster in running_clusters():
                if cluster.pid == holder.pid:
                    return cluster
            if holder.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(f"Cluster {spec.cluster} did not start:\n{log.read_text(errors='replace').strip()}")
            time.sleep(_POLL_INTERVAL_S)
    except BaseException:
        holder.terminate()
        holder.wait()
        raise


def take_down(cluster: BackgroundCluster) -> None:
    """Ends all processes of the cluster; none is left when this returns."""
    with suppress(ProcessLookupError):
        os.kill(cluster.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while cluster.is_up and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL_S)
    if cluster.is_up:
        os.kill(cluster.pid, signal.SIGKILL)
    end_session(cluster.session)
    shutil.rmtree(cluster.folder, ignore_errors=True)  # if the holder could not
    _record_file(cluster.name).unlink(missing_ok=True)


def hold() -> None:
    """Main function of the holder: reads the spec from standard input; ends on SIGTERM, or with the cluster's head."""
    spec = ClusterSpec.model_validate_json(sys.stdin.read())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir("/")
    # Held until this process ends, so that of two holders started at the same time, one fails here.
    with (records_folder() / f"{spec.cluster}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("another cluster of this name is starting or ending")
        _hold(spec, stop)


def _hold(spec: ClusterSpec, stop: threading.Event) -> None:
    try:
        with AutoscaledCluster(spec, with_dashboard=True) as cluster:
            _write_record(cluster)
            while not stop.wait(_POLL_INTERVAL_S) and not cluster.has_ended():
                pass
    except ClusterError as error:
        sys.exit(str(error))
    finally:
        _record_file(spec.cluster).unlink(missing_ok=True)


def _write_record(cluster: AutoscaledCluster) -> None:
    record = BackgroundCluster(
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
    file = _record_file(record.name)
    new = file.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(json.dumps({**asdict(record), "spec": record.spec.model_dump(mode="json")}))
    new.replace(file)


def _record_file(name: str) -> Path:
    return records_folder() / f"{name}.json"
