"""The recipe of a run: its fields, what must hold between them, and how a YAML file becomes one.

The sections `store`, `data` and `model` belong to the packages they configure; the others are here. Values that
follow from others, such as `micro_batches_per_step`, are computed and cannot be set.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cluster.spec import ClusterSpec, looks_secret
from data.config import SECRET, DataConfig, Section, StoreConfig
from data.section import Place
from model.config import ModelConfig, OptimizerConfig, ScheduleConfig
from orchestrator.errors import RecipeError
from orchestrator.observe.config import ObserveConfig
from orchestrator.recipe_file import apply_overrides, read_recipe
from orchestrator.recipe_rules import contradictions
from orchestrator.schema import default_of, element_of, nearest_name, section_of, variants_of

# What decides how and where a run is computed and kept, but not what it computes: free to change when a run goes on.
_FREE = ("run", "storage", "store", "scaling", "checkpoint", "sample", "observe", "data.prepare", "eval.beside")


class TrainConfig(Section):
    """How long to train, on how much at a time, and with which update."""

    steps: int = Field(ge=1, description="Optimizer updates in the whole run.")
    global_batch_size: int = Field(
        ge=1, description="Sequences in one optimizer update, over all workers; fixed for a run."
    )
    micro_batch_size: int = Field(ge=1, description="Sequences in one forward pass on one worker.")
    lr: float = Field(gt=0, allow_inf_nan=False, description="Peak learning rate; the schedule scales it.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="Update rule and its constants.")
    schedule: ScheduleConfig = Field(
        default_factory=ScheduleConfig, description="Course of the learning rate over the run."
    )
    grad_clip: float | None = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Largest norm of a step's gradient; a longer one is scaled to it.",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="Decay of an exponential moving average of the weights (0.999 is usual), which is evaluated in "
        "their place; d = min(ema_decay, (1 + step) / (10 + step)). null: none is kept.",
    )
    max_loss_jump: float | None = Field(
        3.0,
        gt=1,
        allow_inf_nan=False,
        description="A loss so many times the median of the 64 steps before has gone astray, like one that is no "
        "number: that step's data is left out, once in a run. null: only what is no number.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of each target's probability that is spread over the whole vocabulary while training.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Number format of forward and backward passes; weights and optimizer stay fp32."
    )
    compile: bool = Field(False, description="Whether torch.compile compiles the model, once, before the first step.")
    init_from: Place | None = Field(
        None,
        min_length=1,
        description="Folder (URL or path) of a Llama, GPT-2 or Marian as transformers has them, such as `manta export` "
        "writes: the run begins with its weights. null draws them by seed.",
    )

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches in one optimizer update over all workers; independent of how many those are."""
        return self.global_batch_size // self.micro_batch_size


class ScalingConfig(Section):
    """What to ask the cluster for. Changes how long a run takes, never its result."""

    num_workers: int = Field(1, ge=1, description="Training processes that share each step's micro-batches.")
    min_workers: int | None = Field(
        None, ge=1, description="Fewest workers to train with, where nodes come and go; null means num_workers."
    )
    max_workers: int | None = Field(
        None, ge=1, description="Most workers to use, where nodes come and go; null means num_workers."
    )
    cpus_per_worker: int = Field(1, ge=1, description="CPU cores reserved for each worker.")
    gpus_per_worker: int = Field(0, ge=0, le=1, description="GPUs for each worker: 0 trains on CPU, 1 on a GPU.")
    gpu_resource: str = Field(
        "GPU",
        min_length=1,
        description="Ray's name of what a GPU worker takes. Any other than GPU stands in for one, as gpu-stand-in does "
        "on a cluster of this machine; workers train on the CPU then.",
    )
    threads_per_worker: int | None = Field(
        None, ge=1, description="Threads torch computes with in each worker; null means cpus_per_worker."
    )

    @property
    def fewest(self) -> int:
        """Workers below which the run waits."""
        return self.min_workers or self.num_workers

    @property
    def most(self) -> int:
        """Workers above which it has no use for more."""
        return self.max_workers or self.num_workers

    @property
    def on_gpu(self) -> bool:
        """Whether workers train on a GPU."""
        return self.gpus_per_worker > 0 and self.gpu_resource == "GPU"

    @property
    def per_worker(self) -> dict[str, float]:
        """What a worker takes of the cluster, by Ray's names."""
        gpus = {self.gpu_resource: float(self.gpus_per_worker)} if self.gpus_per_worker else {}
        return {"CPU": float(self.cpus_per_worker), **gpus}

    @property
    def threads(self) -> int:
        """Threads torch computes with in each worker, with the default filled in."""
        return self.threads_per_worker or self.cpus_per_worker


