"""Vocabularies as tokenizer.json: the same ids and texts in `transformers`, and the same vocabulary read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import TokenizerConfig
from data.errors import TokenizerError
from data.tokens.hf_tokenizer import (
    from_tokenizer_json,
    merges_of,
    read_tokenizer,
    to_tokenizer_config,
    to_tokenizer_json,
)
from data.tokens.tokenizer import Kind, Tokenizer, train_tokenizer

pytestmark = pytest.mark.slow  # transformers takes seconds to import

TEXTS = [
    "It's the 3rd time they've said so. " * 3,
    "  Ein Maß Öl, 漢字かな交じり文、我们学习翻译。\n\n\t# 🦈🦈\r\n  ",
    "def f(x):\n    return {'a': [1, 2], 'b': x}\n\n\n" * 4,
    "<|endoftext|> is text, <|unknown|> too\u3000\u00a0\N{REPLACEMENT CHARACTER}",
]
ANY_TEXT = st.text() | st.text(alphabet=" \n\t\u3000'séö漢我🦈a1.<|>_", max_size=60) | st.sampled_from(TEXTS)
MARKED = st.lists(ANY_TEXT | st.sampled_from(["<|endoftext|>", "<|unknown|>", " ", "\n\n"]), max_size=4).map("".join)


@pytest.fixture(scope="module")
def ours() -> dict[Kind, Tokenizer]:
    kinds: tuple[Kind, ...] = ("bpe", "bytes", "chars")
    return {kind: train_tokenizer(TokenizerConfig(kind=kind, vocab_size=420), TEXTS * 2) for kind in kinds}


def loaded(tokenizer: Tokenizer, folder: Path, model_type: str, **options: bool) -> Any:
    """The tokenizer that AutoTokenizer loads from a folder with a model of the given type."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer.json").write_bytes(to_tokenizer_json(tokenizer, **options))
    (folder / "tokenizer_config.json").write_text(json.dumps(to_tokenizer_config(64)))
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(ours: dict[Kind, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Any]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {kind: loaded(ours[kind], folder / kind, "llama") for kind in ours}


@settings(max_examples=300, deadline=None)
@given(text=MARKED)
def test_any_text_has_the_same_ids(ours: dict[Kind, Tokenizer], theirs: dict[Kind, Any], text: str) -> None:
    for kind, tokenizer in ours.items():
        ids = tokenizer.encode(text).tolist()
        assert theirs[kind](text)["input_ids"] == ids
        assert theirs[kind].decode(ids) == tokenizer.decode(ids)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_ids_have_the_same_text(ours: dict[Kind, Tokenizer], theirs: dict[Kind, Any], data: st.DataObject) -> None:
    for kind, tokenizer in ours.items():
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
        assert theirs[kind].decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "marian"])
@pytest.mark.parametrize("kind", ["bpe", "bytes", "chars"])
def test_auto_tokenizer_gives_the_same_ids_next_to_any_model(
    ours: dict[Kind, Tokenizer], kind: Kind, model_type: str, tmp_path: Path
) -> None:
    tokenizer, found = ours[kind], loaded(ours[kind], tmp_path, model_type)
    assert len(found) == tokenizer.vocab_size
    assert found.eos_token_id == found.bos_token_id == found.pad_token_id == tokenizer.end_of_text
    assert found.model_max_length == 64
    for text in TEXTS:
        assert found(text)["input_ids"] == tokenizer.encode(text).tolist()
        assert found.decode(found(text)["input_ids"]) == tokenizer.decode(tokenizer.encode(text))


def test_a_source_ends_in_end_of_text(ours: dict[Kind, Tokenizer], tmp_path: Path) -> None:
    tokenizer, found = ours["bpe"], loaded(ours["bpe"], tmp_path, "marian", closes_texts=True)
    assert found("one")["input_ids"] == [*tokenizer.encode("one").tolist(), tokenizer.end_of_text]
    assert found("one", add_special_tokens=False)["input_ids"] == tokenizer.encode("one").tolist()


def test_the_vocabulary_is_read_back(ours: dict[Kind, Tokenizer]) -> None:
    for tokenizer in ours.values():
        for closes_texts in (False, True):
            again = from_tokenizer_json(to_tokenizer_json(tokenizer, closes_texts=closes_texts))
            assert again == tokenizer
        assert read_tokenizer(tokenizer.to_bytes()) == tokenizer
        assert read_tokenizer(to_tokenizer_json(tokenizer)) == tokenizer


