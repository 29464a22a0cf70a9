"""Every step on text that it is made for, the order of steps, and what is refused."""

# ruff: noqa: RUF001 -- full width letters are what some of this is about

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from data.cleaning import libraries
from data.cleaning import libraries as languages
from data.cleaning.clean import REPORT_COLUMNS, StepCounts, check_steps, clean, named_rows, report_lines
from data.cleaning.config import Step, name_of
from data.cleaning.identity import differences, identity
from data.errors import CleaningError, InputError
from data.order.known_units import ExcludedDocuments
from manta_start import PACKAGES

_STEPS = TypeAdapter(tuple[Step, ...])


def steps(*written: str | dict[str, Any]) -> tuple[Step, ...]:
    """Steps as in a recipe; a name alone is a step without settings."""
    return _STEPS.validate_python([{"step": each} if isinstance(each, str) else each for each in written])


def cleaned(text: str, *written: str | dict[str, Any]) -> str | None:
    return clean(text, steps(*written)).text


NFKC = {"step": "unicode", "form": "NFKC"}
STOP_EN, STOP_ZH = ({"step": "stop_words", "language": code} for code in ("en", "zh"))
LEMMAS = {"step": "lemmatize", "language": "en"}


@pytest.mark.parametrize(
    ("written", "text", "expected"),
    [
        (NFKC, "ﬁne ＡＢＣ １２ ①", "fine ABC 12 1"),
        ({"step": "unicode"}, "cafe\u0301 ＡＢＣ", "caf\u00e9 ＡＢＣ"),
        ({"step": "unicode", "form": "NFD"}, "caf\u00e9", "cafe\u0301"),
        ("lowercase", "Große STRASSE İ", "große strasse i\u0307"),
        (STOP_EN, "The cat sat on the mat.\nIt can\u2019t be", "cat sat mat.\n"),
        (STOP_ZH, "我来到北京的清华大学", "来到北京清华大学"),
        ({"step": "stop_words", "language": "de"}, "Der Hund und die Katze", "Hund Katze"),
        (LEMMAS, "The mice were running, quickly.", "the mouse be run, quickly."),
        ({"step": "lemmatize", "language": "de"}, "Häuser standen dort", "Haus stehen dort"),
        ("segment", "我来到北京清华大学。Hello world", "我 来到 北京 清华大学。Hello world"),
        ("segment", "東京は日本の首都です", "東京は日本の首都です"),
        ("segment", "no Chinese at all", "no Chinese at all"),
    ],
)
def test_the_result_of_a_step(written: str | dict[str, Any], text: str, expected: str) -> None:
    assert cleaned(text, written) == expected


@pytest.mark.parametrize(
    ("bounds", "text", "kept"),
    [
        ({"min_chars": 4}, "abc", False),
        ({"min_chars": 4, "max_chars": 4}, "abcd", True),
        ({"max_chars": 4}, "abcde", False),
        ({"min_words": 3}, "don't stop me", True),
        ({"min_words": 4}, "don't stop me", False),
        ({"min_words": 4}, "我来到北京清华大学", True),  # 我 / 来到 / 北京 / 清华大学
        ({"max_words": 3}, "我来到北京清华大学", False),
        ({"max_words": 1}, "हिन्दी", True),  # its vowel signs do not end words
    ],
)
def test_length(bounds: dict[str, int], text: str, kept: bool) -> None:
    assert cleaned(text, {"step": "length"} | bounds) == (text if kept else None)


TEXTS = {
    "en": "The quick brown fox jumps over the lazy dog and runs into the forest.",
    "zh": "我来到北京清华大学，学习计算机科学与技术。",
    "de": "Der schnelle braune Fuchs springt über den faulen Hund und läuft in den Wald.",
    "ja": "東京は日本の首都であり、世界最大の都市のひとつです。",
}


@pytest.mark.parametrize("kept", TEXTS)
def test_language(kept: str) -> None:
    found = {code for code, text in TEXTS.items() if cleaned(text, {"step": "language", "keep": [kept]})}
    assert found == {kept}


def test_a_language_identified_with_low_probability_is_removed() -> None:
    doubtful, english = "si taxi 12", {"step": "language", "keep": ["en"]}
    found = {code for code in languages.IDENTIFIED if cleaned(doubtful, {"step": "language", "keep": [code]})}
    assert len(found) == 1
    assert cleaned(doubtful, {"step": "language", "keep": [*found], "min_probability": 0.99}) is None
    assert cleaned(TEXTS["en"], english | {"min_probability": 0.5}) is not None


def test_segmented_words_are_not_cut_again() -> None:
    text = "北京清华 大学的"
    assert cleaned(text, "segment", {"step": "length", "min_words": 4}) == "北京 清华 大学 的"
    apart = cleaned("研究生命起源的方法", "segment", STOP_ZH)
    assert apart is not None and apart.split() == [
        word for word in str(cleaned("研究生命起源的方法", "segment")).split() if word != "的"
    ]


