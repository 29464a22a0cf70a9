"""Preparation finds what an earlier one stored, and never uses what is damaged: one byte changed anywhere is found."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.cleaning import units
from data.config import DataConfig, StoreConfig
from data.errors import DamagedObjectError
from data.prepare import prepare_data
from data.prepared import Pins, PreparedData
from data.stores.local import LocalStore
from data.tokens.unit import load_or_tokenize

CHANGES = 8
"""Bytes changed of each object, one at a time."""

WORDS = ("river", "stone", "cloud", "harbour", "lantern", "meadow")


class Corpus(NamedTuple):
    """Two shards, and a storage beside them."""

    shards: Path
    storage: Path

    def prepare(self, pins: Pins, **fields: Any) -> tuple[PreparedData, list[str]]:
        """The prepared data, and the lines that were printed."""
        units._loaded.clear()  # as in another process
        lines: list[str] = []
        sources = [{"path": str(self.shards)}]
        data = DataConfig.model_validate(
            {
                "sources": sources,
                "tokenizer": {"vocab_size": 300},
                "seq_len": 16,
                "cleaning": [{"step": "dedup"}],
                **fields,
            }
        )
        store = LocalStore(str(self.storage))
        found = prepare_data(data, StoreConfig(), store, pins, lines.append, lambda *_: None, no_ray)
        return found, lines

    def objects(self) -> dict[str, bytes]:
        """Content by key."""
        paths = (path for path in self.storage.rglob("*") if path.is_file())
        return {str(path.relative_to(self.storage)): path.read_bytes() for path in paths}


def no_ray() -> None:
    raise AssertionError("so little is prepared without Ray")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    (tmp_path / "shards").mkdir()
    draw = random.Random(1)
    for name in ("a.jsonl", "b.jsonl"):
        texts = [" ".join(draw.choices(WORDS, k=12)) for _ in range(30)]
        texts += texts[:5]
        (tmp_path / "shards" / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Corpus(tmp_path / "shards", tmp_path / "storage")


def pins_of(data: PreparedData) -> Pins:
    return Pins(**data.digests)


def result_of(data: PreparedData) -> tuple[Any, ...]:
    """What training depends on."""
    manifest = data.manifest
    pieces = [manifest.unit(ordinal) for ordinal in range(manifest.num_units)]
    return data.digests, data.counts().tolist(), data.tokenizer.to_bytes(), pieces, manifest.source_paths


@pytest.mark.parametrize("is_pinned", [True, False])
def test_a_changed_byte_of_any_object_changes_nothing(corpus: Corpus, is_pinned: bool) -> None:
    data, _ = corpus.prepare(Pins())
    pins, expected, whole = pins_of(data) if is_pinned else Pins(), result_of(data), corpus.objects()
    assert {key.partition("/")[0] for key in whole} == {
        "manifests",
        "tokenizers",
        "unit-tables",
        "tokens",
        "duplicates",
        "fingerprints",
    }
    draw = random.Random(7)
    for key, content in whole.items():
        for place in sorted({0, len(content) - 1, *draw.choices(range(len(content)), k=CHANGES)}):
            damaged = bytearray(content)
            damaged[place] ^= 1 << draw.randrange(8)
            (corpus.storage / key).write_bytes(damaged)
            found, _ = corpus.prepare(pins)
            assert result_of(found) == expected, (key, place)
            (corpus.storage / key).write_bytes(content)


@pytest.mark.parametrize("is_removed", [True, False])
@pytest.mark.parametrize(
    ("kind", "told"),
    [("manifests", "manifest: "), ("tokenizers", "tokenizer: "), ("duplicates", "duplicates: ")],
)
def test_what_a_run_is_pinned_to_is_made_again_with_a_line(
    corpus: Corpus, kind: str, told: str, is_removed: bool
) -> None:
    data, _ = corpus.prepare(Pins())
    [key] = [key for key in corpus.objects() if re.fullmatch(rf"{kind}/[0-9a-f]+\.\w+", key)]
    content = (corpus.storage / key).read_bytes()
    (corpus.storage / key).unlink()
    if not is_removed:
        (corpus.storage / key).write_bytes(content[: len(content) // 2])
    found, lines = corpus.prepare(pins_of(data))
    assert result_of(found) == result_of(data)
    [line] = [line for line in lines if "Making it again" in line]
    assert line.startswith(told) and str(corpus.storage / key) in line
    assert ("missing" if is_removed else "damaged") in line
    assert (corpus.storage / key).read_bytes() == content


@pytest.mark.parametrize("kind", ["manifests", "tokenizers"])
def test_what_cannot_be_made_again_is_named_with_its_remedy(corpus: Corpus, kind: str) -> None:
    data, _ = corpus.prepare(Pins())
    [key] = [key for key in corpus.objects() if re.fullmatch(rf"{kind}/[0-9a-f]+\.\w+", key)]
    (corpus.storage / key).write_bytes(b"{}")
    if kind == "manifests":
        (corpus.shards / "a.jsonl").write_text('{"text": "other words"}\n' * 40)
        fields = {}
    else:
        (corpus.shards.parent / "other.json").write_bytes(
            (corpus.storage / next(key for key in corpus.objects() if key.startswith("tokenizers/"))).read_bytes()
        )
        fields = {"tokenizer": {"kind": "bytes"}}
    with pytest.raises(DamagedObjectError, match="cannot be made again") as raised:
        corpus.prepare(pins_of(data), **fields)
    assert str(corpus.storage / key) in str(raised.value)
    assert "start a new run" in str(raised.value)
    assert (corpus.storage / key).read_bytes() == b"{}", "nothing is overwritten"


def test_another_vocabulary_under_the_pinned_name_is_not_used(corpus: Corpus) -> None:
    data, _ = corpus.prepare(Pins())
    [key] = [key for key in corpus.objects() if re.fullmatch(r"tokenizers/[0-9a-f]+\.json", key)]
    content = json.loads((corpus.storage / key).read_bytes())
    one, two = (content["tokens"].index(letter.encode().hex()) for letter in "aE")
    content["tokens"][one], content["tokens"][two] = content["tokens"][two], content["tokens"][one]
    (corpus.storage / key).write_text(json.dumps(content))
    found, _ = corpus.prepare(pins_of(data))
    assert found.tokenizer.decode(found.tokenizer.encode("hello")) == "hello"
    assert result_of(found) == result_of(data)


def test_a_sound_object_of_other_data_changes_nothing(corpus: Corpus) -> None:
    """Each kind has objects of the two shards, or of the two recipes; every one is put in the place of the other."""
    others: dict[str, Any] = {"tokenizer": {"vocab_size": 280}, "cleaning": [{"step": "lowercase"}, {"step": "dedup"}]}
    data, _ = corpus.prepare(Pins())
    corpus.prepare(Pins(), **others)
    expected, whole = (result_of(data), tokens_of(data)), corpus.objects()
    swapped = set()
    for key, other in itertools.permutations(whole, 2):
        if (kind := kind_of(key)) == kind_of(other) and whole[key] != whole[other]:
            (corpus.storage / key).write_bytes(whole[other])
            found, _ = corpus.prepare(Pins())
            assert (result_of(found), tokens_of(found)) == expected, (key, other)
            (corpus.storage / key).write_bytes(whole[key])
            swapped.add(kind)
    assert swapped >= {"tokenizers", "tokenizers/for", "unit-tables", "tokens", "duplicates/for", "fingerprints"}


def test_a_table_of_version_0_2_0_is_used_if_it_is_that_of_the_units(corpus: Corpus) -> None:
    data, _ = corpus.prepare(Pins())
    [key] = corpus.storage.glob("unit-tables/*")
    key.unlink()
    other, _ = corpus.prepare(Pins(), tokenizer={"vocab_size": 280})
    for table, is_found in ((data.unit_table, True), (other.unit_table, False), (data.unit_table.slice(1), False)):
        pq.write_table(table, key.with_suffix(".parquet"))
        key.unlink(missing_ok=True)
        found, lines = corpus.prepare(Pins())
        assert result_of(found) == result_of(data)
        assert any("is damaged, and is made again" in line for line in lines) is not is_found


def kind_of(key: str) -> str:
    """The folder of the storage in which an object is, without parts that are digests."""
    return re.sub(r"(/[0-9a-f]{2})?/[0-9a-f]{64}.*", "", key)


def tokens_of(data: PreparedData) -> list[bytes]:
    """The training tokens of every unit, as training reads them."""
    units_ = map(data.manifest.unit, range(data.manifest.num_units))
    return [load_or_tokenize(unit, data.job)["train"][0].as_py() for unit in units_]


def test_a_second_preparation_finds_everything(corpus: Corpus) -> None:
    data, _ = corpus.prepare(Pins())
    before = corpus.objects()
    again, lines = corpus.prepare(pins_of(data))
    assert result_of(again) == result_of(data) and corpus.objects() == before
    assert not [line for line in lines if "again" in line]
    assert np.array_equal(again.counts(), data.counts())
