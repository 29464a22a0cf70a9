import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from model.config import ModelConfig
from model.optim.config import OptimizerConfig, ParameterGroup, ScheduleConfig


def test_defaults_are_filled_in() -> None:
    config = ModelConfig(d_model=256, n_heads=4)
    assert (config.kv_heads, config.head_size) == (4, 64)
    # 8/3 of 256 is 682.67, and the next multiple of 64 is 704.
    assert config.ff_width == 704
    assert ModelConfig(preset="gpt2", d_model=256).ff_width == 1024
    assert ModelConfig(d_ff=100).ff_width == 100


def test_presets_say_where_positions_and_norms_are_and_fields_override_them() -> None:
    kinds = {preset: ModelConfig(preset=preset).position_kind for preset in ("gpt2", "llama", "original")}
    assert kinds == {"gpt2": "learned", "llama": "rotary", "original": "sinusoidal"}
    assert [ModelConfig(preset=preset).pre_norm for preset in ("gpt2", "llama", "original")] == [True, True, False]
    assert ModelConfig(preset="original", positions="learned", norm="pre").position_kind == "learned"
    assert ModelConfig(preset="original", norm="pre").pre_norm and not ModelConfig(norm="post").pre_norm
    # Embeddings are scaled in the original form, and wherever they meet sinusoids.
    scales = [
        ModelConfig(d_model=64, preset=preset, positions=positions).embedding_scale
        for preset, positions in (("original", None), ("original", "learned"), ("gpt2", "sinusoidal"), ("gpt2", None))
    ]
    assert scales == [8.0, 8.0, 8.0, 1.0]
    assert ModelConfig(preset="original", d_model=64).ff_width == 256


def test_an_encoder_is_as_deep_as_the_decoder_unless_told() -> None:
    assert ModelConfig(n_layers=3).encoder_layers == 0
    assert ModelConfig(architecture="encoder_decoder", n_layers=3).encoder_layers == 3
    assert ModelConfig(architecture="encoder_decoder", n_layers=3, n_encoder_layers=5).encoder_layers == 5


def test_swiglu_width_is_rounded_up_only_where_needed() -> None:
    # 8/3 of 4096 is 10922.67; 8/3 of 768 is 2048 exactly, a multiple of 64 already.
    assert ModelConfig(d_model=4096, n_heads=32).ff_width == 10944
    assert ModelConfig(d_model=768, n_heads=12).ff_width == 2048


def test_vocabulary_follows_the_tokenizer() -> None:
    assert ModelConfig().resolve_vocab_size(50257) == 50304
    assert ModelConfig().resolve_vocab_size(128) == 128
    assert ModelConfig(vocab_size=300).resolve_vocab_size(257) == 300
    with pytest.raises(ValueError, match=r"vocab_size=256 is smaller than the tokenizer's 257 tokens.*null takes 320"):
        ModelConfig(vocab_size=256).resolve_vocab_size(257)
    pair = ModelConfig(architecture="encoder_decoder", input_vocab_size=300, vocab_size=400)
    assert (pair.resolve_input_vocab_size(257), pair.resolve_vocab_size(257)) == (300, 400)
    with pytest.raises(ValueError, match=r"input_vocab_size=300 is smaller than the tokenizer's 301 tokens"):
        pair.resolve_input_vocab_size(301)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 100, "n_heads": 8}, r"d_model=100 is not a multiple of n_heads=8\. Nearest that are: 96, 104"),
        ({"d_model": 3, "n_heads": 8}, r"d_model=3 is not a multiple of n_heads=8\. Nearest that are: 8"),
        ({"d_model": 36, "n_heads": 4}, r"n_heads=4 gives heads of odd size 9.*Nearest d_model: 32, 40"),
        ({"n_heads": 8, "n_kv_heads": 3}, r"n_heads=8 is not a multiple of n_kv_heads=3\. Nearest n_kv_heads: 4"),
        ({"n_heads": 4, "n_kv_heads": 9}, r"n_heads=4 is not a multiple of n_kv_heads=9\. Nearest n_kv_heads: 4"),
        ({"preset": "gpt2", "n_kv_heads": 2}, r"n_kv_heads=2 needs preset=llama.*set it to n_heads=4"),
        ({"preset": "original", "n_kv_heads": 2}, r"preset=original has as many key heads as query heads"),
        ({"preset": "gpt2", "positions": "rotary", "d_model": 36}, r"heads of odd size 9.*Nearest d_model: 32, 40"),
        (
            {"preset": "original", "d_model": 9, "n_heads": 3},
            r"d_model=9 is odd, .*Nearest d_model: 6, 12",
        ),
        ({"n_encoder_layers": 2}, r"n_encoder_layers=2 needs architecture=encoder_decoder.*Set it to null"),
        ({"input_vocab_size": 99}, r"input_vocab_size=99 needs architecture=encoder_decoder"),
        (
            {"architecture": "encoder_decoder", "cross_document_attention": False},
            r"cross_document_attention=False needs architecture=decoder.*Set it to true",
        ),
    ],
)
def test_contradictory_shapes_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate(fields)


