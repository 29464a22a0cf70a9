"""Recipes for tests: a model of a few thousand parameters, a few steps, and text that is generated on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from orchestrator.config.recipe_file import assign

STEPS = 4
"""Steps of a tiny run."""


def tiny_recipe(**overrides: Any) -> dict[str, Any]:
    """The fields of a run that trains in seconds on one CPU core.

    Args:
        overrides: values by dotted name, which replace the defaults or add to them:
            `tiny_recipe(run="second", **{"train.steps": 8, "model.n_layers": 1})`.
    """
    fields: dict[str, Any] = {
        "run": "tiny",
        "storage": "store",
        "data": {
            "sources": [{"path": "text"}],
            "tokenizer": {"kind": "bytes"},
            "seq_len": 32,
            "validation_fraction": 0,
        },
        "model": {"n_layers": 2, "d_model": 32, "n_heads": 4},
        "train": {"steps": STEPS, "global_batch_size": 4, "micro_batch_size": 2, "lr": 1e-3},
    }
    for name, value in overrides.items():
        assign(fields, name.split("."), value)
    return fields


def write_recipe(path: Path, fields: dict[str, Any]) -> Path:
    """Writes a recipe, or a sweep's recipe, as YAML (JSON is YAML); returns its path."""
    path.write_text(json.dumps(fields, ensure_ascii=False))
    return path


def write_text(folder: Path, documents: int = 4, words: int = 400, seed: int = 0) -> Path:
    """Writes documents of made-up sentences, the same for the same seed; returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    vocabulary = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(200)]
    for number in range(documents):
        sentences = [" ".join(rng.choices(vocabulary, k=8)).capitalize() + "." for _ in range(words // 8)]
        (folder / f"{number:02d}.txt").write_text("\n".join(sentences) + "\n")
    return folder
