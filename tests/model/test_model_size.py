import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.seq2seq import Seq2Seq
from model.size import count_parameters, flops_per_pair, flops_per_token
from model.transformer import Transformer

CONFIGS = [
    ModelConfig(preset="gpt2", n_layers=3, d_model=24, n_heads=4),
    ModelConfig(preset="gpt2", n_layers=2, d_model=24, n_heads=4, d_ff=50, tie_embeddings=False),
    ModelConfig(n_layers=3, d_model=32, n_heads=4),
    ModelConfig(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=40, tie_embeddings=False),
    ModelConfig(preset="original", n_layers=2, d_model=24, n_heads=4),
    ModelConfig(preset="llama", positions="learned", norm="post", n_layers=2, d_model=24, n_heads=4),
]
PAIR_CONFIGS = [
    ModelConfig(architecture="encoder_decoder", preset="original", n_layers=2, d_model=24),
    ModelConfig(architecture="encoder_decoder", preset="gpt2", n_layers=2, n_encoder_layers=3, d_model=24, d_ff=50),
    ModelConfig(
        architecture="encoder_decoder", n_layers=2, n_encoder_layers=1, d_model=32, n_kv_heads=2, tie_embeddings=False
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_count_is_what_a_built_model_has(config: ModelConfig) -> None:
    model = Transformer(config, vocab_size=60, seq_len=16, end_of_text=None)
    tables = {"embedding.weight", "positions.weight", "output.weight"}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    count = count_parameters(config, vocab_size=60, seq_len=16)
    assert count.total == sum(sizes.values())
    assert count.non_embedding == sum(size for name, size in sizes.items() if name not in tables)


def test_gpt2_small_counted_by_hand() -> None:
    config = ModelConfig(preset="gpt2", n_layers=12, d_model=768, n_heads=12)
    attention = (768 * 2304 + 2304) + (768 * 768 + 768)
    feed_forward = (768 * 3072 + 3072) + (3072 * 768 + 768)
    blocks = 12 * (attention + feed_forward + 4 * 768)
    tables = 50257 * 768 + 1024 * 768
    assert blocks + 2 * 768 == 85_056_000
    # 124M is what the smallest GPT-2 is known for.
    assert count_parameters(config, 50257, 1024) == (85_056_000 + tables, 85_056_000)
    assert count_parameters(config, 50257, 1024).total == 124_439_808


def test_grouped_llama_counted_by_hand() -> None:
    # Llama 3 8B: 32 layers, 32 query and 8 key heads of 128, feed-forward 14336, 128256 words, untied.
    config = ModelConfig(n_layers=32, d_model=4096, n_heads=32, n_kv_heads=8, d_ff=14336, tie_embeddings=False)
    attention = 4096 * 4096 + 2 * 4096 * 1024 + 4096 * 4096
    blocks = 32 * (attention + 3 * 4096 * 14336 + 2 * 4096) + 4096
    assert count_parameters(config, 128256, 8192) == (blocks + 2 * 128256 * 4096, blocks)
    assert count_parameters(config, 128256, 8192).total == 8_030_261_248


def test_flops_counted_by_hand() -> None:
    config = ModelConfig(preset="gpt2", n_layers=2, d_model=8, n_heads=2)
    weights = 2 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8) + 100 * 8
    # Per layer, one query meets 16 keys and 16 values of width 8, a multiply and an add each; backward doubles it.
    attention = 2 * 3 * (2 * 16 * 8 + 2 * 16 * 8)
    assert flops_per_token(config, vocab_size=100, seq_len=16) == 6 * weights + attention == 17_088


@pytest.mark.parametrize("config", CONFIGS)
def test_flops_are_those_torch_counts(config: ModelConfig) -> None:
    model = Transformer(config, vocab_size=60, seq_len=16, end_of_text=None)
    tokens = torch.randint(0, 60, (2, 16))
    # The counter knows neither the fused attention kernel of the CPU nor products added in place, as in our loss:
    # the same mathematics in plain products shows it everything.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        F.cross_entropy(model.logits(tokens).flatten(0, 1), tokens.flatten()).backward()
    assert counter.get_total_flops() == flops_per_token(config, vocab_size=60, seq_len=16) * tokens.numel()


@pytest.mark.parametrize("input_vocab_size", [None, 40])
@pytest.mark.parametrize("config", PAIR_CONFIGS)
def test_count_is_what_a_built_encoder_decoder_has(config: ModelConfig, input_vocab_size: int | None) -> None:
    model = Seq2Seq(config, 60, input_vocab_size, 16, 12, 0)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    count = count_parameters(config, 60, 16, input_vocab_size=input_vocab_size, source_len=12)
    assert count.total == sum(sizes.values())
    tables = {f"{stack}.{table}.weight" for stack in ("encoder", "decoder") for table in ("embedding", "positions")}
    assert count.non_embedding == sum(
        size for name, size in sizes.items() if name not in tables | {"decoder.output.weight"}
    )


def test_the_base_model_of_vaswani_et_al_has_its_65_million() -> None:
    config = ModelConfig(architecture="encoder_decoder", preset="original", n_layers=6, d_model=512, n_heads=8)
    # Table 3: 65 x 10^6, with a shared vocabulary of about 37000.
    assert count_parameters(config, 37000, 512, source_len=512).total == pytest.approx(65e6, rel=0.05)


@pytest.mark.parametrize("config", PAIR_CONFIGS)
def test_flops_of_pairs_are_those_torch_counts(config: ModelConfig) -> None:
    model = Seq2Seq(config, 60, None, 16, 12, 0)
    sources, tokens = torch.randint(0, 60, (2, 12)), torch.randint(0, 60, (2, 16))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model.logits(sources, torch.tensor([12, 5]), tokens)
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    assert counter.get_total_flops() == 2 * flops_per_pair(config, vocab_size=60, source_len=12, seq_len=16)
