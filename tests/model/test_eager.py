"""The stub that replaces torch's compiler in eager training, checked against the installed torch.

Every test runs a process of its own, because an imported compiler cannot be unloaded.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TRAIN = """
import json, sys, tempfile
from model.eager import skip_compiler
if sys.argv[1] == "skip":
    skip_compiler()
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from model.config import ModelConfig
from model.optim.config import OptimizerConfig
from model.optim.optimizer import build_optimizer, clip_gradients
from model.seq2seq import Seq2Seq
from model.transformer import Transformer

fields = json.loads(sys.argv[2])
torch.manual_seed(0)
torch.set_num_threads(1)
store = dist.FileStore(tempfile.mkstemp()[1], 1)
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
config = ModelConfig.model_validate({"n_layers": 2, "d_model": 32, "n_heads": 4} | fields["model"])
pairs = config.architecture == "encoder_decoder"
model = Seq2Seq(config, 50, None, 16, 16, 0) if pairs else Transformer(config, 50, 16, 0)
ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
optimizer = build_optimizer(model, OptimizerConfig.model_validate(fields["optimizer"]), 1e-2)
losses = []
for _ in range(3):
    tokens = torch.randint(50, (2, 17))
    with torch.autocast("cpu", torch.bfloat16, enabled=fields["bf16"]):
        source = (tokens[:, 1:], torch.tensor([16, 9])) if pairs else ()
        loss = ddp(*source, tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    clip_gradients(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    losses.append(float(loss))
optimizer.load_state_dict(optimizer.state_dict())
dist.destroy_process_group()
print(json.dumps([losses, "torch._dynamo.utils" in sys.modules]))
"""

EVERY_OPTIMIZER = """
import json, sys
from typing import get_args
from model.eager import skip_compiler
skip_compiler()
import torch
from model.optim.config import OptimizerConfig
from model.optim.optimizer import build_optimizer
from model.optim.weight_average import WeightAverage

names = get_args(OptimizerConfig.model_fields["name"].annotation)
for name in names:
    layer = torch.nn.Linear(4, 3)
    optimizer = build_optimizer(layer, OptimizerConfig(name=name), 1e-2)
    average = WeightAverage(layer, 0.9)
    for step in range(2):
        layer(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        average.update(step + 1)
        optimizer.load_state_dict(optimizer.state_dict())
print(json.dumps([len(names), "torch._dynamo.utils" in sys.modules]))
"""

THEN_COMPILE = """
import sys
from model.eager import skip_compiler
skip_compiler()
import torch
assert "torch._dynamo.utils" not in sys.modules
torch._dynamo.reset()  # a name that the stub does not have
assert "torch._dynamo.utils" in sys.modules and torch._dynamo.utils.counters is not None
print(torch.compile(lambda x: 2 * x + 1, backend="eager")(torch.ones(2)).tolist())
"""


def python(code: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"model": {"dropout": 0.1}, "optimizer": {"name": "adamw"}, "bf16": False},
        {"model": {"activation_checkpointing": True}, "optimizer": {"name": "sgd", "momentum": 0.9}, "bf16": False},
        {
            "model": {"architecture": "encoder_decoder", "preset": "gpt2"},
            "optimizer": {"name": "adam"},
            "bf16": True,
        },
    ],
    ids=["dropout, adamw", "activation checkpointing, sgd", "gpt2 encoder-decoder, adam, bf16"],
)
def test_training_without_the_compiler_gives_the_same_losses_and_never_imports_it(fields: dict[str, Any]) -> None:
    losses, imported = python(TRAIN, "skip", json.dumps(fields))
    assert not imported
    assert losses == python(TRAIN, "keep", json.dumps(fields))[0]


@pytest.mark.slow
def test_no_optimizer_imports_the_compiler() -> None:
    count, imported = python(EVERY_OPTIMIZER)
    assert count == 8 and not imported


@pytest.mark.slow
def test_other_names_of_the_compiler_import_it() -> None:
    assert python(THEN_COMPILE) == [3.0, 3.0]
