"""BLEU against its formula, and the tokenizer that each language gets."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import InputError
from orchestrator.evaluation.bleu import translation_scores

sentences = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "here"]), min_size=4, max_size=9).map(
    " ".join
)


def bleu_by_formula(translations: list[str], references: list[str]) -> float:
    """Papineni et al. 2002, eq. 1 to 3, over four n-gram lengths; 0 where no word matches.

    The first length that never matches counts as half a match, the next as a quarter, and so on: sacrebleu's smoothing
    "exp", which is that of mteval-v13a.
    """
    log_precision, smoothed = 0.0, 1.0
    for n in range(1, 5):
        matched = total = 0
        for translation, reference in zip(translations, references, strict=True):
            ours, theirs = (
                Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
                for words in (translation.split(), reference.split())
            )
            matched += (ours & theirs).total()
            total += ours.total()
        if not matched and n == 1:
            return 0.0
        if not matched:
            smoothed /= 2
        log_precision += math.log((matched or smoothed) / total) / 4
    ours, theirs = (sum(len(text.split()) for text in texts) for texts in (translations, references))
    return 100 * math.exp(log_precision + min(0.0, 1 - theirs / ours))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=6))
def test_bleu_is_that_of_the_formula(pairs: list[tuple[str, str]]) -> None:
    translations, references = ([pair[side] for pair in pairs] for side in (0, 1))
    expected = bleu_by_formula(translations, references)
    found = translation_scores(translations, references, "en")["bleu"]
    assert math.isclose(found, expected, abs_tol=1e-9)


def test_chinese_words_are_characters() -> None:
    scores = translation_scores(["我很喜欢猫"], ["我很喜欢狗"], "zh-CN")
    assert "tok:zh" in scores["bleu_signature"] and 60 < scores["bleu"] < 80
    assert "tok:13a" in translation_scores(["a b"], ["a b"], None)["bleu_signature"]
    assert "nc:6" in scores["chrf_signature"]


def test_a_copy_scores_100() -> None:
    scores = translation_scores(["the cat sat on the mat"], ["the cat sat on the mat"], "en")
    assert scores["bleu"] == pytest.approx(100) and scores["chrf"] == pytest.approx(100)


def test_a_missing_segmenter_is_named() -> None:
    with pytest.raises(InputError, match=r"eval.language=ja.*sacrebleu\[ja\]"):
        translation_scores(["猫"], ["猫"], "ja")
