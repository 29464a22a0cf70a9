"""Tokenizers: texts are decoded unchanged, ids are those of the learning library, vocabularies are reproducible."""

import pickle
import random
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import TokenizerConfig
from data.errors import TokenizerError
from data.tokens.tokenizer import MAX_CHARS, Tokenizer, train_tokenizer

SENTENCES = [
    "It's the 3rd time they've said so.",
    "  Ein Maß Öl, 漢字かな交じり文 ",
    "x = {'a': [1, 2]}\n\n\t# 🦈🦈\r\n",
    "été",
]


def corpus() -> list[str]:
    """Real text: some source of the standard library, and sentences made of the ones above."""
    chooser = random.Random(0)
    made = [" ".join(chooser.choices(SENTENCES, k=20)) for _ in range(50)]
    library = Path(sysconfig.get_paths()["stdlib"])
    names = ["argparse.py", "textwrap.py", "json/decoder.py", "heapq.py", "this.py"]
    return made + [(library / name).read_text("utf-8") for name in names]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return corpus()


@pytest.fixture(scope="module")
def tokenizers(texts: list[str]) -> dict[str, Tokenizer]:
    kinds = ("bpe", "bytes", "chars")
    return {kind: train_tokenizer(TokenizerConfig(kind=kind, vocab_size=1000), texts) for kind in kinds}


@pytest.fixture(scope="module", params=["bpe", "bytes", "chars"])
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers[request.param]


