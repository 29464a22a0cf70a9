"""Stores: one contract for a folder and for S3, and what failures look like to a user."""

import errno
import os
import pickle
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data.config import StoreConfig
from data.errors import (
    ConflictError,
    DiskFullError,
    InputError,
    MantaError,
    ObjectNotFoundError,
    StoreAccessError,
    TransientStoreError,
)
from data.stores import local as local_store
from data.stores import s3 as s3_store
from data.stores import shard_file
from data.stores.local import LocalStore
from data.stores.open import open_store
from data.stores.s3 import S3Store
from data.stores.shard_file import ShardFile, filesystem_for
from data.stores.store import ATTEMPTS, Store, split_url


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "store"), StoreConfig())
    config = request.getfixturevalue("s3_store_config")
    return open_store(f"s3://{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}", config)


@pytest.fixture(autouse=True)
def no_credentials_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)


class TestEveryStore:
    @pytest.mark.parametrize("data", [b"", b"one", bytes(range(256)) * 1000], ids=["empty", "short", "long"])
    def test_gives_back_what_was_put(self, store: Store, data: bytes) -> None:
        store.put("folder/key", data)
        assert store.get("folder/key") == data
        info = store.head("folder/key")
        assert info is not None and (info.key, info.size) == ("folder/key", len(data))

    def test_put_replaces_and_the_etag_tells(self, store: Store) -> None:
        store.put("key", b"old")
        old = store.head("key")
        store.put("key", b"new")
        new = store.head("key")
        assert store.get("key") == b"new"
        assert old is not None and new is not None and old.size == new.size and old.etag != new.etag

    def test_what_is_missing_is_not_found(self, store: Store) -> None:
        store.put("folder/key", b"")
        for key in ("other", "folder", "folder/key/below"):
            assert store.head(key) is None
            with pytest.raises(ObjectNotFoundError, match=rf"no .*{key}|{key}.*no such"):
                store.get(key)

    def test_put_if_absent_keeps_the_first(self, store: Store) -> None:
        etag = store.put_if_absent("fence", b"first")
        with pytest.raises(ConflictError, match=r"fence.*exists already"):
            store.put_if_absent("fence", b"second")
        info = store.head("fence")
        assert store.get("fence") == b"first" and info is not None and info.etag == etag

    def test_put_if_match_follows_the_versions(self, store: Store) -> None:
        first = store.put_if_absent("fence", b"1")
        second = store.put_if_match("fence", b"2", first)
        with pytest.raises(ConflictError, match="fence"):
            store.put_if_match("fence", b"3", first)
        assert store.get("fence") == b"2"
        assert store.put_if_match("fence", b"3", second) not in (first, second)
        with pytest.raises(ConflictError, match="never"):
            store.put_if_match("never", b"1", first)
        assert store.head("never") is None

    @pytest.mark.parametrize("conditional", ["absent", "match"])
    def test_one_of_many_writers_wins(self, store: Store, conditional: str) -> None:
        etag = store.put_if_absent("match", b"start")
        barrier = threading.Barrier(8)

        def write(number: int) -> bool:
            barrier.wait()
            try:
                if conditional == "absent":
                    store.put_if_absent("absent", b"%d" % number)
                else:
                    store.put_if_match("match", b"%d" % number, etag)
            except ConflictError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(write, range(8)))
        assert sum(won) == 1
        assert store.get(conditional) == b"%d" % won.index(True)

    def test_list_is_by_string_prefix_and_sorted(self, store: Store) -> None:
        keys = ["a/x", "a-b", "a.txt", "a/y/z", "b", "ä"]
        for key in keys:
            store.put(key, key.encode())
        assert [info.key for info in store.list()] == ["a-b", "a.txt", "a/x", "a/y/z", "b", "ä"]
        assert [info.key for info in store.list("a/")] == ["a/x", "a/y/z"]
        assert [info.key for info in store.list("a/y")] == ["a/y/z"]
        assert list(store.list("nothing/")) == []
        assert [(info.key, info.size, info.etag) for info in store.list("b")] == [
            (info.key, info.size, info.etag) for info in [store.head("b")] if info
        ]

    def test_delete(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(s3_store, "_DELETE_BATCH", 3)
        for i in range(10):
            store.put(f"run/{i}", b"x")
        store.put("run-2/kept", b"x")
        store.delete("run/0")
        store.delete("run/0")
        assert store.head("run/0") is None
        assert store.delete_prefix("run/") == 9
        assert [info.key for info in store.list()] == ["run-2/kept"]
        assert store.delete_prefix("run/") == 0

    def test_put_file(self, store: Store, tmp_path: Path) -> None:
        content = os.urandom(1 << 20) * 20  # on S3, more than one part
        (tmp_path / "file").write_bytes(content)
        store.put_file("deep/file", tmp_path / "file")
        assert store.get("deep/file") == content
        with pytest.raises((InputError, ObjectNotFoundError), match="missing"):
            store.put_file("deep/file", tmp_path / "missing")

    def test_child_and_url_name_the_same_place(self, store: Store, request: pytest.FixtureRequest) -> None:
        store.child("run").child("ckpt/7").put("model", b"weights")
        assert store.get("run/ckpt/7/model") == b"weights"
        config = store.config if isinstance(store, S3Store) else StoreConfig()
        assert open_store(store.child("run").url_of(), config).get("ckpt/7/model") == b"weights"
        filesystem, path = filesystem_for(store.url_of("run/ckpt/7/model"), config)
        with filesystem.open_input_file(path) as file:
            assert file.read() == b"weights"

    def test_survives_pickling_and_is_shared_between_threads(self, store: Store) -> None:
        store.put("before", b"before")
        again = pickle.loads(pickle.dumps(store))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: again.put(f"many/{i}", b"%d" % i), range(32)))
        assert [store.get(f"many/{i}") for i in range(32)] == [b"%d" % i for i in range(32)]
        assert again.get("before") == b"before"

    @pytest.mark.parametrize("key", ["", "/absolute", "a//b", "../up", "a/../b", "."])
    def test_refuses_keys_that_leave_it(self, store: Store, key: str) -> None:
        with pytest.raises(InputError, match="is not a valid key"):
            store.put(key, b"")

    def test_check_passes(self, store: Store) -> None:
        store.check()


