"""Sorts parameters into groups: by weight decay, by Muon or AdamW, and by the patterns of the config."""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn

from model.optim.config import OptimizerConfig, ParameterGroup

_MAX_SIMILAR_NAMES = 5


class _Kind(NamedTuple):
    """Common properties of the parameters of one group."""

    own: int | None  # index of their group in the config
    is_muon: bool
    decays: bool


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """A model's trainable parameters in groups, in the form that torch's optimizers take.

    Groups have `params`, `weight_decay` and `lr_scale`, the factor of the run's learning rate; for Muon also `is_muon`
    and, with its matrices, `stacked`: the rows of the matrices that are stacked in each.

    The first groups contain the parameters that match no pattern: decayed, then not decayed; for Muon, its own come
    before them. These groups exist even if they are empty.

    Raises:
        ValueError: see `check_patterns`.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    check_patterns(named, config.groups)
    has_muon = config.name == "muon"
    decayed = _decayed(model)
    inner = decayed - _output_weights(model) if has_muon else set()

    members: dict[_Kind, list[nn.Parameter]] = {_Kind(None, True, True): []} if has_muon else {}
    members |= {_Kind(None, False, True): [], _Kind(None, False, False): []}
    for name, parameter in named.items():
        kind = _Kind(_first_match(name, config.groups), id(parameter) in inner, id(parameter) in decayed)
        members.setdefault(kind, []).append(parameter)

    rows = _stacked_rows(model)
    groups = []
    for kind, parameters in members.items():
        group = {"params": parameters, **_settings(kind, config)}
        if has_muon:
            group["is_muon"] = kind.is_muon
        if kind.is_muon:
            group["stacked"] = [list(rows.get(id(parameter), (parameter.shape[0],))) for parameter in parameters]
        groups.append(group)
    return groups


def check_patterns(names: Collection[str], groups: Sequence[ParameterGroup]) -> None:
    """Refuses patterns without any effect.

    Args:
        names: of all trainable parameters.
        groups: in the order of their priority.

    Raises:
        ValueError: a pattern matches no name, or only names that earlier patterns match; the message lists all of them.
    """
    problems = []
    taken = {name: _first_match(name, groups) for name in names}
    for index, group in enumerate(groups):
        matched = [name for name in names if fnmatchcase(name, group.match)]
        if not matched:
            near = ", ".join(_similar_names(group.match, names))
            problems.append(f"groups[{index}].match={group.match!r} matches no parameter. Similar names: {near}.")
        elif index not in taken.values():
            first = taken[matched[0]]
            problems.append(
                f"groups[{index}].match={group.match!r} matches only parameters that earlier groups match; "
                f"groups[{first}] has {matched[0]}. Put the narrower pattern first."
            )
    if problems:
        raise ValueError("\n".join(problems))


def _settings(kind: _Kind, config: OptimizerConfig) -> dict[str, float]:
    lr_scale = config.adamw_lr if config.name == "muon" and not kind.is_muon else 1.0
    weight_decay = config.weight_decay if kind.decays else 0.0
    if kind.own is not None:
        own = config.groups[kind.own]
        lr_scale *= own.lr
        weight_decay = weight_decay if own.weight_decay is None else own.weight_decay
    return {"lr_scale": lr_scale, "weight_decay": weight_decay}


def _first_match(name: str, groups: Iterable[ParameterGroup]) -> int | None:
    return next((index for index, group in enumerate(groups) if fnmatchcase(name, group.match)), None)


def _decayed(model: nn.Module) -> set[int]:
    """Ids of the parameters that decay: matrices of linear layers.

    Decay keeps matrix products from growing. A norm's gain or a bias has no such growth to restrain, and decaying an
    embedding would shrink rare tokens, which get decay at every step and a gradient at few. A tied embedding is one.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} - embeddings


def _output_weights(model: nn.Module) -> set[int]:
    """Ids of the weights that produce logits: matrices, but not inside the model, and not suitable for Muon."""
    return {id(m.output_weight) for m in model.modules() if isinstance(getattr(m, "output_weight", None), Tensor)}


def _stacked_rows(model: nn.Module) -> dict[int, tuple[int, ...]]:
    """Rows of the matrices that are stacked in a parameter, by the parameter's id.

    A module declares them by a property `stacked_rows`: rows of each part, by the name of its linear layer.
    """
    return {
        id(getattr(module, layer).weight): rows
        for module in model.modules()
        for layer, rows in getattr(module, "stacked_rows", {}).items()
    }


def _similar_names(pattern: str, names: Iterable[str]) -> Iterator[str]:
    """Names that `pattern` may have been meant to match, the most similar first; equal blocks occur once, as *."""
    wanted = re.sub(r"[*?\[\]]+", "", pattern).strip(".")

    def similarity(name: str) -> float:
        candidates = (name, *name.split("."))
        return max(difflib.SequenceMatcher(None, wanted, candidate).ratio() for candidate in candidates)

    general = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    yield from sorted(general, key=similarity, reverse=True)[:_MAX_SIMILAR_NAMES]
