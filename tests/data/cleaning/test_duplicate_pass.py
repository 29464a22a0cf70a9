"""Cleaning a data set: duplicates against brute force, cache keys, reports and pins; once in Ray Data."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data.ray_data
from data.cleaning.clean import cleaner
from data.cleaning.config import Step
from data.cleaning.duplicate_pass import FingerprintJob, decide, fingerprints_of, load_or_fingerprint, up_to_last_dedup
from data.cleaning.identity import identity
from data.cleaning.units import FOLDER, Cleaning, load_removed, store_removed
from data.config import DataConfig, StoreConfig
from data.errors import BadShardError, CleaningError, InputError
from data.prepare import prepare_data
from data.prepared import Pins, PreparedData
from data.readers.documents import is_held_out
from data.shards.build import build_manifest
from data.shards.manifest import Manifest, Unit
from data.shards.unit_rows import load_cached
from data.stores.local import LocalStore
from data.tokens.tokenizer import Tokenizer
from data.tokens.unit import TokenizeJob, load_or_tokenize, stream_of

FRACTION = 0.3
BYTES = Tokenizer("bytes", [bytes([value]) for value in range(256)])
DEDUP, LOWER = {"step": "dedup"}, {"step": "lowercase"}


class Corpus:
    """Shards with one document per line, and a store."""

    def __init__(self, folder: Path, shards: Sequence[Sequence[str]]) -> None:
        self.shards, self.folder, self.store = shards, folder, LocalStore(str(folder / "store"))
        self.logged: list[str] = []
        (folder / "shards").mkdir(exist_ok=True)
        for number, lines in enumerate(shards):
            path, text = folder / "shards" / f"{number:03}.txt", "".join(line + "\n" for line in lines)
            if not path.exists() or path.read_text() != text:  # rewriting it would change the shard
                path.write_text(text)

    def config(self, *steps: dict[str, Any], **fields: Any) -> DataConfig:
        source = {"path": str(self.folder / "shards"), "document": "line"}
        base = {"sources": [source], "tokenizer": {"kind": "bytes"}, "validation_fraction": FRACTION}
        return DataConfig.model_validate(base | {"cleaning": steps} | fields)

    def manifest(self, config: DataConfig) -> Manifest:
        return build_manifest(config.sources, StoreConfig())

    def prepare(self, *steps: dict[str, Any], pins: Pins | None = None, **fields: Any) -> PreparedData:
        self.logged.clear()
        return prepare_data(
            self.config(*steps, **fields), StoreConfig(), self.store, pins or Pins(), self.logged.append,
            lambda *_: None, lambda: None,
        )  # fmt: skip

    def texts(self, prepared: PreparedData) -> tuple[list[str], list[str]]:
        """Training and held-out documents as they were tokenized, in order."""
        rows = [load_cached(prepared.manifest.unit(ordinal), prepared.job) for ordinal in range(len(self.shards))]
        train, held_out = (
            [text for row in rows for text in documents_in(stream_of(row, name, BYTES.dtype))]
            for name in ("train", "validation")
        )
        return train, held_out


def documents_in(stream: np.ndarray) -> list[str]:
    ends = np.flatnonzero(stream == BYTES.end_of_text)
    return [stream[first + 1 : last].astype(np.uint8).tobytes().decode() for first, last in itertools.pairwise(ends)]


def decided(folder: Path, shards: Sequence[Sequence[str]], *steps: dict[str, Any]) -> list[list[int]]:
    """For every shard, the documents that are removed."""
    corpus = Corpus(folder, shards)
    config = corpus.config(*steps)
    manifest = corpus.manifest(config)
    known = up_to_last_dedup(config.cleaning)
    job = FingerprintJob(config, StoreConfig(), known, identity(known), corpus.store)
    units = [manifest.unit(ordinal) for ordinal in range(manifest.num_units)]
    removed, _ = decide([fingerprints_of(unit, job) for unit in units], known)
    by_path = {Path(unit.path).name: removed.get(unit.ordinal, {}) for unit in units}
    gone = [by_path.get(f"{number:03}.txt", {}) for number in range(len(shards))]
    return [sorted(int(document) for each in by_step.values() for document in each) for by_step in gone]


def brute_force(texts: list[str], views: Sequence[Callable[[str], str]]) -> set[int]:
    """The documents to remove, by a comparison of all pairs step by step, held-out documents first."""
    order = [n for n, t in enumerate(texts) if is_held_out(t, FRACTION)]
    order += [n for n, t in enumerate(texts) if not is_held_out(t, FRACTION)]
    gone: set[int] = set()
    for view in views:
        kept: list[int] = []
        for number in (number for number in order if number not in gone):
            if any(view(texts[other]) == view(texts[number]) for other in kept):
                gone.add(number)
            else:
                kept.append(number)
    return gone


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from(["a", "A", "b", "B", "c", "Cc", "cC", "cc", "d e", "D e"]), min_size=1, max_size=24),
    st.lists(st.integers(0, 24), max_size=3),
)
def test_duplicates_are_those_of_brute_force_however_documents_are_cut_into_shards(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], cuts: list[int]
) -> None:
    bounds = sorted({0, len(texts), *(cut for cut in cuts if cut < len(texts))})
    shards = [texts[first:last] for first, last in itertools.pairwise(bounds)]
    found = decided(tmp_path_factory.mktemp("corpus"), shards, DEDUP, LOWER, DEDUP)
    flat = {start + document for start, documents in zip(bounds, found, strict=False) for document in documents}
    assert flat == brute_force(texts, [str, str.lower])


def article(draw: random.Random) -> list[str]:
    return ["".join(draw.choices("abcdefghijklmnop", k=draw.randrange(3, 9))) for _ in range(150)]


def test_no_near_copy_of_a_held_out_document_is_trained_on(tmp_path: Path) -> None:
    draw = random.Random(3)
    families = []
    for _ in range(40):
        words = article(draw)
        families.append([" ".join([*words[:place], "other", *words[place + 1 :]]) for place in (10, 70, 140)])
    shards = [[family[copy] for family in families] for copy in range(3)]
    found = decided(tmp_path, shards, {"step": "near_dedup"})
    crossing = 0
    for number, family in enumerate(families):
        kept = [copy for copy in range(3) if number not in found[copy]]
        held_out = [copy for copy in range(3) if is_held_out(family[copy], FRACTION)]
        assert kept == (held_out[:1] or [0])  # the first held-out one, else the first
        crossing += bool(held_out) and held_out != [0]
    assert crossing >= 5, "families with a held-out copy that is not the first are what this is about"


def test_the_pass_is_the_same_from_the_cache_and_is_done_once(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, [["a", "b", "a"], ["B", "c", "b"]])
    first = corpus.prepare(LOWER, DEDUP)
    assert "duplicates: 3 of 6 documents" in corpus.logged
    again = corpus.prepare(LOWER, DEDUP)
    assert "duplicates: found from an earlier run" in corpus.logged and again.job.cleaning == replace_store(
        first, again
    )
    for key in [info.key for info in corpus.store.list(f"{FOLDER}/for/")]:
        corpus.store.delete(key)
    third = corpus.prepare(LOWER, DEDUP)
    assert third.job.cleaning is not None and first.job.cleaning is not None
    assert third.job.cleaning.duplicates == first.job.cleaning.duplicates


def replace_store(first: PreparedData, again: PreparedData) -> Cleaning:
    assert first.job.cleaning is not None and again.job.cleaning is not None
    cleaning = first.job.cleaning
    return Cleaning(cleaning.steps, cleaning.code, cleaning.duplicates, again.job.cleaning.store)


def test_a_data_set_with_steps_from_shards_to_report(tmp_path: Path) -> None:
    lines = [f"Document {number} has some words" for number in range(60)]
    shards = [[*lines[:30], "short", *lines[10:20]], [*(line.upper() for line in lines[20:40]), *lines[30:], "x"]]
    corpus = Corpus(tmp_path, shards)
    prepared = corpus.prepare(LOWER, {"step": "length", "min_words": 2}, DEDUP)
    train, held_out = corpus.texts(prepared)
    assert sorted(train + held_out) == sorted(line.lower() for line in lines)
    raw_held_out = {text for shard in shards for text in shard if is_held_out(text, FRACTION)}
    assert set(held_out) == {text.lower() for text in raw_held_out if len(text.split()) > 1}
    table = prepared.unit_table
    assert table is not None
    assert sum(table["validation_bytes"].to_pylist()) == sum(len(text.encode()) for text in held_out)
    total = sum(map(len, shards))
    report = prepared.step_report()
    assert [(row["step"], row["documents"], row["documents_removed"]) for row in report] == [
        ("lowercase", total, 0),
        ("length", total, 2),
        ("dedup", total - 2, total - 62),
    ]
    characters = sum(len(line) for shard in shards for line in shard)
    assert characters - sum(row["characters_removed"] for row in report) == sum(map(len, train + held_out))
    assert f"; {total - 60} removed by data.cleaning" in prepared.summary()
    assert f"step length: 2 of {total} documents removed, 6 of {characters:,} characters removed" in corpus.logged
    assert json.loads(json.dumps(prepared.cleaning_pin()))["report"] == report


def test_a_vocabulary_is_learned_from_cleaned_documents(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, [["ABC DEF", "GHI"], ["JKL", "MNO"]])
    plain = corpus.prepare(tokenizer={"kind": "chars"}, validation_fraction=0)
    lower = corpus.prepare(LOWER, tokenizer={"kind": "chars"}, validation_fraction=0)
    assert b"A" in plain.tokenizer.tokens and b"a" not in plain.tokenizer.tokens
    assert b"a" in lower.tokenizer.tokens and b"A" not in lower.tokenizer.tokens


def test_tokens_of_a_shard_stay_when_another_is_added_that_takes_nothing_from_it(tmp_path: Path) -> None:
    shards = [["a", "b"], ["c", "a"], ["d", "e"]]
    before = Corpus(tmp_path, shards).prepare(DEDUP, validation_fraction=0)
    after = Corpus(tmp_path, [*shards, ["e", "f"]]).prepare(DEDUP, validation_fraction=0)
    keys = [[each.job.cache_key(each.manifest.unit(n)) for n in range(3)] for each in (before, after)]
    assert keys[0] == keys[1] and before.manifest.digest != after.manifest.digest
    (tmp_path / "shards" / "000.txt").write_text("d\nb\n")
    changed = Corpus(tmp_path, []).prepare(DEDUP, validation_fraction=0)
    assert changed.job.cache_key(changed.manifest.unit(2)) != keys[0][2]  # its document "d" is now removed


def key(*steps: dict[str, Any], duplicates: str | None = None, store: LocalStore | None = None) -> str:
    """The cache key of a unit, with `steps` as `prepare_data` would pass them."""
    source = {"path": "s3://bucket/prefix", "document": "line"}
    config = DataConfig.model_validate({"sources": [source], "cleaning": steps})
    unit = Unit(
        ordinal=3, shard=2, source=0, path="s3://bucket/x.txt", size=10, etag="e", unit_bytes=10, row_group=None
    )
    cache = store or LocalStore("/cache")
    cleaning = Cleaning(config.cleaning, identity(config.cleaning), duplicates, cache) if steps else None
    return TokenizeJob(config, StoreConfig(), BYTES, cache, cleaning=cleaning).cache_key(unit)


def test_the_key_without_steps_is_pinned() -> None:
    assert key() == "df/dfefdcaa0a24f33b1b7925002b7db3b20c733cd8bae7bc33f9498f6246c8c8fa.arrow"


def test_keys_depend_on_steps_their_order_and_what_they_remove_in_the_unit(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    here, more, elsewhere = (
        store_removed(store, {unit: {0: np.array(documents, np.uint32)}})
        for unit, documents in ((3, [1]), (3, [1, 2]), (4, [1]))
    )
    nfkc = {"step": "unicode", "form": "NFKC"}
    keys = [
        key(),
        key(LOWER),
        key(nfkc),
        key(LOWER, nfkc),
        key(nfkc, LOWER),
        key(DEDUP, duplicates=here, store=store),
        key(DEDUP, duplicates=more, store=store),
        key(DEDUP, duplicates=elsewhere, store=store),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[-1] == key(DEDUP, duplicates=store_removed(store, {}), store=store)


def test_the_artifact_of_duplicates_is_stored_and_checked(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    digest = store_removed(store, {7: {0: np.array([1, 5], np.uint32), 2: np.array([9], np.uint32)}})
    removed = load_removed(store, digest)
    assert {unit: {step: each.tolist() for step, each in steps.items()} for unit, steps in removed.items()} == {
        7: {0: [1, 5], 2: [9]}
    }
    other = store_removed(store, {8: {0: np.array([1], np.uint32)}})
    store.put(f"{FOLDER}/{other}.arrow", b"something else")
    with pytest.raises(InputError, match="is damaged"):
        load_removed(store, other)
    store.delete(f"{FOLDER}/{other}.arrow")
    with pytest.raises(InputError, match="is missing"):
        load_removed(store, other)


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module in the current folder."""
    path = tmp_path / "own_steps_of_a_data_set.py"
    path.write_text("def clean(text):\n    return text.replace('x', 'y')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    forget(path.stem)
    return path


OWN = {"step": "function", "path": "own_steps_of_a_data_set.clean"}


def change(module: Path, text: str) -> None:
    """Imports the module anew, as another process would."""
    module.write_text(text)
    forget(module.stem)


def forget(module: str) -> None:
    sys.modules.pop(module, None)
    identity.cache_clear()
    cleaner.cache_clear()


def test_a_run_continues_only_with_the_code_it_was_started_with(own: Path, tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, [["ax", "bx"], ["cx"]])
    begun = corpus.prepare(OWN, DEDUP, validation_fraction=0)
    pins = Pins(begun.manifest.digest, begun.tokenizer.digest, None, begun.cleaning_pin())
    again = corpus.prepare(OWN, DEDUP, pins=pins, validation_fraction=0)
    assert again.job.cache_key(again.manifest.unit(0)) == begun.job.cache_key(begun.manifest.unit(0))
    change(own, "def clean(text):\n    return text.replace('x', 'z')\n")
    with pytest.raises(InputError, match=r"other code behind data\.cleaning.*data\.cleaning\.0 \(function\)"):
        corpus.prepare(OWN, DEDUP, pins=pins, validation_fraction=0)
    new = corpus.prepare(OWN, DEDUP, validation_fraction=0)
    assert new.job.cache_key(new.manifest.unit(0)) != begun.job.cache_key(begun.manifest.unit(0))


def test_a_machine_with_other_code_refuses_to_clean(own: Path, tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, [["ax"]])
    config = corpus.config(OWN)
    unit = corpus.manifest(config).unit(0)
    cleaning = Cleaning(config.cleaning, identity(config.cleaning), None, corpus.store)
    job = TokenizeJob(config, StoreConfig(), BYTES, corpus.store, cleaning=cleaning)
    change(own, "def clean(text):\n    return text\n")
    with pytest.raises(InputError, match=r"machine of the cluster has other code for data.cleaning"):
        load_or_tokenize(unit, job)


def test_a_function_that_fails_is_reported_with_shard_and_document(own: Path, tmp_path: Path) -> None:
    change(own, "def clean(text):\n    return text if text != 'bad' else 1 / 0\n")
    corpus = Corpus(tmp_path, [["fine", "", "bad"]])
    for steps in ([OWN], [OWN, DEDUP]):
        with pytest.raises(CleaningError, match=r"000\.txt, document 2: data\.cleaning\.0 .*'bad'.*ZeroDivisionError"):
            corpus.prepare(*steps)


def test_steps_that_cannot_work_are_named_before_a_shard_is_read(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, [["a"]])
    with pytest.raises(InputError, match=r"data\.cleaning\.1 \(function no_such_module\.f\): importing no_such_module"):
        corpus.prepare(LOWER, {"step": "function", "path": "no_such_module.f"})
    assert corpus.logged == [] and list(corpus.store.list()) == []


def test_bad_shards_are_named_or_skipped(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, [["a", "b"], ["a", "c"]])
    (tmp_path / "shards" / "000.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(BadShardError, match=r"000\.txt.*invalid UTF-8"):
        corpus.prepare(DEDUP, validation_fraction=0)
    left = corpus.prepare(DEDUP, validation_fraction=0, on_bad_shard="skip")
    assert len(left.skipped()) == 1 and list(corpus.store.list(f"{FOLDER}/for/")) == []
    rows = left.step_report()
    assert (rows[0]["documents"], rows[0]["documents_removed"]) == (2, 0)  # its "a" is not a copy


def test_streaming_says_that_duplicates_need_a_pass_over_everything(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, [["a", "b"], ["a", "c"]])
    streaming = corpus.prepare(DEDUP, prepare="streaming", validation_fraction=0)
    assert any("all units are read now" in line for line in corpus.logged)
    assert streaming.unit_table is None and streaming.step_report() == []
    ahead = corpus.prepare(DEDUP, validation_fraction=0)
    assert [ahead.job.cache_key(ahead.manifest.unit(n)) for n in (0, 1)] == [
        streaming.job.cache_key(streaming.manifest.unit(n)) for n in (0, 1)
    ]


def test_steps_that_leave_nothing_are_named_as_the_reason(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, [["a", "b"]])
    with pytest.raises(InputError, match=r"or data\.cleaning removes them"):
        corpus.prepare({"step": "length", "min_chars": 5})


def test_fingerprints_are_cached_and_damaged_ones_made_again(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, [["a", "b", "a"]])
    config = corpus.config(LOWER, DEDUP, {"step": "near_dedup"})
    steps: tuple[Step, ...] = up_to_last_dedup(config.cleaning)
    job = FingerprintJob(config, StoreConfig(), steps, identity(steps), corpus.store)
    unit = corpus.manifest(config).unit(0)
    fresh = load_or_fingerprint(unit, job)
    corpus.store.put(job.cache_key(unit), corpus.store.get(job.cache_key(unit))[:-9])
    assert load_or_fingerprint(unit, job).equals(fresh)
    row = fresh.to_pylist()[0]
    assert [len(each) for each in row["prints"]] == [3 * 16, 3 * 128]


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data")
def test_tasks_of_ray_data_find_the_users_module_and_clean_as_this_process_does(
    own: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(data.__file__).parents[1]))  # it may be relative
    request.getfixturevalue("ray_cluster_small")  # started in the folder, as by a command
    monkeypatch.setattr(data.ray_data, "SMALL_BYTES", 0)
    steps = [OWN, {"step": "unicode", "form": "NFKC"}, LOWER, DEDUP, {"step": "near_dedup"}, {"step": "segment"}]
    lines = [f"Document {number} 北京清华大学 x" for number in range(40)]
    shards = [lines[:25], [line.replace("Document", "DOCUMENT") for line in lines[10:]], lines[5:9]]
    corpus = Corpus(tmp_path, shards)
    in_ray = corpus.prepare(*steps)
    texts, report = corpus.texts(in_ray), in_ray.step_report()
    assert report[0]["documents"] == 59 and sum(row["documents_removed"] for row in report) >= 19
    assert all("y" in text and "北京 清华大学" in text for text in texts[0])
    monkeypatch.setattr(data.ray_data, "SMALL_BYTES", 1 << 20)
    (tmp_path / "again").mkdir()
    corpus.store = LocalStore(str(tmp_path / "again"))
    here = corpus.prepare(*steps)
    assert (corpus.texts(here), here.step_report()) == (texts, report)
