"""Text to token ids and back: byte-level BPE, plain bytes, or the characters of a corpus.

BPE is learned with `tokenizers` and applied with `tiktoken`, which gives the same ids several times faster. The
end-of-text token, which ends a document, has the last id. No text encodes to it: "<|endoftext|>" in a text is text.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from data.config import TokenizerConfig
from data.errors import TokenizerError

if TYPE_CHECKING:
    import tiktoken

Kind = Literal["bpe", "bytes", "chars"]

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

MAX_CHARS = 65_000
"""Most characters of the chars kind: with the two special ones, ids fit 16 bits."""

UNKNOWN = "\N{REPLACEMENT CHARACTER}"

# GPT-2's split of text before merging (Radford et al. 2019), in tiktoken's faster form for r50k_base: contractions,
# then runs of letters, of digits or of other signs with one space before them, then white space.
_SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

# Learning takes time quadratic in the longest run (a genome, a line of dashes), so longer runs are split.
_LONGEST_RUN = 1000

_LONG_RUNS = "|".join(rf"{kind}{{{_LONGEST_RUN}}}" for kind in (r"\p{L}", r"\p{N}", r"[^\s\p{L}\p{N}]", r"\s"))

# tiktoken's regular expressions fail on about a million white-space characters in a row; texts are cut inside them.
_SPACES_AT_ONCE = 200_000

_LONG_SPACE = re.compile(rf"\s{{{_SPACES_AT_ONCE}}}")


class Tokenizer:
    """A fixed vocabulary. Picklable, and safe to share between threads.

    `tokens[i]` are the bytes of id i. After them come the unknown id (chars kind only) and end-of-text.
    """

    def __init__(self, kind: Kind, tokens: Sequence[bytes]) -> None:
        """`tokens` are in the order of merging (bpe kind) or of code points (chars kind)."""
        self.kind = kind
        self.tokens = tuple(tokens)

    @property
    def unknown(self) -> int | None:
        """The id of characters outside the vocabulary; None where every text can be encoded."""
        return len(self.tokens) if self.kind == "chars" else None

    @property
    def end_of_text(self) -> int:
        """The id that ends a document: the last one."""
        return self.vocab_size - 1

    @property
    def vocab_size(self) -> int:
        """Number of ids, end-of-text included."""
        return len(self.tokens) + (2 if self.kind == "chars" else 1)

    @property
    def dtype(self) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
        """The smaller of uint16 and uint32 that can represent every id."""
        return np.dtype(np.uint16) if self.vocab_size <= 1 << 16 else np.dtype(np.uint32)

    @cached_property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """(vocab_size,) int64: bytes of text that each id stands for; 0 for end-of-text, 1 for an unknown character."""
        lengths = [len(token) for token in self.tokens]
        return np.array([*lengths, 1, 0] if self.kind == "chars" else [*lengths, 0], np.int64)

    @cached_property
    def digest(self) -> str:
        """sha256 of `to_bytes()`: tokenizers with the same digest give the same ids."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def encode(self, text: str) -> Ids:
        """`text` as ids, (n,) of `dtype`, without end-of-text.

        Raises:
            TokenizerError: `text` contains half of a surrogate pair, which is not a character.
        """
        try:
            ids: Ids = self._encode(text).astype(self.dtype, copy=False)
        except UnicodeEncodeError as error:
            bad = f"Character {error.start} of a text is {error.object[error.start]!a}"
            raise TokenizerError(f"{bad}, half of a surrogate pair, which is not a character. Replace it.") from None
        return ids

    def _encode(self, text: str) -> Any:
        if self.kind == "bytes":
            return np.frombuffer(text.encode(), np.uint8)
        if self.kind == "chars":
            return self._encode_chars(text)
        encoding = _encoding(self)
        # A list, then an array: encode_to_numpy searches for special tokens too, and takes 1.4 times as long.
        text.encode()  # raises on half of a surrogate pair, which encode_ordinary would replace silently
        ids = [encoding.encode_ordinary(piece) for piece in _cut_in_long_space(text)]
        return np.array(ids[0] if len(ids) == 1 else list(chain.from_iterable(ids)), self.dtype)

    def _encode_chars(self, text: str) -> npt.NDArray[Any]:
        points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        known = self._code_points
        if not len(known):
            return np.full(len(points), len(known))
        at = np.minimum(np.searchsorted(known, points), len(known) - 1)
        return np.where(known[at] == points, at, len(known))

    @cached_property
    def _code_points(self) -> npt.NDArray[np.uint32]:
        return np.array([ord(token.decode()) for token in self.tokens], np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Invalid UTF-8 becomes U+FFFD; end-of-text becomes nothing.

        Raises:
            TokenizerError: an id outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Like `decode`, but returns bytes; a character may span several ids."""
        tokens = self._token_of_id
        try:
            return b"".join([tokens[int(i)] for i in ids])
        except KeyError as error:
            raise TokenizerError(f"Id {error} is outside the vocabulary, 0 to {self.end_of_text}.") from None

    @cached_property
    def _token_of_id(self) -> dict[int, bytes]:
        tokens = {self.end_of_text: b"", **dict(enumerate(self.tokens))}
        return tokens if self.unknown is None else {**tokens, self.unknown: UNKNOWN.encode()}

    def to_bytes(self) -> bytes:
        """The tokenizer as JSON. The same vocabulary gives the same bytes."""
        tokens = [token.hex() for token in self.tokens]
        return json.dumps({"manta_tokenizer": 1, "kind": self.kind, "split": _SPLIT, "tokens": tokens}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Tokenizer:
        """Inverse of `to_bytes`.

        Raises:
            TokenizerError: `data` is something else, or of a newer version.
        """
        try:
            content = json.loads(data)
            kind, version = content["kind"], content["manta_tokenizer"]
            if kind not in ("bpe", "bytes", "chars") or (version, content["split"]) != (1, _SPLIT):
                raise ValueError(f"kind {kind!r}, version {version!r}")
            return cls(kind, [bytes.fromhex(token) for token in content["tokens"]])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise TokenizerError(
                f"This is not a tokenizer file of this version of Manta ({reason}). Make it again."
            ) from error

    def __getstate__(self) -> tuple[Kind, tuple[bytes, ...]]:
        return self.kind, self.tokens  # without the tables, which are quick to make

    def __setstate__(self, state: tuple[Kind, tuple[bytes, ...]]) -> None:
        self.kind, self.tokens = state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and (self.kind, self.tokens) == (other.kind, other.tokens)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, vocab_size={self.vocab_size}, digest={self.digest[:12]})"


_encodings: dict[str, tiktoken.Encoding] = {}

_encodings_lock = threading.Lock()


def _encoding(tokenizer: Tokenizer) -> tiktoken.Encoding:
    """The encoder of a BPE vocabulary, one per process: tasks unpickle their tokenizer repeatedly."""
    import tiktoken

    with _encodings_lock:
        if tokenizer.digest not in _encodings:
            _encodings[tokenizer.digest] = tiktoken.Encoding(
                name=f"manta-{tokenizer.digest[:12]}",
                pat_str=_SPLIT,
                mergeable_ranks={token: rank for rank, token in enumerate(tokenizer.tokens)},
                special_tokens={},
            )
        return _encodings[tokenizer.digest]


def _cut_in_long_space(text: str) -> list[str]:
    if len(text) < _SPACES_AT_ONCE:
        return [text]
    cuts = [0, *(match.end() for match in _LONG_SPACE.finditer(text)), len(text)]
    return [text[first:last] for first, last in pairwise(cuts)]


def train_tokenizer(
    config: TokenizerConfig, texts: Iterable[str], progress: Callable[[int], None] | None = None
) -> Tokenizer:
    """Learns a vocabulary from the first `config.train_bytes` of `texts`. The same texts give the same digest.

    Args:
        config: the kind and size. A small corpus may give a BPE vocabulary smaller than `vocab_size`.
        texts: documents in manifest order; only as many as needed are read.
        progress: called with the bytes read so far.

    Raises:
        TokenizerError: there is no text to learn from, or there are too many distinct characters for the chars kind.
    """
    if config.kind == "bytes":
        return Tokenizer("bytes", [bytes([value]) for value in range(256)])
    limited = _first_bytes(texts, config.train_bytes, progress)
    if config.kind == "chars":
        return Tokenizer("chars", _learn_chars(limited))
    return Tokenizer("bpe", _learn_bpe(limited, config))


def _first_bytes(texts: Iterable[str], limit: int, progress: Callable[[int], None] | None) -> Iterator[str]:
    taken = 0
    for text in texts:
        data = text.encode()
        if taken + len(data) > limit:
            text = data[: limit - taken].decode("utf-8", "ignore")  # a character cut in half is dropped
        taken = min(limit, taken + len(data))
        if text:
            yield text
        if progress is not None:
            progress(taken)
        if taken >= limit:
            return


def _learn_chars(texts: Iterable[str]) -> list[bytes]:
    found: set[str] = set()
    for text in texts:
        found.update(text)
        if len(found) > MAX_CHARS:
            raise TokenizerError(f"More than {MAX_CHARS:,} distinct characters. Set tokenizer.kind: bpe or bytes.")
    if not found:
        raise TokenizerError("There is no text to learn a tokenizer from: all documents are empty.")
    return [char.encode() for char in sorted(found)]


def _learn_bpe(texts: Iterator[str], config: TokenizerConfig) -> list[bytes]:
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Learner

    learner = Learner(models.BPE())
    in_long_runs = pre_tokenizers.Split(Regex(_LONG_RUNS), "isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence([in_long_runs, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    first = next(texts, None)
    if first is None:
        raise TokenizerError("There is no text to learn a tokenizer from: all documents are empty.")
    learner.train_from_iterator(chain([first], texts), trainer)
    byte_of = byte_alphabet()
    by_id = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    return [bytes(byte_of[char] for char in token) for token, _ in by_id]


def byte_alphabet() -> dict[str, int]:
    """The byte of each character of GPT-2's byte alphabet, in which `tokenizers` writes tokens.

    Bytes that are printable in Latin-1 are written as themselves; the others, in order, as U+0100 and up.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in set(plain)]
    return {chr(value): value for value in plain} | {chr(0x100 + i): value for i, value in enumerate(others)}
