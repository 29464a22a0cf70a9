"""Initial weights: checked against the recipe, the same in every attempt, and available on every node."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load, load_file, save_file
from typer.testing import CliRunner

from data.errors import InputError
from data.stores.local import LocalStore
from data.tokens.tokenizer import Tokenizer
from orchestrator.cli.main import app
from orchestrator.config.load import load_recipe
from orchestrator.driver.initial_weights import checked_folder, pin_initial_weights
from orchestrator.driver.prepare import prepared
from orchestrator.errors import CheckpointDamagedError, InitialWeightsError
from orchestrator.run.fence import Fence
from orchestrator.run.job import Owner, initial_weights_key
from orchestrator.run.record import RunRecord
from orchestrator.run.run import Run, stores
from orchestrator.snapshots.agent import SnapshotAgent
from orchestrator.snapshots.resume_point import newest_holder
from tests.orchestrator.finished_run import finish, recipe_in

pytestmark = pytest.mark.slow  # transformers takes seconds to import

BYTES = Tokenizer("bytes", [bytes([value]) for value in range(256)])
ROWS = 320  # 257 rounded up


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def new_run(folder: Path, init_from: str, name: str = "second", **sections: Any) -> Run:
    """A run that has just been claimed, with its own recipe."""
    train = {"steps": 4, "global_batch_size": 4, "micro_batch_size": 4, "lr": 1e-3, "init_from": init_from}
    config = load_recipe(recipe_in(folder, name, **{"train": train} | sections))
    return Run(config, *stores(config), RunRecord(name, 0.0, {}))


def of_bytes(folder: Path, init_from: str = "theirs", **model: Any) -> Run:
    """A run on plain bytes."""
    data = {"tokenizer": {"kind": "bytes"}}
    return new_run(folder, init_from, data=data, model={"n_layers": 2, "d_model": 32, "n_heads": 4} | model)


def save_llama(**fields: Any) -> transformers.LlamaForCausalLM:
    made = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    named = {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "vocab_size": ROWS} | fields
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**made | named))
    model.save_pretrained("theirs")
    return model


def save_gpt2(**fields: Any) -> transformers.GPT2LMHeadModel:
    made = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": ROWS, "n_positions": 48}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**made | fields, bos_token_id=256, eos_token_id=256))
    model.save_pretrained("theirs")
    return model


def stored(run: Run, digest: str | None) -> dict[str, torch.Tensor]:
    """The weights in the run's store."""
    assert digest is not None
    content = run.store.get(initial_weights_key(digest))
    assert hashlib.sha256(content).hexdigest() == digest
    return load(content)


def test_weights_of_an_exported_run_are_identical(tmp_path: Path) -> None:
    first = recipe_in(tmp_path, model={"n_kv_heads": 2, "tie_embeddings": False})
    _, model = finish(first)
    assert CliRunner().invoke(app, ["export", str(first), "--to", "exported"]).exit_code == 0
    run = new_run(tmp_path, "exported", model={"n_kv_heads": 2, "tie_embeddings": False})
    tokenizer = run.prepare(lambda line: None).tokenizer  # learned from the same text, so the same
    lines: list[str] = []
    weights = stored(run, pin_initial_weights(run, tokenizer, lines.append))
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert len(lines) == 1 and "LlamaForCausalLM of" in lines[0]


def test_a_run_can_use_the_folders_vocabulary(tmp_path: Path) -> None:
    first = recipe_in(tmp_path)
    finish(first)
    assert CliRunner().invoke(app, ["export", str(first), "--to", "exported"]).exit_code == 0
    (tmp_path / "shards/a.txt").write_text("Quite another text, from which nothing like it would be learned. " * 50)
    lines: list[str] = []
    with pytest.raises(
        InitialWeightsError, match=r"bpe vocabulary of 300 is not .*set data.tokenizer.path: .*exported/"
    ):
        prepared_of(new_run(tmp_path, "exported"), lines)
    data = {"tokenizer": {"path": "exported/tokenizer.json"}}
    run = new_run(tmp_path, "exported", data=data)
    tokenizer = prepared_of(run, lines).tokenizer
    assert tokenizer.vocab_size == 300
    assert pin_initial_weights(run, tokenizer, lines.append) is not None


def prepared_of(run: Run, lines: list[str]) -> Any:
    return prepared(run.config, run.root, run.record.pins, lines.append, start_ray=lambda: None)


