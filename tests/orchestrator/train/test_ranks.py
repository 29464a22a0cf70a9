"""N ranks against one rank, and against a plain loop without ranks: the same losses at any world size."""

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from data.order.packing import MicroBatch
from model.optim.optimizer import build_optimizer
from orchestrator.config.recipe import RunConfig
from orchestrator.evaluation.forward import build_model
from orchestrator.run.vocabulary import Vocabulary
from orchestrator.snapshots.tensors import load_state, save_state
from orchestrator.train.batches import FetchedShare
from orchestrator.train.step import apply_update, compute, data_parallel

MICRO_BATCHES, MICRO_BATCH, SEQ_LEN, VOCAB, STEPS, LR, CLIP = 8, 2, 12, 40, 4, 0.01, 0.5

# For each run, its parts: ranks, first step, last step (exclusive). A part resumes from the state the one before saved.
RUNS = {
    "1": [(1, 0, STEPS)],
    "2": [(2, 0, STEPS)],
    "3": [(3, 0, STEPS)],
    "4": [(4, 0, STEPS)],
    "resized": [(4, 0, 1), (1, 1, 2), (3, 2, STEPS)],
}


def config() -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": "ranks",
            "seed": 5,
            "storage": "/nowhere",
            "data": {"sources": [{"path": "/nowhere"}], "seq_len": SEQ_LEN},
            "model": {"n_layers": 2, "d_model": 32, "n_heads": 4, "dropout": 0.2, "loss_chunk_tokens": 7},
            "train": {
                "steps": STEPS,
                "global_batch_size": MICRO_BATCHES * MICRO_BATCH,
                "micro_batch_size": MICRO_BATCH,
                "lr": LR,
                "optimizer": {"name": "adamw", "weight_decay": 0.0},
            },
        }
    )


def batch_of(step: int, slot: int) -> MicroBatch:
    """A micro-batch whose sequences are full, nearly empty, or in between; padding is token 0."""
    draw = np.random.default_rng([step, slot])
    tokens = draw.integers(1, VOCAB, (MICRO_BATCH, SEQ_LEN + 1)).astype(np.uint16)
    target_counts = draw.choice([1, 3, SEQ_LEN - 1, SEQ_LEN], MICRO_BATCH)
    for row, count in zip(tokens, target_counts, strict=True):
        row[count + 1 :] = 0
    first = (step * MICRO_BATCHES + slot) * MICRO_BATCH
    return MicroBatch(tokens, target_counts, np.arange(first, first + MICRO_BATCH))


def targets_of(step: int) -> int:
    return sum(int(batch_of(step, slot).target_counts.sum()) for slot in range(MICRO_BATCHES))


def train_in_ranks(rank: int, folder: str) -> None:
    """Body of process `rank`: takes part in each run whose parts need so many."""
    torch.set_num_threads(1)
    for name, parts in RUNS.items():
        reported: dict[str, Any] = {"losses": [], "norms": [], "ids": []}
        for number, (world_size, first, last) in enumerate(parts):
            if rank < world_size:
                group = f"file://{folder}/group-{name}-{number}"
                dist.init_process_group("gloo", init_method=group, rank=rank, world_size=world_size)
                weights = train_part(rank, world_size, range(first, last), Path(folder) / name, bool(number), reported)
                dist.barrier()
                dist.destroy_process_group()
        if rank == 0:
            torch.save(reported | {"weights": weights}, f"{folder}/{name}.pt")