def test_merges_are_those_that_were_learned() -> None:
    import tokenizers as library
    from tokenizers import models, pre_tokenizers, trainers

    learner = library.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(
        TEXTS * 2, trainers.BpeTrainer(vocab_size=419, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=420), TEXTS * 2)
    learned = json.loads(learner.to_str())["model"]
    written = json.loads(to_tokenizer_json(tokenizer))["model"]
    assert written["merges"] == learned["merges"] and len(learned["merges"]) > 100
    assert written["vocab"] == learned["vocab"]


def test_a_vocabulary_that_was_not_merged_is_refused() -> None:
    single = [bytes([value]) for value in range(256)]
    with pytest.raises(TokenizerError, match=r"Token 256 .*b'abc', is a merge of 3 tokens before it, not of two"):
        merges_of([*single, b"abc"])
    assert merges_of([*single, b"bc", b"abc"]) == [(b"b", b"c"), (b"a", b"bc")]


def gpt2_style(fields: dict[str, Any]) -> None:
    """The file as older versions wrote it: end-of-text in the vocabulary, merges as lines, without defaults."""
    fields["model"]["vocab"]["<|endoftext|>"] = len(fields["model"]["vocab"])
    fields["model"]["merges"] = [" ".join(pair) for pair in fields["model"]["merges"]]
    fields["model"]["continuing_subword_prefix"] = ""
    del fields["pre_tokenizer"]["use_regex"], fields["model"]["byte_fallback"], fields["model"]["type"]


def test_gpt2s_own_form_is_read(ours: dict[Kind, Tokenizer]) -> None:
    fields = json.loads(to_tokenizer_json(ours["bpe"]))
    gpt2_style(fields)
    assert read_tokenizer(json.dumps(fields).encode()) == ours["bpe"]


def setting(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(fields: dict[str, Any]) -> None:
        *path, name = place.split(".")
        for part in path:
            fields = fields[part]
        fields[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (setting("model.type", "Unigram"), 'model.type: "Unigram", not "BPE"'),
        (setting("normalizer", {"type": "NFC"}), 'normalizer: {"type": "NFC"}, not null'),
        (setting("pre_tokenizer.add_prefix_space", True), "pre_tokenizer.add_prefix_space: true, not false"),
        (setting("pre_tokenizer", {"type": "Metaspace"}), 'pre_tokenizer.type: "Metaspace", not "ByteLevel"'),
        (setting("model.byte_fallback", True), "model.byte_fallback: true, not false"),
        (setting("added_tokens", []), "exactly one is expected, which ends a text"),
        (lambda fields: fields["added_tokens"][0].update(id=3), "has id 3, not the last one"),
        (lambda fields: fields["model"]["vocab"].update(new=9999), "ids leave gaps"),
        (lambda fields: fields["model"]["merges"].reverse(), "model.merges: not in the order of the ids"),
        (lambda fields: fields["model"].pop("vocab"), "KeyError: 'vocab'"),
    ],
)
def test_settings_that_give_other_ids_are_refused(
    ours: dict[Kind, Tokenizer], change: Callable[[dict[str, Any]], None], says: str
) -> None:
    fields = json.loads(to_tokenizer_json(ours["bpe"]))
    change(fields)
    with pytest.raises(TokenizerError, match="gives other ids") as refused:
        read_tokenizer(json.dumps(fields).encode())
    assert says in str(refused.value)


@pytest.mark.slow
def test_both_split_at_every_code_point_alike(tmp_path: Path) -> None:
    # A letter, digit or sign merges with the first byte of what follows, if that is in one piece with it: what class a
    # code point is of, to either library's version of Unicode, shows in the ids.
    single = [bytes([value]) for value in range(256)]
    firsts = [*range(0x80), *range(0xC2, 0xF5)]
    tokenizer = Tokenizer("bpe", [*single, *(sign + bytes([first]) for sign in (b"a", b"1", b"!") for first in firsts)])
    theirs = loaded(tokenizer, tmp_path, "gpt2")._tokenizer
    # All planes but those where nothing has been assigned yet, and all of private use but its ends.
    codes = [*range(0xD800), *range(0xE000, 0x33500), *range(0xE0000, 0xE0200), 0xF0000, 0x10FFFF]
    assigned = [chr(code) for code in codes]
    for start in range(0, len(assigned), 5000):
        text = "\n".join(sign + char for char in assigned[start : start + 5000] for sign in "a1!")
        assert theirs.encode(text).ids == tokenizer.encode(text).tolist(), hex(ord(assigned[start]))
