"""Fingerprints against sets of shingles, and duplicates against a comparison of all pairs."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cleaning.config import DedupStep, NearDedupStep
from data.cleaning.duplicates import agreeing, duplicates, rows_per_band
from data.cleaning.fingerprint import fingerprint, min_hash, shingle_hashes, shingles

NEAR = NearDedupStep(step="near_dedup")


def prints_of(texts: list[str], step: DedupStep | NearDedupStep) -> np.ndarray:
    return np.stack([np.frombuffer(fingerprint(text, step), np.uint8) for text in texts])


def jaccard(one: str, other: str, chars: int = 9) -> float:
    a, b = shingles(one, chars), shingles(other, chars)
    return len(a & b) / len(a | b)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "ab", "abc", " a", ""]), min_size=1, max_size=30))
def test_exact_duplicates_are_all_but_the_first(texts: list[str]) -> None:
    step = DedupStep(step="dedup")
    expected = [text in texts[:number] for number, text in enumerate(texts)]
    assert duplicates(prints_of(texts, step), step).tolist() == expected


@settings(deadline=None)
@given(st.text(st.sampled_from("ab \n日"), max_size=30), st.integers(2, 12))
def test_hashes_of_shingles_are_as_many_as_there_are_shingles(text: str, chars: int) -> None:
    assert len(set(shingle_hashes(text, chars).tolist())) == len(shingles(text, chars))


def test_the_same_shingle_has_the_same_hash_in_every_text() -> None:
    text, other = "the quick brown fox", "a lazy quick brown dog"
    common = len(shingles(text, 5) & shingles(other, 5))
    assert len(set(shingle_hashes(text, 5).tolist()) & set(shingle_hashes(other, 5).tolist())) == common > 0


def changed(text: str, words: int, draw: random.Random) -> str:
    """`text` with some of its words replaced."""
    pieces = text.split()
    for place in draw.sample(range(len(pieces)), words):
        pieces[place] = "".join(draw.choices("abcdefghij", k=6))
    return " ".join(pieces)


def document(draw: random.Random, words: int = 120) -> str:
    return " ".join("".join(draw.choices("abcdefghijklmnop", k=draw.randrange(2, 9))) for _ in range(words))


def test_signatures_agree_as_often_as_the_sets_are_alike() -> None:
    draw = random.Random(0)
    errors = []
    for edits in [0, 1, 2, 4, 8, 16, 32, 64, 120] * 6:
        text = document(draw)
        other = changed(text, edits, draw)
        true = jaccard(text, other)
        share = (min_hash(text, NEAR) == min_hash(other, NEAR)).mean()
        estimate = (share - 1 / 256) / (1 - 1 / 256)
        assert abs(estimate - true) <= 4.5 * (max(true * (1 - true), 0.004) / NEAR.permutations) ** 0.5 + 1e-9
        errors.append(estimate - true)
    assert abs(np.mean(errors)) < 0.012  # no bias: 54 pairs, 0.03 each


GOLDEN = "The quick brown fox jumps over the lazy dog."


def test_the_signature_is_pinned_by_literals() -> None:
    assert min_hash(GOLDEN, NEAR)[:8].tolist() == GOLDEN_SIGNATURE


GOLDEN_SIGNATURE = [20, 95, 211, 255, 199, 254, 188, 170]


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_documents_are_removed_by_their_true_similarity(threshold: float) -> None:
    """Clear cases only: within three errors of the threshold, either result is possible."""
    step, draw = NearDedupStep(step="near_dedup", threshold=threshold), random.Random(1)
    texts: list[str] = []
    for _ in range(12):
        text = document(draw, 300)
        texts += [text, changed(text, 1, draw), text.replace(" ", "\n"), changed(text, 150, draw)]
    margin = 3 * (threshold * (1 - threshold) / step.permutations) ** 0.5
    dropped = duplicates(prints_of(texts, step), step)
    kept: list[int] = []
    for number, text in enumerate(texts):
        likeness = max((jaccard(text, texts[other]) for other in kept), default=0.0)
        assert abs(likeness - threshold) > margin, "the case is not clear"
        assert dropped[number] == (likeness > threshold), (number, likeness)
        if not dropped[number]:
            kept.append(number)
    assert dropped.sum() >= 24


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 30), st.sampled_from([0.5, 0.7, 0.8, 0.95, 1.0]), st.sampled_from([64, 128]))
def test_the_decision_is_that_of_comparing_all_pairs(seed: int, threshold: float, permutations: int) -> None:
    step = NearDedupStep(step="near_dedup", threshold=threshold, permutations=permutations)  # type: ignore[arg-type]
    draw = np.random.default_rng(seed)
    bases = draw.integers(0, 256, (4, permutations), dtype=np.uint8)
    prints = bases[draw.integers(0, 4, 40)]
    flips = draw.random(prints.shape) < draw.random((40, 1)) * 0.6
    prints = np.where(flips, draw.integers(0, 256, prints.shape, dtype=np.uint8), prints)
    rows = rows_per_band(step)
    kept: list[int] = []
    expected = []
    for number in range(len(prints)):
        same = [prints[number] == prints[other] for other in kept]
        near = any(each.sum() >= agreeing(step) and each.reshape(-1, rows).all(axis=1).any() for each in same)
        expected.append(near)
        if not near:
            kept.append(number)
    assert duplicates(prints, step).tolist() == expected


@pytest.mark.parametrize(("threshold", "rows"), [(0.5, 4), (0.7, 4), (0.77, 4), (0.78, 8), (0.8, 8), (1.0, 8)])
def test_bands_find_most_pairs_at_the_threshold(threshold: float, rows: int) -> None:
    step = NearDedupStep(step="near_dedup", threshold=threshold)
    assert rows_per_band(step) == rows
    assert 1 - (1 - threshold**rows) ** (step.permutations // rows) > 0.87


@pytest.mark.parametrize("step", [DedupStep(step="dedup"), NEAR])
@pytest.mark.parametrize("count", [0, 1])
def test_none_or_one_document_has_no_duplicates(step: DedupStep | NearDedupStep, count: int) -> None:
    prints = np.zeros((count, len(fingerprint("a", step))), np.uint8)
    assert duplicates(prints, step).tolist() == [False] * count


def test_texts_shorter_than_a_shingle_are_compared_whole() -> None:
    assert duplicates(prints_of(["ab", "ab ", "abc", " ab"], NEAR), NEAR).tolist() == [False, True, False, True]


def test_chinese_needs_no_words() -> None:
    text = "我来到北京清华大学" + "学习计算机科学与技术专业的课程" * 1 + "每天早上八点在图书馆里看书写作业直到晚上"
    other = text + "。"
    assert duplicates(prints_of([text, other, "完全不同的另外一个文档内容" * 2], NEAR), NEAR).tolist() == [
        False,
        True,
        False,
    ]
