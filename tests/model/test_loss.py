import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.loss import IGNORED_TARGET, chunked_cross_entropy

CHUNK_SIZES = [1, 3, 4, 12, 1000]


def example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """12 tokens of width 6 over 10 words, with ignored targets at both ends and in the middle."""
    hidden_ND = torch.randn(12, 6, dtype=dtype, requires_grad=True)
    weight_VD = torch.randn(10, 6, dtype=dtype, requires_grad=True)
    targets_N = torch.randint(0, 10, (12,))
    targets_N[[0, 5, 6, 11]] = IGNORED_TARGET
    return hidden_ND, weight_VD, targets_N


def plain_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, label_smoothing: float = 0.0) -> Tensor:
    logits_NV = F.linear(hidden_ND, weight_VD)
    return F.cross_entropy(logits_NV, targets_N, ignore_index=-100, reduction="sum", label_smoothing=label_smoothing)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_tokens", CHUNK_SIZES)
def test_loss_is_its_formula(chunk_tokens: int, label_smoothing: float) -> None:
    hidden_ND, weight_VD, targets_N = example()
    expected = 0.0
    for hidden, target in zip(hidden_ND.tolist(), targets_N.tolist(), strict=True):
        if target == -100:
            continue
        scores = [sum(h * w for h, w in zip(hidden, row, strict=True)) for row in weight_VD.tolist()]
        log_probs = [math.log(math.exp(score) / sum(math.exp(each) for each in scores)) for score in scores]
        expected -= (1 - label_smoothing) * log_probs[target] + label_smoothing * sum(log_probs) / len(log_probs)
    loss = chunked_cross_entropy(hidden_ND, weight_VD, targets_N, chunk_tokens, label_smoothing)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk_tokens", CHUNK_SIZES)
def test_gradients_are_those_of_plain_cross_entropy(chunk_tokens: int, dtype: torch.dtype) -> None:
    hidden_ND, weight_VD, targets_N = example(dtype)
    expected = torch.autograd.grad(plain_loss(hidden_ND, weight_VD, targets_N) * 0.3, (hidden_ND, weight_VD))
    loss = chunked_cross_entropy(hidden_ND, weight_VD, targets_N, chunk_tokens)
    torch.testing.assert_close(torch.autograd.grad(loss * 0.3, (hidden_ND, weight_VD)), expected)
    assert loss.dtype == dtype and loss.shape == ()


@pytest.mark.parametrize("label_smoothing", [0.1, 0.9])
@pytest.mark.parametrize("chunk_tokens", CHUNK_SIZES)
def test_smoothed_labels_are_those_of_torch(chunk_tokens: int, label_smoothing: float) -> None:
    hidden_ND, weight_VD, targets_N = example()
    expected = plain_loss(hidden_ND, weight_VD, targets_N, label_smoothing)
    loss = chunked_cross_entropy(hidden_ND, weight_VD, targets_N, chunk_tokens, label_smoothing)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss * 0.3, (hidden_ND, weight_VD)),
        torch.autograd.grad(expected * 0.3, (hidden_ND, weight_VD)),
    )
    with torch.no_grad():
        torch.testing.assert_close(
            chunked_cross_entropy(hidden_ND, weight_VD, targets_N, chunk_tokens, label_smoothing), expected
        )


def test_smoothed_labels_survive_bf16_autocast() -> None:
    hidden_ND, weight_VD, targets_N = example(torch.float32)
    exact = torch.autograd.grad(plain_loss(hidden_ND, weight_VD, targets_N, 0.1), (hidden_ND, weight_VD))
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_cross_entropy(hidden_ND, weight_VD, targets_N, 5, label_smoothing=0.1)
    for gradient, expected in zip(torch.autograd.grad(loss, (hidden_ND, weight_VD)), exact, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - expected).norm() < 0.02 * expected.norm()


def test_gradients_are_those_of_finite_differences() -> None:
    hidden_ND, weight_VD, targets_N = example()
    assert torch.autograd.gradcheck(lambda h, w: chunked_cross_entropy(h, w, targets_N, 5), (hidden_ND, weight_VD))


