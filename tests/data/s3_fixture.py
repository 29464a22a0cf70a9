"""A real S3 server (SeaweedFS) for tests marked s3: a process of our own, on free ports, with keys that are checked."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from data.config import StoreConfig

ACCESS_KEY, SECRET_KEY = "manta-test-key", "manta-test-secret"
START_TIMEOUT_S = 60.0


@pytest.fixture(scope="session")
def s3_store_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreConfig]:
    """How to reach an S3 server that lives as long as the test session."""
    with running_s3(tmp_path_factory.mktemp("s3")) as config:
        yield config


@pytest.fixture(scope="session")
def s3_bucket(s3_store_config: StoreConfig) -> str:
    """The name of a bucket on it; tests keep to prefixes of their own."""
    client(s3_store_config).create_bucket(Bucket="manta-tests")
    return "manta-tests"


def client(config: StoreConfig):
    """A boto3 client that shares no code with what is tested."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=config.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=config.access_key_id,
        aws_secret_access_key=config.secret_access_key,
    )


@contextmanager
def running_s3(folder: Path) -> Iterator[StoreConfig]:
    """The server with its data in `folder`, from ready to stopped."""
    names = [f"{part}{kind}" for part in ("master", "volume", "filer", "s3") for kind in (".port", ".port.grpc")]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    keys = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    actions = ["Admin", "Read", "Write", "List"]
    settings = folder / "s3.json"
    settings.write_text(json.dumps({"identities": [{"name": "tests", "credentials": [keys], "actions": actions}]}))
    (folder / "data").mkdir()
    options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", "-s3", f"-s3.config={settings}"]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-s3.autoCreateBucket=false"]
    options += ["-master.peers=none", "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=100"]
    options += ["-volume.preStopSeconds=0"]
    options += [f"-{name}={port}" for name, port in ports.items()]
    log = folder / "weed.log"
    weed = Path(sys.executable).parent / "weed"
    with log.open("wb") as output:
        server = subprocess.Popen([str(weed), "server", *options], stdout=output, stderr=subprocess.STDOUT, cwd=folder)
    try:
        config = StoreConfig(
            endpoint_url=f"http://127.0.0.1:{ports['s3.port']}", access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY
        )
        _wait_until_ready(config, server, log)
        yield config
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:  # all held at once, so that they differ
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_until_ready(config: StoreConfig, server: subprocess.Popen[bytes], log: Path) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            # A write, because the S3 port listens before there is a volume to write to.
            s3 = client(config)
            s3.create_bucket(Bucket="ready")
            s3.put_object(Bucket="ready", Key="ready", Body=b"ready")
            return
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) and error.response["Error"]["Code"] == "BucketAlreadyOwnedByYou":
                s3.put_object(Bucket="ready", Key="ready", Body=b"ready")
                return
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"SeaweedFS did not start ({error}):\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)
