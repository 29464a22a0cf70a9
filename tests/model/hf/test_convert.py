"""Export to and import from transformers: equal logits there, equal weights here, and refusals that name the fields."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ModelConfig
from model.hf.architecture import ModelShape, NoSuchModelError
from model.hf.convert import ARCHITECTURES, from_hf_config, from_hf_weights, to_hf_config, to_hf_weights
from model.seq2seq import Seq2Seq
from model.transformer import Transformer

pytestmark = pytest.mark.slow  # transformers takes seconds to import

VOCAB, SEQ_LEN, END_OF_TEXT = 70, 24, 66
TOLERANCE = 1e-4

SHAPES: list[dict[str, Any]] = [
    *({"preset": "gpt2", "tie_embeddings": tied} for tied in (True, False)),
    {"preset": "gpt2", "d_ff": 40, "dropout": 0.1},
    *(
        {"preset": "llama", "tie_embeddings": tied, "n_kv_heads": kv}
        for tied, kv in product((True, False), (None, 2, 1))
    ),
    {"preset": "llama", "rope_theta": 500.0, "d_ff": 40, "cross_document_attention": False},
]


def trained(seed: int = 0, **fields: Any) -> Transformer:
    """A model whose weights all differ from their initial values, biases and norms too, as after training."""
    config = ModelConfig.model_validate({"n_layers": 3, "d_model": 32, "n_heads": 4} | fields)
    model = Transformer(config, VOCAB, SEQ_LEN, END_OF_TEXT)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def exported(model: Transformer | Seq2Seq, folder: Path) -> Path:
    """Writes a folder that transformers can load, without using `orchestrator`."""
    shape = ModelShape.of(model)
    fields = to_hf_config(shape, END_OF_TEXT)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(to_hf_weights(shape, model.state_dict()), folder / "model.safetensors", {"format": "pt"})
    return folder


def some_tokens() -> Tensor:
    """(3, SEQ_LEN) ids, one document per row, so that separating documents changes nothing."""
    tokens = torch.randint(0, END_OF_TEXT, (3, SEQ_LEN), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = END_OF_TEXT
    return tokens


@pytest.mark.parametrize("fields", SHAPES, ids=str)
def test_transformers_computes_the_same_logits(fields: dict[str, Any], tmp_path: Path) -> None:
    model = trained(**fields)
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(
        exported(model, tmp_path), output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert (
        type(theirs)
        is {"llama": transformers.LlamaForCausalLM, "gpt2": transformers.GPT2LMHeadModel}[model.config.preset]
    )
    assert theirs.config.tie_word_embeddings == model.config.tie_embeddings
    with torch.no_grad():
        ours, found = model.logits(some_tokens()), theirs.eval()(some_tokens()).logits
    assert found.dtype == torch.float32
    assert ours.std() > 0.5, "logits that differ enough to distinguish models"
    assert (ours - found).abs().max().item() < TOLERANCE


@pytest.mark.parametrize("fields", SHAPES, ids=str)
def test_weights_come_back_bit_by_bit(fields: dict[str, Any], tmp_path: Path) -> None:
    model = trained(**fields)
    folder = exported(model, tmp_path)
    shape = from_hf_config(json.loads((folder / "config.json").read_text()))
    assert (shape.vocab_size, shape.seq_len) == (VOCAB, SEQ_LEN)
    for name in ("preset", "n_layers", "d_model", "n_heads", "kv_heads", "ff_width", "tie_embeddings", "rope_theta"):
        assert getattr(shape.config, name) == getattr(model.config, name)
    weights = from_hf_weights(shape, load_file(folder / "model.safetensors"))
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


TRANSLATORS: list[dict[str, Any]] = [
    {},
    {"n_encoder_layers": 1, "d_ff": 40, "dropout": 0.1},
    {"source_vocab": 50},
    {"source_vocab": 50, "tie_embeddings": False},
]
SOURCE_LEN = 30


def translator(source_vocab: int | None = None, **fields: Any) -> Seq2Seq:
    """An encoder-decoder whose weights differ from their initial values, like `trained` for decoders."""
    made = {"architecture": "encoder_decoder", "preset": "original", "n_layers": 2, "d_model": 32, "n_heads": 4}
    config = ModelConfig.model_validate(made | fields)
    model = Seq2Seq(config, VOCAB, source_vocab, SEQ_LEN, SOURCE_LEN, END_OF_TEXT)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    return model.eval()


def some_pairs() -> tuple[Tensor, Tensor, Tensor]:
    """(3, 10) source ids, the (3,) number of ids in each row, and (3, 8) target ids."""
    generator = torch.Generator().manual_seed(1)
    sources, targets = (torch.randint(0, 50, (3, length), generator=generator) for length in (10, 8))
    targets[:, 0] = END_OF_TEXT
    return sources, torch.tensor([10, 4, 1]), targets


def their_logits(model: Any, sources: Tensor, counts: Tensor, targets: Tensor) -> Tensor:
    seen = (torch.arange(sources.shape[1]) < counts.unsqueeze(1)).long()
    return model(input_ids=sources, attention_mask=seen, decoder_input_ids=targets).logits


@pytest.mark.parametrize("fields", TRANSLATORS, ids=str)
def test_marian_computes_the_same_logits(fields: dict[str, Any], tmp_path: Path) -> None:
    model = translator(**fields)
    theirs, loading = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        exported(model, tmp_path), output_loading_info=True
    )
    assert type(theirs) is transformers.MarianMTModel
    missing = {name for name in loading.pop("missing_keys") if not name.endswith("embed_positions.weight")}
    assert not missing and not any(loading.values()), (missing, loading)
    with torch.no_grad():
        ours, found = model.logits(*some_pairs()), their_logits(theirs.eval(), *some_pairs())
    assert ours.std() > 0.5
    assert (ours - found).abs().max().item() < TOLERANCE


@pytest.mark.parametrize("fields", TRANSLATORS, ids=str)
def test_a_translators_weights_come_back_bit_by_bit(fields: dict[str, Any], tmp_path: Path) -> None:
    model = translator(**fields)
    folder = exported(model, tmp_path)
    shape = from_hf_config(json.loads((folder / "config.json").read_text()))
    assert (shape.vocab_size, shape.input_vocab_size) == (VOCAB, fields.get("source_vocab"))
    assert shape.seq_len == shape.source_len == SOURCE_LEN, "Marian has one length for both, and no position weights"
    for name in ("architecture", "preset", "n_layers", "encoder_layers", "d_model", "n_heads", "ff_width"):
        assert getattr(shape.config, name) == getattr(model.config, name)
    weights = from_hf_weights(shape, load_file(folder / "model.safetensors"))
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def marian(**fields: Any) -> transformers.MarianMTModel:
    made = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "vocab_size": VOCAB, "max_position_embeddings": 30}
    sides = {f"{side}_{n}": v for side in ("encoder", "decoder") for n, v in (("attention_heads", 4), ("ffn_dim", 48))}
    ids = {"pad_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT, "decoder_start_token_id": END_OF_TEXT}
    named = {"activation_function": "relu", "scale_embedding": True, "forced_eos_token_id": None} | fields
    return transformers.MarianMTModel(transformers.MarianConfig(**made, **sides, **ids, **named))


@pytest.mark.parametrize("fields", [{}, {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 90}], ids=str)
def test_a_marian_made_by_transformers_is_imported(fields: dict[str, Any], tmp_path: Path) -> None:
    model = marian(**fields).eval()
    for name, parameter in model.named_parameters():
        if "embed_positions" not in name:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    config, weights = saved(model, tmp_path)
    shape = from_hf_config(config)
    ours = shape.build(END_OF_TEXT).eval()
    ours.load_state_dict(from_hf_weights(shape, weights))
    assert isinstance(ours, Seq2Seq)
    with torch.no_grad():
        difference = (ours.logits(*some_pairs()) - their_logits(model, *some_pairs())).abs().max().item()
    assert difference < TOLERANCE


def test_a_marian_with_a_bias_on_its_output_is_refused(tmp_path: Path) -> None:
    model = marian()
    model.final_logits_bias[0, 3] = 0.5
    config, weights = saved(model, tmp_path)
    with pytest.raises(NoSuchModelError, match=r"final_logits_bias: not zero, and our model has no such weight"):
        from_hf_weights(from_hf_config(config), weights)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"preset": "original"}, ["model.preset = original: of decoder models, llama and gpt2 can be exported"]),
        (
            {"preset": "gpt2", "positions": "rotary", "norm": "post"},
            ["model.positions = rotary: gpt2 has learned ones", "model.norm = post: gpt2 is pre-norm"],
        ),
        ({"preset": "llama", "positions": "learned"}, ["model.positions = learned: llama has rotary ones"]),
        (
            {"architecture": "encoder_decoder", "preset": "llama"},
            ["model.preset = llama: of encoder_decoder models, original can be exported"],
        ),
        (
            {"architecture": "encoder_decoder", "preset": "original", "norm": "pre"},
            ["model.norm = pre: original is post"],
        ),
        (
            {"architecture": "encoder_decoder", "preset": "original", "tie_embeddings": False},
            ["model.tie_embeddings = false"],
        ),
    ],
    ids=str,
)
def test_an_export_is_refused_with_the_fields_that_prevent_it(fields: dict[str, Any], says: list[str]) -> None:
    config = ModelConfig.model_validate({"n_layers": 1, "d_model": 32, "n_heads": 4} | fields)
    source_len = SEQ_LEN if config.architecture == "encoder_decoder" else None
    with pytest.raises(NoSuchModelError, match="no exact counterpart in transformers") as refused:
        to_hf_config(ModelShape(config, VOCAB, SEQ_LEN, None, source_len), END_OF_TEXT)
    assert all(part in str(refused.value) for part in says), refused.value


def llama(**fields: Any) -> transformers.LlamaForCausalLM:
    made = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **made, vocab_size=VOCAB, max_position_embeddings=SEQ_LEN, **{"rms_norm_eps": 1e-5} | fields
        )
    )


def gpt2(**fields: Any) -> transformers.GPT2LMHeadModel:
    made = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB, "n_positions": SEQ_LEN}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**made, bos_token_id=0, eos_token_id=0, **fields))


def saved(model: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the weights that transformers itself writes."""
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "theirs",
    [
        lambda: llama(),
        lambda: llama(num_key_value_heads=2, tie_word_embeddings=True),
        lambda: llama(rope_parameters={"rope_type": "default", "rope_theta": 77.0}),
        lambda: gpt2(),
        lambda: gpt2(n_inner=20, activation_function="gelu_pytorch_tanh", tie_word_embeddings=False),
    ],
    ids=["llama", "grouped and tied", "theta", "gpt2", "gpt2, untied"],
)
def test_models_made_by_transformers_are_imported(theirs: Any, tmp_path: Path) -> None:
    model = theirs().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    fields, weights = saved(model, tmp_path)
    shape = from_hf_config(fields)
    ours = Transformer(shape.config, shape.vocab_size, shape.seq_len, None).eval()
    ours.load_state_dict(from_hf_weights(shape, weights))
    with torch.no_grad():
        difference = (ours.logits(some_tokens()) - model(some_tokens()).logits).abs().max().item()
    assert difference < TOLERANCE


