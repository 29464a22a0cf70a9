"""Converts vocabularies to the `tokenizer.json` that `transformers` loads, and such files to vocabularies.

Both sides give the same ids for the same text. Both split text by GPT-2's rule, which is built into `tokenizers`
(`ByteLevel`), and agree on every code point. They represent BPE differently: tiktoken by the rank of each token,
`tokenizers` by the pair that each token was merged from, so the pairs are computed here.

There are two differences. `tokenizers` reads "<|endoftext|>" inside a text as the token, unless `split_special_tokens`
is set, as `tokenizer_config.json` does and `AutoTokenizer` obeys; Manta reads it as text. And Manta cuts more than
200,000 white-space characters in a row, which may move the border of a token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data.errors import TokenizerError
from data.tokens.tokenizer import UNKNOWN, Kind, Tokenizer, byte_alphabet

END_OF_TEXT = "<|endoftext|>"

_UNKNOWN_NAME = "<|unknown|>"  # longer than one character, so it is not a character of any corpus

Pair = tuple[bytes, bytes]


def to_tokenizer_json(tokenizer: Tokenizer, *, closes_texts: bool = False) -> bytes:
    """The content of `tokenizer.json`.

    Args:
        closes_texts: append end-of-text to every encoded text, as for the input of an encoder-decoder.

    Raises:
        TokenizerError: a token of a BPE vocabulary is not a merge of two others.
    """
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as HfTokenizer

    if tokenizer.kind == "chars":
        ids = {token.decode(): i for i, token in enumerate(tokenizer.tokens)}
        hf_tokenizer = HfTokenizer(models.WordLevel({**ids, _UNKNOWN_NAME: len(ids)}, unk_token=_UNKNOWN_NAME))
        hf_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        hf_tokenizer.decoder = decoders.Sequence([decoders.Replace(_UNKNOWN_NAME, UNKNOWN), decoders.Fuse()])
    else:
        merges = merges_of(tokenizer.tokens) if tokenizer.kind == "bpe" else []
        ids = {_spelled(token): i for i, token in enumerate(tokenizer.tokens)}
        hf_tokenizer = HfTokenizer(models.BPE(ids, [(_spelled(left), _spelled(right)) for left, right in merges]))
        hf_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        hf_tokenizer.decoder = decoders.ByteLevel()
    hf_tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    if closes_texts:
        end = (END_OF_TEXT, tokenizer.end_of_text)
        hf_tokenizer.post_processor = processors.TemplateProcessing(f"$A {END_OF_TEXT}", special_tokens=[end])
    assert hf_tokenizer.get_vocab_size() == tokenizer.vocab_size
    return hf_tokenizer.to_str().encode()


def to_tokenizer_config(seq_len: int) -> dict[str, Any]:
    """The content of `tokenizer_config.json`, with which `AutoTokenizer` gives the same ids as Manta.

    Args:
        seq_len: longest sequence of the model.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": True,  # "<|endoftext|>" in a text is text
        "clean_up_tokenization_spaces": False,
        "model_max_length": seq_len,
    }


def read_tokenizer(content: bytes) -> Tokenizer:
    """Reads a vocabulary from Manta's own file, or from a `tokenizer.json`.

    Raises:
        TokenizerError: it is neither, or a tokenizer.json of a kind that Manta does not support.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict) and "model" in fields and "manta_tokenizer" not in fields:
        return from_tokenizer_json(content)
    return Tokenizer.from_bytes(content)


def from_tokenizer_json(content: bytes) -> Tokenizer:
    """Inverse of `to_tokenizer_json`; reads GPT-2's own file, too.

    Raises:
        TokenizerError: no tokenizer of Manta's gives the same ids; all reasons are named.
    """
    try:
        fields: dict[str, Any] = json.loads(content)
        kind: Kind = "chars" if fields["model"].get("type") == "WordLevel" else "bpe"
        problems, names = _names_by_id(fields)
        problems += _problems(fields, "WordLevel" if kind == "chars" else "BPE")
        if not problems and kind == "chars":
            return _chars(names)
        if not problems:
            return _byte_pairs(names, fields["model"]["merges"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problems = [f"{type(error).__name__}: {error}"]
    reasons = "".join(f"\n  {problem}" for problem in problems)
    raise TokenizerError(
        f"This tokenizer.json is not Manta's or GPT-2's, and gives other ids:{reasons}\n"
        "Learn a vocabulary instead (leave data.tokenizer.path null), and train from scratch."
    )


def merges_of(tokens: Sequence[bytes]) -> list[Pair]:
    """The pair that each token longer than a byte was merged from, in the order of the tokens.

    It is the result of merging the token's bytes by the tokens before it (Sennrich et al. 2016, algorithm 1). In any
    text, the bytes of a token merge to this pair before they merge to the token, because nothing merges across its
    ends; so one pair per token is enough.

    Raises:
        TokenizerError: the bytes of a token do not merge to two parts.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for rank, token in enumerate(tokens):
        if len(token) == 1:
            continue
        parts = _merged(token, ranks, rank)
        if len(parts) != 2:
            raise TokenizerError(
                f"Token {rank} of the vocabulary, {token!r}, is a merge of {len(parts)} tokens before it, not of two: "
                "no list of merges gives the same ids. The vocabulary was not learned by byte pair encoding."
            )
        merges.append((parts[0], parts[1]))
    return merges


