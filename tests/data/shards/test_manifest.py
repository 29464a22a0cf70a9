"""The manifest: what a path names, what is refused, how units are numbered, and which shards count as changed."""

import errno
import gzip
import hashlib
import os
import struct
import uuid
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.config import SourceConfig, StoreConfig
from data.errors import InputError, ShardChangedError, StoreAccessError
from data.shards.build import build_manifest
from data.shards.listing import check_unchanged, list_shards, stat_shard
from data.shards.manifest import Manifest
from data.stores.open import open_store
from data.stores.s3 import S3Store
from data.stores.store import Store

STORE = StoreConfig()


def source(path: object, **options: object) -> SourceConfig:
    return SourceConfig.model_validate({"path": str(path), **options})


def write(folder: Path, *names: str, content: bytes = b"text") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def write_parquet(path: Path, row_groups: int, column: str = "text", rows: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({column: [f"row {i}" for i in range(row_groups * rows)], "id": range(row_groups * rows)})
    pq.write_table(table, path, row_group_size=rows)


def made_up(rows: Sequence[tuple[int, str, int, str, int, bool]]) -> Manifest:
    names = ["source", "path", "size", "etag", "units", "parquet"]
    types = [pa.int32(), pa.string(), pa.int64(), pa.string(), pa.int32(), pa.bool_()]
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)]
    return Manifest(pa.table(columns, names=names), ["/a", "/b"])


