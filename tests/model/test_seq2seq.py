"""The encoder-decoder against torch's own module, and what padding, DDP and the rest may not change."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.attention import CrossAttention, padding_mask
from model.blocks import sinusoids
from model.config import ModelConfig
from model.loss import IGNORED_TARGET
from model.seq2seq import Seq2Seq

FORMS = [
    {"preset": "original"},
    {"preset": "original", "norm": "pre", "tie_embeddings": False},
    {"preset": "original", "positions": "learned", "input_vocab_size": 40},
    {"preset": "gpt2", "n_encoder_layers": 1},
    {"preset": "gpt2", "norm": "post", "input_vocab_size": 40},
    {"preset": "llama"},
    {"preset": "llama", "n_kv_heads": 2, "tie_embeddings": False, "input_vocab_size": 40},
    {"preset": "llama", "positions": "sinusoidal", "norm": "post"},
]

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def pairs() -> Batch:
    """Four pairs of 7 and 9 tokens: sources of 7, 3, 1 and 5 tokens, targets of 9, 4, 6 and 1."""
    generator = torch.Generator().manual_seed(1)
    sources, target_ids = (torch.randint(1, 40, shape, generator=generator) for shape in ((4, 7), (4, 10)))
    targets = target_ids[:, 1:].clone()
    for row, count in enumerate((9, 4, 6, 1)):
        targets[row, count:] = IGNORED_TARGET
    return sources, torch.tensor([7, 3, 1, 5]), target_ids[:, :-1], targets


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss_and_gradients(model: Seq2Seq, batch: Batch, **options: float) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(*batch, **options)
    loss.backward()
    return loss.detach(), gradients_of(model)


# ---------------------------------------------------------------------------------------------------------------------
# The formulas
# ---------------------------------------------------------------------------------------------------------------------


def copy_attention(theirs: nn.MultiheadAttention, ours: nn.Module) -> None:
    if isinstance(ours, CrossAttention):
        weight, bias = (torch.cat((getattr(ours.q, name), getattr(ours.kv, name))) for name in ("weight", "bias"))
    else:
        weight, bias = ours.qkv.weight, ours.qkv.bias
    theirs.in_proj_weight.copy_(weight)
    theirs.in_proj_bias.copy_(bias)
    theirs.out_proj.load_state_dict(ours.out.state_dict())


def copy_block(theirs: nn.Module, ours: nn.Module) -> None:
    norms = [ours.attention_norm, ours.feed_forward_norm]
    copy_attention(theirs.self_attn, ours.attention)
    if isinstance(theirs, nn.TransformerDecoderLayer):
        copy_attention(theirs.multihead_attn, ours.cross_attention)
        norms.insert(1, ours.cross_attention_norm)
    for number, norm in enumerate(norms, start=1):
        getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward.up.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.down.state_dict())


def places_by_formula(n_tokens: int, width: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5, sines in the first half and cosines in the second."""
    half = width // 2
    table = [
        [math.sin(t / 10000 ** (2 * i / width)) for i in range(half)]
        + [math.cos(t / 10000 ** (2 * i / width)) for i in range(half)]
        for t in range(n_tokens)
    ]
    return torch.tensor(table, dtype=torch.float64)


def logits_of_torch(model: Seq2Seq, batch: Batch) -> Tensor:
    """torch's own encoder and decoder with the model's weights; not a line of ours."""
    sources, counts, tokens, _ = batch
    config, pre_norm = model.config, model.config.norm == "pre"
    shape = {"d_model": config.d_model, "nhead": config.n_heads, "dim_feedforward": 4 * config.d_model, "dropout": 0.0}
    options = {"batch_first": True, "norm_first": pre_norm, "dtype": torch.float64}
    last = [nn.LayerNorm(config.d_model, dtype=torch.float64) if pre_norm else None for _ in range(2)]
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(**shape, **options), config.encoder_layers, last[0], enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**shape, **options), config.n_layers, last[1])
    for theirs, ours in ((encoder, model.encoder), (decoder, model.decoder)):
        for their_block, our_block in zip(theirs.layers, ours.blocks, strict=True):
            copy_block(their_block, our_block)
        if theirs.norm is not None:
            theirs.norm.load_state_dict(ours.norm.state_dict())

    def embedded(table: Tensor, ids: Tensor) -> Tensor:
        return table[ids] * math.sqrt(config.d_model) + places_by_formula(ids.shape[1], config.d_model)

    source_table = (model.encoder.embedding or model.decoder.embedding).weight
    padding = torch.arange(sources.shape[1]) >= counts[:, None]
    memory = encoder(embedded(source_table, sources), src_key_padding_mask=padding)
    causal = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=torch.float64)
    hidden = decoder(
        embedded(model.decoder.embedding.weight, tokens),
        memory,
        tgt_mask=causal,
        memory_key_padding_mask=padding,
        tgt_is_causal=True,
    )
    return hidden @ model.output_weight.T


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n_encoder_layers": 3, "tie_embeddings": False},
        {"norm": "pre"},
        {"norm": "pre", "input_vocab_size": 40, "n_heads": 2},
    ],
)
@torch.no_grad()
def test_the_original_form_is_torchs_own_module(
    fields: dict[str, object], build_seq2seq: Callable[..., Seq2Seq]
) -> None:
    model = build_seq2seq(preset="original", **fields).double()
    for parameter in model.parameters():  # biases and norms too must matter
        parameter.add_(0.1 * torch.randn_like(parameter))
    sources, counts, tokens, _ = batch = pairs()
    # Sines are kept in float32.
    torch.testing.assert_close(
        model.logits(sources, counts, tokens), logits_of_torch(model, batch), rtol=1e-5, atol=1e-5
    )


