"""Next-token cross-entropy that holds the logits of one chunk of tokens at a time.

Shape suffixes: N tokens (batch and sequence flattened), C tokens of one chunk, D d_model, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED_TARGET = -100
"""Target of a position that is ignored: padding, or a sequence's last token when nothing follows it."""


# A graph break on purpose: the compiler would trace the chunk loop unrolled, once per chunk, and its memory planner
# could keep several chunks' logits alive. Nearly all time here goes to matrix products it would not speed up.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def chunked_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk_tokens: int, label_smoothing: float = 0.0
) -> Tensor:
    """Sum over tokens of -log softmax(hidden weight^T)[target], optionally with label smoothing.

    With label_smoothing = e and p = softmax(hidden weight^T), a token's loss is
    (1 - e) (-log p[target]) + e mean_v(-log p[v]): the cross-entropy to a distribution of which 1 - e is on the target
    and e is spread evenly over all V words, the target among them (Szegedy et al. 2016, section 7, with uniform u;
    `torch.nn.functional.cross_entropy` has the same form). It is not 0 for a perfect model.

    The gradient of a summed cross-entropy is known as soon as a chunk's logits are: (softmax - labels), times weight
    or hidden. So both gradients are accumulated during the forward pass and the backward pass only scales them.
    Matrix products run in autocast's dtype where autocast is on; softmax and sums run in float32 or wider.

    Args:
        hidden_ND: (N, D) floating point, output of the last norm.
        weight_VD: (V, D) floating point, output layer; may be the token embedding.
        targets_N: (N,) int64, ids in [0, V) or `IGNORED_TARGET`.
        chunk_tokens: tokens whose logits are held at once, >= 1.
        label_smoothing: in [0, 1).

    Returns:
        () float32 (float64 for float64 inputs), 0 if every target is ignored.
    """
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad):
        loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_ND, weight_VD, targets_N, chunk_tokens, label_smoothing
        )
        return loss
    return _loss_and_gradients(hidden_ND, weight_VD, targets_N, chunk_tokens, label_smoothing, with_gradients=False)[0]


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        chunk_tokens: int,
        label_smoothing: float,
    ) -> Tensor:
        loss, grad_hidden_ND, grad_weight_VD = _loss_and_gradients(
            hidden_ND, weight_VD, targets_N, chunk_tokens, label_smoothing, with_gradients=True
        )
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
        # Not in place: a second backward through a retained graph must find the gradients unscaled.
        return (
            grad_hidden_ND * grad_loss.to(grad_hidden_ND.dtype),
            grad_weight_VD * grad_loss.to(grad_weight_VD.dtype),
            None,
            None,
            None,
        )


def _loss_and_gradients(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    chunk_tokens: int,
    label_smoothing: float,
    *,
    with_gradients: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Summed loss and, if asked for, its gradients with the shapes and dtypes of `hidden_ND` and `weight_VD`."""
    dtype = _matmul_dtype(hidden_ND)
    softmax_dtype = torch.promote_types(dtype, torch.float32)
    n_tokens, vocab_size = hidden_ND.shape[0], weight_VD.shape[0]
    weight_cast_VD = weight_VD.to(dtype)
    on_target, on_each_word = 1.0 - label_smoothing, label_smoothing / vocab_size

    # One pair of buffers serves every chunk: on a CPU, fresh pages for each would cost as much as the softmax.
    chunk_tokens = min(chunk_tokens, n_tokens)
    logits_buffer_CV = hidden_ND.new_empty(chunk_tokens, vocab_size, dtype=dtype)
    log_probs_buffer_CV = hidden_ND.new_empty(chunk_tokens, vocab_size, dtype=softmax_dtype)
    loss = hidden_ND.new_zeros((), dtype=softmax_dtype)
    grad_hidden_ND = torch.empty_like(hidden_ND) if with_gradients else None
    grad_weight_VD = torch.zeros_like(weight_VD) if with_gradients else None

    with torch.autocast(hidden_ND.device.type, enabled=False):
        for start in range(0, n_tokens, max(chunk_tokens, 1)):
            hidden_CD = hidden_ND[start : start + chunk_tokens].to(dtype)
            targets_C = targets_N[start : start + chunk_tokens]
            counted_C1 = (targets_C != IGNORED_TARGET).unsqueeze(1)
            # An ignored target still needs an index that exists; what it gathers is masked.
            index_C1 = targets_C.unsqueeze(1).where(counted_C1, 0)

            logits_CV = torch.mm(hidden_CD, weight_cast_VD.t(), out=logits_buffer_CV[: len(hidden_CD)])
            log_probs_CV = log_probs_buffer_CV[: len(hidden_CD)]
            torch.log_softmax(logits_CV, dim=1, dtype=softmax_dtype, out=log_probs_CV)
            log_likelihood_C1 = on_target * log_probs_CV.gather(1, index_C1)
            if label_smoothing:
                log_likelihood_C1 += on_each_word * log_probs_CV.sum(dim=1, keepdim=True)
            loss -= log_likelihood_C1.where(counted_C1, 0.0).sum()
            if grad_hidden_ND is None or grad_weight_VD is None:
                continue

            grad_logits_CV = log_probs_CV.exp_()
            grad_logits_CV.scatter_add_(1, index_C1, grad_logits_CV.new_full((1, 1), -on_target).expand_as(index_C1))
            if label_smoothing:
                grad_logits_CV.sub_(on_each_word)
            grad_logits_CV.mul_(counted_C1)
            if dtype != softmax_dtype:
                grad_logits_CV = logits_CV.copy_(grad_logits_CV)
            _matmul_into(grad_hidden_ND[start : start + chunk_tokens], grad_logits_CV, weight_cast_VD)
            _add_matmul(grad_weight_VD, grad_logits_CV.t(), hidden_CD)
    return loss, grad_hidden_ND, grad_weight_VD


def _matmul_dtype(hidden_ND: Tensor) -> torch.dtype:
    """Dtype in which autocast would run a matrix product on `hidden_ND`."""
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device) and hidden_ND.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden_ND.dtype


def _matmul_into(target: Tensor, left: Tensor, right: Tensor) -> None:
    """target = left @ right, without a temporary where dtypes agree."""
    if target.dtype == left.dtype:
        torch.mm(left, right, out=target)
    else:
        target.copy_(left @ right)


def _add_matmul(target: Tensor, left: Tensor, right: Tensor) -> None:
    """target += left @ right, without a temporary where dtypes agree."""
    if target.dtype == left.dtype:
        target.addmm_(left, right)
    else:
        target.add_(left @ right)
