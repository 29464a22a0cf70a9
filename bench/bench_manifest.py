"""A manifest of 100,000 shards: time to compute the order of any step, units read at start-up, and memory.

1. Order, in this process, on a manifest made up in memory with random sequence counts. The order of a step of --batch
   samples at a random position in the first epochs is requested; the time of one request is measured (required: 10 ms).

       cold    a step in an epoch and window that were not requested before: the epoch's permutation is computed
       warm    a step in a known epoch, in another window, as when a run continues where it stopped
       next    the step after the last one, as during a run

   With one source, and with four of 25,000 shards each; each with all counts known, and with one source also right
   after the start, when only the units of the windows read so far are known.

2. A real run, `manta train` with data.prepare=streaming, on a local folder of 100,000 files. Their names, sizes, times
   and listing are real; the content is real only in the shards that the first steps of this seed may touch (--real of
   them, from the order). The others are holes: files of the same size without a block on disk, all zeros, which
   are no JSON. If the run read one of them it would stop, because bad shards are refused. Reported: units in the
   token cache when the first step was done (a unit is put there as soon as it has been read), those needed to
   know the first step (one shuffle window), and those read by the end, where the feeder reads AHEAD_BYTES of
   data.feed.feeder ahead; resident memory at its peak (VmHWM, shared libraries and object store included) of the driver
   and of the feeder (required: 1 GB each); the time to the first step, which contains listing 100,000 files.

The model is tiny and nothing is held out: a held-out set without a limit reads every shard, by definition.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from harness import MemoryWatch, Verdict

from data.config import DataConfig, SourceConfig
from data.feed.feeder import AHEAD_BYTES
from data.feed.spec import FeedSpec
from data.order.sample_order import UNKNOWN, SampleOrder
from data.shards.manifest import Manifest
from orchestrator.commands.corpora import standard_library

ORDER_MS = 10.0
MEMORY_GB = 1.0
SEED = 1
SEQ_LEN = 256
SHUFFLE_UNITS = 16


def main() -> None:
    """Run the benchmark."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--shards", type=int, default=100_000, help="shards in the manifest")
    parser.add_argument("--batch", type=int, default=512, help="samples of a step whose order is asked for")
    parser.add_argument("--questions", type=int, default=200, help="steps asked for, of each kind")
    parser.add_argument("--shard-kilobytes", type=int, default=64, help="size of a shard on disk")
    parser.add_argument("--real", type=int, default=5000, help="shards with content")
    parser.add_argument("--steps", type=int, default=30, help="steps of the real run")
    options = parser.parse_args()
    order_s = measure_orders(options.shards, options.batch, options.questions)
    verdicts = []
    for name, seconds in order_s.items():
        milliseconds = sorted(1000 * value for value in seconds)
        verdicts.append(
            Verdict.at_most(f"order of a step, {name}: median", statistics.median(milliseconds), ORDER_MS, "ms")
        )
        verdicts.append(Verdict.without_bound("  99 of 100 below", milliseconds[int(0.99 * len(milliseconds))], "ms"))
    with harness.scratch() as folder:
        details = measure_run(folder, options.shards, options.real, options.shard_kilobytes * 1000, options.steps)
    verdicts += [
        Verdict.without_bound("units needed for the first step", details["units_needed"]),
        Verdict.without_bound("units read when the first step was done", details["units_at_first_step"]),
        Verdict.without_bound("units read by the end", details["units_at_end"]),
        Verdict.at_most("driver: peak memory", details["peak_gb"]["driver"], MEMORY_GB, "GB"),
        Verdict.at_most("feeder: peak memory", details["peak_gb"]["feeder"], MEMORY_GB, "GB"),
        Verdict.without_bound("command to first step", details["first_step_s"], "s"),
    ]
    details["order_ms"] = {
        name: harness.spread([1000 * value for value in seconds]) for name, seconds in order_s.items()
    }
    harness.report("manifest", options, verdicts, details)


# ---------------------------------------------------------------------------------------------------------------------
# Order
# ---------------------------------------------------------------------------------------------------------------------


def measure_orders(shards: int, batch: int, questions: int) -> dict[str, list[float]]:
    """Seconds of every request, by kind."""
    seconds: dict[str, list[float]] = {}
    for sources in (1, 4):
        manifest = made_up_manifest(shards, sources)
        counts = np.random.default_rng(SEED).integers(1, 200, manifest.num_units)
        order = order_of(manifest, sources)
        total = int(counts.sum())
        draw = random.Random(SEED)
        cold, warm, following = [], [], []
        for question in range(questions):
            # Every request is for a different epoch; no cache holds that many.
            first = question * total + draw.randrange(total)
            cold.append(timed(order, first, batch, counts))
            warm.append(timed(order, question * total + draw.randrange(total - batch), batch, counts))
            following.append(timed(order, first + batch, batch, counts))
        seconds |= {f"{sources} source(s), cold": cold, f"{sources} source(s), warm": warm}
        seconds[f"{sources} source(s), next"] = following
    manifest = made_up_manifest(shards, 1)
    order = order_of(manifest, 1)
    partly = np.full(manifest.num_units, UNKNOWN, np.int64)
    partly[order.epoch_units(0, 0)[: 50 * SHUFFLE_UNITS]] = 100
    known = 50 * SHUFFLE_UNITS * 100
    seconds["1 source(s), counts mostly unknown"] = [
        timed(order, draw.randrange(known - batch), batch, partly) for _ in range(questions)
    ]
    return seconds


