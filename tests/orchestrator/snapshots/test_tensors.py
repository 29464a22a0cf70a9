"""Weights and optimizer state written to files and read back: bit for bit, so training continues exactly."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.config import ModelConfig
from model.optim.config import OptimizerConfig
from model.optim.optimizer import build_optimizer, set_learning_rate
from model.optim.weight_average import WeightAverage
from model.transformer import Transformer
from orchestrator.run.checkpoint import MODEL, OPTIMIZER, tensor_files
from orchestrator.snapshots.tensors import load_optimizer, load_state, load_weights, save_state, state_bytes

OPTIMIZERS = {
    "sgd": {"name": "sgd", "momentum": 0.9},
    "sgd without momentum": {"name": "sgd", "momentum": 0.0},
    "sgd, Nesterov": {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "adam": {"name": "adam"},
    "adamw": {"name": "adamw"},
    "adafactor": {"name": "adafactor"},
    "lion": {"name": "lion"},
    "muon": {"name": "muon", "adamw_lr": 0.3},
    "rmsprop": {"name": "rmsprop"},
    "rmsprop, momentum": {"name": "rmsprop", "momentum": 0.5},
    "adagrad": {"name": "adagrad"},
    "groups": {"name": "muon", "groups": [{"match": "*.out.*", "lr": 0.5}, {"match": "*norm*", "weight_decay": 0.1}]},
}


class Trainee:
    """A small model, its optimizer and the average of its weights."""

    def __init__(self, optimizer: dict[str, object], seed: int = 0, **model: object) -> None:
        torch.manual_seed(seed)
        config = ModelConfig.model_validate({"n_layers": 2, "d_model": 16, "n_heads": 2} | model)
        self.model = Transformer(config, vocab_size=30, seq_len=8, end_of_text=0)
        self.optimizer = build_optimizer(self.model, OptimizerConfig.model_validate(optimizer), lr=0.05)
        self.average = WeightAverage(self.model, decay=0.9)

    def train(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            tokens = torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            loss = self.model(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            set_learning_rate(self.optimizer, 0.05 / (1 + step))
            self.optimizer.step()
            self.average.update(step + 1)
            losses.append(loss.item())
        return losses

    def everything(self) -> dict[str, Tensor]:
        """All weights, their averages and all optimizer tensors, by torch's names."""
        found = dict(self.model.state_dict())
        found |= {f"average of {name}": value for name, value in self.average.state_dict().items()}
        for number, entries in self.optimizer.state_dict()["state"].items():
            found |= {f"{number}.{key}": value for key, value in entries.items() if isinstance(value, Tensor)}
        return found


def assert_same_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.dtype == two[name].dtype and torch.equal(value, two[name]), name


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads would only wait for each other over tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("which", OPTIMIZERS)
def test_a_continued_training_is_the_uninterrupted_one_bit_for_bit(
    which: str, tie_embeddings: bool, tmp_path: Path
) -> None:
    whole = Trainee(OPTIMIZERS[which], tie_embeddings=tie_embeddings)
    whole.train(0, 3)
    save_state(tmp_path, whole.model, whole.optimizer, whole.average)
    before = {name: value.clone() for name, value in whole.everything().items()}

    continued = Trainee(OPTIMIZERS[which], seed=1, tie_embeddings=tie_embeddings)
    load_state(tmp_path, continued.model, continued.optimizer, continued.average)
    assert_same_bits(continued.everything(), before)
    assert continued.train(3, 7) == whole.train(3, 7)
    assert_same_bits(continued.everything(), whole.everything())


def test_a_snapshot_does_not_follow_later_steps(tmp_path: Path) -> None:
    trainee = Trainee(OPTIMIZERS["adamw"])
    trainee.train(0, 2)
    expected = {name: value.clone() for name, value in trainee.model.state_dict().items()}
    save_state(tmp_path, trainee.model, trainee.optimizer)
    trainee.train(2, 5)
    assert_same_bits(load_file(tmp_path / MODEL), expected)


def test_state_before_the_first_step_can_be_saved_and_loaded(tmp_path: Path) -> None:
    fresh = Trainee(OPTIMIZERS["adamw"])
    save_state(tmp_path, fresh.model, fresh.optimizer)
    other = Trainee(OPTIMIZERS["adamw"], seed=1)
    load_weights(tmp_path, other.model)
    load_optimizer(tmp_path, other.model, other.optimizer)
    assert other.train(0, 2) == fresh.train(0, 2)