def test_all_contradictions_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)d_model=10 .*n_kv_heads=3.*n_encoder_layers=2"):
        ModelConfig(d_model=10, n_heads=4, n_kv_heads=3, n_encoder_layers=2)


def test_odd_heads_are_fine_without_rope() -> None:
    assert ModelConfig(preset="gpt2", d_model=36, n_heads=4).head_size == 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "sgd", "nesterov": True, "momentum": 0.0}, r"nesterov=True needs a velocity, but momentum=0\.0"),
        ({"name": "adam", "nesterov": True}, r"nesterov=True needs name=sgd or muon, but name=adam"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]=1\.0 is outside \[0, 1\)"),
        ({"betas": (-0.1, 0.9)}, r"betas\[0\]=-0\.1 is outside \[0, 1\).*0\.0"),
    ],
)
def test_contradictory_optimizers_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {},
            {
                "name": "adamw",
                "betas": (0.9, 0.95),
                "eps": 1e-8,
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 0.1,
            },
        ),
        ({"name": "lion"}, {"betas": (0.9, 0.99)}),
        ({"name": "lion", "betas": [0.95, 0.98]}, {"betas": (0.95, 0.98)}),
        ({"name": "muon"}, {"momentum": 0.95, "nesterov": True, "betas": (0.9, 0.95), "adamw_lr": 1.0}),
        ({"name": "muon", "nesterov": False}, {"nesterov": False}),
        ({"name": "rmsprop"}, {"momentum": 0.0, "alpha": 0.99, "weight_decay": 0.0}),
        ({"name": "adagrad"}, {"eps": 1e-10, "weight_decay": 0.0}),
        ({"name": "adam", "weight_decay": 0.01}, {"weight_decay": 0.01}),
    ],
)
def test_constants_left_out_have_the_rules_usual_values(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    config = OptimizerConfig.model_validate(fields)
    assert {name: getattr(config, name) for name in expected} == expected
    assert OptimizerConfig.model_validate(config.model_dump(mode="json")) == config


def test_decay_length_belongs_to_wsd() -> None:
    assert ScheduleConfig(name="wsd", decay_steps=10).decay_steps == 10
    with pytest.raises(ValueError, match=r"decay_steps=10 needs name=wsd, but name=cosine"):
        ScheduleConfig(name="cosine", decay_steps=10)


@pytest.mark.parametrize("settings", [ModelConfig, OptimizerConfig, ParameterGroup, ScheduleConfig])
def test_settings_are_frozen_closed_and_described(settings: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        settings.model_validate({"learning_rat": 1})
    field = next(iter(settings.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings.model_construct(), field, None)
    assert all(info.description for info in settings.model_fields.values())


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), float("inf")])
def test_numbers_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="dropout"):
        ModelConfig(dropout=value)


def test_settings_load_without_torch() -> None:
    modules = "model.config, model.optim.config, model.optim.schedule, model.size"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
