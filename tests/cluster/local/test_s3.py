"""The local S3 server: data and keys survive, commands share it, and no crash leaves a wrong record in force."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ClusterError
from cluster.local.processes import is_alive
from cluster.local.s3 import LocalS3
from tests.waiting import wait_until

pytestmark = pytest.mark.s3


def client(server: LocalS3, secret: str | None = None) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=secret or server.secret_access_key,
        region_name="us-east-1",
    )


def answers(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except ConnectionRefusedError:
        return False
    return True


def body(i: int) -> bytes:
    """Every third object is above the size at which the server cuts objects into chunks (4 MB)."""
    return hashlib.sha256(str(i).encode()).digest() * (150_000 if i % 3 == 0 else 1)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "s3"
    yield folder
    if LocalS3(folder).is_running():  # a failed test left it
        with LocalS3(folder):
            pass


def test_objects_buckets_and_keys_survive_the_server(folder: Path) -> None:
    with LocalS3(folder) as first:
        keys = (first.access_key_id, first.secret_access_key)
        for bucket in ("alpha", "beta"):
            first.ensure_bucket(bucket)
            for i in range(12):
                client(first).put_object(Bucket=bucket, Key=f"k/{i}", Body=body(i))
    assert not answers(first.endpoint_url)

    # Another port than before, as when something else has taken it: the volume ids must not start over.
    (folder / "server.json").unlink()
    with LocalS3(folder) as second:
        assert (second.access_key_id, second.secret_access_key) == keys
        second.ensure_bucket("alpha")
        client(second).put_object(Bucket="beta", Key="k/12", Body=body(12))
        for bucket, count in (("alpha", 12), ("beta", 13)):
            got = [client(second).get_object(Bucket=bucket, Key=f"k/{i}")["Body"].read() for i in range(count)]
            assert got == [body(i) for i in range(count)]


def test_the_server_checks_what_a_real_store_checks(folder: Path) -> None:
    from botocore.exceptions import ClientError

    with LocalS3(folder) as server:
        server.ensure_bucket("alpha")
        server.ensure_bucket("alpha")
        client(server).put_object(Bucket="alpha", Key="k", Body=b"1", IfNoneMatch="*")
        with pytest.raises(ClientError, match="PreconditionFailed"):
            client(server).put_object(Bucket="alpha", Key="k", Body=b"2", IfNoneMatch="*")
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            client(server, secret="wrong").get_object(Bucket="alpha", Key="k")
        with pytest.raises(ClientError, match="NoSuchBucket"):
            client(server).put_object(Bucket="misspelt", Key="k", Body=b"1")
        with pytest.raises(ClusterError, match=r"did not create bucket 'No_Good'.*lower-case"):
            server.ensure_bucket("No_Good")


def test_files_are_private_and_small_when_empty(folder: Path) -> None:
    with LocalS3(folder) as server:
        server.ensure_bucket("alpha")
        client(server).put_object(Bucket="alpha", Key="k", Body=b"1")
        assert stat.S_IMODE((folder / "s3.json").stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        used = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
        assert used < 20_000_000


def test_the_last_user_stops_it(folder: Path) -> None:
    others = set(Path("/tmp").glob("seaweedfs-*.sock"))  # left by killed servers, perhaps with our ports
    with LocalS3(folder) as outer:
        with LocalS3(folder) as inner:
            assert inner.endpoint_url == outer.endpoint_url
        assert answers(outer.endpoint_url)
        assert outer.is_running()
    assert not answers(outer.endpoint_url)
    assert not outer.is_running()
    ports = {str(port) for port in json.loads((folder / "server.json").read_text())["ports"].values()}
    left = set(Path("/tmp").glob("seaweedfs-*.sock")) - others
    assert not [path for path in left if path.stem.rpartition("-")[2] in ports]


def test_a_server_left_by_a_killed_command_is_used_then_stopped(folder: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from cluster.local.s3 import LocalS3\n"
        "with LocalS3(Path(sys.argv[1])) as s: print(s.endpoint_url, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        process.kill()
    pid = json.loads((folder / "server.json").read_text())["pid"]
    assert answers(url)
    with LocalS3(folder) as server:
        assert server.endpoint_url == url
        assert json.loads((folder / "server.json").read_text())["pid"] == pid
    assert not answers(url)


def test_ctrl_c_at_the_terminal_does_not_reach_the_server(folder: Path) -> None:
    with LocalS3(folder):
        pid = json.loads((folder / "server.json").read_text())["pid"]
        assert os.getsid(pid) != os.getsid(0)


def test_a_record_of_a_dead_server_is_replaced_even_if_its_pid_lives_on(folder: Path) -> None:
    with LocalS3(folder) as server:
        server.ensure_bucket("alpha")
        record = json.loads((folder / "server.json").read_text())
        os.kill(record["pid"], signal.SIGKILL)
        wait_until(lambda: not is_alive(record["pid"]), "the server's end")
    # As after a reboot: the pid now belongs to somebody else, here to this very test.
    (folder / "server.json").write_text(json.dumps({**record, "pid": os.getpid()}))
    with LocalS3(folder) as server:
        client(server).put_object(Bucket="alpha", Key="k", Body=b"1")


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    folder.mkdir()
    (folder / "s3.json").write_text(
        json.dumps({"identities": [{"credentials": [{"accessKey": "a", "secretKey": "b"}], "name": 5}]})
    )
    says_why = r"(?s)The local S3 server \(weed\) .*weed\.log.*fail to load config file.*delete .*s3"
    with pytest.raises(ClusterError, match=says_why), LocalS3(folder):
        pass


def test_damaged_keys_are_named(folder: Path) -> None:
    folder.mkdir()
    (folder / "s3.json").write_text("{}")
    with pytest.raises(ClusterError, match=r"s3\.json is damaged"), LocalS3(folder):
        pass


def asked(port: int, method: str, path: str, body: bytes | None = None) -> int:
    """Status of an answer to another user of the machine, who has no keys; 0 where there is none."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, body)
        return connection.getresponse().status
    except (OSError, HTTPException):
        return 0
    finally:
        connection.close()