def test_files_name_weights_and_hold_no_hyperparameters(tmp_path: Path) -> None:
    trainee = Trainee(OPTIMIZERS["adam"])
    trainee.train(0, 1)
    save_state(tmp_path, trainee.model, trainee.optimizer)
    names = dict(trainee.model.named_parameters())
    assert load_file(tmp_path / MODEL).keys() == names.keys()
    keys = load_file(tmp_path / OPTIMIZER).keys()
    assert keys == {f"{name}/{entry}" for name in names for entry in ("step", "exp_avg", "exp_avg_sq")}


def test_hyperparameters_come_from_the_config(tmp_path: Path) -> None:
    trainee = Trainee({"name": "adamw", "weight_decay": 0.3})
    trainee.train(0, 1)
    save_state(tmp_path, trainee.model, trainee.optimizer)
    other = Trainee({"name": "adamw", "weight_decay": 0.01})
    load_optimizer(tmp_path, other.model, other.optimizer)
    assert [group["weight_decay"] for group in other.optimizer.param_groups] == [0.01, 0.0]


def test_files_of_the_same_tensors_are_written_over_in_place(tmp_path: Path) -> None:
    trainee = Trainee(OPTIMIZERS["adamw"])
    trainee.train(0, 2)
    save_state(tmp_path, trainee.model, trainee.optimizer, trainee.average)
    inodes = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    trainee.train(2, 5)
    save_state(tmp_path, trainee.model, trainee.optimizer, trainee.average)
    assert len(inodes) == 3 and {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == inodes
    other = Trainee(OPTIMIZERS["adamw"], seed=1)
    load_state(tmp_path, other.model, other.optimizer, other.average)
    assert_same_bits(other.everything(), trainee.everything())


def test_state_is_stored_by_name_and_not_by_group(tmp_path: Path) -> None:
    """torch numbers parameters by group; a file must not depend on the numbers."""
    trainee = Trainee(OPTIMIZERS["muon"])
    trainee.train(0, 2)
    save_state(tmp_path, trainee.model, trainee.optimizer)
    grouped = [{"match": "*down*"}, {"match": "norm.*"}, {"match": "*qkv*", "lr": 2.0}]
    other = Trainee({"name": "muon", "groups": grouped}, seed=1)
    load_state(tmp_path, other.model, other.optimizer)
    assert sorted(len(group["params"]) for group in other.optimizer.param_groups) == [0, 1, 2, 2, 4, 5]
    theirs = dict(other.model.named_parameters())
    for name, parameter in trainee.model.named_parameters():
        assert_same_bits(trainee.optimizer.state[parameter], other.optimizer.state[theirs[name]])


def test_averaged_weights_are_loaded_on_request(tmp_path: Path) -> None:
    trainee = Trainee(OPTIMIZERS["adamw"])
    trainee.train(0, 3)
    save_state(tmp_path, trainee.model, trainee.optimizer, trainee.average)
    trained, averaged = Trainee(OPTIMIZERS["adamw"], seed=1), Trainee(OPTIMIZERS["adamw"], seed=2)
    load_weights(tmp_path, trained.model)
    load_weights(tmp_path, averaged.model, averaged=True)
    assert_same_bits(trained.model.state_dict(), trainee.model.state_dict())
    assert_same_bits(averaged.model.state_dict(), trainee.average.state_dict())
    assert not torch.equal(averaged.model.output_weight, trained.model.output_weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(tensor_files(averaged=True))


@pytest.mark.parametrize("which", OPTIMIZERS)
def test_state_is_no_larger_than_expected(which: str, tmp_path: Path) -> None:
    trainee = Trainee(OPTIMIZERS[which], d_model=64)
    trainee.train(0, 1)
    save_state(tmp_path, trainee.model, trainee.optimizer, trainee.average)
    headers = 30_000
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < state_bytes(trainee.model, averaged=True) + headers


@pytest.mark.parametrize("before", ["sgd", "sgd without momentum"])
def test_files_of_other_tensors_are_replaced(before: str, tmp_path: Path) -> None:
    earlier, later = Trainee(OPTIMIZERS[before]), Trainee(OPTIMIZERS["adamw"], n_layers=1)
    for trainee in (earlier, later):
        trainee.train(0, 2)
        save_state(tmp_path, trainee.model, trainee.optimizer, trainee.average)
    other = Trainee(OPTIMIZERS["adamw"], seed=1, n_layers=1)
    load_state(tmp_path, other.model, other.optimizer, other.average)
    assert_same_bits(other.everything(), later.everything())
