"""Tokenizing through the Ray Data pipeline against bare tiktoken, on the same text and cores.

Text: Python source found in this environment (standard library and installed packages), one file a document, up to
--megabytes, written as jsonl.zst shards of about --shard-megabytes of text each. A BPE vocabulary is learned from its
beginning.

    pipeline   `data.tokens.pipeline.tokenized_units` over all shards, as the feeder drives it: read, decompress, parse,
               split by hash, encode, put into the cache, bring the streams back in order. Ray runs with 2 CPUs and is
               warm (worker processes up, everything imported, encoder built) and every round has a cache of its own.
    bare       the texts as strings in memory, nothing but tiktoken over the same vocabulary, on 2 cores. Three ways
               are timed in every round: 2 threads each encoding to numpy arrays, tiktoken's own batch call with 2
               threads, and 2 forked processes that already hold the texts and keep the tokens to themselves. The one
               with the best median is what the pipeline is held to.

The ratio is one round's pipeline over the same round's bare tiktoken, in text bytes per second; the median over
rounds counts. Both make the same number of tokens, which is checked.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import tiktoken
import zstandard
from harness import Verdict

from cluster.local.ray import ray_cluster
from data.config import DataConfig, SourceConfig, StoreConfig, TokenizerConfig
from data.shards.build import build_manifest
from data.tokens.tokenizer import Tokenizer, train_tokenizer
from data.tokens.unit import TokenizeJob
from orchestrator.config.load import load_recipe
from orchestrator.run.run import stores

RATIO = 0.7
CORES = 2
LEARN_BYTES = 8_000_000


def main() -> None:
    """Run the benchmark."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contestant")
    parser.add_argument("--megabytes", type=int, default=100, help="text in all; less where there is no more")
    parser.add_argument("--shard-megabytes", type=float, default=2.0, help="text in a shard")
    parser.add_argument("--vocab-size", type=int, default=8192, help="entries of the vocabulary")
    options = parser.parse_args()
    texts = list(python_sources(options.megabytes * 1_000_000))
    text_bytes = sum(len(text.encode()) for text in texts)
    vocabulary = train_tokenizer(TokenizerConfig(vocab_size=options.vocab_size, train_bytes=LEARN_BYTES), texts)
    encoding = bare_encoding(vocabulary)
    print(f"  {len(texts):,} documents, {text_bytes / 1e6:.1f} MB", flush=True)
    with harness.scratch() as folder, multiprocessing.get_context("fork").Pool(CORES, _hold, (texts, encoding)) as pool:
        write_shards(texts, folder / "shards", int(options.shard_megabytes * 1e6))
        job, units = tokenize_job(folder, vocabulary)
        with ray_cluster(CORES):
            run_pipeline(job, units[: 2 * CORES], folder / "warm-up")
            turns = harness.in_turn(
                options.rounds,
                {
                    "pipeline": lambda: timed(
                        lambda: run_pipeline(job, units, folder / f"cache-{time.monotonic_ns()}")
                    ),
                    "bare, threads": lambda: timed(lambda: encode_in_threads(encoding, texts)),
                    "bare, batch call": lambda: timed(lambda: encode_as_batch(encoding, texts)),
                    "bare, processes": lambda: timed(lambda: sum(pool.map(_encode_share, range(CORES)))),
                },
            )
    tokens = {name: {count for _, count in results} for name, results in turns.items()}
    assert len(set.union(*tokens.values())) == 1, f"not the same tokens: {tokens}"
    rates = {name: [text_bytes / seconds for seconds, _ in results] for name, results in turns.items()}
    fastest = max((name for name in rates if name != "pipeline"), key=lambda name: statistics.median(rates[name]))
    shares = harness.ratios(rates["pipeline"], rates[fastest])
    verdicts = [Verdict.without_bound(name, statistics.median(values) / 1e6, "MB/s") for name, values in rates.items()]
    verdicts.append(Verdict.at_least(f"pipeline / {fastest}", statistics.median(shares), RATIO))
    details = {
        "documents": len(texts),
        "text_bytes": text_bytes,
        "tokens": tokens["pipeline"].pop(),
        "shards": len(units),
        "bytes_per_s": {name: harness.spread(values) for name, values in rates.items()},
        "ratio": harness.spread(shares),
    }
    harness.report("tokenizing", options, verdicts, details)