def test_whoever_has_no_keys_reads_changes_and_deletes_nothing(folder: Path) -> None:
    """Every port of the server is open to all users of the machine."""
    with LocalS3(folder) as server:
        server.ensure_bucket("alpha")
        client(server).put_object(Bucket="alpha", Key="a/k", Body=b"data" * 1000)
        ports = json.loads((folder / "server.json").read_text())["ports"]
        status, found = HTTPConnection("127.0.0.1", ports["volume"], timeout=5), []
        status.request("GET", "/status")
        volumes = json.loads(status.getresponse().read())["Volumes"]
        status.close()
        for port in ports.values():
            for method, path, body in (
                ("GET", "/buckets/alpha/a/k", None),
                ("PUT", "/buckets/alpha/a/k", b"another"),
                ("DELETE", "/buckets/alpha?recursive=true", None),
                ("GET", "/dir/assign", None),
                ("GET", "/col/delete?collection=alpha", None),
                ("POST", "/submit", b"x"),
                ("GET", "/alpha/a/k", None),
                ("DELETE", "/alpha/a/k", None),
                ("DELETE", "/alpha", None),
                *(("GET", f"/{volume['Id']},01637037d6", None) for volume in volumes),
                *(("DELETE", f"/{volume['Id']},01637037d6", None) for volume in volumes),
            ):
                answer = asked(port, method, path, body)
                if 200 <= answer < 400:
                    found.append((port, method, path, answer))
        assert found == []
        assert client(server).get_object(Bucket="alpha", Key="a/k")["Body"].read() == b"data" * 1000
        for name in ("security.toml", "server.key", "s3.json"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("component", ["master", "filer", "volume"])
def test_grpc_asks_for_a_certificate(folder: Path, component: str) -> None:
    with LocalS3(folder):
        ports = json.loads((folder / "server.json").read_text())["ports"]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", ports[f"{component}.grpc"]), timeout=5) as plain,
            pytest.raises((ssl.SSLError, ConnectionError)),
            context.wrap_socket(plain) as secure,
        ):
            secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert secure.recv(100) == b"", "closed without a word"
            raise ConnectionError
