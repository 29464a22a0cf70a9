"""A real S3 server for a laptop: SeaweedFS, with its data in one folder, shared by the commands that need it.

    with LocalS3(Path(".manta/s3")) as server:
        server.ensure_bucket("manta")
        ...  # server.endpoint_url, server.access_key_id, server.secret_access_key

The folder holds everything. Kernel locks record who uses the server; they are released when a process dies:

    users.lock      shared by every command that uses the server; the last one, which can lock it alone, stops it
    server.lock     held by the server itself (it inherits the descriptor), so it is free if and only if that is dead
    start.lock      held while the server is started or stopped
    server.json     pid and ports of the server
    s3.json         SeaweedFS's configuration with the keys, created once, readable by its owner only
    security.toml   keys of the server's parts among themselves, made at each start, with server.crt and server.key
    weed.log        the server's log since its last start
    data/, master/  the objects, and the ids of the volumes that contain them
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.errors import ClusterError
from cluster.local.processes import is_alive
from cluster.local.seaweedfs import (
    HOST,
    KEYS_FILE,
    all_free,
    free_ports,
    is_ready,
    log_tail,
    read_or_create_keys,
    remove_sockets,
    spawn,
    write_atomically,
)


@dataclass(frozen=True)
class _Record:
    """Content of server.json: the process and its ports."""

    pid: int
    ports: dict[str, int]


class LocalS3:
    """The S3 server of `folder`, which runs while at least one command is inside its `with`.

    A server that outlived a killed command is used as it is. Keys and data survive restarts; the port usually does,
    too, but changes if another program has taken it.

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
                self.access_key_id, self.secret_access_key = read_or_create_keys(self.folder / KEYS_FILE)
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
        """Creates bucket `name` unless it exists.

        Raises:
            ClusterError: the server refuses; S3 requires 3 to 63 lower-case letters, digits, dots and hyphens.
        """
        import boto3  # takes 0.2 s to import, and not every user creates buckets
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
                    "lower-case letters, digits, dots and hyphens; if this one does, see "
                    + str(self.folder / "weed.log")
                ) from error

    def is_running(self) -> bool:
        """Whether a server of this folder is alive, whichever command started it."""
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
        """The record of the live server, or None if none is alive."""
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
        """Starts the server and waits until objects can be written."""
        previous = self._record()
        ports = previous.ports if previous and all_free(previous.ports) else free_ports()
        record = _Record(self._spawn(ports), ports)
        try:
            write_atomically(self.folder / "server.json", json.dumps(asdict(record)))
            self._await_ready(record, has_just_started=True)
        except BaseException:
            with suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGKILL)
            remove_sockets(ports)
            raise
        return record

    def _spawn(self, ports: dict[str, int]) -> int:
        """Starts the server, which inherits server.lock."""
        lock = os.open(self.folder / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return spawn(self.folder, ports, lock)
        finally:
            os.close(lock)

    def _await_ready(self, record: _Record, *, has_just_started: bool = False) -> None:
        """Returns when objects can be written."""
        deadline = time.monotonic() + self._start_timeout_s
        while not is_ready(record.ports):
            if has_just_started and not is_alive(record.pid):
                raise self._failure("ended while starting")
            if time.monotonic() > deadline:
                raise self._failure(f"did not answer within {self._start_timeout_s:.0f} s")
            time.sleep(0.05)

    def _failure(self, what: str) -> ClusterError:
        log = self.folder / "weed.log"
        return ClusterError(
            f"The local S3 server (weed) {what}. The end of {log}:\n{log_tail(log)}\n"
            f"Run the command again if a port was taken meanwhile; free disk space if it is full "
            f"({shutil.disk_usage(self.folder).free / 1e9:.1f} GB are free). To start with an empty store, delete "
            f"{self.folder} with all its objects."
        )

    def _stop(self) -> None:
        """Ends the server at once.

        SIGKILL, because on SIGTERM SeaweedFS waits 15 s for its own connections to end. Everything that it has
        acknowledged is written to disk, so nothing is lost; a test checks this.
        """
        record = self._record()
        if record is None or not self.is_running():
            return
        with suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGKILL)
        while self.is_running():  # the kernel releases the lock when the process has ended
            time.sleep(0.01)
        remove_sockets(record.ports)


def _make_private_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ClusterError(
            f"The folder of the local S3 server, {folder}, cannot be created: {error.strerror}. "
            "Set store.serve to a writable folder."
        ) from error


def _try_exclusive(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