def test_a_foreign_llama_is_accepted(tmp_path: Path) -> None:
    theirs = save_llama(num_key_value_heads=1)
    run, lines = of_bytes(tmp_path, n_kv_heads=1), []
    weights = stored(run, pin_initial_weights(run, BYTES, lines.append))
    assert torch.equal(weights["embedding.weight"], theirs.get_input_embeddings().weight)
    assert any("has no tokenizer.json, so it cannot be checked that token ids mean the same" in line for line in lines)


def test_learned_positions_are_truncated_to_seq_len(tmp_path: Path) -> None:
    theirs = save_gpt2()
    run = of_bytes(tmp_path, preset="gpt2")
    assert run.config.data.seq_len == 32
    weights = stored(run, pin_initial_weights(run, BYTES, print))
    assert torch.equal(weights["positions.weight"], theirs.transformer.wpe.weight[:32])


def test_weights_in_several_files(tmp_path: Path) -> None:
    save_gpt2()
    run = of_bytes(tmp_path, preset="gpt2")
    whole = pin_initial_weights(run, BYTES, print)
    weights = load_file("theirs/model.safetensors")
    Path("theirs/model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, inside in parts.items():
        save_file({name: weights[name] for name in inside}, f"theirs/{file}")
    with pytest.raises(InputError, match=r"Manta reads weights from model.safetensors or .*save_pretrained"):
        pin_initial_weights(run, BYTES, print)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    Path("theirs/model.safetensors.index.json").write_text(json.dumps(index))
    assert pin_initial_weights(run, BYTES, print) == whole


def test_all_differences_are_listed_at_once(tmp_path: Path) -> None:
    save_gpt2(n_positions=16, n_head=2, vocab_size=300)
    run = of_bytes(tmp_path, n_layers=3)
    with pytest.raises(InitialWeightsError) as refused:
        checked_folder(run.config, BYTES)
    assert str(refused.value).splitlines() == [
        "train.init_from = theirs: the folder does not fit this recipe:",
        "  model.preset: gpt2 in the folder, llama in the recipe",
        "  model.positions: learned in the folder, rotary in the recipe",
        "  model.n_layers: 2 in the folder, 3 in the recipe",
        "  model.n_heads: 2 in the folder, 4 in the recipe",
        "  model.n_kv_heads: 2 in the folder, 4 in the recipe",
        "  model.vocab_size: 300 in the folder, 320 in the recipe (null: as many as the tokenizer needs)",
        "  data.seq_len: 16 in the folder, 32 in the recipe; at most the folder's",
        "Give the recipe the folder's values, or choose another folder.",
    ]


def test_another_rope_theta_is_refused(tmp_path: Path) -> None:
    save_llama(rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    with pytest.raises(InitialWeightsError, match=r"model.rope_theta: 500000.0 in the folder, 10000.0 in the recipe"):
        checked_folder(of_bytes(tmp_path).config, BYTES)
    checked_folder(of_bytes(tmp_path, rope_theta=5e5).config, BYTES)


def test_a_tokenizer_of_another_kind_is_refused_with_reasons(tmp_path: Path) -> None:
    save_llama()
    fields = {"model": {"type": "Unigram", "vocab": []}, "added_tokens": [], "normalizer": {"type": "NFC"}}
    Path("theirs/tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(InitialWeightsError, match=r'(?s)theirs/tokenizer.json: .*model.type: "Unigram", not "BPE"'):
        checked_folder(of_bytes(tmp_path).config, BYTES)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda: shutil.rmtree("theirs"), "theirs has no config.json"),
        (lambda: Path("theirs/config.json").write_text("{"), r"theirs/config.json is not JSON"),
        (lambda: Path("theirs/config.json").write_text("[]"), r"theirs/config.json: "),
        (
            lambda: Path("theirs/model.safetensors").write_bytes(b"\1\0\0"),
            "model.safetensors is damaged .*header",
        ),
        (lambda: save_file({"lm_head.weight": torch.zeros(2, 2)}, "theirs/model.safetensors"), "norm.weight: missing"),
    ],
)
def test_a_broken_folder(damage: Callable[[], object], problem: str, tmp_path: Path) -> None:
    save_llama()
    damage()
    with pytest.raises(InputError, match=rf"(?s){problem}"):
        pin_initial_weights(of_bytes(tmp_path), BYTES, print)


