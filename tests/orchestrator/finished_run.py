"""A run as it is after training, made without any: a checkpoint in its store, and a record that names its data."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.config.load import load_recipe
from orchestrator.config.recipe import RunConfig
from orchestrator.config.result_fields import result_fields
from orchestrator.evaluation.forward import build_model
from orchestrator.run.checkpoint import CheckpointName, write_checkpoint
from orchestrator.run.fence import Fence
from orchestrator.run.run import Run, open_run, stores
from orchestrator.run.vocabulary import vocabulary_of
from orchestrator.snapshots.tensors import save_state

STEP = 4


def recipe_in(folder: Path, name: str = "made", **sections: Mapping[str, Any]) -> Path:
    """Path of a recipe, written into `folder`, of a small model and of text that takes no Ray to prepare."""
    shards = folder / "shards"
    if not shards.exists():
        shards.mkdir()
        library = Path(sysconfig.get_paths()["stdlib"])
        (shards / "a.txt").write_text(
            "".join((library / f"{name}.py").read_text("utf-8") for name in ("this", "bisect"))
        )
    fields: dict[str, Any] = {
        "run": name,
        "storage": str(folder / "kept"),
        "data": {
            "sources": [{"path": str(shards)}],
            "tokenizer": {"vocab_size": 300},
            "seq_len": 32,
            "prepare": "streaming",
            "validation_fraction": 0,
        },
        "model": {"n_layers": 2, "d_model": 32, "n_heads": 4},
        "train": {"steps": STEP, "global_batch_size": 4, "micro_batch_size": 4, "lr": 1e-3},
        "sample": {"prompts": ["def f(", "我们"], "max_new_tokens": 24},
    }
    for section, values in sections.items():
        fields[section] = {**fields[section], **values}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(fields))
    return path


def finish(recipe: Path, step: int = STEP, seed: int = 0) -> tuple[RunConfig, torch.nn.Module]:
    """Give the recipe's run a checkpoint of `step` with weights far from where training begins, and its record."""
    config = load_recipe(recipe)
    root, store = stores(config)
    fence = Fence.claim(store, config.run, result_fields(config), keep_pins=False)
    data = Run(config, root, store, fence.record).prepare(lambda line: None)
    fence.update(
        manifest=data.manifest.digest,
        tokenizer=data.tokenizer.digest,
        attempt={"status": "finished"},
        result={"step": step, "val_loss": 3.25},
    )
    model = build_model(config, vocabulary_of(config, data.tokenizer))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    snapshot = recipe.parent / f"snapshot-{config.run}-{step}"
    snapshot.mkdir()
    save_state(snapshot, model, torch.optim.SGD(model.parameters(), lr=1.0))
    write_checkpoint(store, CheckpointName(step, 1), {"step": step}, snapshot, before_commit=lambda: None)
    return config, model.eval()


def run_of(recipe: Path) -> Run:
    """The recipe's run."""
    return open_run(load_recipe(recipe))