class TestEveryKind:
    def test_real_text_is_decoded_unchanged(self, tokenizer: Tokenizer, texts: list[str]) -> None:
        for text in texts:
            ids = tokenizer.encode(text)
            assert ids.dtype == tokenizer.dtype == np.uint16
            assert tokenizer.decode(ids) == text
            assert int(tokenizer.token_bytes[ids].sum()) == len(text.encode())

    def test_end_of_text_is_the_last_id_and_no_text_gives_it(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.end_of_text == tokenizer.vocab_size - 1 == len(tokenizer.token_bytes) - 1
        for text in ("<|endoftext|>", "a<|endoftext|>b", "</s>", "\0"):
            assert tokenizer.end_of_text not in tokenizer.encode(text)
        ids = [*tokenizer.encode("one"), tokenizer.end_of_text, *tokenizer.encode("two")]
        assert tokenizer.decode(ids) == "onetwo"
        assert tokenizer.token_bytes[tokenizer.end_of_text] == 0

    def test_an_empty_text_has_no_ids(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.encode("").shape == (0,) and tokenizer.encode("").dtype == tokenizer.dtype
        assert tokenizer.decode([]) == ""

    def test_survives_bytes_and_pickling(self, tokenizer: Tokenizer, texts: list[str]) -> None:
        for again in (Tokenizer.from_bytes(tokenizer.to_bytes()), pickle.loads(pickle.dumps(tokenizer))):
            assert again == tokenizer and again.digest == tokenizer.digest
            assert again.encode(texts[0]).tolist() == tokenizer.encode(texts[0]).tolist()

    def test_an_id_outside_the_vocabulary_is_named(self, tokenizer: Tokenizer) -> None:
        for wrong in (tokenizer.vocab_size, -1):
            with pytest.raises(TokenizerError, match=f"Id {wrong} is outside .* 0 to {tokenizer.end_of_text}"):
                tokenizer.decode([wrong])

    def test_half_a_surrogate_pair_is_refused(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(TokenizerError, match=r"Character 2 of a text is '\\ud83e', half of a surrogate pair"):
            tokenizer.encode("ab\ud83e")

    def test_same_texts_same_digest(self, tokenizer: Tokenizer, texts: list[str]) -> None:
        config = TokenizerConfig(kind=tokenizer.kind, vocab_size=1000)
        assert train_tokenizer(config, iter(texts)).digest == tokenizer.digest
        assert train_tokenizer(config, [*texts[:-1], "entirely other text: ŋŋŋŋŋŋŋŋ"]).digest != tokenizer.digest or (
            tokenizer.kind == "bytes"
        )


class TestBytePairs:
    @settings(max_examples=300, deadline=None)
    @given(text=st.text() | st.text(alphabet=" \n\t'sé漢🦈a1.<|>", max_size=60))
    def test_any_text_is_decoded_unchanged(self, tokenizers: dict[str, Tokenizer], text: str) -> None:
        for kind in ("bpe", "bytes"):
            ids = tokenizers[kind].encode(text)
            assert tokenizers[kind].decode(ids) == text
            assert tokenizers[kind].decode_bytes(ids) == text.encode()

    @settings(max_examples=200, deadline=None)
    @given(data=st.lists(st.integers(0, 999), max_size=30))
    def test_any_ids_have_a_text(self, tokenizers: dict[str, Tokenizer], data: list[int]) -> None:
        assert tokenizers["bpe"].decode(data) == tokenizers["bpe"].decode_bytes(data).decode("utf-8", "replace")

    def test_ids_are_those_of_the_library_that_learned_them(
        self, tokenizers: dict[str, Tokenizer], texts: list[str]
    ) -> None:
        import tokenizers as library
        from tokenizers import models, pre_tokenizers, trainers

        oracle = library.Tokenizer(models.BPE())
        oracle.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        oracle.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=999, initial_alphabet=alphabet, show_progress=False)
        )
        bpe = tokenizers["bpe"]
        assert bpe.vocab_size == 1000
        unseen = (Path(sysconfig.get_paths()["stdlib"]) / "pydoc.py").read_text("utf-8")
        for text in [*texts, unseen, *SENTENCES, " \n  a", "a  ", "\n\n"]:
            assert bpe.encode(text).tolist() == oracle.encode(text).ids

    def test_it_compresses(self, tokenizers: dict[str, Tokenizer], texts: list[str]) -> None:
        text = texts[-2]
        assert len(tokenizers["bpe"].encode(text)) < 0.6 * len(text.encode())

    def test_a_tiny_corpus_gives_a_small_vocabulary(self) -> None:
        tiny = train_tokenizer(TokenizerConfig(vocab_size=5000), ["ab ab"])
        assert 257 < tiny.vocab_size < 270
        assert tiny.decode(tiny.encode("anything ✓")) == "anything ✓"

    def test_large_vocabularies_take_32_bits(self) -> None:
        tokens = [bytes([i]) for i in range(256)] + [bytes([i // 256, i % 256]) for i in range(65_279)]
        assert Tokenizer("bpe", tokens).dtype == np.uint16
        large = Tokenizer("bpe", [*tokens, b"end"])
        assert (large.vocab_size, large.dtype, large.encode("text").dtype) == (65_537, np.uint32, np.uint32)

    @pytest.mark.parametrize("unit", [" ", "\n ", "A", "ACGT", "-", "1"])
    def test_long_runs_of_one_kind_neither_fail_nor_hang(self, unit: str) -> None:
        text = "start" + unit * (1_200_000 // len(unit)) + "end"
        learned = train_tokenizer(TokenizerConfig(vocab_size=270), [text])
        assert learned.decode(learned.encode(text)) == text

    def test_only_the_first_bytes_are_learned_from(self) -> None:
        taken: list[int] = []
        given = iter(["ab" * 50, "cd" * 50, "ef" * 50, "gh" * 50])
        short = train_tokenizer(TokenizerConfig(vocab_size=300, train_bytes=150), given, taken.append)
        assert taken == [100, 150]
        assert list(given) == ["ef" * 50, "gh" * 50]
        assert b"cd" in short.tokens and b"ef" not in short.tokens

    @pytest.mark.parametrize("kind", ["bpe", "chars"])
    def test_nothing_to_learn_from(self, kind: str) -> None:
        with pytest.raises(TokenizerError, match="no text to learn a tokenizer from"):
            train_tokenizer(TokenizerConfig.model_validate({"kind": kind}), ["", ""])


class TestChars:
    def test_ids_are_in_the_order_of_characters(self) -> None:
        chars = train_tokenizer(TokenizerConfig(kind="chars"), ["bca", "🦈b"])
        assert chars.encode("abc🦈").tolist() == [0, 1, 2, 3]
        assert (chars.unknown, chars.end_of_text, chars.vocab_size) == (4, 5, 6)
        assert chars.encode("axz").tolist() == [0, 4, 4]
        assert chars.decode([0, 4, 5, 3]) == "a\N{REPLACEMENT CHARACTER}🦈"

    @settings(max_examples=100, deadline=None)
    @given(text=st.text(min_size=1))
    def test_a_corpus_is_decoded_unchanged(self, text: str) -> None:
        chars = train_tokenizer(TokenizerConfig(kind="chars"), [text])
        assert chars.decode(chars.encode(text)) == text
        assert chars.vocab_size == len(set(text)) + 2

    def test_too_many_characters(self) -> None:
        many = "".join(chr(0x20000 + i) for i in range(MAX_CHARS + 1))
        assert train_tokenizer(TokenizerConfig(kind="chars"), [many[1:]]).dtype == np.uint16
        with pytest.raises(TokenizerError, match=r"More than 65,000 distinct characters.*kind: bpe or bytes"):
            train_tokenizer(TokenizerConfig(kind="chars"), [many])


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b"\xff", b'{"manta_tokenizer": 2, "kind": "bytes", "split": "", "tokens": []}'],
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(TokenizerError, match=r"not a tokenizer file of this version.*Make it again"):
        Tokenizer.from_bytes(data)


def test_ids_of_the_bytes_kind_are_bytes() -> None:
    plain = train_tokenizer(TokenizerConfig(kind="bytes"), [])
    assert (plain.vocab_size, plain.end_of_text) == (257, 256)
    assert plain.encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert plain.decode([0xC3]) == "\N{REPLACEMENT CHARACTER}"


def test_a_file_that_is_nested_without_end_is_no_tokenizer() -> None:
    with pytest.raises(TokenizerError, match="RecursionError"):
        Tokenizer.from_bytes(b"[" * 100_000)