def _merged(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """The token's bytes after all merges of ranks under `below`: the lowest rank first, of equal ones the leftmost."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        rank, at = min((ranks.get(parts[i] + parts[i + 1], below), i) for i in range(len(parts) - 1))
        if rank >= below:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


_CHAR_OF_BYTE = {value: char for char, value in byte_alphabet().items()}


def _spelled(token: bytes) -> str:
    """A token in GPT-2's byte alphabet, in which every byte is a printable character."""
    return "".join(_CHAR_OF_BYTE[value] for value in token)


def _names_by_id(fields: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Problems, and the names of the tokens by id, without end-of-text."""
    vocab: dict[str, int] = dict(fields["model"]["vocab"])
    added = fields.get("added_tokens") or []
    if len(added) != 1 or not added[0].get("special"):
        return [
            f"added_tokens: {[token['content'] for token in added]}; exactly one is expected, which ends a text"
        ], []
    vocab.pop(added[0]["content"], None)
    names = sorted(vocab, key=lambda name: vocab[name])
    if [vocab[name] for name in names] != list(range(len(names))):
        return ["model.vocab: ids leave gaps"], []
    if added[0]["id"] != len(names):
        return [f"added_tokens: {added[0]['content']} has id {added[0]['id']}, not the last one, {len(names)}"], []
    return [], names


# All fields of the file that affect ids, and their required values.
_BYTE_PAIR_RULES: Mapping[str, Any] = {
    "normalizer": None,
    "pre_tokenizer.type": "ByteLevel",
    "pre_tokenizer.add_prefix_space": False,
    "pre_tokenizer.use_regex": True,
    "model.type": "BPE",
    "model.dropout": None,
    "model.unk_token": None,
    "model.continuing_subword_prefix": None,
    "model.end_of_word_suffix": None,
    "model.byte_fallback": False,
}

_CHARS_RULES: Mapping[str, Any] = {
    "normalizer": None,
    "pre_tokenizer.type": "Split",
    "pre_tokenizer.pattern": {"Regex": r"[\s\S]"},
    "model.unk_token": _UNKNOWN_NAME,
}

# Values of fields that files of older versions lack, GPT-2's among them.
_DEFAULTS = {"pre_tokenizer.use_regex": True, "model.type": "BPE", "model.byte_fallback": False}


def _problems(fields: Mapping[str, Any], kind: str) -> list[str]:
    problems = []
    for field, wanted in (_CHARS_RULES if kind == "WordLevel" else _BYTE_PAIR_RULES).items():
        found: Any = fields
        for name in field.split("."):
            found = (found or {}).get(name)
        if found is None or found == "":
            found = _DEFAULTS.get(field)
        if found != wanted:
            problems.append(f"{field}: {json.dumps(found)}, not {json.dumps(wanted)}")
    return problems


def _chars(names: Sequence[str]) -> Tokenizer:
    *chars, unknown = names
    if unknown != _UNKNOWN_NAME or chars != sorted(chars) or any(len(char) != 1 for char in chars):
        raise ValueError(f"model.vocab: not sorted characters and {_UNKNOWN_NAME}")
    return Tokenizer("chars", [char.encode() for char in chars])


def _byte_pairs(names: Sequence[str], merges: Sequence[Any]) -> Tokenizer:
    byte_of = byte_alphabet()
    tokens = [bytes(byte_of[char] for char in name) for name in names]
    if sorted(token for token in tokens if len(token) == 1) != [bytes([value]) for value in range(256)]:
        raise ValueError("model.vocab: not every byte is a token")
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    if pairs != [(_spelled(left), _spelled(right)) for left, right in merges_of(tokens)]:
        raise ValueError("model.merges: not in the order of the ids, or not those of which the tokens are merges")
    is_bytes = tokens == [bytes([value]) for value in range(256)]
    return Tokenizer("bytes" if is_bytes else "bpe", tokens)