def test_the_order_of_the_list_is_the_order_of_application() -> None:
    assert cleaned("THE END", STOP_EN, {"step": "length", "min_words": 2}) is None
    assert cleaned("THE END", {"step": "length", "min_words": 2}, STOP_EN) is None  # "end" is a stop word as well
    assert cleaned("The Fox", {"step": "length", "min_words": 2}, STOP_EN) == "Fox"
    assert cleaned("The Fox", STOP_EN, {"step": "length", "min_words": 2}) is None
    assert cleaned("ＡＢＣ", NFKC, "lowercase") == "abc"


SIMPLE = st.sampled_from(
    [("lowercase", str.lower)] + [({"step": "unicode", "form": form}, form) for form in ("NFC", "NFD", "NFKC", "NFKD")]
)


@settings(deadline=None)
@given(st.lists(SIMPLE, max_size=5), st.text(min_size=1))
def test_a_list_is_its_steps_one_after_the_other(chosen: list[tuple[Any, Any]], text: str) -> None:
    expected = text
    for _, what in chosen:
        expected = unicodedata.normalize(what, expected) if isinstance(what, str) else what(expected)
    result = clean(text, steps(*(written for written, _ in chosen)))
    if text.isspace() and chosen:
        assert result.text is None and result.removed_by == 0
    else:
        assert result.text == expected and len(result.lengths) == len(chosen) + 1


WORDS = regex.compile(r"\w+")


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(codec="utf-8")).filter(lambda text: text and not text.isspace()))
def test_segmenting_adds_spaces_and_nothing_else(text: str) -> None:
    result = cleaned(text, "segment")
    assert result is not None and result.replace(" ", "") == text.replace(" ", "")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["the", "fox", "of", "jumping", "and", "北京", "的", "mice", "don't."]), min_size=1))
def test_stop_words_leave_the_other_words_in_their_order(words: list[str]) -> None:
    result = clean(" ".join(words), steps(STOP_EN)).text or ""
    left = [word.replace("don't", "") for word in words if word not in ("the", "of", "and")]
    assert result.split() == left


def test_what_each_step_removed_adds_up() -> None:
    written = steps("lowercase", {"step": "length", "min_chars": 6}, STOP_EN, "dedup")
    counts, texts = StepCounts(4), ["Short", "The and", "Foxes run", "THE Foxes run", "Bears sleep"]
    results = [clean(text, written, removed={3} if text == "THE Foxes run" else ()) for text in texts]
    for result in results:
        counts.add(result)
    rows = counts.rows()
    assert [row["documents"] for row in rows] == [5, 5, 4, 3]
    assert [row["documents_removed"] for row in rows] == [0, 1, 1, 1]
    assert [result.removed_by for result in results] == [None if r.text else r.removed_by for r in results]
    left = sum(len(result.text or "") for result in results)
    assert sum(map(len, texts)) - sum(row["characters_removed"] for row in rows) == left
    parts = [ExcludedDocuments(1, tuple(rows)), ExcludedDocuments(1), ExcludedDocuments(1, tuple(rows), too_long=3)]
    assert sum(parts, start=ExcludedDocuments()) == ExcludedDocuments(3, (parts[0] + parts[2]).steps, 3)
    total = named_rows((parts[0] + parts[2]).steps, written)
    assert [row["documents"] for row in total] == [10, 10, 8, 6]
    assert [tuple(row) for row in total] == [("step", *REPORT_COLUMNS)] * 4
    assert report_lines(total)[1].startswith("step length: 2 of 10 documents removed, 10 of ")


def test_added_characters_are_reported() -> None:
    counts = StepCounts(1)
    counts.add(clean("我来到", steps("segment")))
    assert report_lines(named_rows(counts.rows(), steps("segment"))) == [
        "step segment zh: 0 of 1 documents removed, 1 of 3 characters added"
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Functions of the user's
# ---------------------------------------------------------------------------------------------------------------------

MODULE = """
def shout(text):
    return text.upper()
def drop(text):
    return None if "secret" in text else text
def wrong(text):
    return len(text)
def fails(text):
    raise KeyError(text)
def half(text):
    return "\\ud800"
constant = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a user's module in it."""
    path = tmp_path / "own_steps_for_test.py"
    path.write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_steps_for_test", raising=False)
    return path


def own_step(name: str) -> dict[str, str]:
    return {"step": "function", "path": f"own_steps_for_test.{name}"}


def test_a_function_of_the_folder_is_found_and_called(own: Path) -> None:
    assert cleaned("abc", own_step("shout")) == "ABC"
    assert cleaned("a secret", own_step("drop")) is None
    assert cleaned("&lt;b&gt;", {"step": "function", "path": "html.unescape"}) == "<b>"


@pytest.mark.parametrize(("name", "what"), [("wrong", "int, not str"), ("fails", "KeyError"), ("half", "surrogates")])
def test_a_function_that_fails_is_named_with_the_text(own: Path, name: str, what: str) -> None:
    with pytest.raises(
        CleaningError, match=rf"data\.cleaning\.1 \(own_steps_for_test\.{name}\) failed on .*abc.*{what}"
    ):
        cleaned("ABC", "lowercase", own_step(name))


def test_all_missing_functions_are_refused_at_once(own: Path) -> None:
    asked = steps(
        own_step("shout"), own_step("missing"), own_step("constant"), {"step": "function", "path": "no_such.f"}
    )
    with pytest.raises(InputError) as caught:
        check_steps(asked)
    first, second, third = str(caught.value).splitlines()
    assert first.startswith("data.cleaning.1 (function own_steps_for_test.missing)") and "has no 'missing'" in first
    assert second.startswith("data.cleaning.2") and "cannot be called" in second
    assert third.startswith("data.cleaning.3 (function no_such.f): importing no_such fails")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_function_in_a_module_that_is_named_like_a_package_of_the_project_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}\.mine cannot hold a function of yours: .* Rename the file"):
        check_steps(steps({"step": "function", "path": f"{name}.mine.f"}))


