"""Times the loss alone and attention alone, against alternatives in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu.setting import Setting
from gpu.stages import Found
from gpu.training import GPT2_124M, sized
from model.attention import Attention, document_mask
from model.config import ModelConfig
from model.loss import chunked_cross_entropy

_CHECKED_ROWS = 512
"""Rows of the loss's gradient that are held against float64."""

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def loss_alone(setting: Setting) -> Found:
    """Forward and backward of the loss over a micro-batch of the 124M shape, at several chunk sizes."""
    shape = sized(GPT2_124M, setting)
    rows, width, n_tokens = shape.model["vocab_size"], shape.model["d_model"], shape.micro_batch_size * shape.seq_len
    hidden = torch.randn(n_tokens, width, device=setting.device, requires_grad=True)
    weight = (0.02 * torch.randn(rows, width, device=setting.device)).requires_grad_()
    targets = torch.randint(rows, (n_tokens,), device=setting.device)

    def milliseconds(loss: Loss) -> float:
        def both() -> None:
            hidden.grad = weight.grad = None
            with torch.autocast(setting.device.type, torch.bfloat16):
                total = loss(hidden, weight, targets)
            (total / n_tokens).backward()

        return setting.milliseconds(both)

    found: Found = {"tokens": n_tokens, "vocab_size": rows}
    for chunk in sorted({min(ModelConfig().loss_chunk_tokens, n_tokens), n_tokens // 3, n_tokens}):
        found[f"chunks_of_{chunk}_ms"] = milliseconds(partial(chunked_cross_entropy, chunk_tokens=chunk))
    assert hidden.grad is not None
    found["gradient_error"] = gradient_error(hidden.detach(), weight.detach(), targets, hidden.grad)
    found["torch_ms"] = milliseconds(plain_loss)
    if setting.on_gpu:
        found["torch_compiled_ms"] = milliseconds(torch.compile(plain_loss, dynamic=False))
    return found


def plain_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same loss by torch, with all logits at once."""
    return F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")


def gradient_error(hidden: Tensor, weight: Tensor, targets: Tensor, gradient: Tensor) -> float:
    """Relative error of the first rows of a bf16 gradient of the mean loss, against float64."""
    exact_weight = weight.double()
    probabilities = (hidden[:_CHECKED_ROWS].double() @ exact_weight.t()).softmax(1)
    labels = F.one_hot(targets[:_CHECKED_ROWS], len(weight)).double()
    exact = (probabilities - labels) @ exact_weight / len(hidden)
    return float((gradient[:_CHECKED_ROWS].double() - exact).norm() / exact.norm())


def attention_alone(setting: Setting) -> Found:
    """Forward and backward of attention in the 124M shape, with and without a mask that keeps documents apart."""
    shape = sized(GPT2_124M, setting)
    config = ModelConfig(**shape.model)
    sizes = (shape.micro_batch_size, shape.seq_len, config.n_heads, config.head_size)
    q_BHTK, k_BHTK, v_BHTK = (
        torch.randn(sizes, device=setting.device, dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for _ in range(3)
    )
    tokens = torch.randint(shape.seq_len // 4, sizes[:2], device=setting.device)  # about four documents a sequence
    masks = {"causal": None, "documents": document_mask(tokens, 0)}
    found: Found = {}
    for kind, mask in masks.items():
        attend = partial(both_ways, q_BHTK, k_BHTK, v_BHTK, mask)
        found[kind] = {"as_torch_chooses_ms": setting.milliseconds(attend)}
        for name, backend in _BACKENDS.items():
            try:
                with sdpa_kernel(backend):
                    found[kind][f"{name}_ms"] = setting.milliseconds(attend)
            except RuntimeError as error:
                found[kind][name] = f"not for this: {error!r}"[:200]
        found[kind]["whole_layer_ms"] = layer_ms(setting, config, sizes[:2], mask)
    return found


def both_ways(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask: Tensor | None) -> None:
    """Attention and its gradients."""
    F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=mask, is_causal=mask is None).sum().backward()


def layer_ms(setting: Setting, config: ModelConfig, sizes: tuple[int, int], mask: Tensor | None) -> float:
    """The project's attention layer, projections included, not compiled."""
    layer = Attention(config).to(setting.device)
    x_BTD = torch.randn(*sizes, config.d_model, device=setting.device, requires_grad=True)

    def both() -> None:
        with torch.autocast(setting.device.type, torch.bfloat16):
            mixed_BTD = layer(x_BTD, None, mask)
        mixed_BTD.sum().backward()

    return setting.milliseconds(both)