class TestLaterAttempts:
    def begun(self, folder: Path) -> Run:
        """A run that is pinned to the weights in the folder."""
        save_llama()
        run = of_bytes(folder)
        return replace(run, record=replace(run.record, init=pin_initial_weights(run, BYTES, print)))

    def test_the_same_weights_have_the_same_digest(self, tmp_path: Path) -> None:
        run = self.begun(tmp_path)
        assert pin_initial_weights(run, BYTES, print) == run.record.init

    def test_other_weights_at_the_same_path_are_refused_with_both_digests(self, tmp_path: Path) -> None:
        run = self.begun(tmp_path)
        save_llama()
        other = pin_initial_weights(replace(run, record=replace(run.record, init=None)), BYTES, print)
        assert other is not None and other != run.record.init
        with pytest.raises(InitialWeightsError, match=rf"sha256 {other}, .*'second' began with {run.record.init}"):
            pin_initial_weights(run, BYTES, print)

    def test_the_folder_may_be_deleted(self, tmp_path: Path) -> None:
        run, lines = self.begun(tmp_path), []
        shutil.rmtree("theirs")
        assert pin_initial_weights(run, BYTES, lines.append) == run.record.init
        assert lines == [f"initial weights: {tmp_path}/theirs no longer exists; using the run's own copy."]

    def test_a_run_without_a_checkpoint_may_change_its_weights(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path / "run"))
        Fence.claim(store, "second", {}, keep_pins=False).update(init="of_before")
        assert Fence.claim(store, "second", {}, keep_pins=True).record.init == "of_before"
        assert Fence.claim(store, "second", {}, keep_pins=False).record.init is None


def test_the_folder_is_checked_before_tokenizing(tmp_path: Path) -> None:
    save_llama()
    run = of_bytes(tmp_path, n_layers=1)

    def start_ray() -> None:
        raise AssertionError("Ray was started")

    config = run.config.model_copy(update={"data": run.config.data.model_copy(update={"prepare": "ahead"})})
    with pytest.raises(InitialWeightsError, match=r"model.n_layers: 2 in the folder, 1 in the recipe"):
        prepared(config, run.root, run.record.pins, print, start_ray)


def test_the_option_sets_the_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[Any] = []
    monkeypatch.setattr("orchestrator.driver.train.train", lambda config, **_: configs.append(config))
    recipe = str(recipe_in(tmp_path))
    assert CliRunner().invoke(app, ["train", recipe, "--init-from", "a: [folder"]).exit_code == 0
    assert CliRunner().invoke(app, ["train", recipe]).exit_code == 0
    assert [config.train.init_from for config in configs] == ["a: [folder", None]


class TestOnANode:
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        return LocalStore(str(tmp_path / "run"))

    def agent(self, store: LocalStore, digest: str) -> SnapshotAgent:
        config = SimpleNamespace(store=SimpleNamespace(patience=0.0))
        monitor = SimpleNamespace(report_outage=SimpleNamespace(remote=lambda *_: None))
        owner = Owner(store.url_of(""), 1)
        job = SimpleNamespace(store=store, attempt=1, owner=owner, init=digest, config=config, monitor=monitor)
        agent = SnapshotAgent(job, "node")  # type: ignore[arg-type]
        agent.open_memory(0)
        return agent

    def test_they_are_in_its_memory_and_do_not_count_as_a_snapshot(self, store: LocalStore) -> None:
        digest = hashlib.sha256(b"weights").hexdigest()
        store.put(initial_weights_key(digest), b"weights")
        agent = self.agent(store, digest)
        agent.fetch_initial()
        memory = agent.open_memory(0)
        assert (memory.path(0) / "model.safetensors").read_bytes() == b"weights"
        assert newest_holder({"node": memory.newest()}, 0) is None
        agent.free()

    @pytest.mark.parametrize("content", [None, b"other weights"])
    def test_damaged_ones_are_refused(self, store: LocalStore, content: bytes | None) -> None:
        digest = hashlib.sha256(b"weights").hexdigest()
        if content is not None:
            store.put(initial_weights_key(digest), content)
        agent = self.agent(store, digest)
        with pytest.raises(CheckpointDamagedError, match=rf"init/{digest}.safetensors, .* is missing or changed"):
            agent.fetch_initial()
        agent.free()