def test_positions_are_the_papers_in_two_halves() -> None:
    torch.testing.assert_close(sinusoids(20, 6), places_by_formula(20, 6).float())


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@torch.no_grad()
def test_cross_attention_is_its_formula(n_kv_heads: int) -> None:
    config = ModelConfig(d_model=24, n_heads=4, n_kv_heads=n_kv_heads)
    attention = CrossAttention(config).double()
    x_BTD, memory_BSD = (torch.randn(2, n, 24, dtype=torch.float64) for n in (3, 5))
    counts = [5, 2]
    actual = attention(x_BTD, memory_BSD, padding_mask(torch.tensor(counts), 5))
    for row, count in enumerate(counts):
        q, kv = x_BTD[row] @ attention.q.weight.T, memory_BSD[row] @ attention.kv.weight.T
        for t in range(3):
            heads = []
            for head in range(4):
                shared = head // (4 // n_kv_heads)
                query = q[t, 6 * head : 6 * head + 6]
                keys = [kv[s, 6 * shared : 6 * shared + 6] for s in range(count)]
                values = [kv[s, 6 * (n_kv_heads + shared) : 6 * (n_kv_heads + shared) + 6] for s in range(count)]
                weights = [math.exp(sum((query * key).tolist()) / math.sqrt(6)) for key in keys]
                heads.append(sum(w / sum(weights) * v for w, v in zip(weights, values, strict=True)))
            torch.testing.assert_close(actual[row, t], torch.cat(heads) @ attention.out.weight.T)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("fields", FORMS)
def test_loss_is_the_summed_cross_entropy_of_the_logits(
    fields: dict[str, object], label_smoothing: float, build_seq2seq: Callable[..., Seq2Seq]
) -> None:
    model = build_seq2seq(**fields)
    sources, counts, tokens, targets = batch = pairs()
    expected = F.cross_entropy(
        model.logits(sources, counts, tokens).flatten(0, 1),
        targets.flatten(),
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    expected.backward()
    expected_gradients = gradients_of(model)
    loss, gradients = loss_and_gradients(model, batch, label_smoothing=label_smoothing)
    assert loss.dtype == torch.float32 and loss.shape == ()
    torch.testing.assert_close(loss, expected.detach())
    # None is left without one: DDP would wait for it forever.
    assert gradients.keys() == dict(model.named_parameters()).keys()
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# What is seen, and what is not
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", FORMS)
def test_padding_changes_neither_loss_nor_gradients(
    fields: dict[str, object], build_seq2seq: Callable[..., Seq2Seq]
) -> None:
    model = build_seq2seq(**fields).double()
    sources, counts, tokens, targets = batch = pairs()
    loss, gradients = loss_and_gradients(model, batch)
    longer = (
        torch.cat((sources, torch.randint(1, 40, (4, 3))), dim=1),
        counts,
        torch.cat((tokens, torch.randint(1, 40, (4, 3))), dim=1),
        torch.cat((targets, torch.full((4, 3), IGNORED_TARGET)), dim=1),
    )
    for row, count in enumerate(counts):
        longer[0][row, count:] = torch.randint(1, 40, (10 - int(count),))
    padded_loss, padded_gradients = loss_and_gradients(model, longer)
    torch.testing.assert_close(padded_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(padded_gradients, gradients, rtol=1e-9, atol=1e-10)


@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.tuples(st.integers(1, 10), st.integers(1, 12)), min_size=1, max_size=4), seed=st.integers())
def test_a_batch_is_the_sum_of_its_pairs(lengths: list[tuple[int, int]], seed: int) -> None:
    torch.manual_seed(seed % 1000)
    config = ModelConfig(architecture="encoder_decoder", preset="original", n_layers=1, d_model=16, n_heads=2)
    model = Seq2Seq(config, 30, None, 12, 10, 0).double()
    sources, ids = torch.randint(0, 30, (len(lengths), 10)), torch.randint(0, 30, (len(lengths), 13))
    targets = ids[:, 1:].clone()
    alone = 0.0
    for row, (n_source, n_target) in enumerate(lengths):
        targets[row, n_target:] = IGNORED_TARGET
        alone += model(
            sources[row : row + 1, :n_source],
            torch.tensor([n_source]),
            ids[row : row + 1, :n_target],
            ids[row : row + 1, 1 : n_target + 1],
        ).item()
    together = model(sources, torch.tensor([n for n, _ in lengths]), ids[:, :-1], targets)
    assert together.item() == pytest.approx(alone, rel=1e-9)