def train_part(
    rank: int, world_size: int, steps: range, saved: Path, resumed: bool, reported: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """As `orchestrator.train.loop`, with batches made on the spot. Rank 0 saves; the next part loads."""
    model = build_model(config(), Vocabulary(VOCAB, 0))
    optimizer = build_optimizer(model, config().train.optimizer, LR)
    if resumed:
        load_state(saved, model, optimizer)
    ddp = data_parallel(model, compiled=False)
    for step in steps:
        mine = range(rank, MICRO_BATCHES, world_size)
        share = FetchedShare(mine, [batch_of(step, slot) for slot in mine], targets_of(step))
        sync, micro_batch_s = compute(ddp, share, config(), step, torch.device("cpu"))
        sync.combine(rank=rank, seconds=micro_batch_s)
        assert len(sync.seconds) == world_size and sync.seconds[rank] == pytest.approx(micro_batch_s, abs=1e-5)
        reported["losses"].append(sync.loss_sum() / share.target_tokens)
        reported["norms"].append(apply_update(model, optimizer, LR, CLIP))
        reported["ids"] += sync.sample_ids().tolist()
    if rank == 0:
        saved.mkdir(exist_ok=True)
        save_state(saved, model, optimizer)
    return model.state_dict()


def train_plainly() -> dict[str, Any]:
    """One process, one batch after the other, losses from the logits, clipping and averaging by hand."""
    model = build_model(config(), Vocabulary(VOCAB, 0))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, foreach=False)
    losses, norms = [], []
    for step in range(STEPS):
        total, tokens = 0.0, 0
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for slot in range(MICRO_BATCHES):
            batch = batch_of(step, slot)
            seed = hashlib.blake2b(f"5/{step}/{slot}".encode(), digest_size=8).digest()
            torch.manual_seed(int.from_bytes(seed, "little") // 2)
            logits = model.logits(torch.from_numpy(batch.tokens[:, :-1].astype(np.int64)))
            rows = [
                F.cross_entropy(row[:count], torch.from_numpy(ids[1 : count + 1].astype(np.int64)), reduction="sum")
                for row, ids, count in zip(logits, batch.tokens, batch.target_counts, strict=True)
            ]
            loss = torch.stack(rows).sum()
            for gradient, new in zip(gradients, torch.autograd.grad(loss, parameters), strict=True):
                gradient += new
            total += loss.item()
            tokens += int(batch.target_counts.sum())
        gradients = [gradient / tokens for gradient in gradients]
        norm = float(sum((gradient.double() ** 2).sum() for gradient in gradients)) ** 0.5
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient * min(1.0, CLIP / norm)
        optimizer.step()
        losses.append(total / tokens)
        norms.append(norm)
    return {"losses": losses, "norms": norms, "weights": model.state_dict()}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What rank 0 reported of each run, and the plain loop's as "plain"."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(train_in_ranks, (str(folder),), nprocs=4)
    return {name: torch.load(folder / f"{name}.pt") for name in RUNS} | {"plain": train_plainly()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "one, other", [("1", "2"), ("1", "3"), ("1", "4"), ("1", "resized"), ("plain", "1"), ("plain", "3")]
)
def test_losses_are_those_of(results: dict[str, dict[str, Any]], one: str, other: str) -> None:
    assert results[other]["losses"] == pytest.approx(results[one]["losses"], rel=1e-6)
    assert results[other]["norms"] == pytest.approx(results[one]["norms"], rel=1e-5)
    assert min(results[one]["norms"]) > CLIP  # so that every update is clipped
    for name, weight in results[one]["weights"].items():
        # AdamW divides by the size of past gradients: where these are tiny, their rounding is seen in the weight.
        torch.testing.assert_close(results[other]["weights"][name], weight, rtol=1e-4, atol=5e-3 * LR)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_sample_is_reported_once_and_in_order(results: dict[str, dict[str, Any]], name: str) -> None:
    assert results[name]["ids"] == list(range(STEPS * MICRO_BATCHES * MICRO_BATCH))


@pytest.mark.slow
def test_losses_differ_between_steps_and_depend_on_dropout(results: dict[str, dict[str, Any]]) -> None:
    """Otherwise the comparisons above would prove nothing."""
    losses = results["1"]["losses"]
    assert min(abs(a - b) / a for a, b in itertools.pairwise(losses)) > 1e-4
    without = config().model_copy(update={"model": config().model.model_copy(update={"dropout": 0.0})})
    model = build_model(without, Vocabulary(VOCAB, 0))
    first = 0.0
    for slot in range(MICRO_BATCHES):
        batch = batch_of(0, slot)
        logits = model.logits(torch.from_numpy(batch.tokens[:, :-1].astype(np.int64)))
        for row, tokens, count in zip(logits, batch.tokens, batch.target_counts, strict=True):
            wanted = torch.from_numpy(tokens[1 : count + 1].astype(np.int64))
            first += F.cross_entropy(row[:count], wanted, reduction="sum").item()
    assert abs(first / targets_of(0) - losses[0]) > 1e-4
