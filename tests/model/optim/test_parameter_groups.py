"""Groups of parameters by name pattern: who is in which, with what, and patterns of which nothing would come."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model.optim.config import OptimizerConfig, ParameterGroup
from model.optim.optimizer import build_optimizer, set_learning_rate
from model.optim.parameter_groups import check_patterns
from model.transformer import Transformer

LR = 0.1


def settings_by_name(model: nn.Module, **fields: Any) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter."""
    optimizer = build_optimizer(model, OptimizerConfig.model_validate(fields), LR)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len(names)
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_the_first_match_counts_and_the_rest_is_as_it_was(build: Callable[..., Transformer]) -> None:
    groups = [
        {"match": "blocks.0.*norm*", "lr": 0.5},
        {"match": "*norm*", "lr": 2.0, "weight_decay": 0.3},
        {"match": "blocks.[01].attention.qkv.weight", "weight_decay": 0.0},
        {"match": "embedding.weight", "lr": 0.0},
    ]
    found = settings_by_name(build(), weight_decay=0.2, groups=groups)
    assert found["blocks.0.attention_norm.weight"] == (0.05, 0.0)
    assert found["blocks.1.attention_norm.weight"] == found["norm.weight"] == (0.2, 0.3)
    assert found["blocks.0.attention.qkv.weight"] == found["blocks.1.attention.qkv.weight"] == (0.1, 0.0)
    assert found["embedding.weight"] == (0.0, 0.0)
    assert found["blocks.0.attention.out.weight"] == (0.1, 0.2)


def test_a_group_with_part_of_the_decayed_keeps_their_decay(build: Callable[..., Transformer]) -> None:
    found = settings_by_name(build(preset="gpt2"), weight_decay=0.2, groups=[{"match": "blocks.1.*", "lr": 3.0}])
    assert found["blocks.1.feed_forward.up.weight"] == (pytest.approx(0.3), 0.2)
    assert found["blocks.1.feed_forward.up.bias"] == (pytest.approx(0.3), 0.0)


@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_muon_has_the_matrices_inside_and_adamw_the_rest(
    preset: str, tie_embeddings: bool, build: Callable[..., Transformer]
) -> None:
    model = build(preset=preset, tie_embeddings=tie_embeddings, n_layers=1)
    config = OptimizerConfig(name="muon", adamw_lr=0.25, groups=(ParameterGroup(match="*.out.*", lr=2.0),))
    optimizer = build_optimizer(model, config, LR)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muons = {names[id(p)] for group in optimizer.param_groups if group["is_muon"] for p in group["params"]}
    matrices = {"attention.qkv", "attention.out", "feed_forward.down"}
    matrices.add("feed_forward.up" if preset == "gpt2" else "feed_forward.gate_up")
    assert muons == {f"blocks.0.{matrix}.weight" for matrix in matrices}

    found = settings_by_name(model, name="muon", adamw_lr=0.25, groups=[{"match": "*.out.*", "lr": 2.0}])
    assert found["embedding.weight"] == (0.025, 0.0)
    assert found["blocks.0.attention.qkv.weight"] == (0.1, 0.1)
    assert found["blocks.0.attention.out.weight"] == (0.2, 0.1)
    if preset == "gpt2":
        assert found["blocks.0.attention.out.bias"] == (0.05, 0.0)
    if not tie_embeddings:
        assert found["output.weight"] == (0.025, 0.1)


def test_matrices_side_by_side_are_known_to_muon(build: Callable[..., Transformer]) -> None:
    model = build(n_heads=4, n_kv_heads=2, d_ff=24, n_layers=1)
    optimizer = build_optimizer(model, OptimizerConfig(name="muon"), LR)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    stacked = {
        names[id(p)].removeprefix("blocks.0."): rows
        for group in optimizer.param_groups
        if group["is_muon"]
        for p, rows in zip(group["params"], group["stacked"], strict=True)
    }
    assert stacked == {
        "attention.qkv.weight": [32, 16, 16],
        "attention.out.weight": [32],
        "feed_forward.gate_up.weight": [24, 24],
        "feed_forward.down.weight": [32],
    }


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adafactor", "lion", "muon", "rmsprop", "adagrad"])
def test_a_group_at_rate_zero_is_frozen_and_no_other(name: str, build: Callable[..., Transformer]) -> None:
    model = build(n_layers=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = OptimizerConfig.model_validate({"name": name, "groups": [{"match": "*attention.*", "lr": 0}]})
    optimizer = build_optimizer(model, config, LR)
    tokens = torch.randint(50, (2, 9))
    for _ in range(2):
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        set_learning_rate(optimizer, LR)
        optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if ".attention." not in key}


def test_a_pattern_without_a_match_is_refused_with_names_near_it(build: Callable[..., Transformer]) -> None:
    config = OptimizerConfig.model_validate(
        {"groups": [{"match": "*.atention.qkv*"}, {"match": "*.weight"}, {"match": "norm.*"}]}
    )
    with pytest.raises(ValueError) as caught:
        build_optimizer(build(), config, LR)
    first, second = str(caught.value).splitlines()
    assert first.startswith("groups[0].match='*.atention.qkv*' matches no parameter. Similar names: ")
    assert "blocks.*.attention.qkv.weight" in first
    assert second == (
        "groups[2].match='norm.*' matches only parameters that earlier groups match; groups[1] has norm.weight. "
        "Put the narrower pattern first."
    )


@given(st.lists(st.sampled_from(["a.*", "*.w", "b.w", "*", "c.?", "[ab].*"]), max_size=4))
def test_patterns_are_refused_exactly_where_one_has_no_parameter(patterns: list[str]) -> None:
    names = ["a.w", "a.v", "b.w", "b.v", "c.w"]
    groups = [ParameterGroup(match=pattern) for pattern in patterns]
    model = nn.ModuleDict({m: nn.ParameterDict({p: nn.Parameter(torch.zeros(1)) for p in "vw"}) for m in "abc"})
    model["c"]["v"].requires_grad_(False)
    left = set(names)
    idle = False
    by_hand = {"a.*": "a.w a.v", "*.w": "a.w b.w c.w", "b.w": "b.w", "*": " ".join(names), "c.?": "c.w"}
    by_hand["[ab].*"] = "a.w a.v b.w b.v"
    for pattern in patterns:
        taken = left & set(by_hand[pattern].split())
        idle, left = idle or not taken, left - taken
    if idle:
        with pytest.raises(ValueError, match="groups"):
            check_patterns(names, groups)
    else:
        optimizer = build_optimizer(model, OptimizerConfig(groups=tuple(groups)), LR)
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
