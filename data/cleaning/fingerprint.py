"""Fingerprints of documents, by which duplicates are found: a hash of the text, or a MinHash signature."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import numpy.typing as npt

from data.cleaning.config import DedupStep, NearDedupStep
from data.cleaning.libraries import library

Bytes = npt.NDArray[np.uint8]

EXACT_BYTES = 16
"""Bytes of a text's hash: two different texts among n collide with a probability of n^2 / 2^129."""

SEED = 20_040_607
"""Seed of the hash functions: fixed, so that signatures from any machine and time are comparable."""


def width(step: DedupStep | NearDedupStep) -> int:
    """Bytes in a document's fingerprint."""
    return EXACT_BYTES if isinstance(step, DedupStep) else step.permutations


def fingerprint(text: str, step: DedupStep | NearDedupStep) -> bytes:
    """The fingerprint that a step compares: `width(step)` bytes.

    Raises:
        InputError: the library that makes signatures is not installed.
    """
    if isinstance(step, DedupStep):
        return hashlib.blake2b(text.encode(), digest_size=EXACT_BYTES).digest()
    return min_hash(text, step).tobytes()


def min_hash(text: str, step: NearDedupStep) -> Bytes:
    """(permutations,) uint8: the MinHash signature of a text's shingles, one byte of each minimum.

    Two signatures agree in a byte with probability J + (1 - J) / 256, where J is the Jaccard similarity of the sets
    of shingles: b-bit minwise hashing with b = 8 (Li & Koenig 2010, eq. 8, for sets small among all hashes). The minima
    are rensa's: R-MinHash, after Dahlgaard, Knudsen & Thorup 2017 (Fast Similarity Sketching).

    Raises:
        InputError: rensa is not installed.
    """
    sketch = library("rensa", "near_dedup").RMinHash.digest_matrix_from_flat_token_hashes
    hashes = shingle_hashes(text, step.shingle_chars)
    minima = np.array(
        sketch(hashes, np.array([0, len(hashes)], np.uint64), step.permutations, SEED).to_rows()[0], np.uint64
    )
    # Fibonacci hashing: the byte depends on all 32 bits of the minimum.
    return ((minima * np.uint64(0x9E3779B1)) >> np.uint64(24) & np.uint64(0xFF)).astype(np.uint8)


def shingles(text: str, chars: int) -> set[str]:
    """The shingles of a text: all substrings of `chars` characters, with white space as one space; at least one."""
    text = " ".join(text.split())
    return {text[first : first + chars] for first in range(max(1, len(text) - chars + 1))}


def shingle_hashes(text: str, chars: int) -> npt.NDArray[np.uint64]:
    """(n,) uint64: the hashes of the shingles in order of position; repeated shingles are repeated.

    Multilinear hashing (Lemire & Kaser 2014) of code points, all shingles at once, then a mixer, because MinHash
    assumes random bits.
    """
    points = np.frombuffer(" ".join(text.split()).encode("utf-32-le"), np.uint32).astype(np.uint64)
    chars = min(chars, max(1, len(points)))
    count = len(points) - chars + 1
    hashes = np.zeros(max(1, count), np.uint64)
    for place, multiplier in enumerate(_multipliers(chars)):
        hashes[:count] += points[place : place + count] * multiplier
    # The finalizer of SplitMix64 (Steele, Lea & Flood 2014).
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


@cache
def _multipliers(chars: int) -> npt.NDArray[np.uint64]:
    digest = hashlib.shake_256(f"multipliers {SEED}".encode()).digest(8 * chars)
    return np.frombuffer(digest, "<u8").astype(np.uint64) | np.uint64(1)