@pytest.mark.parametrize("chunk_tokens", [3, 12])
def test_bf16_autocast_keeps_loss_and_gradients_in_float32(chunk_tokens: int) -> None:
    hidden_ND, weight_VD, targets_N = example(torch.float32)
    exact = torch.autograd.grad(plain_loss(hidden_ND, weight_VD, targets_N), (hidden_ND, weight_VD))
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_cross_entropy(hidden_ND, weight_VD, targets_N, chunk_tokens)
        plain = plain_loss(hidden_ND, weight_VD, targets_N)
    gradients = torch.autograd.grad(loss, (hidden_ND, weight_VD))
    assert {loss.dtype, *(g.dtype for g in gradients)} == {torch.float32}
    # Logits are rounded as autocast rounds them, and from there on nothing differs.
    torch.testing.assert_close(loss, plain)
    assert loss.item() != plain_loss(hidden_ND, weight_VD, targets_N).item()
    for gradient, expected in zip(gradients, exact, strict=True):
        assert (gradient - expected).norm() < 0.02 * expected.norm()


def test_bf16_tensors_give_bf16_gradients() -> None:
    hidden_ND, weight_VD, targets_N = example(torch.bfloat16)
    loss = chunked_cross_entropy(hidden_ND, weight_VD, targets_N, 5)
    gradients = torch.autograd.grad(loss, (hidden_ND, weight_VD))
    assert loss.dtype == torch.float32
    assert {g.dtype for g in gradients} == {torch.bfloat16}


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_one_frozen_input_leaves_the_other_its_gradient(frozen: str) -> None:
    hidden_ND, weight_VD, targets_N = example()
    learned = weight_VD if frozen == "hidden" else hidden_ND
    (hidden_ND if frozen == "hidden" else weight_VD).requires_grad_(False)
    (expected,) = torch.autograd.grad(plain_loss(hidden_ND, weight_VD, targets_N), learned)
    (actual,) = torch.autograd.grad(chunked_cross_entropy(hidden_ND, weight_VD, targets_N, 5), learned)
    torch.testing.assert_close(actual, expected)


def test_two_backward_passes_give_twice_the_gradient() -> None:
    hidden_ND, weight_VD, targets_N = example()
    loss = 0.5 * chunked_cross_entropy(hidden_ND, weight_VD, targets_N, 5)
    loss.backward(retain_graph=True)
    once = weight_VD.grad.clone()
    loss.backward()
    torch.testing.assert_close(weight_VD.grad, 2 * once)


def test_nothing_counted_is_a_loss_of_zero() -> None:
    hidden_ND, weight_VD, targets_N = example()
    loss = chunked_cross_entropy(hidden_ND, weight_VD, torch.full_like(targets_N, IGNORED_TARGET), 5)
    loss.backward()
    assert loss.item() == 0.0
    assert not hidden_ND.grad.any() and not weight_VD.grad.any()


def test_huge_logits_do_not_overflow() -> None:
    hidden_ND = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight_VD = torch.tensor([[1.0], [-1.0]])
    loss = chunked_cross_entropy(hidden_ND, weight_VD, torch.tensor([0, 0]), 1)
    loss.backward()
    # The second token puts 2000 nats between target and truth; the first is certain and right.
    assert loss.item() == 2000.0
    assert hidden_ND.grad.tolist() == [[0.0], [-2.0]]


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements any operation returned, and how many operations were matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        self.matmuls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.matmuls += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


@pytest.mark.parametrize("autocast", [False, True])
def test_no_tensor_exceeds_the_logits_of_one_chunk(autocast: bool) -> None:
    hidden_ND = torch.randn(64, 4, requires_grad=True)
    weight_VD = torch.randn(100, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), LargestTensor() as largest:
        chunked_cross_entropy(hidden_ND, weight_VD, torch.randint(0, 100, (64,)), 8).backward()
    assert largest.numel == 8 * 100


def test_the_backward_pass_recomputes_nothing_and_evaluation_computes_no_gradient() -> None:
    hidden_ND, weight_VD, targets_N = example()
    with LargestTensor() as forward:
        loss = chunked_cross_entropy(hidden_ND, weight_VD, targets_N, 4)
    with LargestTensor() as backward:
        loss.backward()
    with torch.no_grad(), LargestTensor() as evaluation:
        chunked_cross_entropy(hidden_ND, weight_VD, targets_N, 4)
    # Three chunks: logits and two gradients each while training, logits alone otherwise.
    assert (forward.matmuls, backward.matmuls, evaluation.matmuls) == (9, 0, 3)