def test_old_formats_of_the_same_model_are_imported(tmp_path: Path) -> None:
    fields, weights = saved(gpt2(), tmp_path)
    shape = from_hf_config(fields)
    expected = from_hf_weights(shape, weights)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    for index in range(2):  # a buffer of old versions
        bare[f"h.{index}.attn.bias"] = torch.ones(1, 1, SEQ_LEN, SEQ_LEN)
    bare["lm_head.weight"] = bare["wte.weight"]
    found = from_hf_weights(shape, bare)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)

    fields, _ = saved(llama(rope_parameters={"rope_type": "default", "rope_theta": 77.0}), tmp_path)
    del fields["rope_parameters"]
    assert from_hf_config(fields | {"rope_theta": 77.0, "rope_scaling": None}).config.rope_theta == 77.0


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    fields, weights = saved(llama(), tmp_path)
    halves = {name: tensor.bfloat16() for name, tensor in weights.items()}
    for name, tensor in from_hf_weights(from_hf_config(fields), halves).items():
        assert tensor.dtype == torch.float32, name


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model_type": "mistral"}, ["model_type = mistral"]),
        ({}, ["model_type = None"]),
        (
            {"model_type": "llama", "hidden_act": "gelu", "attention_bias": True, "head_dim": 5, "hidden_size": 32},
            [
                "hidden_act = 'gelu'",
                "attention_bias = True",
                "rms_norm_eps = 1e-06: only 1e-05 is supported",
                "head_dim = 5",
            ],
        ),
        (
            {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            ["rope_type = 'llama3'"],
        ),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            ["partial_rotary_factor = 0.5"],
        ),
        (
            {"model_type": "gpt2", "activation_function": "relu", "scale_attn_by_inverse_layer_idx": True},
            ["activation_function = 'relu'", "scale_attn_by_inverse_layer_idx = True"],
        ),
        (
            {"model_type": "marian", "encoder_ffn_dim": 8, "tie_word_embeddings": False, "normalize_embedding": True},
            [
                "activation_function = 'gelu'",
                "scale_embedding = False",
                "encoder_ffn_dim = 8",
                "the number of embeddings is not clear",
            ],
        ),
        ({"model_type": "gpt2"}, ["no field 'n_embd'"]),
        ({"model_type": "gpt2", "n_embd": 30, "n_layer": 1, "n_head": 4, "vocab_size": 9}, ["d_model=30 is not"]),
    ],
)
def test_an_import_is_refused_with_the_fields_that_prevent_it(fields: dict[str, Any], says: list[str]) -> None:
    with pytest.raises(NoSuchModelError) as refused:
        from_hf_config(fields)
    assert all(part in str(refused.value) for part in says), refused.value


