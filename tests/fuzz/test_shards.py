"""Shards as downloads and disks leave them: documents that were in them, or the shard's name; never a traceback."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data.config import DataConfig, SourceConfig, StoreConfig
from data.errors import MantaError
from data.readers.documents import read_documents
from data.shards.build import build_manifest
from tests.fuzz.mutations import DRAWN, damaged, within_bounds

pytestmark = pytest.mark.slow

TEXTS = [f"document {number}: " + "words and more words, é 漢字 " * 20 for number in range(30)]


def _csv(delimiter: str) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["text", "other"])
    writer.writerows([text, "x"] for text in TEXTS)
    return out.getvalue().encode()


def _parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), out, row_group_size=10, write_page_checksum=True)
    return out.getvalue()


SHARDS: dict[str, bytes] = {
    "a.txt": "\n".join(TEXTS).encode(),
    "a.jsonl": b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS),
    "a.csv": _csv(","),
    "a.tsv": _csv("\t"),
    "a.parquet": _parquet(),
}
PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a.jsonl.gz": ("a.jsonl", gzip.compress),
    "a.jsonl.zst": ("a.jsonl", zstandard.ZstdCompressor(write_checksum=True).compress),
    "a.csv.gz": ("a.csv", gzip.compress),
}
SHARDS |= {name: pack(SHARDS[plain]) for name, (plain, pack) in PACKED.items()}

CHECKED = ("a.parquet", *PACKED)
"""Files with checksums: what is read of them is what was written."""


def documents(path: Path) -> list[str] | None:
    """The texts of a shard; None if it is refused by name."""
    source = SourceConfig(path=str(path), document="line")
    data = DataConfig(sources=(source,))
    try:
        manifest = build_manifest(data.sources, StoreConfig())
        units = [manifest.unit(ordinal) for ordinal in range(manifest.num_units)]
        return [each.text for unit in units for each in read_documents(unit, source, data, StoreConfig())]
    except MantaError as error:
        assert path.name in str(error) and len(str(error)) < 5000
        return None


@pytest.mark.parametrize("name", SHARDS)
@DRAWN
@given(data=st.data())
def test_a_damaged_shard(name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("fuzz") / name
    content = data.draw(damaged(SHARDS[name]))
    path.write_bytes(content)
    with within_bounds():
        found = documents(path)
    is_repeated = content.replace(SHARDS[name], b"") == b""  # a file of several members is sound
    if found is not None and name in CHECKED and not is_repeated:
        assert found == TEXTS


@pytest.mark.parametrize("name", SHARDS)
@DRAWN
@given(content=st.binary(max_size=200))
def test_anything_under_the_name_of_a_shard(
    name: str, tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(content)
    with within_bounds():
        documents(path)


@pytest.mark.parametrize("name", SHARDS)
def test_the_sound_shards_are_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(SHARDS[name])
    assert documents(tmp_path / name) == TEXTS
