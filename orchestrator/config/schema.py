"""Lists the fields of a recipe with type, default and description, for `manta schema` and for hints on typos."""

from __future__ import annotations

import difflib
import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Field:
    """One field of a recipe. `name` is dotted; N stands for the index into a list."""

    name: str
    type: str
    default: str
    description: str

    @property
    def leaf(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[Field]:
    """Yields every field below `model` that holds a value, in the order of the classes."""
    for name, info in model.model_fields.items():
        dotted = prefix + name
        section = section_of(info.annotation)
        element = element_of(info.annotation)
        variants = variants_of(info.annotation)
        if section:
            yield from fields_of(section, dotted + ".")
        elif element:
            yield from fields_of(element, dotted + ".N.")
        elif variants:
            yield from _fields_of_variants(variants, dotted + ".N.")
        else:
            yield Field(dotted, type_text(info.annotation), _default_text(info), info.description or "")


def section_of(annotation: Any) -> type[BaseModel] | None:
    """`annotation` if it is a model class, else None."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def element_of(annotation: Any) -> type[BaseModel] | None:
    """The model class of a tuple's elements, where they are sections of one kind."""
    return section_of(get_args(annotation)[0]) if get_origin(annotation) is tuple else None


def default_of(model: type[BaseModel], name: str) -> Any:
    """The default of the field with this dotted name; None where it has none, or where there is no such field."""
    first, _, rest = name.partition(".")
    info = model.model_fields.get(first)
    if info is None:
        return None
    below = section_of(info.annotation)
    if element := element_of(info.annotation):
        below, rest = element, rest.partition(".")[2]
    if rest:
        return default_of(below, rest) if below else None
    return None if info.is_required() else info.get_default(call_default_factory=True)


def variants_of(annotation: Any) -> dict[str, type[BaseModel]]:
    """The model classes of a tuple's elements by their discriminator, where they are sections of several kinds."""
    if get_origin(annotation) is not tuple or get_origin(get_args(annotation)[0]) is not Annotated:
        return {}
    union, *notes = get_args(get_args(annotation)[0])
    tag = next((note.discriminator for note in notes if isinstance(note, FieldInfo) and note.discriminator), None)
    if tag is None:
        return {}
    return {get_args(model.model_fields[tag].annotation)[0]: model for model in get_args(union)}


def _fields_of_variants(variants: dict[str, type[BaseModel]], prefix: str) -> Iterator[Field]:
    """Yields the fields of sections of several kinds; the discriminator comes first, once."""
    fields = [(kind, field) for kind, model in variants.items() for field in fields_of(model, prefix)]
    discriminators = [field for kind, field in fields if field.type == kind]
    kinds = " ".join(f"{field.type}: {field.description}" for field in discriminators)
    yield replace(discriminators[0], type=" | ".join(variants), description=kinds)
    for kind, field in fields:
        if field.type != kind:
            yield replace(field, description=f"{kind}: {field.description}")


def nearest_name(model: type[BaseModel], name: str) -> str | None:
    """The field that the unknown `name` most probably means.

    Searches the same section first, then the same last part anywhere (`lr` is `train.lr`), then a similar last part
    anywhere.
    """
    # An index in the recipe is N in the schema.
    pattern = ".".join("N" if part.isdecimal() else part for part in name.split("."))
    section, _, leaf = pattern.rpartition(".")
    known = _all_names(model)
    siblings = [n for n in known if n.rpartition(".")[0] == section]
    elsewhere = [n for n in known if n.rpartition(".")[2] == leaf]
    found = _closest(leaf, siblings, cutoff=0.6) or next(iter(elsewhere), None) or _closest(leaf, known, cutoff=0.75)
    nearest = found and _with_indices(found, name)
    return None if nearest == name else nearest  # a field of another kind of section in the same list


def markdown(model: type[BaseModel]) -> str:
    """The fields as a Markdown table."""
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for f in fields_of(model):
        cells = (f"`{f.name}`", f.type, f.default, f.description)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def type_text(annotation: Any) -> str:
    """The type in the words of YAML."""
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(type_text(argument) for argument in arguments)
    if origin is tuple:
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return f"map of text to {type_text(arguments[1])}"
    if section_of(annotation):
        return "section"
    names = {str: "text", int: "integer", float: "number", bool: "true | false", type(None): "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default_text(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(str(item) for item in value) + "]"
    return str(value)


@functools.cache
def _all_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The names of all fields, sections included, since `trian` is a typo too."""
    names = []
    for name, info in model.model_fields.items():
        names.append(prefix + name)
        below = section_of(info.annotation)
        element = element_of(info.annotation)
        if below:
            names += _all_names(below, f"{prefix}{name}.")
        elif element:
            names += _all_names(element, f"{prefix}{name}.N.")
        for variant in variants_of(info.annotation).values():
            names += _all_names(variant, f"{prefix}{name}.N.")
    return names


def _closest(leaf: str, names: list[str], cutoff: float) -> str | None:
    """The name whose last part is most similar to `leaf`."""
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(names)}
    matches = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=cutoff)
    return by_leaf[matches[0]] if matches else None


def _with_indices(known: str, given: str) -> str:
    """`known` with the indices of `given` in place of N; 0 where `given` has none."""
    indices = iter([part for part in given.split(".") if part.isdecimal()])
    return ".".join(next(indices, "0") if part == "N" else part for part in known.split("."))