def test_all_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    fields, weights = saved(llama(), tmp_path)
    del weights["model.norm.weight"]
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(7, 32)
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    with pytest.raises(NoSuchModelError) as refused:
        from_hf_weights(from_hf_config(fields), weights)
    assert str(refused.value).splitlines()[1:] == [
        "  model.norm.weight: missing",
        "  model.layers.0.mlp.up_proj.weight: (7, 32), not (48, 32)",
        "  model.layers.0.self_attn.q_proj.bias: not part of this model",
    ]


def test_exported_weights_share_no_memory() -> None:
    model = trained(preset="llama")
    theirs = to_hf_weights(ModelShape.of(model), model.state_dict())
    starts = [tensor.untyped_storage().data_ptr() for tensor in (*theirs.values(), *model.state_dict().values())]
    assert len(set(starts)) == len(starts)


def test_a_config_describes_the_whole_shape() -> None:
    config = ModelConfig(preset="llama", n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, tie_embeddings=False)
    fields = to_hf_config(ModelShape(config, VOCAB, SEQ_LEN), END_OF_TEXT)
    expected = config.model_copy(update={"d_ff": config.ff_width})
    assert from_hf_config(fields) == ModelShape(expected, VOCAB, SEQ_LEN)
    assert fields["eos_token_id"] == fields["bos_token_id"] == END_OF_TEXT


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_converts_its_own_config(kind: str) -> None:
    architecture, preset = ARCHITECTURES[kind].ours
    config = ModelConfig.model_validate(
        {"architecture": architecture, "preset": preset, "n_layers": 2, "d_model": 32, "n_heads": 4}
    )
    shape = ModelShape(config, VOCAB, SEQ_LEN, None, SEQ_LEN if architecture == "encoder_decoder" else None)
    fields = to_hf_config(shape, END_OF_TEXT)
    assert (fields["model_type"], fields["architectures"]) == (kind, [ARCHITECTURES[kind].hf_class])
    assert from_hf_config(fields).config.preset == preset
