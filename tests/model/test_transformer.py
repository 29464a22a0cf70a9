import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.config import ModelConfig
from model.loss import IGNORED_TARGET
from model.transformer import Transformer

PRESETS = [
    {"preset": "gpt2"},
    {"preset": "gpt2", "tie_embeddings": False},
    {"preset": "llama"},
    {"preset": "llama", "n_kv_heads": 2, "tie_embeddings": False},
    {"preset": "llama", "cross_document_attention": False},
    {"preset": "original"},
    {"preset": "original", "norm": "pre", "tie_embeddings": False},
    {"preset": "gpt2", "positions": "rotary", "norm": "post"},
]
BEFORE_ENCODERS = json.loads(Path(__file__).with_name("initial_weights.json").read_text())
"""Models as they were drawn before there were encoder-decoders: shape, first value and sum of absolute values of each
weight for seed 7, in their order, and the loss of a batch. Runs that began then go on from these."""


def micro_batch() -> tuple[Tensor, Tensor]:
    """3 sequences of 16 tokens and their successors, two of which are ignored."""
    ids = torch.randint(0, 50, (3, 17), generator=torch.Generator().manual_seed(1))
    targets = ids[:, 1:].clone()
    targets[0, 3] = targets[2, 15] = IGNORED_TARGET
    return ids[:, :-1], targets


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("fields", PRESETS)
def test_loss_is_the_summed_cross_entropy_of_the_logits(
    fields: dict[str, object], build: Callable[..., Transformer]
) -> None:
    model = build(**fields)
    tokens, targets = micro_batch()
    expected = F.cross_entropy(model.logits(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    expected.backward()
    expected_gradients = {name: g.clone() for name, g in gradients_of(model).items()}
    model.zero_grad()

    loss = model(tokens, targets)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.shape == ()
    torch.testing.assert_close(loss, expected)
    assert expected_gradients.keys() == dict(model.named_parameters()).keys()
    torch.testing.assert_close(gradients_of(model), expected_gradients)


@pytest.mark.parametrize("fields", PRESETS)
@torch.no_grad()
def test_a_later_token_never_changes_earlier_logits(
    fields: dict[str, object], build: Callable[..., Transformer]
) -> None:
    model = build(**fields)
    tokens, _ = micro_batch()
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 50
    before, after = model.logits(tokens), model.logits(changed)
    torch.testing.assert_close(after[:, :9], before[:, :9], rtol=0, atol=1e-6)
    assert (after[:, 9] - before[:, 9]).abs().max() > 1e-3


@torch.no_grad()
def test_documents_see_each_other_only_if_allowed(build: Callable[..., Transformer]) -> None:
    tokens = torch.randint(1, 50, (1, 16))
    tokens[0, 6] = 0  # end of text: a document starts here
    changed = tokens.clone()
    changed[0, 2] = changed[0, 2] % 49 + 1
    for allowed in (False, True):
        model = build(cross_document_attention=allowed)
        difference = (model.logits(changed) - model.logits(tokens)).abs().amax(dim=-1)[0]
        assert difference[2:6].min() > 1e-6
        assert (difference[6:].max() > 1e-6) == allowed


def test_keeping_documents_apart_needs_an_end_of_text_token() -> None:
    with pytest.raises(ValueError, match="cross_document_attention=False needs an end-of-text token"):
        Transformer(ModelConfig(cross_document_attention=False), vocab_size=50, seq_len=16, end_of_text=None)


@torch.no_grad()
def test_block_styles_are_their_formulas(build: Callable[..., Transformer]) -> None:
    # Wide enough to reach beyond where every activation is a straight line.
    x = 20 * torch.randn(5, 32, dtype=torch.float64)

    gelu = build(preset="gpt2").double().blocks[0].feed_forward
    inner = x @ gelu.up.weight.T + gelu.up.bias
    inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    torch.testing.assert_close(gelu(x), inner @ gelu.down.weight.T + gelu.down.bias)

    llama = build(preset="llama").double().blocks[0]
    gate_weight, up_weight = llama.feed_forward.gate_up.weight.chunk(2)
    gate = x @ gate_weight.T
    inner = gate * (1 / (1 + torch.exp(-gate))) * (x @ up_weight.T)
    torch.testing.assert_close(llama.feed_forward(x), inner @ llama.feed_forward.down.weight.T)

    scale = (x.pow(2).mean(dim=1, keepdim=True) + 1e-5).rsqrt()
    torch.testing.assert_close(llama.attention_norm(x), x * scale)


@pytest.mark.parametrize("preset", ["gpt2", "llama"])
@torch.no_grad()
def test_the_order_of_earlier_tokens_matters(preset: str, build: Callable[..., Transformer]) -> None:
    # In one layer, attention alone sees a set: only positions can tell these two prefixes apart.
    model = build(preset=preset, n_layers=1).double()
    first, second = model.logits(torch.tensor([[3, 7, 5, 9], [7, 3, 5, 9]]))[:, -1]
    assert (first - second).abs().max() > 1e-6


def test_weights_depend_on_the_seed_alone(build: Callable[..., Transformer]) -> None:
    first, second = build().state_dict(), build().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(1)
    other = Transformer(build().config, vocab_size=50, seq_len=16, end_of_text=0).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("recorded", BEFORE_ENCODERS, ids=lambda recorded: recorded["case"])
def test_weights_are_drawn_as_they_always_were(recorded: dict[str, Any]) -> None:
    torch.manual_seed(7)
    model = Transformer(ModelConfig.model_validate(recorded["fields"]), vocab_size=50, seq_len=16, end_of_text=0)
    drawn = {name: (list(p.shape), p.flatten()[0].item(), p.abs().sum().item()) for name, p in model.named_parameters()}
    assert list(drawn) == list(recorded["weights"])
    for name, (shape, first, total) in recorded["weights"].items():
        assert drawn[name] == (shape, pytest.approx(first, abs=1e-6), pytest.approx(total, abs=1e-3)), name
    tokens = torch.arange(32).view(2, 16)
    assert model(tokens, tokens + 1).item() == pytest.approx(recorded["loss"], abs=1e-3)


def test_labels_can_be_smoothed(build: Callable[..., Transformer]) -> None:
    model = build()
    tokens, targets = micro_batch()
    expected = F.cross_entropy(
        model.logits(tokens).flatten(0, 1), targets.flatten(), reduction="sum", label_smoothing=0.1
    )
    torch.testing.assert_close(model(tokens, targets, label_smoothing=0.1), expected)


def test_initial_weights_have_their_scale() -> None:
    model = Transformer(ModelConfig(preset="gpt2", n_layers=8, d_model=128), 500, 64, None)
    weights = dict(model.named_parameters())
    assert weights["embedding.weight"].std().item() == pytest.approx(0.02, rel=0.03)
    assert weights["blocks.3.attention.qkv.weight"].std().item() == pytest.approx(0.02, rel=0.03)
    for residual in ("attention.out", "feed_forward.down"):
        assert weights[f"blocks.3.{residual}.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert not any(p.any() for name, p in weights.items() if name.endswith("bias"))


def test_a_fresh_model_knows_nothing(build: Callable[..., Transformer]) -> None:
    tokens, targets = micro_batch()
    mean_loss = build()(tokens, targets).item() / (targets != IGNORED_TARGET).sum().item()
    assert mean_loss == pytest.approx(math.log(50), rel=0.02)


def test_state_holds_parameters_only_and_ties_once(build: Callable[..., Transformer]) -> None:
    tied, untied = build(), build(tie_embeddings=False)
    assert tied.output_weight is tied.embedding.weight
    assert untied.output_weight is not untied.embedding.weight
    assert set(untied.state_dict()) - set(tied.state_dict()) == {"output.weight"}
    assert set(tied.state_dict()) == set(dict(tied.named_parameters()))


@pytest.mark.parametrize("method", ["forward", "logits"])
def test_sequences_beyond_the_positions_are_refused(method: str, build: Callable[..., Transformer]) -> None:
    tokens = torch.zeros(1, 17, dtype=torch.int64)
    arguments = (tokens, tokens) if method == "forward" else (tokens,)
    with pytest.raises(ValueError, match="17 tokens is longer than seq_len=16"):
        getattr(build(), method)(*arguments)


def test_dropout_acts_in_training_only_and_follows_the_seed(build: Callable[..., Transformer]) -> None:
    model, exact = build(dropout=0.3), build(dropout=0.0)
    tokens, targets = micro_batch()

    def loss_with_seed(seed: int) -> float:
        torch.manual_seed(seed)
        return model(tokens, targets).item()

    assert loss_with_seed(1) == loss_with_seed(1) != loss_with_seed(2)
    model.eval()
    assert loss_with_seed(1) == loss_with_seed(2) == exact(tokens, targets).item()


def test_dropout_acts_on_embeddings_and_on_both_halves_of_a_block(build: Callable[..., Transformer]) -> None:
    model = build(dropout=0.3)
    calls: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    model(*micro_batch())
    assert calls == ["dropout", *["blocks.0.dropout"] * 2, *["blocks.1.dropout"] * 2]


@pytest.mark.parametrize("fields", [{"dropout": 0.3}, {"preset": "gpt2"}, {"cross_document_attention": False}])
def test_activation_checkpointing_changes_no_gradient(
    fields: dict[str, object], build: Callable[..., Transformer]
) -> None:
    gradients = []
    for activation_checkpointing in (False, True):
        model = build(activation_checkpointing=activation_checkpointing, **fields)
        torch.manual_seed(1)
        model(*micro_batch()).backward()
        gradients.append(gradients_of(model))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_activation_checkpointing_runs_blocks_again(build: Callable[..., Transformer]) -> None:
    for activation_checkpointing, expected in ((False, 1), (True, 2)):
        model = build(activation_checkpointing=activation_checkpointing)
        calls: list[int] = []
        model.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model(*micro_batch()).backward()
        assert len(calls) == expected


@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_bf16_autocast_stays_close_to_float32(preset: str, build: Callable[..., Transformer]) -> None:
    model = build(preset=preset)
    exact = model(*micro_batch())
    exact.backward()
    exact_gradients = {name: g.clone() for name, g in gradients_of(model).items()}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*micro_batch())
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-3)
    assert loss.item() != exact.item()
    for name, gradient in gradients_of(model).items():
        assert gradient.dtype == torch.float32
        assert (gradient - exact_gradients[name]).norm() < 0.1 * exact_gradients[name].norm() + 1e-3, name


def test_a_model_learns_a_sequence_by_heart(build: Callable[..., Transformer]) -> None:
    model = build()
    tokens, targets = micro_batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (model(tokens, targets) / 46).backward()
        optimizer.step()
    assert model(tokens, targets).item() / 46 < 0.2


def test_ddp_gives_the_gradients_of_the_bare_model(build: Callable[..., Transformer]) -> None:
    tokens, targets = micro_batch()
    bare = build()
    for _ in range(2):
        bare(tokens, targets).backward()

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(build())
        with wrapped.no_sync():
            wrapped(tokens, targets).backward()
        wrapped(tokens, targets).backward()
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(gradients_of(wrapped.module), gradients_of(bare))


# Torch's compiler warns about torch's own modules on its first import, and about the loss it finds after the graph
# break; outside of tests it silences the latter itself.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "backend"),
    [({"preset": "gpt2"}, "aot_eager"), ({"n_kv_heads": 2, "activation_checkpointing": True}, "inductor")],
)
def test_compiled_model_matches_eager(
    fields: dict[str, object], backend: str, build: Callable[..., Transformer]
) -> None:
    """aot_eager traces and generates no code, which takes most of the time; inductor needs a C++ compiler."""
    eager, model = build(n_layers=1, **fields), build(n_layers=1, **fields)
    model.compile(backend=backend)
    expected, actual = eager(*micro_batch()), model(*micro_batch())
    expected.backward()
    actual.backward()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients_of(model), gradients_of(eager), rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == eager.state_dict().keys()
