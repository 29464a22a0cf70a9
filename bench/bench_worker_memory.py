"""Memory of a training worker beyond what training needs: model, gradients, optimizer, one micro-batch's activations.

A run of two workers with AdamW in fp32, for the quickstart recipe's model and for one of about 50 million parameters
(to see that what is beyond does not grow with the model). Checkpoints are saved every few steps, so the peak contains
snapshots. For each:

    peak       the most a worker ever had resident (VmHWM of the larger of the two), interpreter, torch's libraries,
               imports and pages shared with other processes included
    needed     4 bytes a parameter each for weights, gradients (DDP's buckets are the gradients) and AdamW's two
               moments, plus the activations of one micro-batch
    beyond     peak - needed (required: 500 MB)

Activations are counted, not guessed: one forward pass of the same model on a micro-batch, in this process, under
`torch.autograd.graph.saved_tensors_hooks`, adds up the distinct storages that autograd keeps for the backward pass and
that are not weights or buffers; the loss's two chunk buffers, alive at the same time, are added. What a backward pass
needs in passing is not, so "beyond" contains it.

For comparison, what a process has resident that imports the training loop and does nothing else.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import harness
import torch
from harness import MemoryWatch, Verdict

from model.config import ModelConfig
from model.size import count_parameters
from model.transformer import Transformer
from orchestrator.config.load import load_recipe
from orchestrator.config.recipe import RunConfig
from orchestrator.run.run import reaching_storage

BEYOND_MB = 500.0
BYTES_PER_PARAMETER = 16

LARGER = ("model.n_layers=16", "model.d_model=512", "model.n_heads=8", "model.n_kv_heads=4")
"""About 50 million parameters."""


def main() -> None:
    """Run the benchmark."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=40, help="steps of the quickstart model's run")
    parser.add_argument("--larger-steps", type=int, default=8, help="steps of the larger model's run")
    parser.add_argument("--save-every", type=int, default=4, help="steps between two checkpoints")
    options = parser.parse_args()
    idle_mb = memory_of_imports()
    with harness.scratch() as folder:
        recipe = harness.quickstart_overrides(folder)
        with reaching_storage(load_recipe(harness.RECIPE, recipe)):
            harness.prepare_quickstart(folder)
            smaller = measure(folder, [*recipe, "run=smaller", *brief(options.steps, options.save_every)])
            batch = ("train.global_batch_size=4", "train.micro_batch_size=2")
            larger = measure(
                folder, [*recipe, "run=larger", *LARGER, *batch, *brief(options.larger_steps, options.save_every)]
            )
    verdicts = []
    for measured in (smaller, larger):
        name = f"{measured['parameters'] / 1e6:.1f} M parameters"
        verdicts += [
            Verdict.without_bound(f"{name}: peak", measured["peak_mb"], "MB"),
            Verdict.without_bound("  of it weights, gradients, optimizer", measured["state_mb"], "MB"),
            Verdict.without_bound("  of it activations of a micro-batch", measured["activations_mb"], "MB"),
            Verdict.at_most("  beyond these", measured["beyond_mb"], BEYOND_MB, "MB"),
        ]
    growth = larger["beyond_mb"] - smaller["beyond_mb"]
    verdicts.append(Verdict.without_bound("what is beyond, larger model - smaller", growth, "MB"))
    verdicts.append(Verdict.without_bound("a process that imports the training loop", idle_mb, "MB"))
    harness.report("worker_memory", options, verdicts, {"smaller": smaller, "larger": larger, "imports_mb": idle_mb})


def brief(steps: int, save_every: int) -> list[str]:
    """Overrides of a short run."""
    return [
        f"train.steps={steps}",
        "train.schedule.warmup_steps=0",
        f"checkpoint.every_steps={save_every}",
        "data.validation_sequences=4",
    ]


def measure(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Measures a run and the memory of its workers."""
    watches: list[MemoryWatch] = []

    def observer_of(command: harness.Command) -> Callable[[], object]:
        watches.append(MemoryWatch(command, {"worker": "ray::TrainingWorker"}))
        return watches[-1].observe

    config = load_recipe(harness.RECIPE, overrides)
    print(f"  {config.run}", flush=True)
    run = harness.train(harness.RECIPE, overrides, folder, observer_of)
    workers = list(watches[0].seen["worker"].values())
    vocab_size = config.model.resolve_vocab_size(config.data.tokenizer.vocab_size)
    parameters = count_parameters(config.model, vocab_size, config.data.seq_len).total
    peak = max(worker.peak for worker in workers)
    state, activations = BYTES_PER_PARAMETER * parameters, activation_bytes(config, vocab_size)
    return {
        "parameters": parameters,
        "peak_mb": peak / 1e6,
        "state_mb": state / 1e6,
        "activations_mb": activations / 1e6,
        "beyond_mb": (peak - state - activations) / 1e6,
        "workers": [asdict(worker) for worker in workers],
        "model": config.model.model_dump(),
        "micro_batch_size": config.train.micro_batch_size,
        "checkpoints": run.summary["checkpoints"],
    }


def activation_bytes(config: RunConfig, vocab_size: int) -> int:
    """Bytes that autograd keeps of one micro-batch until the backward pass, and the loss's buffers."""
    seq_len, batch_size = config.data.seq_len, config.train.micro_batch_size
    model = Transformer(config.model, vocab_size, seq_len, end_of_text=0)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # and so it stays alive, and no other takes its address

    tokens = torch.randint(vocab_size, (batch_size, seq_len + 1))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(tokens[:, :-1], tokens[:, 1:])
    buffers = 2 * 4 * loss_chunk(config.model, batch_size * seq_len) * vocab_size
    del loss
    return sum(kept.values()) + buffers


def loss_chunk(model: ModelConfig, tokens: int) -> int:
    """Tokens whose logits are held at once."""
    return min(model.loss_chunk_tokens, tokens)


def memory_of_imports() -> float:
    """Resident megabytes of a process after importing the training loop."""
    program = (
        "import orchestrator.train.loop\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return int(output.split()[-1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
