"""StepSync: the whole step in slot order on every rank, whichever rank computed which slot."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from orchestrator.train.step_sync import StepDirective, StepSync

CPU = torch.device("cpu")
SLOTS, SIZE = 5, 3


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def ids_of(slot: int) -> np.ndarray:
    return np.array([slot << 49, slot, 2**62 + slot]) if slot else np.array([0, 1, 2**63 - 2])


def loss_of(slot: int) -> float:
    return float(np.float32(10.0**slot / 3))


def fill(sync: StepSync, slots: range) -> None:
    for slot in slots:
        sync.add(slot, torch.tensor(loss_of(slot), requires_grad=True), ids_of(slot))


@pytest.mark.usefixtures("alone")
class TestAlone:
    def test_ids_and_losses_are_in_slot_order(self) -> None:
        sync = StepSync(SLOTS, SIZE, CPU)
        for slot in (3, 0, 4, 1, 2):
            fill(sync, range(slot, slot + 1))
        sync.combine()
        assert sync.sample_ids().tolist() == [int(each) for slot in range(SLOTS) for each in ids_of(slot)]
        assert sync.loss_sum() == pytest.approx(sum(loss_of(slot) for slot in range(SLOTS)), rel=1e-15)
        assert sync.directive == StepDirective()

    def test_a_slot_that_no_rank_filled_has_ids_of_minus_1(self) -> None:
        sync = StepSync(2, SIZE, CPU)
        fill(sync, range(1, 2))
        sync.combine()
        assert sync.sample_ids().tolist() == [-1, -1, -1, *ids_of(1).tolist()]

    def test_losses_are_kept_in_double_precision_and_without_a_graph(self) -> None:
        sync = StepSync(2, 0, CPU)
        sync.add(0, torch.tensor(1e8, requires_grad=True), np.empty(0, np.int64))
        sync.add(1, torch.tensor(1.0, dtype=torch.bfloat16), np.empty(0, np.int64))
        sync.combine()
        assert sync.loss_sum() == 100_000_001.0 and len(sync.sample_ids()) == 0

    @pytest.mark.parametrize("loss", [float("nan"), float("inf"), -1.5])
    def test_losses_that_are_not_finite_or_negative_are_kept(self, loss: float) -> None:
        sync = StepSync(1, 1, CPU)
        sync.add(0, torch.tensor(loss), np.array([7]))
        sync.combine(StepDirective(stop=True, saved_step=2**40))
        np.testing.assert_equal(sync.loss_sum(), loss)
        assert sync.directive == StepDirective(stop=True, saved_step=2**40) and sync.sample_ids().tolist() == [7]


def exchange(rank: int, folder: str) -> None:
    """Body of a rank: with two ranks, then with three, fills its slots, combines, and saves what it has then."""
    for world_size in (2, 3):
        if rank < world_size:
            group = f"file://{folder}/group-{world_size}"
            dist.init_process_group("gloo", init_method=group, rank=rank, world_size=world_size)
            sync = StepSync(SLOTS, SIZE, CPU)
            fill(sync, range(rank, SLOTS, world_size))
            sync.combine(
                StepDirective(stop=world_size == 3, snapshot=True, pause=True, saved_step=17) if rank == 0 else None
            )
            torch.save(
                (sync.loss_sum(), sync.sample_ids().tolist(), tuple(sync.directive)), f"{folder}/{world_size}-{rank}.pt"
            )
            dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_every_rank_has_bit_for_bit_what_one_rank_alone_has(tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    mp.spawn(exchange, (str(tmp_path / "ranks"),), nprocs=3)
    for world_size in (2, 3):
        sync = StepSync(SLOTS, SIZE, CPU)
        fill(sync, range(SLOTS))
        sync.combine()
        for rank in range(world_size):
            result = torch.load(tmp_path / "ranks" / f"{world_size}-{rank}.pt")
            assert result == (sync.loss_sum(), sync.sample_ids().tolist(), (world_size == 3, True, True, False, 17))