def test_a_row_of_padding_alone_costs_nothing(build_seq2seq: Callable[..., Seq2Seq]) -> None:
    model = build_seq2seq(preset="original").double()
    sources, counts, tokens, targets = batch = pairs()
    loss, gradients = loss_and_gradients(model, batch)
    extended = (
        torch.cat((sources, torch.zeros(1, 7, dtype=torch.int64))),
        torch.cat((counts, torch.tensor([0]))),
        torch.cat((tokens, torch.zeros(1, 9, dtype=torch.int64))),
        torch.cat((targets, torch.full((1, 9), IGNORED_TARGET))),
    )
    extended_loss, extended_gradients = loss_and_gradients(model, extended)
    torch.testing.assert_close(extended_loss, loss)
    torch.testing.assert_close(extended_gradients, gradients)


@pytest.mark.parametrize("fields", FORMS)
@torch.no_grad()
def test_the_source_is_seen_whole_and_the_target_only_so_far(
    fields: dict[str, object], build_seq2seq: Callable[..., Seq2Seq]
) -> None:
    model = build_seq2seq(**fields).double()
    sources, counts, tokens, _ = pairs()
    before = model.logits(sources, counts, tokens)
    later = tokens.clone()
    later[:, 5] = (later[:, 5] + 1) % 40
    difference = (model.logits(sources, counts, later) - before).abs().amax(dim=-1)
    assert difference[:, :5].max() < 1e-12 and difference[:, 5:].min() > 1e-7
    for place in (0, 2):  # the first and the last token of the second source
        other = sources.clone()
        other[1, place] = other[1, place] % 39 + 1
        difference = (model.logits(other, counts, tokens) - before).abs().amax(dim=-1)
        assert difference[1].min() > 1e-9 and difference[[0, 2, 3]].max() == 0


@pytest.mark.parametrize("preset", ["original", "gpt2", "llama"])
@torch.no_grad()
def test_the_order_of_the_source_matters(preset: str, build_seq2seq: Callable[..., Seq2Seq]) -> None:
    model = build_seq2seq(preset=preset).double()
    first, second = (
        model.logits(torch.tensor([ids]), torch.tensor([4]), torch.tensor([[0, 5]]))
        for ids in ([3, 7, 5, 9], [7, 3, 5, 9])
    )
    assert (first - second).abs().max() > 1e-9


# ---------------------------------------------------------------------------------------------------------------------
# As a model that is built, trained and kept
# ---------------------------------------------------------------------------------------------------------------------


def test_vocabularies_are_shared_or_separate(build_seq2seq: Callable[..., Seq2Seq]) -> None:
    shared, separate = build_seq2seq(), build_seq2seq(input_vocab_size=40)
    assert set(separate.state_dict()) - set(shared.state_dict()) == {"encoder.embedding.weight"}
    assert separate.encoder.embedding.weight.shape == (40, 32)
    assert shared.output_weight is shared.decoder.embedding.weight
    assert set(shared.state_dict()) == set(dict(shared.named_parameters()))


@pytest.mark.parametrize("preset", ["original", "gpt2", "llama"])
def test_a_fresh_model_knows_little(preset: str, build_seq2seq: Callable[..., Seq2Seq]) -> None:
    batch = pairs()
    assert build_seq2seq(preset=preset)(*batch).item() / 20 == pytest.approx(math.log(50), rel=0.25)


def test_initial_weights_have_their_scale() -> None:
    config = ModelConfig(architecture="encoder_decoder", preset="original", d_model=128, tie_embeddings=False)
    weights = dict(Seq2Seq(config, 500, 400, 20, 20, 0).named_parameters())
    for name in ("encoder.embedding", "decoder.embedding", "decoder.output"):
        assert weights[f"{name}.weight"].std().item() == pytest.approx(128**-0.5, rel=0.03)
    # Glorot: variance 2 / (in + out), as that of a uniform draw between -b and b is b^2 / 3.
    attention = (2 / (128 + 3 * 128)) ** 0.5
    for name in ("encoder.blocks.0.attention.qkv", "decoder.blocks.1.cross_attention.q"):
        assert weights[f"{name}.weight"].std().item() == pytest.approx(attention, rel=0.03)
    assert weights["decoder.blocks.1.cross_attention.kv.weight"].std().item() == pytest.approx(attention, rel=0.03)
    assert weights["decoder.blocks.1.feed_forward.up.weight"].std().item() == pytest.approx((2 / 640) ** 0.5, rel=0.03)
    modern = dict(Seq2Seq(ModelConfig(architecture="encoder_decoder"), 500, None, 20, 20, 0).named_parameters())
    for stack, additions in (("encoder", 8), ("decoder", 12)):
        out = modern[f"{stack}.blocks.3.attention.out.weight"]
        assert out.std().item() == pytest.approx(0.02 / additions**0.5, rel=0.03)