def made_up_manifest(shards: int, sources: int) -> Manifest:
    """A manifest of shards that do not exist."""
    schema = pa.schema(
        [
            ("source", pa.int32()),
            ("path", pa.string()),
            ("size", pa.int64()),
            ("etag", pa.string()),
            ("units", pa.int32()),
            ("parquet", pa.bool_()),
        ]
    )
    table = pa.table(
        {
            "source": [shard * sources // shards for shard in range(shards)],
            "path": [f"s3://nowhere/corpus/part-{shard:06d}.jsonl.zst" for shard in range(shards)],
            "size": [100_000_000] * shards,
            "etag": [f"{shard:032x}" for shard in range(shards)],
            "units": [1] * shards,
            "parquet": [False] * shards,
        },
        schema=schema,
    )
    sink = pa.BufferOutputStream()
    paths = json.dumps([f"s3://nowhere/corpus-{source}/" for source in range(sources)])
    pq.write_table(table.replace_schema_metadata({"manta.source_paths": paths}), sink)
    return Manifest.from_bytes(sink.getvalue().to_pybytes())


def order_of(manifest: Manifest, sources: int) -> SampleOrder:
    """The order of a run with this manifest."""
    data = DataConfig(
        sources=tuple(SourceConfig(path=f"s3://nowhere/corpus-{source}/") for source in range(sources)),
        shuffle_units=SHUFFLE_UNITS,
    )
    return FeedSpec.order_of(manifest, data, SEED)


def timed(order: SampleOrder, first: int, count: int, counts: Any) -> float:
    """Seconds to compute the samples `first` to `first + count`."""
    began = time.perf_counter()
    order.samples(first, count, counts)
    return time.perf_counter() - began


# ---------------------------------------------------------------------------------------------------------------------
# A run
# ---------------------------------------------------------------------------------------------------------------------


def measure_run(folder: Path, shards: int, real: int, shard_bytes: int, steps: int) -> dict[str, Any]:
    """Units, memory and time of a real run."""
    began = time.monotonic()
    order = SampleOrder(SEED, [range(shards)], [1.0], SHUFFLE_UNITS)
    write_shards(folder / "corpus", shards, set(order.epoch_units(0, 0)[:real].tolist()), shard_bytes)
    print(f"  {shards:,} files, {real:,} of them with content, in {time.monotonic() - began:.1f} s", flush=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "run": "many-shards",
                "seed": SEED,
                "storage": str(folder / "storage"),
                "data": {
                    "sources": [{"path": str(folder / "corpus")}],
                    "tokenizer": {"kind": "bytes"},
                    "seq_len": SEQ_LEN,
                    "shuffle_units": SHUFFLE_UNITS,
                    "validation_fraction": 0.0,
                    "prepare": "streaming",
                },
                "model": {"n_layers": 1, "d_model": 64, "n_heads": 2},
                "train": {"steps": steps, "global_batch_size": 8, "micro_batch_size": 8, "lr": 1e-3},
            }
        )
    )
    watches: list[MemoryWatch] = []

    def observer_of(command: harness.Command) -> Callable[[], object]:
        watches.append(MemoryWatch(command, {"driver": "manta train", "feeder": "ray::Feeder"}))
        return watches[-1].observe

    run = harness.train(recipe, [], folder, observer_of)
    read_at = sorted(path.stat().st_mtime for path in (folder / "storage" / "tokens").rglob("*.arrow"))
    attempt = run.records[-1]
    assert attempt.first_step_s is not None
    memory = {role: list(seen.values()) for role, seen in watches[0].seen.items()}
    return {
        "files_with_content": real,
        "ahead_bytes": AHEAD_BYTES,
        "units_needed": SHUFFLE_UNITS,
        "units_at_first_step": sum(moment <= attempt.started_at + attempt.first_step_s for moment in read_at),
        "units_at_end": len(read_at),
        "first_step_s": attempt.first_step_s,
        "samples": run.summary["samples"],
        "goodput": run.summary["goodput"],
        "peak_gb": {role: max(process.peak for process in seen) / 1e9 for role, seen in memory.items()},
        "memory": memory,
        "lines": run.lines,
    }


def write_shards(folder: Path, shards: int, with_content: set[int], size: int) -> None:
    """jsonl shards of about `size` bytes: Python source in those with content, a hole in the others."""
    folder.mkdir()
    documents = endless_documents()
    for shard in range(shards):
        path = folder / f"part-{shard:06d}.jsonl"
        if shard in with_content:
            lines, written = [], 0
            while written < size:
                lines.append(json.dumps({"text": next(documents)}) + "\n")
                written += len(lines[-1])
            path.write_text("".join(lines))
        else:
            path.touch()
            os.truncate(path, size)


def endless_documents() -> Iterator[str]:
    """Pieces of the standard library's source, repeated endlessly."""
    texts = [text for _, text in standard_library()]
    while True:
        for text in texts:
            yield from (text[start : start + 4000] for start in range(0, len(text), 4000))


if __name__ == "__main__":
    main()
