"""Decides which documents are duplicates, from their fingerprints and their order alone. The first is kept.

Memory: the fingerprints, and about 40 bytes per document while one band is compared; about 2 KB more for each document
that may be near another.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from data.cleaning.config import DedupStep, NearDedupStep
from data.cleaning.fingerprint import Bytes

Mask = npt.NDArray[np.bool_]

BYTE_CHANCE = 1 / 256
"""Probability that bytes of two different minima agree."""


def duplicates(prints: Bytes, step: DedupStep | NearDedupStep) -> Mask:
    """(n,) bool: the documents to remove, because a kept one before them is the same, or near enough.

    Args:
        prints: (n, width) uint8, the fingerprints; earlier documents take precedence.
        step: decides what a duplicate is.
    """
    return _same(prints) if isinstance(step, DedupStep) else _near(prints, step)


def agreeing(step: NearDedupStep) -> int:
    """Least bytes of two signatures that agree where documents are near: the expectation at the threshold."""
    share = step.threshold + (1 - step.threshold) * BYTE_CHANCE
    return math.ceil(step.permutations * share - 1e-9)


def rows_per_band(step: NearDedupStep) -> int:
    """Bytes in a band: documents that agree in a whole band are compared.

    8 where pairs at the threshold t are found with a probability of at least 0.9, 1 - (1 - t^r)^(n / r); else 4, which
    compares more pairs that are not near.
    """
    found = 1 - (1 - step.threshold**8) ** (step.permutations // 8)
    return 8 if found >= 0.9 else 4


def _same(prints: Bytes) -> Mask:
    halves = np.ascontiguousarray(prints).view(np.uint64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: of equal ones, the first comes first
    repeated = np.zeros(len(prints), bool)
    repeated[order[1:]] = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    return repeated


def _near(prints: Bytes, step: NearDedupStep) -> Mask:
    prints = np.ascontiguousarray(prints)
    bands = prints.view(np.uint64 if rows_per_band(step) == 8 else np.uint32)
    shared = np.zeros(len(prints), bool)
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        same = band[order[1:]] == band[order[:-1]]
        shared[order[1:][same]] = True
        shared[order[:-1][same]] = True
    near = np.zeros(len(prints), bool)
    near[shared] = _near_one_kept(prints[shared], bands[shared], agreeing(step))
    return near


def _near_one_kept(prints: Bytes, bands: npt.NDArray[Any], needed: int) -> Mask:
    """(n,) bool: the documents that agree with a kept one before them in a band and in `needed` bytes."""
    near = np.zeros(len(prints), bool)
    kept: list[defaultdict[int, list[int]]] = [defaultdict(list) for _ in range(bands.shape[1])]
    for document in range(len(prints)):
        keys = bands[document].tolist()
        candidates = set[int]()
        for band, key in zip(kept, keys, strict=True):
            candidates.update(band.get(key, ()))
        if candidates:
            agree = (prints[list(candidates)] == prints[document]).sum(axis=1)
            near[document] = agree.max() >= needed
        if not near[document]:
            for band, key in zip(kept, keys, strict=True):
                band[key].append(document)
    return near