class CheckpointConfig(Section):
    """When the run is saved to storage, and how many saves are kept."""

    every_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds from one checkpoint to the next; null lets it follow from what one costs and how often "
        "workers die.",
    )
    every_steps: int | None = Field(
        None, ge=1, description="Steps from one checkpoint to the next; if set, every_s does not count."
    )
    keep: int = Field(3, ge=1, description="Newest checkpoints kept; older ones are deleted.")


class EvalConfig(Section):
    """When the held-out sequences are evaluated."""

    every_steps: int | None = Field(
        None, ge=1, description="Steps from one evaluation to the next; null evaluates only at the end."
    )
    beside: bool = Field(
        True,
        description="Whether evaluations on the way run beside training where there is a place that no worker can "
        "use; else the workers do them, and do not train meanwhile.",
    )
    translate: int = Field(
        200, ge=0, description="Held-out pairs translated at the end of a run and scored by BLEU and chrF; 0: none."
    )
    translate_on_the_way: int = Field(
        0, ge=0, description="Held-out pairs translated and scored at every evaluation on the way; 0: only at the end."
    )
    language: str | None = Field(
        None, description="Language of the texts, as zh: what counts as a word for BLEU; null: words between spaces."
    )
    beam_size: int = Field(4, ge=1, le=64, description="Translations kept at once by beam search; 1 is greedy.")
    length_penalty: float = Field(
        0.6,
        ge=0,
        allow_inf_nan=False,
        description="How much beam search favours long translations: their log-probability is divided by "
        "((5 + length) / 6) to this power.",
    )


class SampleConfig(Section):
    """Text generated from a trained model."""

    prompts: tuple[str, ...] = Field((), description="Beginnings to continue; none generates from nothing.")
    max_new_tokens: int = Field(64, ge=1, description="Most tokens generated for one prompt.")
    temperature: float = Field(
        0.8,
        ge=0,
        allow_inf_nan=False,
        description="Divides the logits: below 1 safer, above 1 bolder; 0 is greedy.",
    )
    top_k: int | None = Field(None, ge=1, description="Draw among this many likeliest tokens; null draws among all.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Draw among the likeliest tokens that together reach this probability; null: all."
    )
    seed: int = Field(0, ge=0, description="Seed of the draw; the same seed gives the same text.")
    beam_size: int | None = Field(
        None, ge=1, le=64, description="Texts kept at once by beam search, which takes the likeliest; null draws."
    )
    length_penalty: float = Field(
        0.6, ge=0, allow_inf_nan=False, description="How much beam search favours long texts, see eval.length_penalty."
    )


