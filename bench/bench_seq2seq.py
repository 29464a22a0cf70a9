"""Training throughput of the encoder-decoder against the decoder-only model's, per floating-point operation.

Both are built from one config, as wide and as deep in all (4 + 4 layers against 8), and read micro-batches of as many
tokens: pairs of --length and --length tokens against sequences of twice that. Sources are padded by a tenth on average,
as in length-bucketed batches; padding is computed, so its operations count. What is timed is forward and backward in
float32, loss included, without optimizer or data.

Operations are `model.size.flops_per_token` and `flops_per_pair`. The ratio is one round's encoder-decoder over the same
round's decoder, in operations per second; the median over rounds counts. No Ray.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import harness
import torch
from harness import Verdict
from torch import Tensor, nn

from model.config import ModelConfig
from model.seq2seq import Seq2Seq
from model.size import flops_per_pair, flops_per_token
from model.transformer import Transformer

RATIO = 0.85
END_OF_TEXT = 0


def main() -> None:
    """Run the benchmark."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="turns of every contestant")
    parser.add_argument("--steps", type=int, default=2, help="micro-batches in a turn")
    parser.add_argument("--presets", nargs="+", default=["original", "llama"], help="block styles to compare in")
    parser.add_argument("--layers", type=int, default=8, help="blocks in all; half of them are the encoder's")
    parser.add_argument("--width", type=int, default=256, help="d_model")
    parser.add_argument("--heads", type=int, default=4, help="query heads")
    parser.add_argument("--vocab-size", type=int, default=10_000, help="words, source and target alike")
    parser.add_argument("--length", type=int, default=64, help="tokens of a source and of a target")
    parser.add_argument("--pairs", type=int, default=16, help="pairs in a micro-batch")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    contestants = {}
    for preset in options.presets:
        contestants[f"{preset}, decoder"] = decoder(options, preset)
        contestants[f"{preset}, encoder-decoder"] = encoder_decoder(options, preset)
    for warm_up in contestants.values():
        warm_up()
    rates = harness.in_turn(options.rounds, contestants)
    ratios = {
        preset: harness.ratios(rates[f"{preset}, encoder-decoder"], rates[f"{preset}, decoder"])
        for preset in options.presets
    }
    verdicts = [
        Verdict.at_least(f"{preset}: FLOP/s of encoder-decoder / decoder", statistics.median(values), RATIO)
        for preset, values in ratios.items()
    ]
    verdicts += [Verdict.without_bound(name, statistics.median(values), "GFLOP/s") for name, values in rates.items()]
    details = {
        "gflops_per_s": {name: harness.spread(values) for name, values in rates.items()},
        "ratios": {name: harness.spread(values) for name, values in ratios.items()},
    }
    harness.report("seq2seq", options, verdicts, details)


def decoder(options: argparse.Namespace, preset: str) -> Callable[[], float]:
    """Measures the decoder-only model, in GFLOP/s."""
    config = ModelConfig(preset=preset, n_layers=options.layers, d_model=options.width, n_heads=options.heads)
    length = 2 * options.length
    model = Transformer(config, options.vocab_size, length, END_OF_TEXT)
    tokens = torch.randint(options.vocab_size, (options.pairs, length + 1))
    flops = flops_per_token(config, options.vocab_size, length) * options.pairs * length
    return lambda: gflops_per_s(model, (tokens[:, :-1], tokens[:, 1:]), flops, options.steps)


def encoder_decoder(options: argparse.Namespace, preset: str) -> Callable[[], float]:
    """Measures the encoder-decoder, in GFLOP/s."""
    half, length = options.layers // 2, options.length
    config = ModelConfig(
        architecture="encoder_decoder",
        preset=preset,
        n_layers=half,
        n_encoder_layers=half,
        d_model=options.width,
        n_heads=options.heads,
    )
    model = Seq2Seq(config, options.vocab_size, None, length, length, END_OF_TEXT)
    sources = torch.randint(options.vocab_size, (options.pairs, length))
    counts = torch.randint(length - length // 5, length + 1, (options.pairs,))
    tokens = torch.randint(options.vocab_size, (options.pairs, length + 1))
    flops = flops_per_pair(config, options.vocab_size, length, length) * options.pairs
    return lambda: gflops_per_s(model, (sources, counts, tokens[:, :-1], tokens[:, 1:]), flops, options.steps)


def gflops_per_s(model: nn.Module, batch: tuple[Tensor, ...], flops: int, steps: int) -> float:
    """GFLOP/s of repeated forward and backward passes over one micro-batch."""
    began = time.perf_counter()
    for _ in range(steps):
        model(*batch).backward()
    return steps * flops / (time.perf_counter() - began) / 1e9


if __name__ == "__main__":
    main()