class TestWhatAPathNames:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        names = ["part-1.txt", "part-2.txt", "deep/er/part-3.txt", "partial/x.txt", "part_4.jsonl", "z/part-5.txt"]
        hidden = [".hidden.txt", "_SUCCESS", "_temporary/0/part-9.txt", ".git/part-8.txt", "deep/_metadata"]
        write(tmp_path / "data", *names, *hidden)
        return tmp_path / "data"

    @pytest.mark.parametrize(
        ("path", "found"),
        [
            ("", ["deep/er/part-3.txt", "part-1.txt", "part-2.txt", "part_4.jsonl", "partial/x.txt", "z/part-5.txt"]),
            ("/", ["deep/er/part-3.txt", "part-1.txt", "part-2.txt", "part_4.jsonl", "partial/x.txt", "z/part-5.txt"]),
            ("/part-1.txt", ["part-1.txt"]),
            ("/part", ["part-1.txt", "part-2.txt", "part_4.jsonl", "partial/x.txt"]),
            ("/partial", ["partial/x.txt"]),
            ("/*.txt", ["part-1.txt", "part-2.txt"]),
            ("/part-?.txt", ["part-1.txt", "part-2.txt"]),
            ("/*/part-*.txt", ["z/part-5.txt"]),
            ("/*/*/*.txt", ["deep/er/part-3.txt"]),
            ("/part*", ["part-1.txt", "part-2.txt", "part_4.jsonl", "partial/x.txt"]),
            ("/de*", ["deep/er/part-3.txt"]),
            ("/_temporary", ["_temporary/0/part-9.txt"]),
            ("/_SUCCESS", ["_SUCCESS"]),
            ("/_temp", ["_temporary/0/part-9.txt"]),
            ("/nothing", []),
            ("/nothing/*.txt", []),
        ],
    )
    def test_files_folders_prefixes_and_patterns(self, folder: Path, path: str, found: list[str]) -> None:
        expected = [str(folder / name) for name in found]
        assert [shard.path for shard in list_shards(f"{folder}{path}", STORE)] == expected
        assert [shard.path for shard in list_shards(f"file://{folder}{path}", STORE)] == expected

    @pytest.mark.s3
    def test_s3_gives_the_same(self, folder: Path, s3_store_config: StoreConfig, s3_bucket: str) -> None:
        store = open_store(f"s3://{s3_bucket}/{uuid.uuid4().hex}", s3_store_config)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                store.put_file(str(path.relative_to(folder)), path)
        for mark in self.test_files_folders_prefixes_and_patterns.pytestmark:
            for path, found in mark.args[1]:
                shards = list_shards(store.url_of() + path, s3_store_config)
                assert [shard.path for shard in shards] == [store.url_of(name) for name in found], path

    def test_links_are_followed_once(self, folder: Path, tmp_path: Path) -> None:
        write(tmp_path / "elsewhere", "linked.txt")
        os.symlink(tmp_path / "elsewhere", folder / "z" / "link")
        os.symlink(tmp_path / "elsewhere", tmp_path / "elsewhere" / "loop")
        found = [shard.path for shard in list_shards(str(folder / "z"), STORE)]
        assert found == [str(folder / "z" / "link" / "linked.txt"), str(folder / "z" / "part-5.txt")]

    @pytest.mark.parametrize(("name", "is_refused"), [("sub", True), (".git", False), ("lost+found", False)])
    def test_a_folder_that_cannot_be_read_is_not_empty(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_refused: bool
    ) -> None:
        scandir = os.scandir

        def scan(path: str) -> object:
            if str(path) == str(folder / name):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return scandir(path)

        (folder / name).mkdir(exist_ok=True)
        found = list_shards(str(folder), StoreConfig())
        monkeypatch.setattr(os, "scandir", scan)  # rights do not hold for root, as whom tests may run
        if is_refused:
            with pytest.raises(StoreAccessError, match="Permission denied"):
                list_shards(str(folder), StoreConfig())
        else:
            assert list_shards(str(folder), StoreConfig()) == found

    def test_what_cannot_be_read_by_its_name_is_not_left_out(self, tmp_path: Path) -> None:
        write(tmp_path / "c", "a.txt")
        (tmp_path / "c" / "gone.txt").symlink_to("nowhere")
        (tmp_path / "c" / ".#a.txt").symlink_to("user@host:1")  # the lock of an editor
        (tmp_path / "c" / os.fsdecode(b"b\xff.txt")).write_text("some text")
        with pytest.raises(InputError) as raised:
            build_manifest([source(str(tmp_path / "c"))], STORE)
        broken, name = str(raised.value).splitlines()[-2:]
        assert broken.endswith(f"1 broken link: {tmp_path}/c/gone.txt. Restore what it leads to, or remove it.")
        assert name.endswith("b\udcff.txt: the name is not UTF-8. Rename it.")

    def test_a_relative_path_is_pinned_as_absolute(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        manifest = build_manifest([source("partial")], STORE)
        monkeypatch.chdir("/")
        assert manifest.unit(0).path == str(folder / "partial" / "x.txt")
        assert check_unchanged(manifest, STORE) == 0


class TestBuilding:
    def test_units_are_files_and_row_groups_by_source_and_path(self, tmp_path: Path) -> None:
        write(tmp_path / "a", "2.txt", "1.jsonl")
        write(tmp_path / "a", "3.csv.gz", content=gzip.compress(b"text\nx\n"))
        write_parquet(tmp_path / "b" / "y.parquet", 3)
        write_parquet(tmp_path / "b" / "x.parquet", 2)
        write(tmp_path / "b", "z.txt")
        manifest = build_manifest([source(tmp_path / "b"), source(tmp_path / "a")], STORE)
        units = [manifest.unit(i) for i in range(manifest.num_units)]
        assert [(u.ordinal, u.source, Path(u.path).name, u.row_group) for u in units] == [
            (0, 0, "x.parquet", 0),
            (1, 0, "x.parquet", 1),
            (2, 0, "y.parquet", 0),
            (3, 0, "y.parquet", 1),
            (4, 0, "y.parquet", 2),
            (5, 0, "z.txt", None),
            (6, 1, "1.jsonl", None),
            (7, 1, "2.txt", None),
            (8, 1, "3.csv.gz", None),
        ]
        assert [u.shard for u in units] == [0, 0, 1, 1, 1, 2, 3, 4, 5]
        assert manifest.units_of_source(0) == range(6) and manifest.units_of_source(1) == range(6, 9)
        assert manifest.num_shards == 6
        assert manifest.total_bytes == sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
        for u in units:
            assert u.size == os.path.getsize(u.path)
            assert u.unit_bytes * sum(v.path == u.path for v in units) >= u.size
        for ordinal in (-1, 9):
            with pytest.raises(IndexError, match=f"unit {ordinal} of a manifest with 9"):
                manifest.unit(ordinal)

    def test_the_same_shards_give_the_same_digest(self, tmp_path: Path) -> None:
        write(tmp_path, "a.txt", "b.txt")
        digests = {build_manifest([source(tmp_path)], STORE).digest for _ in range(2)}
        write(tmp_path, "b.txt", content=b"longer")
        assert len(digests) == 1
        assert build_manifest([source(tmp_path)], STORE).digest not in digests

    def test_progress_counts_to_the_end(self, tmp_path: Path) -> None:
        write(tmp_path, "a.txt", "b.txt", "c.txt")
        seen: list[tuple[int, int]] = []
        build_manifest([source(tmp_path)], STORE, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(1, 3), (2, 3), (3, 3)]

    def test_an_explicit_format_overrules_the_ending(self, tmp_path: Path) -> None:
        write(tmp_path, "README", "notes.md", "data.jsonl")
        assert build_manifest([source(tmp_path, format="txt")], STORE).num_units == 3


class TestRefusing:
    def test_every_problem_of_every_source_at_once(self, tmp_path: Path) -> None:
        write(tmp_path / "empty", *[f"{i:02}.txt" for i in range(12)], content=b"")
        write(tmp_path / "odd", "a.docx", "b.docx", "c.parquet.gz", "fine.txt")
        write(tmp_path / "broken", "not.jsonl.gz", "not.txt.zst", content=b"plain text")
        write_parquet(tmp_path / "broken" / "cut.parquet", 2)
        whole = (tmp_path / "broken" / "cut.parquet").read_bytes()
        write(tmp_path / "broken", "cut.parquet", content=whole[:-30])
        write_parquet(tmp_path / "column" / "x.parquet", 1, column="txt")
        names = ["empty", "odd", "broken", "column", "missing"]
        with pytest.raises(InputError) as raised:
            build_manifest([source(tmp_path / name) for name in names], STORE)
        message = str(raised.value)
        lines = {f"sources[{i}]": [] for i in range(5)}
        for line in message.splitlines()[1:]:
            lines[line.removeprefix("- ").partition(":")[0]].append(line)
        (empty,) = lines["sources[0]"]
        assert "12 empty shards" in empty and "and 2 more" in empty and "09.txt" in empty and "10.txt" not in empty
        assert any(
            "2 shards" in x and "a.docx" in x and "'.docx' does not tell the format. Set format" in x
            for x in lines["sources[1]"]
        )
        assert any("c.parquet.gz" in x and "Unpack it" in x for x in lines["sources[1]"])
        (broken,) = lines["sources[2]"]
        assert (
            "3 damaged shards" in broken
            and "not.jsonl.gz is not gzip" in broken
            and "not.txt.zst is not zstd" in broken
        )
        assert "cut.parquet is truncated or no Parquet" in broken
        (column,) = lines["sources[3]"]
        assert "no column 'text'. There are: txt, id. Nearest: 'txt'." in column and "Set text_column" in column
        (missing,) = lines["sources[4]"]
        assert f"nothing found under {tmp_path / 'missing'}" in missing

    def test_numbers_in_the_text_column(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "x.parquet", 1)
        with pytest.raises(InputError, match="has int64 in column 'id', not strings"):
            build_manifest([source(tmp_path, text_column="id")], STORE)

    def test_a_storage_that_cannot_be_reached_is_one_of_the_problems(self, tmp_path: Path) -> None:
        nowhere = StoreConfig(
            endpoint_url="http://127.0.0.1:1", access_key_id="k", secret_access_key="s", timeout_s=0.5
        )
        with pytest.raises(InputError, match=r"(?s)sources\[0\]: nothing found.*sources\[1\]: .*no connection to http"):
            build_manifest([source(tmp_path), source("s3://bucket/data")], nowhere)


class TestAsBytes:
    rows = (
        (0, "/a/ä", 10, "e1", 1, False),
        (0, "/a/empty", 5, "e2", 0, True),
        (1, "s3://b/c", 1 << 40, "", 3, True),
    )

    def test_round_trip(self) -> None:
        manifest = made_up(self.rows)
        again = Manifest.from_bytes(manifest.to_bytes())
        assert again.digest == manifest.digest and again.source_paths == ("/a", "/b")
        assert [again.unit(i) for i in range(4)] == [manifest.unit(i) for i in range(4)]
        assert [(u.path, u.row_group) for u in map(again.unit, range(4))] == [
            ("/a/ä", None),
            ("s3://b/c", 0),
            ("s3://b/c", 1),
            ("s3://b/c", 2),
        ]
        assert again.units_of_source(0) == range(1) and again.units_of_source(1) == range(1, 4)
        assert again.units_of_source(2) == range(0)

    def test_the_digest_is_the_documented_one(self) -> None:
        expected = b"manta manifest 1\n"
        for column in zip(*self.rows, strict=True):
            if isinstance(column[0], str):
                encoded = [value.encode() for value in column]
                expected += struct.pack("<3q", *map(len, encoded)) + b"".join(encoded)
            else:
                expected += struct.pack("<3q", *map(int, column))
        assert made_up(self.rows).digest == hashlib.sha256(expected).hexdigest()

    @pytest.mark.parametrize("data", [b"", b"PAR1 no manifest PAR1"], ids=["nothing", "no parquet"])
    def test_something_else_is_refused(self, data: bytes) -> None:
        with pytest.raises(InputError, match="not a manifest"):
            Manifest.from_bytes(data)

    def test_another_parquet_file_is_refused(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "x.parquet", 1)
        with pytest.raises(InputError, match="not a manifest"):
            Manifest.from_bytes((tmp_path / "x.parquet").read_bytes())

    def test_a_hundred_thousand_shards_are_small(self) -> None:
        rows = [
            (i // 50_000, f"s3://bucket/corpus/part-{i:09}.parquet", i, f"{i:032x}", 2, True) for i in range(100_000)
        ]
        data = made_up(rows).to_bytes()
        before = pa.total_allocated_bytes()
        manifest = Manifest.from_bytes(data)
        assert pa.total_allocated_bytes() - before < 40e6
        assert (manifest.num_units, manifest.unit(123_457).path) == (200_000, rows[61_728][1])


class TestChanges:
    @pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, StoreConfig]:
        if request.param == "local":
            return open_store(str(tmp_path), STORE), STORE
        config = request.getfixturevalue("s3_store_config")
        return open_store(f"s3://{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}", config), config

    def test_changed_missing_and_new_shards(
        self, place: tuple[Store, StoreConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, config = place
        for i in range(5):
            store.put(f"x/{i}.txt", b"some text")
        store.put("y/0.txt", b"other text")
        manifest = build_manifest([source(store.url_of("x")), source(store.url_of("y"))], config)

        def one_by_one(self: object, key: str) -> None:
            raise AssertionError("a HEAD for every shard takes minutes for a large dataset")

        monkeypatch.setattr(S3Store, "head", one_by_one)
        assert check_unchanged(manifest, config) == 0
        store.put("x/new.txt", b"new")
        store.put("y/new.txt", b"new")
        assert check_unchanged(manifest, config) == 2
        store.put("x/1.txt", b"SOME TEXT")
        store.delete("x/3.txt")
        with pytest.raises(ShardChangedError) as raised:
            check_unchanged(manifest, config)
        message = str(raised.value)
        assert "2 changed or missing shards" in message and "x/3.txt is missing" in message
        pinned = manifest.shard(1)
        assert f"{pinned.path} is now 9 bytes" in message and f"etag {pinned.etag}" in message
        assert "x/0.txt" not in message and "new.txt" not in message and "start a new run" in message

    def test_at_most_ten_are_named(self, tmp_path: Path) -> None:
        write(tmp_path, *[f"{i:02}.txt" for i in range(15)])
        manifest = build_manifest([source(tmp_path)], STORE)
        for i in range(14):
            (tmp_path / f"{i:02}.txt").unlink()
        with pytest.raises(ShardChangedError, match=r"14 changed or missing shards.*09\.txt is missing; and 4 more"):
            check_unchanged(manifest, STORE)

    def test_one_shard_is_described_as_in_a_listing(self, place: tuple[Store, StoreConfig]) -> None:
        store, config = place
        store.put("x/0.txt", b"some text")
        url = store.url_of("x/0.txt")
        assert [stat_shard(url, config)] == list_shards(url, config)
        assert stat_shard(url + "x", config) is None
