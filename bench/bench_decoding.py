"""Decoding with and without the key-value cache, and in batches: new tokens per second.

The model is a decoder-only one of --layers blocks and --width; its context holds prompt and new tokens, and no token
ends a text. The same model as an encoder-decoder (half of the blocks each) writes with beams.

    cached     greedy, one prompt
    anew       the same, everything computed again for every token
    batch      greedy, --batch prompts at once, with the cache
    beams      encoder-decoder, --batch sources at once, 5 beams, with the cache; tokens of the texts it returns

Both ways must give the same tokens, which is checked. The ratio is one round's cached over the same round's anew; the
median over rounds counts. No Ray.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import harness
import torch
from harness import Verdict

from model.config import ModelConfig
from model.decoding.beam_search import beam_search
from model.decoding.generate import generate
from model.seq2seq import Seq2Seq
from model.transformer import Transformer

RATIO = 2.0
BEAMS = 5


def main() -> None:
    """Run the benchmark."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every contestant")
    parser.add_argument("--layers", type=int, default=6, help="blocks")
    parser.add_argument("--width", type=int, default=384, help="d_model")
    parser.add_argument("--heads", type=int, default=6, help="query heads")
    parser.add_argument("--vocab-size", type=int, default=8192, help="words")
    parser.add_argument("--prompt", type=int, default=96, help="tokens of a prompt or a source")
    parser.add_argument("--new", type=int, default=160, help="tokens to add")
    parser.add_argument("--batch", type=int, default=8, help="prompts in a batch")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    shape = {"n_layers": options.layers, "d_model": options.width, "n_heads": options.heads}
    context = options.prompt + options.new
    model = Transformer(ModelConfig.model_validate(shape), options.vocab_size, context, None)
    shape |= {"architecture": "encoder_decoder", "n_layers": options.layers // 2}
    pairs = Seq2Seq(ModelConfig.model_validate(shape), options.vocab_size, None, context, options.prompt, 0)
    prompts = torch.randint(options.vocab_size, (options.batch, options.prompt)).tolist()

    assert generate(model, prompts[:1], options.new, 0.0) == generate(
        model, prompts[:1], options.new, 0.0, use_cache=False
    )
    rates = harness.in_turn(
        options.rounds,
        {
            "cached": lambda: tokens_per_s(lambda: generate(model, prompts[:1], options.new, 0.0)),
            "anew": lambda: tokens_per_s(lambda: generate(model, prompts[:1], options.new, 0.0, use_cache=False)),
            "batch": lambda: tokens_per_s(lambda: generate(model, prompts, options.new, 0.0)),
            "beams": lambda: tokens_per_s(lambda: beam_search(pairs, prompts, options.new, BEAMS)),
        },
    )
    ratios = harness.ratios(rates["cached"], rates["anew"])
    verdicts = [Verdict.at_least("cached / anew, tokens/s", statistics.median(ratios), RATIO)]
    verdicts += [Verdict.without_bound(name, statistics.median(values), "tokens/s") for name, values in rates.items()]
    details = {"tokens_per_s": {name: harness.spread(values) for name, values in rates.items()}, "ratios": ratios}
    harness.report("decoding", options, verdicts, details)


def tokens_per_s(decode: Callable[[], list[list[int]]]) -> float:
    """New tokens per second."""
    began = time.perf_counter()
    return sum(map(len, decode())) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
