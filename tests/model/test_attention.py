import math

import pytest
import torch
from torch import Tensor

from model.attention import Attention, document_mask, padding_mask, rotary_angles, rotate
from model.config import ModelConfig

THETA = 100.0


def rotated_as_complex_numbers(x_TK: Tensor) -> Tensor:
    """RoPE by definition: channel pairs (p, p + K/2) are complex numbers, turned by t * THETA^(-2p/K) radians."""
    n_tokens, head_size = x_TK.shape
    pairs = head_size // 2
    turned = torch.empty_like(x_TK)
    for t in range(n_tokens):
        for p in range(pairs):
            number = complex(x_TK[t, p].item(), x_TK[t, p + pairs].item())
            angle = t * THETA ** (-2 * p / head_size)
            number *= complex(math.cos(angle), math.sin(angle))
            turned[t, p], turned[t, p + pairs] = number.real, number.imag
    return turned


def attention_by_formula(attention: Attention, x_TD: Tensor, config: ModelConfig, document_T: list[int]) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)) V, one head and one row at a time."""
    size, heads_per_kv = config.head_size, config.n_heads // config.kv_heads
    projected = x_TD @ attention.qkv.weight.T
    if attention.qkv.bias is not None:
        projected = projected + attention.qkv.bias
    first_key = config.n_heads * size
    first_value = first_key + config.kv_heads * size
    outputs = []
    for head in range(config.n_heads):
        shared = head // heads_per_kv
        q_TK = projected[:, head * size : (head + 1) * size]
        k_TK = projected[:, first_key + shared * size : first_key + (shared + 1) * size]
        v_TK = projected[:, first_value + shared * size : first_value + (shared + 1) * size]
        if config.preset == "llama":
            q_TK, k_TK = rotated_as_complex_numbers(q_TK), rotated_as_complex_numbers(k_TK)
        rows = []
        for t in range(len(x_TD)):
            visible = [s for s in range(t + 1) if document_T[s] == document_T[t]]
            scores = torch.stack([(q_TK[t] * k_TK[s]).sum() / math.sqrt(size) for s in visible])
            weights = scores.exp() / scores.exp().sum()
            rows.append(sum(weight * v_TK[s] for weight, s in zip(weights, visible, strict=True)))
        outputs.append(torch.stack(rows))
    mixed = torch.cat(outputs, dim=1) @ attention.out.weight.T
    return mixed if attention.out.bias is None else mixed + attention.out.bias


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(preset="gpt2", d_model=24, n_heads=4),
        ModelConfig(d_model=24, n_heads=4, rope_theta=THETA),
        ModelConfig(d_model=24, n_heads=4, n_kv_heads=2, rope_theta=THETA),
        ModelConfig(d_model=24, n_heads=4, n_kv_heads=1, rope_theta=THETA),
    ],
    ids=["gpt2", "llama", "grouped", "one_kv_head"],
)
@torch.no_grad()
def test_attention_is_its_formula(config: ModelConfig, with_documents: bool) -> None:
    attention = Attention(config).double()
    x_BTD = torch.randn(2, 7, 24, dtype=torch.float64)
    tokens = torch.tensor([[5, 9, 1, 3, 1, 1, 4], [1, 2, 3, 4, 5, 6, 7]])
    documents = [[0, 0, 1, 1, 2, 3, 3], [0] * 7] if with_documents else [[0] * 7] * 2

    angles = rotary_angles(7, config.head_size, THETA) if config.preset == "llama" else None
    actual = attention(x_BTD, angles, document_mask(tokens, end_of_text=1) if with_documents else None)

    for row in range(2):
        expected = attention_by_formula(attention, x_BTD[row], config, documents[row])
        # Angles are kept in float32, so agreement ends at about 1e-7.
        torch.testing.assert_close(actual[row], expected, rtol=1e-6, atol=1e-6)


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    cos_TP, sin_TP = rotary_angles(20, 8, THETA)
    q, k = torch.randn(8), torch.randn(8)
    queries, keys = (rotate(x.expand(1, 1, 20, 8), (cos_TP, sin_TP))[0, 0] for x in (q, k))
    torch.testing.assert_close(queries.norm(dim=1), q.norm().expand(20))
    torch.testing.assert_close(queries[7] @ keys[3], queries[19] @ keys[15])
    assert not torch.isclose(queries[7] @ keys[3], queries[7] @ keys[4])


def test_rotation_keeps_the_dtype() -> None:
    x = torch.randn(1, 1, 4, 8, dtype=torch.bfloat16)
    assert rotate(x, rotary_angles(4, 8, THETA)).dtype == torch.bfloat16


def test_angles_stay_exact_far_out() -> None:
    cos_TP, _ = rotary_angles(100_001, 6, 10000.0)
    assert cos_TP[100_000, 1].item() == pytest.approx(math.cos(100_000 * 10000.0 ** (-1 / 3)), abs=1e-6)


def test_document_mask_written_out() -> None:
    mask = document_mask(torch.tensor([[7, 0, 5, 0]]), end_of_text=0)
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].int().tolist() == expected


def test_padding_mask_written_out() -> None:
    mask = padding_mask(torch.tensor([3, 1, 0]), 4)
    assert mask.shape == (3, 1, 1, 4)
    # Nothing to see is not a number for some kernels: even an empty row sees one column.
    assert mask.flatten(1).int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_attention_weights_are_dropped_in_training_only() -> None:
    attention = Attention(ModelConfig(preset="gpt2", d_model=24, n_heads=4, dropout=0.5))
    x_BTD = torch.randn(1, 6, 24)
    assert not torch.equal(attention(x_BTD, None, None), attention(x_BTD, None, None))
    attention.eval()
    assert torch.equal(attention(x_BTD, None, None), attention(x_BTD, None, None))