class TestLocalStore:
    @pytest.fixture
    def local(self, tmp_path: Path) -> LocalStore:
        return LocalStore(str(tmp_path))

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_a_full_disk_is_named_and_harms_nothing(
        self, local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        local.put("key", b"old")

        def full(handle: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", full)
        (tmp_path / "source").write_bytes(b"new")
        for write in (
            lambda: local.put("key", b"new"),
            lambda: local.put_if_absent("other", b"new"),
            lambda: local.put_file("key", tmp_path / "source"),
        ):
            with pytest.raises(DiskFullError, match=r"No space left to write .*(key|other)\. Free some"):
                write()
        assert local.get("key") == b"old"
        assert sorted(os.listdir(tmp_path)) == ["key", "source"]

    def test_what_a_killed_writer_left_is_not_listed(self, local: LocalStore, tmp_path: Path) -> None:
        etag = local.put_if_absent("folder/key", b"1")
        local.put_if_match("folder/key", b"2", etag)
        (tmp_path / "folder" / ".tmp~abc").write_bytes(b"half")
        assert [info.key for info in local.list()] == ["folder/key"]

    def test_delete_prefix_leaves_no_empty_folders(self, local: LocalStore, tmp_path: Path) -> None:
        etag = local.put_if_absent("ckpt/7/deep/file", b"1")
        local.put_if_match("ckpt/7/deep/file", b"2", etag)
        local.put("ckpt/8/file", b"1")
        local.delete_prefix("ckpt/7/")
        assert os.listdir(tmp_path / "ckpt") == ["8"]

    def test_etags_of_large_objects_differ_by_version(self, local: LocalStore) -> None:
        etags = set()
        for _ in range(20):
            local.put("large", bytes(local_store.CONTENT_ETAG_BYTES + 1))
            info = local.head("large")
            assert info is not None
            etags.add(info.etag)
        assert len(etags) == 20

    def test_check_says_why_a_folder_cannot_be_used(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StoreAccessError, match=r"Could not write .*file/below: Not a directory"):
            LocalStore(str(tmp_path / "file" / "below")).check()

    def test_a_failing_share_is_worth_a_retry(self, local: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
        def stale(*args: object, **kwargs: object) -> None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        monkeypatch.setattr(os, "replace", stale)
        with pytest.raises(TransientStoreError, match="key"):
            local.put("key", b"")


Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def fake_s3(answer: Callable[[int, str], Answer]) -> Iterator[StoreConfig]:
    """An HTTP server that gives `answer(number of the request, path)` to whatever it is asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # answers "Expect: 100-continue", for which botocore otherwise waits a second

        def reply(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(self.path)
            status, headers, body = answer(len(asked), self.path)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body)), "Connection": "close"} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = reply

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield s3_config(f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()


def s3_config(endpoint_url: str, timeout_s: float = 1.0) -> StoreConfig:
    return StoreConfig(endpoint_url=endpoint_url, access_key_id="key", secret_access_key="secret", timeout_s=timeout_s)


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
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
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

    def test_the_default_time_out_ends_within_15_s_at_worst(self) -> None:
        longest_back_off_s = sum(2**attempt for attempt in range(ATTEMPTS - 1))
        assert StoreConfig().timeout_s + longest_back_off_s <= 10

    def test_one_that_answered_before_may_come_back(self) -> None:
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
    def test_answers_that_no_retry_changes(self, answer: Answer, error: type[MantaError], words: str) -> None:
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
    def test_answers_that_are_tried_again(self, answer: Answer, error: type[MantaError], words: str) -> None:
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

    def test_a_body_always_cut_short_is_not_data(self) -> None:
        requests = []
        with (
            fake_s3(lambda number, path: requests.append(path) or (200, {"Content-Length": "8"}, b"half")) as config,
            pytest.raises(TransientStoreError, match=r"s3://bucket/key.*did not answer in full"),
        ):
            S3Store("bucket", "", config).get("key")
        assert len(requests) == ATTEMPTS

    def test_missing_credentials_are_told_with_the_remedy(self) -> None:
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


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "parts"),
        [
            ("s3://bucket/a/b", ("s3", "bucket/a/b")),
            ("gs://bucket", ("gs", "bucket")),
            ("file:///data/my%20corpus", ("file", "/data/my corpus")),
            ("/data/100%25/", ("file", "/data/100%25")),
        ],
    )
    def test_split(self, url: str, parts: tuple[str, str]) -> None:
        assert split_url(url) == parts

    def test_relative_paths_become_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert open_store("runs", StoreConfig()).url_of("a/b") == str(tmp_path / "runs" / "a" / "b")

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("hdfs://host/path", "no such storage.*s3://"),
            ("s3:///path", "names no bucket"),
            ("file://host/path", "three slashes"),
            ("", "empty"),
            ("gs://bucket/runs", "gs:// may hold shards, not run state"),
        ],
    )
    def test_refused(self, url: str, words: str) -> None:
        with pytest.raises(InputError, match=words):
            open_store(url, StoreConfig())

    def test_gs_without_its_package_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import pyarrow.fs

        monkeypatch.delattr(pyarrow.fs, "GcsFileSystem", raising=False)
        monkeypatch.setitem(sys.modules, "gcsfs", None)
        shard_file._gs_filesystem.cache_clear()
        with pytest.raises(InputError, match=r"pip install .* '\.\[gs\]'"):
            filesystem_for("gs://bucket/shard", StoreConfig())


class TestShardFile:
    def test_reads_from_any_place(self, tmp_path: Path) -> None:
        (tmp_path / "shard").write_bytes(b"0123456789")
        with ShardFile(str(tmp_path / "shard"), StoreConfig()) as file:
            assert file.seek(-3, os.SEEK_END) == 7
            assert file.read(2) == b"78"
            assert file.seek(-8, os.SEEK_CUR) == 1
            assert (file.read(3), file.tell()) == (b"123", 4)
            assert file.read() == b"456789" and file.read(1) == b""
            file.seek(99)
            assert file.read(1) == b""

    @pytest.mark.parametrize("failures", [1, 2, 3])
    def test_a_dropped_connection_is_resumed_a_few_times(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
    ) -> None:
        from pyarrow import fs

        (tmp_path / "shard").write_bytes(b"0123456789")
        left = [failures]

        class Dropping:
            def open_input_file(self, path: str) -> "Dropping":
                self.file = fs.LocalFileSystem().open_input_file(path)
                return self

            def size(self) -> int:
                return self.file.size()

            def read_at(self, size: int, offset: int) -> bytes:
                if left[0]:
                    left[0] -= 1
                    raise OSError("connection reset")
                return self.file.read_at(size, offset)

            def close(self) -> None:
                self.file.close()

        monkeypatch.setattr(shard_file, "filesystem_for", lambda url, config: (Dropping(), url))
        with ShardFile(str(tmp_path / "shard"), StoreConfig(), retry_delay_s=0.001) as file:
            file.seek(4)
            if failures < ATTEMPTS:
                assert file.read(3) == b"456"
            else:
                with pytest.raises(TransientStoreError, match=r"shard in 3 attempts: connection reset"):
                    file.read(3)
