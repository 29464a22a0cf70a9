"""Files of shards: random reads, reconnection, and the file system of a URL."""

import os
import sys
from pathlib import Path

import pytest

from data.config import StoreConfig
from data.errors import (
    InputError,
    TransientStoreError,
)
from data.stores import shard_file
from data.stores.shard_file import ShardFile, filesystem_for
from data.stores.store import ATTEMPTS


def test_reads_from_any_position(tmp_path: Path) -> None:
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
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


def test_gs_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.fs

    monkeypatch.delattr(pyarrow.fs, "GcsFileSystem", raising=False)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    shard_file._gs_filesystem.cache_clear()
    with pytest.raises(InputError, match=r"pip install .* '\.\[gs\]'"):
        filesystem_for("gs://bucket/shard", StoreConfig())