class RunConfig(Section):
    """A run, whole: everything that decides its result, and where and on what it is computed.

    Raises:
        ValidationError: fields are wrong by themselves or contradict each other; `load_recipe` says it better.
    """

    run: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="Name of the run, under which it is kept, found and continued: letters, digits, - _ and .",
    )
    seed: int = Field(0, ge=0, description="Seed of everything random: weights, data order, dropout.")
    storage: Place = Field(
        min_length=1,
        description="Where runs, tokenized data and tokenizers are kept: s3://bucket/prefix, gs://…, or a path.",
    )
    store: StoreConfig = Field(default_factory=StoreConfig, description="How to reach object storage.")
    data: DataConfig = Field(description="Text, tokenizer and sequences.")
    model: ModelConfig = Field(default_factory=ModelConfig, description="Shape of the model.")
    train: TrainConfig = Field(description="Length, batch and update.")
    scaling: ScalingConfig = Field(default_factory=ScalingConfig, description="Workers.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="Saving.")
    eval: EvalConfig = Field(default_factory=EvalConfig, description="Evaluation.")
    sample: SampleConfig = Field(default_factory=SampleConfig, description="Generated text.")
    observe: ObserveConfig = Field(default_factory=ObserveConfig, description="Who is told of the run.")

    def evaluates_after(self, step: int) -> bool:
        """Whether the held-out set is evaluated after `step`, on the way."""
        every = self.eval.every_steps
        return every is not None and step % every == 0 and step < self.train.steps

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        problems = list(contradictions(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a recipe describes, with `dotted.name=value` overrides in place.

    Raises:
        RecipeError: the recipe cannot be read, or has problems; all of them are in the message.
    """
    document = read_recipe(Path(path))
    problems = apply_overrides(document, overrides)
    return config_from(document, str(path), problems)


def config_from(document: dict[str, Any], where: str, problems: Sequence[str] = ()) -> RunConfig:
    """The run that a recipe's fields describe; `problems` are those found already, `where` they come from.

    Raises:
        RecipeError: there are problems; all of them are in the message.
    """
    problems, document = list(problems), _without_empty_sections(RunConfig, document)
    try:
        config = RunConfig.model_validate(document)
    except ValidationError as error:
        problems += field_problems(error)
        problems += contradictions(cast(RunConfig, _valid_part(RunConfig, document)))
    if problems:
        raise RecipeError(listed(where, problems))
    return config


def listed(where: str, problems: Sequence[str]) -> str:
    """The message that tells of all problems found in a recipe."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{where}: {count}\n" + "\n".join(f"  {problem}".replace("\n", "\n    ") for problem in problems)


def resolved(config: RunConfig) -> dict[str, Any]:
    """All fields as JSON has them, defaults included and the store's keys left out: what is kept with a run."""
    fields = config.model_dump(mode="json")
    for name in SECRET:
        fields["store"].pop(name)
    return fields


def result_fields(config: RunConfig) -> dict[str, Any]:
    """Dotted name and value (as JSON has it) of every field that decides what a run learns."""
    fields = flatten(resolved(config))
    return {name: value for name, value in fields.items() if not is_free(name)}


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, old and new value of the `result_fields` that differ; None where one side has no such field.

    A field that is younger than the old ones had what is now its default. A sweep's begin with `run.`.
    """
    since = {name: default_of(RunConfig, name.removeprefix("run.")) for name in new if name not in old}
    names = [*old, *since]
    # Through JSON, because the old ones were read from a file: there are no tuples in it.
    old, new = json.loads(json.dumps([{**since, **old}, dict(new)]))
    return [(name, old.get(name), new.get(name)) for name in names if not _is_same(name, old.get(name), new.get(name))]


_PLACES = re.compile(r"(data\.sources\.\d+\.(input_)?path|data\.tokenizer\.path|train\.init_from)$")


def _is_same(name: str, old: Any, new: Any) -> bool:
    """Whether two values of a field are one: a folder of the project's is named in full where a job is submitted.

    What is in it is pinned by itself, so a folder of the same name elsewhere passes for no other.
    """
    if not (_PLACES.search(name) and isinstance(old, str) and isinstance(new, str)):
        return bool(old == new)
    old, new = (place if "://" in place else os.path.normpath(place) for place in (old, new))
    return any(
        one == other or (one.startswith("/") and not other.startswith("/") and one.endswith("/" + other))
        for one, other in ((old, new), (new, old))
    )


def is_free(name: str) -> bool:
    """Whether a field may change when a run goes on, because it does not decide the result."""
    return any(name == free or name.startswith(free + ".") for free in _FREE)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name; a list of sections by index, any other list as one value."""
    if isinstance(value, dict):
        below = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        below = {str(index): item for index, item in enumerate(value)}.items()
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in below:
        flat |= flatten(item, f"{prefix}.{name}" if prefix else name)
    return flat


def _without_empty_sections(model: type[BaseModel], document: dict[str, Any]) -> dict[str, Any]:
    """`document` without sections that have a heading and nothing below it, which YAML reads as null."""
    kept = {}
    for name, value in document.items():
        section = section_of(model.model_fields[name].annotation) if name in model.model_fields else None
        if section and value is None:
            value = {}
        kept[name] = _without_empty_sections(section, value) if section and isinstance(value, dict) else value
    return kept


def _valid_part(model: type[BaseModel], document: Mapping[str, Any]) -> SimpleNamespace:
    """The fields of `document`, and defaults of those left out, that are right by themselves; the others are absent."""
    part = SimpleNamespace()
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        value = document.get(name, {})
        if section and isinstance(value, dict):
            setattr(part, name, _valid_part(section, value))
        elif name in document:
            try:
                constrained: Any = Annotated[cast(Any, field.annotation), field]
                setattr(part, name, TypeAdapter(constrained).validate_python(document[name]))
            except ValidationError:
                continue
        elif not field.is_required():
            setattr(part, name, field.get_default(call_default_factory=True))
    return part


def field_problems(error: ValidationError, model: type[BaseModel] = RunConfig) -> list[str]:
    """What pydantic found, without rules of the whole recipe, and without a list's complaint about its elements."""
    found = [e for e in error.errors(include_url=False) if e["loc"]]
    places = {e["loc"] for e in found}
    return [
        _describe(e, model) for e in found if not any(p != e["loc"] and p[: len(e["loc"])] == e["loc"] for p in places)
    ]


def _describe(error: ErrorDetails, model: type[BaseModel]) -> str:
    """One problem: dotted name, the value given, what is allowed, the nearest valid name for a typo."""
    name = _dotted_name(error["loc"], model)
    if error["type"] in ("union_tag_invalid", "union_tag_not_found", "model_attributes_type"):
        kinds = _variants_at(error["loc"], model)
        if kinds:
            return _unknown_kind(name, error, kinds)
    if error["type"] == "extra_forbidden":
        near = nearest_name(model, name)
        where = "manta schema --cluster" if model is ClusterSpec else "manta schema"
        return f"{name}: there is no such field" + (f"; did you mean {near}?" if near else f"; see {where}")
    if error["type"] == "missing":
        return f"{name}: missing. {_meaning(error['loc'], model)}"
    if error["type"] == "value_error":  # from a section's own rules, which speak for themselves
        return f"{name}: " + str(error.get("ctx", {}).get("error", error["msg"]))
    allowed = error["msg"].removeprefix("Input ").replace("String should", "should")
    if error["type"] == "string_pattern_mismatch":
        allowed = _meaning(error["loc"], model)
    if error["type"] == "string_type" and isinstance(error["input"], (int, float)):
        allowed += "; put it in quotes"
    return f"{name} = {_shown(name, error['input'])}: {allowed}"


def _unknown_kind(name: str, error: ErrorDetails, kinds: Sequence[str]) -> str:
    """A list's element that is of no kind there is, or does not say of which."""
    given, tag = error["input"], str(error.get("ctx", {}).get("discriminator", "")).strip("'")
    if not isinstance(given, dict) or tag not in given:
        example = given if given in kinds else kinds[0]
        said = f"which of {', '.join(kinds)} it is has to be said: write {{step: {example}}}"
        return f"{name} = {_shown(name, given)}: {said}"
    near = difflib.get_close_matches(str(given[tag]), kinds, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"{name}.{tag} = {_shown(name, given[tag])}: there is no such one{hint} There are {', '.join(kinds)}"


def _steps_of(
    loc: Sequence[int | str], model: type[BaseModel] | None
) -> Iterator[tuple[int | str, FieldInfo | None, bool]]:
    """Every part of `loc`, the field it names, and whether it only tells which kind of section an element is."""
    kinds: dict[str, type[BaseModel]] = {}
    for part in loc:
        if isinstance(part, int):
            yield part, None, False
        elif part in kinds:
            model, kinds = kinds[part], {}
            yield part, None, True
        else:
            field = model.model_fields.get(part) if model else None
            yield part, field, False
            annotation = field.annotation if field else None
            model, kinds = section_of(annotation) or element_of(annotation), variants_of(annotation)


def _dotted_name(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    """`loc` as a recipe would name it: pydantic also says of which kind an element of a list is."""
    return ".".join(str(part) for part, _, is_kind in _steps_of(loc, model) if not is_kind)


def _variants_at(loc: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    """The kinds that the element of a list at `loc` may be of; none where there are no kinds."""
    fields = [field for _, field, _ in _steps_of(loc, model) if field]
    return list(variants_of(fields[-1].annotation)) if fields else []


def _meaning(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    """The description of the field at `loc`."""
    described = [field.description for _, field, _ in _steps_of(loc, model) if field]
    return (described[-1] if described else None) or ""


def _shown(name: str, value: Any) -> str:
    """`value` as a message may show it: short, and no keys."""
    if (last := name.rpartition(".")[2]) in SECRET or looks_secret(last):
        return "(not shown)"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
