"""The table of formats: endings, compressions, and the names a recipe takes."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from pydantic import ValidationError

from data.config import DataConfig, SourceConfig, StoreConfig
from data.errors import InputError
from data.readers.documents import read_documents
from data.readers.formats import FORMATS, Format, RowGroupFormat, StreamFormat, format_of
from data.readers.reading import RawDocument, Reading
from data.readers.unpack import UnpackedStream
from data.shards.build import build_manifest


@pytest.mark.parametrize(
    ("path", "name", "compression"),
    [
        ("a.txt", "txt", None),
        ("a.TXT.GZ", "txt", "gzip"),
        ("a.b.jsonl.zst", "jsonl", "zstd"),
        ("a.tsv", "tsv", None),
        ("s3://b/a.parquet", "parquet", None),
    ],
)
def test_the_ending_decides_format_and_compression(path: str, name: str, compression: str | None) -> None:
    assert format_of(path, "auto") == (FORMATS[name], compression)


@pytest.mark.parametrize("name", FORMATS)
def test_a_configured_format_overrides_the_ending(name: str) -> None:
    assert format_of("a.unknown", name) == (FORMATS[name], None)


def test_every_ending_belongs_to_one_format() -> None:
    endings = [ending for row in FORMATS.values() for ending in row.endings]
    assert len(endings) == len(set(endings))


def test_an_unknown_ending_is_refused() -> None:
    with pytest.raises(InputError, match=r"'\.bin' does not tell the format"):
        format_of("a.bin", "auto")


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if isinstance(row, RowGroupFormat)])
def test_a_compressed_file_with_row_groups_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} file cannot be read inside a gzip file"):
        format_of(f"a{FORMATS[name].endings[0]}.gz", "auto")


@pytest.mark.parametrize("name", ["auto", *FORMATS])
def test_a_recipe_takes_every_format(name: str) -> None:
    assert SourceConfig(path="a", format=name).format == name


def test_a_recipe_refuses_other_formats_and_lists_those_there_are() -> None:
    with pytest.raises(ValidationError, match="'auto', 'txt', 'jsonl', 'csv', 'tsv' or 'parquet'"):
        SourceConfig(path="a", format="xml")


def test_a_row_in_the_table_is_all_that_a_new_format_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_upper(stream: UnpackedStream, reading: Reading) -> Iterator[RawDocument]:
        return ((location, (line.strip().upper(),)) for location, line in stream.lines(reading.limit, "Split it."))

    monkeypatch.setitem(cast(dict[str, Format], FORMATS), "upper", StreamFormat((".upper",), read_upper))
    (tmp_path / "a.upper").write_text("one\ntwo\n")
    (tmp_path / "b.upper.gz").write_bytes(gzip.compress(b"three\n"))
    data = DataConfig(sources=(SourceConfig(path=str(tmp_path)),))
    manifest = build_manifest(data.sources, StoreConfig())
    units = [manifest.unit(ordinal) for ordinal in range(manifest.num_units)]
    texts = [[each.text for each in read_documents(unit, data.sources[0], data, StoreConfig())] for unit in units]
    assert texts == [["ONE", "TWO"], ["THREE"]]