def python_sources(limit: int) -> Iterator[str]:
    """Files of the standard library, then of the installed packages, in a fixed order, `limit` bytes of them."""
    for folder in (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"]):
        for path in sorted(Path(folder).rglob("*.py")):
            if folder.endswith("site-packages") or "site-packages" not in path.parts:
                try:
                    text = path.read_text("utf-8")
                except (UnicodeDecodeError, OSError):
                    continue
                if text.strip():
                    yield text
                    limit -= len(text.encode())
                    if limit <= 0:
                        return


def write_shards(texts: Sequence[str], folder: Path, shard_bytes: int) -> None:
    """Documents in order into jsonl.zst shards, a new one after every `shard_bytes` of text."""
    folder.mkdir()
    compressor = zstandard.ZstdCompressor()
    lines: list[bytes] = []
    number = 0
    for text in texts:
        lines.append(json.dumps({"text": text}, ensure_ascii=False).encode())
        if sum(map(len, lines)) >= shard_bytes or text is texts[-1]:
            (folder / f"part-{number:05d}.jsonl.zst").write_bytes(compressor.compress(b"\n".join(lines) + b"\n"))
            number, lines = number + 1, []


def tokenize_job(folder: Path, vocabulary: Tokenizer) -> tuple[TokenizeJob, list[Any]]:
    """The job of the tasks, and the units of all shards; nothing is held out, so that every text counts."""
    source = SourceConfig(path=str(folder / "shards"))
    data = DataConfig(sources=(source,), validation_fraction=0.0)
    manifest = build_manifest(data.sources, StoreConfig())
    job = TokenizeJob(data, StoreConfig(), vocabulary, cache_in(folder / "unused"))
    return job, [manifest.unit(ordinal) for ordinal in range(manifest.num_units)]


def cache_in(folder: Path) -> Any:
    """A store in a local folder."""
    return stores(load_recipe(harness.RECIPE, [f"storage={folder}"]))[0]


def run_pipeline(job: TokenizeJob, units: Sequence[Any], cache: Path) -> int:
    """Every unit's stream, in order, through Ray Data; returns the tokens of text among them."""
    from data.tokens.pipeline import tokenized_units  # after Ray's settings are in place

    tokens = 0
    for table in tokenized_units(units, replace(job, cache=cache_in(cache)), ["train", "train_tokens", "documents"]):
        # A unit's stream has an end-of-text before every document and one at its end.
        tokens += table["train_tokens"][0].as_py() - table["documents"][0].as_py() - 1
    return tokens


def bare_encoding(vocabulary: Tokenizer) -> tiktoken.Encoding:
    """tiktoken alone with the same vocabulary."""
    return tiktoken.Encoding(
        name="bare",
        pat_str=json.loads(vocabulary.to_bytes())["split"],
        mergeable_ranks={token: rank for rank, token in enumerate(vocabulary.tokens)},
        special_tokens={},
    )


def encode_in_threads(encoding: tiktoken.Encoding, texts: Sequence[str]) -> int:
    """One thread per core; tiktoken releases the interpreter lock while it works."""
    with ThreadPoolExecutor(CORES) as threads:
        return sum(len(ids) for ids in threads.map(lambda t: encoding.encode_to_numpy(t, disallowed_special=()), texts))


def encode_as_batch(encoding: tiktoken.Encoding, texts: Sequence[str]) -> int:
    """tiktoken's own way of using several cores."""
    return sum(map(len, encoding.encode_ordinary_batch(list(texts), num_threads=CORES)))


_held: tuple[Sequence[str], tiktoken.Encoding]


def _hold(texts: Sequence[str], encoding: tiktoken.Encoding) -> None:
    global _held
    _held = texts, encoding


def _encode_share(process: int) -> int:
    texts, encoding = _held
    ids = [encoding.encode_to_numpy(text, disallowed_special=()) for text in texts[process::CORES]]
    return sum(map(len, ids))


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Duration of `work` in seconds, and its result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
