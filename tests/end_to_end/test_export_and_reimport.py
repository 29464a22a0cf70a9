"""A real run leaves as a folder and comes back as what another run begins with, on every worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.manta_process import MantaProcess
from tests.orchestrator.finished_run import recipe_in

pytestmark = [pytest.mark.chaos, pytest.mark.soak]


def test_a_run_begins_where_an_exported_one_ended(tmp_path: Path) -> None:
    def manta(*command: str, status: int = 0) -> str:
        with MantaProcess(*command, folder=tmp_path, environment={}) as process:
            assert process.wait() == status, process.output
            return process.output

    data = {"tokenizer": {"vocab_size": 400}, "validation_fraction": 0.3, "prepare": "ahead"}
    text = Path(__file__).read_text()
    train = {"steps": 12, "global_batch_size": 4, "micro_batch_size": 2, "lr": 3e-3}
    first = recipe_in(tmp_path, "first", data=data, train=train)
    for part in range(12):  # a document each, some of them held out
        (tmp_path / f"shards/{part}.txt").write_text(text[part * 50 :])
    manta("train", str(first))
    manta("export", str(first), "--to", "exported")

    # A step that changes next to nothing, by two workers: what is evaluated then is what they began with.
    still = {**train, "steps": 1, "lr": 1e-9, "optimizer": {"name": "sgd", "momentum": 0.0}}
    second = recipe_in(tmp_path, "second", data=data, train=still)
    (tmp_path / "second.yaml").write_text(json.dumps({**json.loads(second.read_text()), "scaling": {"num_workers": 2}}))
    said = manta(
        "train", str(second), "--init-from", "exported", "--set", "data.tokenizer.path=exported/tokenizer.json"
    )
    assert "initial weights: LlamaForCausalLM of" in said and "Traceback" not in said

    losses = []
    for recipe, options in ((first, ()), (second, ("--set", "data.tokenizer.path=exported/tokenizer.json"))):
        given = ("--set", "train.init_from=exported") if recipe == second else ()
        losses.append(json.loads(manta("show", str(recipe), "--json", *options, *given))["loss"])
    assert losses[1]["val"] == pytest.approx(losses[0]["val"], rel=1e-6)
    assert losses[1]["train"] < 5.8, "a model that has learned nothing of 400 tokens is at ln 400 = 6.0"
    record = json.loads((tmp_path / "kept/runs/second/run.json").read_text())
    assert (tmp_path / f"kept/runs/second/init/{record['init']}.safetensors").exists()

    refused = manta("train", str(second), "--set", "data.tokenizer.path=exported/tokenizer.json", status=2)
    assert "train.init_from: 'exported' in the run, None now" in refused
