"""S3 as a store: the errors for its failures, against servers that fail in known ways, and a real server."""

import os
import pickle
import re
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from data.config import StoreConfig
from data.errors import (
    ConflictError,
    DiskFullError,
    MantaError,
    ObjectNotFoundError,
    StoreAccessError,
    TransientStoreError,
)
from data.stores.open import open_store
from data.stores.s3 import S3Store
from data.stores.shard_file import ShardFile
from data.stores.store import ATTEMPTS, prove
from tests.data.stores.fake_s3 import Answer, fake_s3, s3_config


def xml_error(status: int, code: str, message: str = "said the server") -> Answer:
    return status, {}, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


@contextmanager
def black_hole() -> Iterator[str]:
    """The URL of a port whose packets are never answered: its queue of connections is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for each in waiting:
            each.close()


@contextmanager
def refused() -> Iterator[str]:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening, so that no other process takes the port
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


@contextmanager
def silent() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class TestFailuresOfS3:
    @pytest.mark.parametrize("endpoint", [refused, black_hole, silent])
    def test_an_endpoint_that_does_not_answer_is_named_in_time(self, endpoint) -> None:
        with endpoint() as url:
            start = time.monotonic()
            with pytest.raises(StoreAccessError, match=rf"{url}.*endpoint"):
                S3Store("bucket", "runs", s3_config(url)).check()
            assert time.monotonic() - start < 8  # 1 s of time-outs, back-off of at most 3 s, and a slow machine

    @pytest.mark.parametrize(
        "answer",
        [
            (404, {"Content-Type": "text/html"}, b"<html><body>Not Found</body></html>"),
            (200, {"Content-Type": "text/html"}, b"<html><body>Log in</body></html>"),
            (200, {"Content-Type": "text/html"}, b"<!doctype html><p>Log in<br>"),
            (200, {}, b"hello"),
            (200, {}, b""),
        ],
    )
    def test_a_web_server_is_no_store(self, answer: Answer) -> None:
        with fake_s3(lambda number, path: answer) as config, pytest.raises(StoreAccessError) as raised:
            S3Store("bucket", "runs", config).check()
        assert str(config.endpoint_url) in str(raised.value)
        assert re.search("answers, but not as an object store|store.endpoint_url is an S3 endpoint", str(raised.value))

    def test_what_keeps_nothing_is_told_before_anything_rests_on_it(self) -> None:
        page: list[Answer] = [(200, {"ETag": '"1"'}, b""), (200, {}, b"Log in")]
        with (
            fake_s3(lambda number, path: page.pop(0) if len(page) > 1 else page[0]) as config,
            pytest.raises(StoreAccessError, match="does not keep what is written"),
        ):
            prove(S3Store("bucket", "runs", config))
        with (
            fake_s3(lambda number, path: (200, {}, b"")) as config,
            pytest.raises(StoreAccessError, match="not as an object store"),
        ):
            S3Store("bucket", "runs", config).put("key", b"1")

    def test_the_default_time_out_ends_within_15_s_at_worst(self) -> None:
        longest_back_off_s = sum(2**attempt for attempt in range(ATTEMPTS - 1))
        assert StoreConfig().timeout_s + longest_back_off_s <= 10

    @pytest.mark.parametrize("refusal", [xml_error(403, "AccessDenied"), xml_error(501, "NotImplemented")])
    def test_what_tells_nothing_of_interrupted_writes_has_none(self, refusal: Answer) -> None:
        """It takes rights of its own, and a service may lack the request: checkpoints must be pruned all the same."""
        nothing = (200, {}, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        with fake_s3(lambda number, path: refusal if "uploads" in path else nothing) as config:
            store = S3Store("bucket", "runs", config)
            assert store.unfinished("checkpoints/") == []
            assert store.delete_prefix("checkpoints/") == 0

    def test_an_endpoint_that_answered_before_is_a_transient_failure(self) -> None:
        with fake_s3(lambda number, path: (200, {}, b"data")) as config:
            store = S3Store("bucket", "runs", config)
            assert store.get("key") == b"data"
            again = pickle.loads(pickle.dumps(store.child("deeper")))
        with pytest.raises(TransientStoreError, match=rf"{config.endpoint_url}.*may come back"):
            again.get("key")

    @pytest.mark.parametrize(
        ("answer", "error", "words"),
        [
            (xml_error(404, "NoSuchBucket"), StoreAccessError, "no bucket 'bucket' at http.*Create it"),
            (xml_error(403, "SignatureDoesNotMatch"), StoreAccessError, "refused the credentials.*secret key"),
            (xml_error(403, "InvalidAccessKeyId"), StoreAccessError, "refused the credentials.*access key"),
            (xml_error(400, "AuthorizationHeaderMalformed"), StoreAccessError, "refused the credentials.*region"),
            (xml_error(507, "Whatever"), DiskFullError, "no space left"),
            (xml_error(400, "XMinioStorageFull"), DiskFullError, "no space left.*XMinioStorageFull"),
            (xml_error(404, "NoSuchKey"), ObjectNotFoundError, "no such object"),
            (xml_error(412, "PreconditionFailed"), ConflictError, "exists already or is another version"),
            (xml_error(409, "ConditionalRequestConflict"), ConflictError, "another version"),
            (xml_error(400, "Strange"), StoreAccessError, "refused.*400 Strange: said the server"),
        ],
        ids=lambda value: value[2].decode()[13:40] if isinstance(value, tuple) else "",
    )
    def test_permanent_error_answers(self, answer: Answer, error: type[MantaError], words: str) -> None:
        requests = []
        with (
            fake_s3(lambda number, path: requests.append(path) or answer) as config,
            pytest.raises(error, match=words) as raised,
        ):
            S3Store("bucket", "runs", config).put("key", b"data")
        assert "s3://bucket/runs/key" in str(raised.value)
        assert len(requests) == 1

    @pytest.mark.parametrize(
        ("answer", "error", "words"),
        [
            (xml_error(503, "SlowDown"), TransientStoreError, "kept failing through 3 attempts.*SlowDown"),
            (xml_error(500, "InternalError", "No writable volumes"), DiskFullError, "no space left.*volumes"),
        ],
        ids=["slow down", "full"],
    )
    def test_retried_error_answers(self, answer: Answer, error: type[MantaError], words: str) -> None:
        requests = []
        with (
            fake_s3(lambda number, path: requests.append(path) or answer) as config,
            pytest.raises(error, match=words),
        ):
            S3Store("bucket", "runs", config).put("key", b"data")
        assert len(requests) == ATTEMPTS

    def test_a_body_cut_short_is_read_again(self) -> None:
        def answer(number: int, path: str) -> Answer:
            return 200, {"Content-Length": "8"}, b"complete" if number == 2 else b"half"

        with fake_s3(answer) as config:
            assert S3Store("bucket", "", config).get("key") == b"complete"

    def test_a_body_that_is_always_cut_short_is_an_error(self) -> None:
        requests = []
        with (
            fake_s3(lambda number, path: requests.append(path) or (200, {"Content-Length": "8"}, b"half")) as config,
            pytest.raises(TransientStoreError, match=r"s3://bucket/key.*did not answer in full"),
        ):
            S3Store("bucket", "", config).get("key")
        assert len(requests) == ATTEMPTS

    def test_missing_credentials_are_reported_with_the_remedy(self) -> None:
        with pytest.raises(StoreAccessError, match=r"no usable credentials.*AWS_ACCESS_KEY_ID"):
            S3Store("bucket", "", StoreConfig(endpoint_url="http://127.0.0.1:1")).check()

    def test_half_a_key_pair(self) -> None:
        with pytest.raises(StoreAccessError, match="go together"):
            S3Store("bucket", "", StoreConfig(access_key_id="key")).get("key")

    def test_no_url(self) -> None:
        with pytest.raises(StoreAccessError, match="localhost"):
            S3Store("bucket", "", s3_config("localhost")).check()

    @pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
    def test_the_standard_variables_are_used(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        with fake_s3(lambda number, path: (200, {}, path.encode())) as config:
            monkeypatch.setenv(name, str(config.endpoint_url))
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            assert S3Store("bucket", "runs", StoreConfig()).get("key") == b"/bucket/runs/key"


@pytest.mark.s3
class TestRealS3:
    def test_missing_bucket(self, s3_store_config: StoreConfig) -> None:
        store = open_store("s3://no-such-bucket/runs", s3_store_config)
        with pytest.raises(StoreAccessError, match=r"no bucket 'no-such-bucket' at http.*Create it"):
            store.check()
        with pytest.raises(StoreAccessError, match="no bucket 'no-such-bucket'"):
            store.put("key", b"")

    @pytest.mark.parametrize("wrong", ["access_key_id", "secret_access_key"])
    def test_wrong_credentials(self, s3_store_config: StoreConfig, s3_bucket: str, wrong: str) -> None:
        config = s3_store_config.model_copy(update={wrong: "wrong"})
        with pytest.raises(StoreAccessError, match="refused the credentials"):
            open_store(f"s3://{s3_bucket}", config).check()

    def test_lists_beyond_one_page(self, s3_store_config: StoreConfig, s3_bucket: str) -> None:
        store = open_store(f"s3://{s3_bucket}/{uuid.uuid4().hex}", s3_store_config)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda i: store.put(f"{i:04}", b""), range(1010)))
        assert [info.key for info in store.list()] == [f"{i:04}" for i in range(1010)]
        assert store.delete_prefix("") == 1010
        assert list(store.list()) == []

    def test_shard_file_reads_ranges(self, s3_store_config: StoreConfig, s3_bucket: str) -> None:
        store = open_store(f"s3://{s3_bucket}/{uuid.uuid4().hex}", s3_store_config)
        store.put("shard", bytes(range(256)))
        with ShardFile(store.url_of("shard"), s3_store_config) as file:
            file.seek(-6, os.SEEK_END)
            assert file.read(4) == bytes([250, 251, 252, 253])
            file.seek(10)
            assert file.read() == bytes(range(10, 256))
        with pytest.raises(ObjectNotFoundError, match=r"s3://.*/gone is gone"):
            ShardFile(store.url_of("gone"), s3_store_config)
