"""A folder as a store: failures of the disk, temporary files and etags."""

import errno
import os
import threading
from pathlib import Path

import pytest

from data.errors import (
    ConflictError,
    DiskFullError,
    StoreAccessError,
    TransientStoreError,
)
from data.stores import local as local_store
from data.stores.local import LocalStore


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_harms_nothing(
    local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
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


def test_temporary_files_of_a_killed_writer_are_not_listed(local: LocalStore, tmp_path: Path) -> None:
    etag = local.put_if_absent("folder/key", b"1")
    local.put_if_match("folder/key", b"2", etag)
    (tmp_path / "folder" / ".tmp~abc").write_bytes(b"half")
    assert [info.key for info in local.list()] == ["folder/key"]


def test_delete_prefix_leaves_no_empty_folders(local: LocalStore, tmp_path: Path) -> None:
    etag = local.put_if_absent("ckpt/7/deep/file", b"1")
    local.put_if_match("ckpt/7/deep/file", b"2", etag)
    local.put("ckpt/8/file", b"1")
    local.delete_prefix("ckpt/7/")
    assert os.listdir(tmp_path / "ckpt") == ["8"]


def test_etags_of_large_objects_differ_by_version(local: LocalStore) -> None:
    etags = set()
    for _ in range(20):
        local.put("large", bytes(local_store.CONTENT_ETAG_BYTES + 1))
        info = local.head("large")
        assert info is not None
        etags.add(info.etag)
    assert len(etags) == 20


def test_check_says_why_a_folder_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreAccessError, match=r"Could not write .*file/below: Not a directory"):
        LocalStore(str(tmp_path / "file" / "below")).check()


def test_a_failing_share_is_worth_a_retry(local: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "replace", stale)
    with pytest.raises(TransientStoreError, match="key"):
        local.put("key", b"")


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_hard_links_will_do(
    local: LocalStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_links(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)
    written, lost = [], []

    def claim(number: int) -> None:
        try:
            local.put_if_absent("fence", str(number).encode())
            written.append(number)
        except ConflictError:
            lost.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1 and len(lost) == 7 and local.get("fence") == str(written[0]).encode()


def test_a_file_system_without_locks_is_refused_before_anything_rests_on_it(
    local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(StoreAccessError, match=r"The file system of .* has no locks .* or a bucket"):
        local.check()
    assert list(tmp_path.iterdir()) == []


def test_modes_that_a_share_does_not_keep_are_no_error(local: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", refused)
    local.put("key", b"content")
    assert local.get("key") == b"content"


def test_a_pipe_in_place_of_an_object_is_refused(tmp_path: Path) -> None:
    """Nobody writes into it, so a reader would wait for ever."""
    store = LocalStore(str(tmp_path))
    os.mkfifo(tmp_path / "run.json")
    for read in (store.get, store.head, store.age_s):
        with pytest.raises(StoreAccessError, match=r"run\.json is not a file but a pipe"):
            read("run.json")
    (tmp_path / "folder").mkdir()
    assert store.head("folder") is None
