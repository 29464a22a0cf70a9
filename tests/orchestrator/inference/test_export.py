"""`manta export` and `manta generate --from`: transformers loads the folder, and generates the same text as the run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from data.errors import InputError
from data.stores.local import LocalStore
from data.tokens.tokenizer import Tokenizer
from model.config import ModelConfig
from model.seq2seq import Seq2Seq
from model.transformer import Transformer
from orchestrator.cli.main import app
from orchestrator.inference.export import write_folder
from orchestrator.inference.hf_folder import HfFolder
from orchestrator.inference.trained_model import TrainedModel
from orchestrator.printable import printable
from tests.orchestrator.finished_run import STEP, finish, recipe_in, run_of

pytestmark = pytest.mark.slow  # transformers takes seconds to import


def manta(*arguments: str | Path, status: int = 0) -> str:
    """What the command prints, or says where it refuses."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == status, done.output
    return done.output


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def texts_of(output: str, title: str) -> list[str]:
    """The samples below their titles."""
    return output.split(f"{title}\n")[1:]


MODELS: list[dict[str, Any]] = [
    {"preset": "llama", "n_kv_heads": 2},
    {"preset": "gpt2", "tie_embeddings": False},
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["preset"])
@pytest.mark.parametrize("kind", ["bpe", "chars"])
def test_transformers_generates_the_same_text(model: dict[str, Any], kind: str, tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, model=model, data={"tokenizer": {"kind": kind, "vocab_size": 300}})
    _, ours = finish(recipe)
    assert isinstance(ours, Transformer)
    manta("export", recipe, "--format", "hf", "--to", "exported")

    theirs, loading_problems = transformers.AutoModelForCausalLM.from_pretrained("exported", output_loading_info=True)
    assert not any(loading_problems.values()), loading_problems
    tokenizer = transformers.AutoTokenizer.from_pretrained("exported")
    # As the card says; greedy, for their generator draws other numbers than ours.
    prompt = "def f("
    ids = tokenizer(tokenizer.bos_token + prompt, split_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        difference = (theirs(**ids).logits - ours.logits(ids["input_ids"])).abs().max().item()
        # Their context does not slide, so no further than ours goes without.
        new = theirs.generate(**ids, do_sample=False, max_new_tokens=20)[0, ids["input_ids"].shape[1] :]
    assert difference < 1e-4
    found = printable(tokenizer.decode(new, skip_special_tokens=True))
    options = ("--prompt", prompt, "--temperature", "0", "--max-new-tokens", "20")
    for printed in (
        texts_of(manta("generate", "--from", "exported", *options), str(tmp_path / "exported")),
        texts_of(manta("generate", recipe, *options), f"step {STEP}"),
    ):
        assert [text.split() for text in printed] == [(prompt + found).split()]


def test_a_folder_and_its_run_give_the_same_text(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    sample = {"temperature": 0.9, "top_k": 30, "top_p": 0.95, "max_new_tokens": 40, "prompts": ["import ", "这是"]}
    recipe = recipe_in(tmp_path, sample=sample, model={"tie_embeddings": False})
    finish(recipe)
    manta("export", recipe, "--to", "exported")
    prompts = ("--prompt", "import ", "--prompt", "这是", "--seed", "3")
    title = str(tmp_path / "exported")
    from_folder = texts_of(manta("generate", "--from", "exported", *prompts), title)
    assert len(from_folder) == 2
    assert from_folder == texts_of(manta("generate", recipe, "--seed", "3"), f"step {STEP}")
    assert from_folder != texts_of(manta("generate", "--from", "exported", *prompts, "--temperature", "2"), title)


PAIRS = {"def f(x):": "a function 函数", "return 我们": "gives us back"}


def taught(tokenizer: Tokenizer) -> Seq2Seq:
    """A small translator that knows PAIRS by heart."""
    fields = {"architecture": "encoder_decoder", "preset": "original", "n_layers": 2, "d_model": 32, "n_heads": 4}
    torch.manual_seed(0)
    model = Seq2Seq(ModelConfig.model_validate(fields), 320, None, 24, 32, tokenizer.end_of_text)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    end = tokenizer.end_of_text
    for _ in range(60):
        optimizer.zero_grad()
        for source, target in PAIRS.items():
            source_ids, ids = ([*tokenizer.encode(text).tolist(), end] for text in (source, target))
            counts, tokens = torch.tensor([len(source_ids)]), torch.tensor([[end, *ids]])
            model(torch.tensor([source_ids]), counts, tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
    return model.eval()


def test_transformers_translates_the_same(tmp_path: Path) -> None:
    config, _ = finish(recipe := recipe_in(tmp_path, sample={"temperature": 0.0, "max_new_tokens": 30}))
    data = run_of(recipe).prepare(lambda line: None)
    trained = TrainedModel(taught(data.tokenizer), STEP, data, averaged=False)
    write_folder(LocalStore(str(tmp_path / "exported")), trained, config, "")

    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained("exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained("exported")
    found = theirs.generate(**tokenizer(list(PAIRS), padding=True, return_tensors="pt"))
    assert tokenizer.batch_decode(found, skip_special_tokens=True) == list(PAIRS.values())
    prompts = [option for source in PAIRS for option in ("--prompt", source)]
    here = texts_of(manta("generate", "--from", "exported", *prompts), str(tmp_path / "exported"))
    assert here == [f"{source}\n{target}\n" for source, target in PAIRS.items()]
    (tmp_path / "sentences.txt").write_text("\n".join(list(PAIRS) * 40) + "\n")  # more than are decoded at once
    of_file = manta("generate", "--from", "exported", "--prompts", "sentences.txt")
    assert texts_of(of_file, str(tmp_path / "exported")) == here * 40
    said = manta("generate", "--from", "exported", "--prompts", "nothing.txt", status=2)
    assert "--prompts nothing.txt" in said
    said = manta("generate", "--from", "exported", "--prompt", "long " * 40, status=2)
    assert "tokens is longer than the model reads, 32. Shorten it." in said


def test_a_separate_input_vocabulary_cannot_be_exported(tmp_path: Path) -> None:
    config, _ = finish(recipe := recipe_in(tmp_path))
    data = run_of(recipe).prepare(lambda line: None)
    fields = {"architecture": "encoder_decoder", "preset": "original", "n_layers": 1, "d_model": 32, "n_heads": 4}
    model = Seq2Seq(ModelConfig.model_validate(fields), 320, 64, 24, 32, data.tokenizer.end_of_text)
    trained = TrainedModel(model, STEP, data, averaged=False)
    with pytest.raises(InputError, match=r"data.input_tokenizer: .* a folder has one tokenizer.json"):
        write_folder(LocalStore(str(tmp_path / "exported")), trained, config, "")
    assert not (tmp_path / "exported").exists()


def test_contents_of_the_folder(tmp_path: Path) -> None:
    config, model = finish(recipe := recipe_in(tmp_path, model={"cross_document_attention": False}))
    said = manta("export", recipe, "--to", "exported")
    assert "step 4: written to" in said and "manta generate --from exported" in said
    assert sorted(os.listdir("exported")) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    folder = HfFolder.open("exported", config.store)
    weights = folder.weights()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    tokenizer = folder.tokenizer()
    assert tokenizer == run_of(recipe).prepare(lambda line: None).tokenizer
    drawn = json.loads(Path("exported/generation_config.json").read_text())
    assert drawn["suppress_tokens"] == list(range(tokenizer.vocab_size, 320)) and tokenizer.vocab_size == 300
    assert (drawn["temperature"], drawn["top_k"], drawn["top_p"]) == (0.8, 0, 1.0)
    card = Path("exported/README.md").read_text()
    assert "Held-out loss 3.2500" in card and "4 of 4 steps" in card and "one document at a time" in card


def test_greedy_sampling_is_exported(tmp_path: Path) -> None:
    config, _ = finish(recipe := recipe_in(tmp_path, sample={"temperature": 0.0}))
    manta("export", recipe, "--to", "exported")
    assert HfFolder.open("exported", config.store).sampling() == {"temperature": 0.0, "max_new_tokens": 24}
    assert transformers.AutoModelForCausalLM.from_pretrained("exported").generation_config.do_sample is False


def test_any_kept_checkpoint_can_be_exported(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    _, older = finish(recipe, step=2)
    finish(recipe, step=4, seed=1)
    manta("export", recipe, "--to", "older", "--step", "2")
    theirs = transformers.AutoModelForCausalLM.from_pretrained("older")
    assert torch.equal(theirs.get_input_embeddings().weight, older.state_dict()["embedding.weight"])
    assert "Held-out" not in Path("older/README.md").read_text()
    said = manta("export", recipe, "--to", "none", "--step", "3", status=2)
    assert "'made' has no checkpoint of step 3. Steps that are kept: 2, 4." in said
    assert not Path("none").exists()


def test_what_is_refused(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    finish(recipe)
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    assert "--to full: the folder is not empty" in manta("export", recipe, "--to", "full", status=2)
    assert os.listdir("full") == ["notes.txt"]
    said = manta("export", recipe, "--to", "x", "--set", "model.rope_theta=99", status=2)
    assert "model.rope_theta: 10000.0 in the run, 99.0 now" in said
    assert "--format onnx: must be hf" in manta("export", recipe, "--to", "x", "--format", "onnx", status=2)
    original = recipe_in(tmp_path, "original", model={"preset": "original"})
    finish(original)
    said = manta("export", original, "--to", "x", status=2)
    assert "model.preset = original: of decoder models, llama and gpt2 can be exported" in said
    assert "There is no run" in manta("export", recipe, "--to", "x", "--set", "run=other", status=2)
    assert not Path("x").exists()


def test_generating_from_a_missing_or_incomplete_folder_is_refused(tmp_path: Path) -> None:
    assert "has no config.json" in manta("generate", "--from", "nowhere", status=2)
    assert "Give either a recipe" in manta("generate", status=2)
    assert "Give either a recipe" in manta("generate", "quickstart", "--from", "nowhere", status=2)
    finish(recipe := recipe_in(tmp_path))
    manta("export", recipe, "--to", "exported")
    said = manta("generate", "--from", "exported", "--top-p", "2", "--set", "model.n_layers=1", status=2)
    assert "sample.top_p = 2" in said and "model: there is no such field" in said
    assert "sample.seed = 99999999999999999999" in manta(
        "generate", "--from", "exported", "--seed", "99999999999999999999", status=2
    )
    weights = load_file("exported/model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, "exported/model.safetensors")
    said = manta("generate", "--from", "exported", "--temperature", "0", status=2)
    assert "model.safetensors: model.norm.weight has values that are no finite numbers" in said
    Path("exported/tokenizer.json").unlink()
    assert "has no tokenizer.json" in manta("generate", "--from", "exported", status=2)
    Path("exported/config.json").write_text('{"model_type": "mistral"}')
    assert "Supported: llama, gpt2, marian" in manta("generate", "--from", "exported", status=2)
