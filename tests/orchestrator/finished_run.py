"""A finished run, made without training: a checkpoint in its store, and a record that names its data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.load import load_recipe
from orchestrator.config.recipe import RunConfig
from orchestrator.config.result_fields import result_fields
from orchestrator.run.checkpoint import CheckpointName, write_checkpoint
from orchestrator.run.fence import Fence
from orchestrator.run.run import Run, open_run, stores
from orchestrator.run.vocabulary import vocabulary_of
from tests.recipes import tiny_recipe, write_recipe, write_text

if TYPE_CHECKING:
    import torch

STEP = 4


def recipe_in(folder: Path, name: str = "made", **sections: Mapping[str, Any]) -> Path:
    """Writes the recipe `name` of a tiny run into `folder`, with text that is prepared without Ray; returns its path.

    Args:
        sections: fields to change, by section.
    """
    shards = folder / "shards"
    if not shards.exists():
        write_text(shards, documents=1, words=1600)
    changes = {f"{section}.{field}": value for section, values in sections.items() for field, value in values.items()}
    fields = tiny_recipe(
        run=name,
        storage=str(folder / "kept"),
        **{
            "data.sources": [{"path": str(shards)}],
            "data.tokenizer": {"vocab_size": 300},
            "data.prepare": "streaming",
            "train.steps": STEP,
            "train.micro_batch_size": 4,
            "sample": {"prompts": ["def f(", "我们"], "max_new_tokens": 24},
        }
        | changes,
    )
    return write_recipe(folder / f"{name}.yaml", fields)


def finish(recipe: Path, step: int = STEP, seed: int = 0) -> tuple[RunConfig, torch.nn.Module]:
    """Writes a checkpoint of `step` with weights far from their initial values, and the record of a finished run."""
    import torch  # most users of this module only need a recipe

    from orchestrator.evaluation.forward import build_model
    from orchestrator.snapshots.tensors import save_state

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
