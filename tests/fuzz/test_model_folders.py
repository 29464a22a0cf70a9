"""Model folders as others write, download and damage them: the right model, or the file's name; never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from data.errors import MantaError
from data.stores.config import StoreConfig
from data.tokens.hf_tokenizer import to_tokenizer_config, to_tokenizer_json
from data.tokens.tokenizer import Tokenizer
from model.config import ModelConfig
from model.hf.architecture import ModelShape
from model.hf.convert import to_hf_config, to_hf_weights
from orchestrator.inference.generate import folder_model, folder_settings
from orchestrator.inference.hf_folder import (
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS_INDEX,
    HfFolder,
)
from tests.fuzz.mutations import DRAWN, altered, damaged, within_bounds

pytestmark = pytest.mark.slow

TOKENS = Tokenizer("bytes", [bytes([value]) for value in range(256)])

SHAPES = {
    "llama": ModelConfig(preset="llama", n_layers=2, d_model=16, n_heads=2),
    "gpt2": ModelConfig(preset="gpt2", n_layers=1, d_model=16, n_heads=2),
    "marian": ModelConfig(architecture="encoder_decoder", preset="original", n_layers=1, d_model=16, n_heads=2),
}

Known = tuple[dict[str, Any], dict[str, Tensor]]


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound folder with every file, its weights in two parts."""
    config, path = SHAPES[request.param], tmp_path_factory.mktemp(request.param)
    source_len = 16 if config.architecture == "encoder_decoder" else None
    shape = ModelShape(config, TOKENS.vocab_size, 16, None, source_len)
    torch.manual_seed(1)
    weights = to_hf_weights(shape, shape.build(TOKENS.end_of_text).state_dict())
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, path / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    texts = {
        CONFIG: to_hf_config(shape, TOKENS.end_of_text),
        WEIGHTS_INDEX: index,
        GENERATION_CONFIG: {"do_sample": True, "temperature": 0.5, "top_k": 5, "max_new_tokens": 4, "num_beams": 1},
        TOKENIZER_CONFIG: to_tokenizer_config(16),
    }
    for file, content in texts.items():
        (path / file).write_text(json.dumps(content))
    (path / TOKENIZER).write_bytes(to_tokenizer_json(TOKENS))
    return path


def read(folder: Path) -> Known:
    """What `manta generate --from` reads of a folder: settings and weights."""
    opened = HfFolder.open(str(folder), StoreConfig())
    settings = folder_settings(opened.sampling(), (), f" of {folder}/{GENERATION_CONFIG}")
    model, tokenizer = folder_model(opened)
    assert tokenizer.decode(tokenizer.encode("a text")) == "a text"
    return settings.model_dump(), dict(model.state_dict())


def answer(folder: Path, tmp_path: Path, file: str, content: bytes) -> Known | str:
    """What is read of the folder with other content in one file, or the message."""
    copy = tmp_path / "copy"
    copy.mkdir(exist_ok=True)
    for path in folder.iterdir():
        (copy / path.name).write_bytes(content if path.name == file else path.read_bytes())
    with within_bounds():
        try:
            return read(copy)
        except MantaError as error:
            assert str(copy) in str(error)
            return str(error)


FILES = st.sampled_from((CONFIG, WEIGHTS_INDEX, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG))


def test_the_sound_folder_is_read(folder: Path, tmp_path: Path) -> None:
    settings, weights = read(folder)
    assert settings["sample"]["temperature"] == 0.5 and len(weights) > 5


@DRAWN
@given(data=st.data())
def test_damaged_bytes(folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = data.draw(FILES | st.sampled_from(("model-1.safetensors", "model-2.safetensors")))
    content = data.draw(damaged((folder / file).read_bytes()))
    answer(folder, tmp_path_factory.mktemp("fuzz"), file, content)


@DRAWN
@given(data=st.data())
def test_other_fields(folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = data.draw(FILES)
    content = data.draw(altered(json.loads((folder / file).read_bytes())))
    answer(folder, tmp_path_factory.mktemp("fuzz"), file, json.dumps(content).encode())


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (CONFIG, b"[]", "holds no fields"),
        (CONFIG, b"{" * 100_000, "is not JSON"),
        (CONFIG, b"\xff\xfe", "is not JSON"),
        (GENERATION_CONFIG, b"[]", "holds no fields"),
        (GENERATION_CONFIG, b'{"max_new_tokens": "many"}', "max_new_tokens"),
        (GENERATION_CONFIG, b"", "is not JSON"),
        (WEIGHTS_INDEX, b"{}", "has no weight_map"),
        (
            WEIGHTS_INDEX,
            b'{"weight_map": {"a": "../../other.safetensors"}}',
            "is not the name of a .safetensors file",
        ),
        (WEIGHTS_INDEX, b'{"weight_map": {"a": 3}}', "is not the name of a .safetensors file"),
        ("model-1.safetensors", b"", "damaged or of another format"),
        (TOKENIZER, b"{}", "not a tokenizer file"),
        (TOKENIZER, b"{" * 100_000, "not a tokenizer file"),
    ],
)
def test_what_is_said(folder: Path, tmp_path: Path, file: str, content: bytes, says: str) -> None:
    said = answer(folder, tmp_path, file, content)
    assert isinstance(said, str) and says in said and file in said


@pytest.mark.parametrize("name", ["max_position_embeddings", "n_positions", "vocab_size", "hidden_size", "n_embd"])
def test_a_size_that_is_null_is_one_that_is_missing(tmp_path: Path, folder: Path, name: str) -> None:
    fields = json.loads((folder / CONFIG).read_text())
    if name in fields:
        without = {key: value for key, value in fields.items() if key != name}
        said = [
            answer(folder, tmp_path, CONFIG, json.dumps(each).encode()) for each in ({**fields, name: None}, without)
        ]
        assert said[0] == said[1] if isinstance(said[0], str) else not isinstance(said[1], str)


@pytest.mark.parametrize("size", ["n_layers", "wide", "rows"])
def test_a_model_larger_than_its_weights_is_not_built(tmp_path: Path, folder: Path, size: str) -> None:
    fields = json.loads((folder / CONFIG).read_text())
    larger: dict[str, Callable[[str], bool]] = {
        "n_layers": lambda name: name in ("n_layer", "num_hidden_layers", "encoder_layers", "decoder_layers"),
        "wide": lambda name: name in ("n_embd", "hidden_size", "d_model"),
        "rows": lambda name: name in ("vocab_size", "decoder_vocab_size"),
    }
    huge = {name: 2**30 if larger[size](name) else value for name, value in fields.items()}
    if "head_dim" in huge:
        huge["head_dim"] = huge["hidden_size"] // huge["num_attention_heads"]
    said = answer(folder, tmp_path, CONFIG, json.dumps(huge).encode())
    assert isinstance(said, str) and ("The weights are not those" in said or "an impossible model" in said)