def test_shapes_that_do_not_fit_are_refused(build_seq2seq: Callable[..., Seq2Seq]) -> None:
    with pytest.raises(ValueError, match="architecture=decoder has no encoder"):
        Seq2Seq(ModelConfig(), 50, None, 12, 10, 0)
    with pytest.raises(ValueError, match="input_vocab_size=40 needs a tokenizer for sources"):
        Seq2Seq(ModelConfig(architecture="encoder_decoder", input_vocab_size=40), 50, None, 12, 10, 0)
    long = torch.zeros(1, 13, dtype=torch.int64)
    with pytest.raises(ValueError, match="A source of 11 tokens is longer than source_len=10"):
        build_seq2seq()(long[:, :11], torch.tensor([11]), long[:, :2], long[:, :2])
    with pytest.raises(ValueError, match="13 tokens is longer than seq_len=12"):
        build_seq2seq()(long[:, :2], torch.tensor([2]), long, long)


def test_dropout_acts_on_embeddings_and_on_every_sublayer(build_seq2seq: Callable[..., Seq2Seq]) -> None:
    model = build_seq2seq(preset="original", dropout=0.3, n_layers=1)
    calls: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    batch = pairs()
    torch.manual_seed(1)
    first = model(*batch).item()
    assert calls == [
        *["encoder.dropout", *["encoder.blocks.0.dropout"] * 2],
        *["decoder.dropout", *["decoder.blocks.0.dropout"] * 3],
    ]
    assert model(*batch).item() != first
    torch.manual_seed(1)
    assert model(*batch).item() == first
    assert model.eval()(*batch).item() == build_seq2seq(preset="original", n_layers=1)(*batch).item()


@pytest.mark.parametrize("fields", [{"preset": "original", "dropout": 0.3}, {"n_kv_heads": 2}])
def test_activation_checkpointing_changes_no_gradient(
    fields: dict[str, object], build_seq2seq: Callable[..., Seq2Seq]
) -> None:
    results = []
    for activation_checkpointing in (False, True):
        model = build_seq2seq(activation_checkpointing=activation_checkpointing, **fields)
        torch.manual_seed(1)
        results.append(loss_and_gradients(model, pairs()))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@pytest.mark.parametrize("preset", ["original", "gpt2", "llama"])
def test_bf16_autocast_stays_close_to_float32(preset: str, build_seq2seq: Callable[..., Seq2Seq]) -> None:
    model = build_seq2seq(preset=preset)
    exact, exact_gradients = loss_and_gradients(model, pairs())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*pairs())
    model.zero_grad()
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2) and loss.item() != exact.item()
    whole, exact_whole = (
        torch.cat([gradient.flatten() for gradient in gradients.values()])
        for gradients in (gradients_of(model), exact_gradients)
    )
    assert (whole - exact_whole).norm() < 0.05 * exact_whole.norm()


def test_ddp_gives_the_gradients_of_the_bare_model(build_seq2seq: Callable[..., Seq2Seq]) -> None:
    bare = build_seq2seq(preset="original")
    for _ in range(2):
        bare(*pairs(), label_smoothing=0.1).backward()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(build_seq2seq(preset="original"))
        with wrapped.no_sync():
            wrapped(*pairs(), label_smoothing=0.1).backward()
        wrapped(*pairs(), label_smoothing=0.1).backward()
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(gradients_of(wrapped.module), gradients_of(bare))


# See test_transformer.py for what torch's compiler warns about.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "backend"),
    [
        pytest.param({"preset": "original"}, "inductor", marks=pytest.mark.soak),
        ({"n_kv_heads": 2, "activation_checkpointing": True, "input_vocab_size": 40}, "aot_eager"),
    ],
)
def test_compiled_model_matches_eager(
    fields: dict[str, object], backend: str, build_seq2seq: Callable[..., Seq2Seq]
) -> None:
    """See test_transformer.py for the backends."""
    eager, model = build_seq2seq(n_layers=1, **fields), build_seq2seq(n_layers=1, **fields)
    model.compile(backend=backend)
    expected, actual = (loss_and_gradients(each, pairs(), label_smoothing=0.1) for each in (eager, model))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == eager.state_dict().keys()