def test_other_code_is_another_identity(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = steps("lowercase", own_step("shout"))
    before = identity(asked)
    own.write_text(MODULE.replace("upper", "title"))
    identity.cache_clear()
    after = identity(asked)
    assert before != after and "data.cleaning.1 (function): own_steps_for_test" in differences(before, after)


def test_another_version_of_a_library_is_another_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = steps("lowercase", LEMMAS, "near_dedup")
    before = identity(asked)
    monkeypatch.setattr("data.cleaning.identity.version_of", lambda name: "9.9")
    identity.cache_clear()
    assert differences(before, identity(asked)) == (
        "data.cleaning.1 (lemmatize): simplemma 2.0.0, not simplemma 9.9; "
        "data.cleaning.2 (near_dedup): rensa 0.5.0, not rensa 9.9"
    )
    identity.cache_clear()


# ---------------------------------------------------------------------------------------------------------------------
# What a recipe may say
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"step": "language", "keep": ["en", "english"]}, "'english' is not a language"),
        ({"step": "language", "keep": []}, "at least 1 item"),
        ({"step": "stop_words", "language": "ja"}, "written without spaces"),
        ({"step": "stop_words", "language": "xx"}, "'xx' is not a language with a list of stop words"),
        ({"step": "lemmatize", "language": "zh"}, "'zh' does not inflect"),
        ({"step": "length"}, "no length is given"),
        ({"step": "length", "min_words": 5, "max_words": 4}, "min_words = 5 is more than max_words = 4"),
        ({"step": "near_dedup", "threshold": 0.4}, "greater than or equal to 0.5"),
        ({"step": "function", "path": "f"}, "write module.function"),
        ({"step": "function", "path": "a..b"}, "write module.function"),
        ({"step": "unicode", "form": "NFX"}, "'NFC', 'NFD', 'NFKC' or 'NFKD'"),
        ({"step": "lowercase", "extra": 1}, "Extra inputs"),
        ({"step": "upper"}, "does not match any of the expected tags"),
    ],
)
def test_a_wrong_step_is_refused(written: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=regex.escape(says)):
        steps(written)


def test_languages_are_those_of_the_libraries() -> None:
    import simplemma
    import stopwordsiso
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    assert set(LanguageIdentifier.from_model_file(MODEL_FILE).labels) == languages.IDENTIFIED
    assert stopwordsiso.langs() - {"ja", "th"} == languages.WITH_STOP_WORDS
    dictionaries = Path(simplemma.__file__).parent / "strategies/dictionaries/data"
    assert {path.name.partition(".")[0] for path in dictionaries.glob("*.plzma")} == languages.WITH_LEMMAS


def test_a_library_that_is_not_installed_is_named_with_its_step_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stopwordsiso", None)
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(InputError) as caught:
        check_steps(steps("lowercase", STOP_EN, "near_dedup"))
    assert len(str(caught.value).splitlines()) == 2
    assert "data.cleaning.1 (stop_words en): stop_words en needs stopwordsiso" in str(caught.value)
    assert str(caught.value).count(libraries.INSTALL) == 2


def test_every_step_has_a_name() -> None:
    every = steps(
        NFKC, "lowercase", "dedup", "near_dedup", {"step": "length", "min_chars": 1}, STOP_EN, LEMMAS, "segment",
        {"step": "language", "keep": ["en", "zh"]}, {"step": "function", "path": "html.unescape"},
    )  # fmt: skip
    assert [name_of(step) for step in every] == [
        "unicode NFKC", "lowercase", "dedup", "near_dedup 0.8", "length", "stop_words en", "lemmatize en",
        "segment zh", "language en, zh", "function html.unescape",
    ]  # fmt: skip
