"""The contract of a store, for a folder and for S3; and URLs of stores."""

import os
import pickle
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data.config import StoreConfig
from data.errors import (
    ConflictError,
    InputError,
    ObjectNotFoundError,
)
from data.stores import local as local_store
from data.stores import s3 as s3_store
from data.stores.open import open_store
from data.stores.s3 import S3Store
from data.stores.shard_file import filesystem_for
from data.stores.store import Store, split_url


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "store"), StoreConfig())
    config = request.getfixturevalue("s3_store_config")
    return open_store(f"s3://{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}", config)


def begin_write(store: Store, key: str) -> None:
    """Leaves of a write what a killed process does."""
    if isinstance(store, S3Store):
        name = {"Bucket": store.bucket, "Key": f"{store.prefix}/{key}"}
        upload = store._s3.create_multipart_upload(**name)["UploadId"]
        store._s3.upload_part(**name, UploadId=upload, PartNumber=1, Body=b"half")
    else:
        with pytest.raises(KeyboardInterrupt), local_store._temporary(store.url_of(key), b"half") as path:
            os.link(path, f"{path}-of-the-dead")
            raise KeyboardInterrupt


class TestEveryStore:
    @pytest.mark.parametrize("data", [b"", b"one", bytes(range(256)) * 1000], ids=["empty", "short", "long"])
    def test_get_returns_what_was_put(self, store: Store, data: bytes) -> None:
        store.put("folder/key", data)
        assert store.get("folder/key") == data
        info = store.head("folder/key")
        assert info is not None and (info.key, info.size) == ("folder/key", len(data))

    def test_an_object_is_read_at_any_position(self, store: Store) -> None:
        store.put("folder/key", b"0123456789")
        with store.open("folder/key") as file:
            assert (file.seek(-3, os.SEEK_END), file.read(2)) == (7, b"78")
            assert (file.seek(1), file.read()) == (1, b"123456789")
        with pytest.raises(ObjectNotFoundError, match="other is gone"):
            store.open("other")

    def test_put_replaces_and_changes_the_etag(self, store: Store) -> None:
        store.put("key", b"old")
        old = store.head("key")
        store.put("key", b"new")
        new = store.head("key")
        assert store.get("key") == b"new"
        assert old is not None and new is not None and old.size == new.size and old.etag != new.etag

    def test_a_missing_object_is_not_found(self, store: Store) -> None:
        store.put("folder/key", b"")
        for key in ("other", "folder", "folder/key/below"):
            assert store.head(key) is None
            with pytest.raises(ObjectNotFoundError, match=rf"no .*{key}|{key}.*no such"):
                store.get(key)

    def test_the_age_of_an_object_is_by_the_clock_of_the_store(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 3600)  # the clock of this machine
        assert store.age_s("fence") is None
        store.put("fence", b"first")
        while not (age_s := store.age_s("fence")):
            continue
        assert 0 < age_s < 3600

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

    def test_writes_that_were_interrupted_are_listed_and_removed(self, store: Store) -> None:
        store.put("run/a/whole", b"x")
        for key in ("run/a/half", "run/b/half", "run-2/half"):
            begin_write(store, key)
        listed = {key.rpartition("/")[0] for key in store.unfinished()}
        assert listed == {"run/a", "run/b", "run-2"} and len(store.unfinished("run/a/")) == 1
        assert [info.key for info in store.list()] == ["run/a/whole"]
        store.delete_unfinished("run/a")
        assert {key.rpartition("/")[0] for key in store.unfinished()} == {"run/b", "run-2"}
        assert [info.key for info in store.list()] == ["run/a/whole"]
        assert store.delete_prefix("run/") == 1
        assert [key.rpartition("/")[0] for key in store.unfinished()] == ["run-2"]
        assert list(store.list()) == []

    def test_put_file(self, store: Store, tmp_path: Path) -> None:
        content = os.urandom(1 << 20) * 20  # on S3, more than one part
        (tmp_path / "file").write_bytes(content)
        store.put_file("deep/file", tmp_path / "file")
        assert store.get("deep/file") == content
        with pytest.raises((InputError, ObjectNotFoundError), match="missing"):
            store.put_file("deep/file", tmp_path / "missing")
        store.get_file("deep/file", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content
        with pytest.raises(ObjectNotFoundError):
            store.get_file("deep/missing", tmp_path / "back")
        with pytest.raises((InputError, ObjectNotFoundError), match="no-such-folder"):
            store.get_file("deep/file", tmp_path / "no-such-folder/file")

    def test_child_and_url_name_the_same_objects(self, store: Store, request: pytest.FixtureRequest) -> None:
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
    def test_keys_outside_the_prefix_are_refused(self, store: Store, key: str) -> None:
        with pytest.raises(InputError, match="is not a valid key"):
            store.put(key, b"")

    def test_check_passes(self, store: Store) -> None:
        store.check()


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
