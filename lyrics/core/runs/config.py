"""One training run as plain data: ``TrainConfig``, its overrides, and its YAML file. Imports no torch.

A file may name the model by a preset or a path, with overrides; what is kept and saved is always the whole
specification::

    stage: pretrain
    out: runs/first
    model: {spec: lyrics-tiny, overrides: {query_transformer.options.num_visual: 8}}
    data: {sets: {scenes: {use: scenes, options: {task: caption}}}}
    optimization: {steps: 1000, global_batch: 32}
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import yaml
from pydantic import ConfigDict, Field, model_validator

from lyrics.core.errors import SpecError, UnknownNameError
from lyrics.core.json_reading import read_text
from lyrics.core.registry.registry import Registry, default_registry
from lyrics.core.renamed_fields import FormerNames
from lyrics.core.renaming import moved_names
from lyrics.core.resolve import overridden, read_spec, resolve

# The rules of dotted paths are those of a model's specification.
from lyrics.core.spec import ModelSpec, Slot, check_overrides, current_paths, parse_yaml, set_path, validate

Changeable = Literal["seed", "global_batch", "data"]
_SPEC = "model.spec"

__getattr__ = moved_names(__name__, {"OptimisationSection": f"{__name__}.OptimizationSection"})


class _Section(FormerNames):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )


class ModelSection(_Section):
    """The model, and the weights that training begins with."""

    spec: ModelSpec = Field(description="the specification; in a file also a preset's name or a path")
    weights: str = Field("pretrained", description="pretrained, random, or a model folder, as build_model has it")
    start_from: str | None = Field(
        None,
        description="a run folder or checkpoint whose trained tensors are loaded over the weights: stage 2 starts "
        "from stage 1; or a public model, by its folder or hub id, of which is taken what fits",
    )
    allow_random_start: bool = Field(
        True, description="whether stage 1 may begin with a query transformer that no checkpoint fills"
    )


class DataSlot(Slot):
    """A data set of the mixture."""

    weight: float | None = Field(
        None, gt=0, description="share of samples, relative to the other weights; for all sets or for none"
    )
    during: tuple[float, float] = Field(
        (0.0, 1.0), description="first and last share of the run's steps in which the set is read: (0.5, 1) is phase 2"
    )
    scores: str | None = Field(None, description="file of 'lyrics data filter': relevance of each row's image and text")
    at_least: dict[str, float] = Field(
        default_factory=dict,
        description="rows are read whose scores reach these, such as {similarity: 0.3} or {itm: 0.5}; needs scores",
    )

    @model_validator(mode="after")
    def _is_read(self) -> Self:
        begin, end = self.during
        if not 0 <= begin < end <= 1:
            raise ValueError(f"during={list(self.during)}: is two shares of the steps, 0 <= first < last <= 1")
        if self.scores is not None and not self.at_least:
            raise ValueError(
                f"scores={self.scores}: say which rows are read: at_least={{NAME: THRESHOLD}}, with a NAME that the "
                "file has"
            )
        return self


class AugmentationSection(_Section):
    """Random resized crop and flip; fields as in ``lyrics.core.data.augmentation.Augmentation``."""

    size: int | None = Field(None, ge=1, description="side in pixels of the crop; null leaves its own pixels")
    scale: tuple[float, float] = Field((0.5, 1.0), description="smallest and largest share of the area that is kept")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="smallest and largest width / height")
    flip: float = Field(0.5, ge=0, le=1, description="probability of mirroring, where the texts allow it")
    min_visible: float = Field(0.2, ge=0, le=1, description="objects of which less is left are dropped")

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError("scale must be two shares in (0, 1], the smaller first")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError("ratio must be two positive numbers, the smaller first")
        return self


class DataSection(_Section):
    """What is read, and how it is varied."""

    sets: dict[str, DataSlot] = Field(min_length=1, description="data sets, by a name of your choice")
    refined: str | None = Field(
        None,
        description="objects.jsonl of 'lyrics refine', read by those experts of the refiner that take stored objects "
        "instead of looking",
    )
    features: str | None = Field(
        None,
        description="folder of 'lyrics refine --features': stored tags, boxes and local tokens take the place of the "
        "refiner's experts, which are then not built; augmentation.flip must be 0",
    )
    augmentation: AugmentationSection | None = Field(
        AugmentationSection(), description="null leaves images as they are"
    )
    snap_iou: float | None = Field(
        None,
        gt=0,
        le=1,
        description="stage 2: a box in an answer becomes the refiner's where they overlap so much, so that it can be "
        "copied; null: stays",
    )
    drop_text: float = Field(
        0.0,
        ge=0,
        le=1,
        description="stage 2: share of images whose spatial text is left out of the prompt, so that soft tokens must "
        "answer",
    )
    drop_queries_text: float = Field(
        0.0,
        ge=0,
        le=1,
        description="stage 2: share of images whose spatial text the query transformer does without; drawn apart",
    )
    group: int = Field(
        1,
        ge=1,
        description="neighboring rows that stay in one batch of one rank: 2 where rows 2k and 2k+1 are twins",
    )
    workers: int = Field(2, ge=0, description="loader processes per rank; the samples do not depend on it")


class GroupSection(_Section):
    """What is different for one part of the model."""

    learning_rate: float | None = Field(None, gt=0, description="peak; null: as for all")
    weight_decay: float | None = Field(None, ge=0, description="null: as for all")


#: Parts that may have a group, with the stages that train them.
_GROUPS = {
    "image_encoder": ("pretrain", "instruct"),
    "query_transformer": ("pretrain", "instruct"),
    "objectives": ("pretrain",),
    "projection": ("instruct",),
    "language_model": ("instruct",),
}


class OptimizationSection(_Section):
    """The paper's numbers are the defaults, where it gives them."""

    steps: int = Field(ge=1, description="optimizer steps in all")
    global_batch: int = Field(ge=1, description="samples per step, over all ranks and micro-batches")
    micro_batch: int | None = Field(
        None, ge=1, description="most samples of a rank in one forward pass; null takes its whole share"
    )
    learning_rate: float = Field(1e-4, gt=0, description="peak")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="muon: torch's Muon for the matrices between the embeddings and the heads, AdamW for all else",
    )
    betas: tuple[float, float] = Field((0.9, 0.98), description="of AdamW")
    weight_decay: float = Field(0.05, ge=0, description="not for biases, norms, the temperature and query tokens")
    groups: dict[
        Literal["image_encoder", "query_transformer", "objectives", "projection", "language_model"], GroupSection
    ] = Field(
        default_factory=dict,
        description="parts with a learning rate or weight decay of their own, such as image_encoder: {learning_rate: "
        "1e-5}; the warm-up and the cosine are the same",
    )
    warmup_share: float = Field(0.15, ge=0, le=1, description="share of the steps in which the rate rises linearly")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the whole gradient")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: autocast; weights and their updates stay fp32"
    )
    frozen_precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="type of the language model's frozen weights; what is trained stays fp32"
    )
    compile: bool = Field(
        False, description="torch.compile the query transformer's feed-forwards (a language model has its own option)"
    )
    itc_negatives: Literal["global", "micro-batch"] = Field(
        "global",
        description="micro-batch allows several micro-batches in stage 1, each with the negatives of its own samples "
        "alone",
    )


class CheckpointSection(_Section):
    """When to save."""

    every_steps: int | None = Field(1000, ge=1, description="steps between saves")
    every_minutes: float | None = Field(None, gt=0, description="minutes between saves; may be given with every_steps")
    keep: int = Field(3, ge=2, description="newest checkpoints that are kept; older ones are deleted")


class EvaluationSection(_Section):
    """When to measure, and on what: samples that training does not see."""

    every_steps: int | None = Field(None, ge=1, description="steps between evaluations; null: none")
    sets: dict[str, Slot] = Field(default_factory=dict, description="held-out data sets, by a name of your choice")
    samples: int = Field(128, ge=1, description="samples of each set, spread evenly over it and shared by the ranks")
    batch: int = Field(32, ge=1, description="samples of a rank that go through together; retrieval is among them")
    max_new_tokens: int = Field(64, ge=1, description="tokens of an answer at most; stage 2")


class LoggingSection(_Section):
    """Where numbers go besides log.jsonl."""

    every_steps: int = Field(1, ge=1, description="steps between lines of log.jsonl")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        ("tensorboard",), description="tensorboard is left out with a line where it is not installed"
    )


class TrainConfig(_Section):
    """A run of stage 1 (``pretrain``) or stage 2 (``instruct``)."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"optimisation": "optimization"}

    stage: Literal["pretrain", "instruct"] = Field(description="stage 1 or stage 2")
    out: str = Field(min_length=1, description="run folder")
    seed: int = Field(0, ge=0, lt=2**63, description="fixes order, augmentation, masking, negatives, dropout")
    device: Literal["auto", "cpu"] = Field("auto", description="auto: a GPU where there is one")
    ranks: int | None = Field(
        None, ge=1, description="processes that the run must have; null: as many as the launcher starts"
    )
    strategy: Literal["ddp", "fsdp2"] = Field(
        "ddp",
        description="fsdp2: the frozen language model is shared out over the ranks; what is trained is whole on each",
    )
    timeout_minutes: float = Field(10.0, gt=0, description="how long a rank waits for the others before it gives up")
    allow_changed: tuple[Changeable, ...] = Field(
        (), description="what may differ from the checkpoint that is resumed; samples are then repeated or missed"
    )
    model: ModelSection
    data: DataSection
    optimization: OptimizationSection
    checkpoint: CheckpointSection = CheckpointSection()
    evaluation: EvaluationSection = EvaluationSection()
    logging: LoggingSection = LoggingSection()

    @model_validator(mode="after")
    def _shards_are_small(self) -> Self:
        settings = self.optimization
        if self.strategy == "fsdp2" and settings.precision == "bf16" and settings.frozen_precision == "fp32":
            raise ValueError(
                "strategy fsdp2 with optimization.precision bf16 needs optimization.frozen_precision bf16: autocast "
                "would keep a copy of the whole language model through every step"
            )
        if self.strategy == "fsdp2" and settings.compile:
            raise ValueError("strategy fsdp2 has not been tried with optimization.compile; set one of them back")
        return self

    @model_validator(mode="after")
    def _neighbors_stay(self) -> Self:
        if self.data.group > 1 and (sets := [name for name, slot in self.data.sets.items() if slot.at_least]):
            raise ValueError(
                f"data.sets.{sets[0]}.at_least leaves rows out, so that those which data.group={self.data.group} keeps "
                "together would no longer be neighbors; set one of them back"
            )
        return self

    @model_validator(mode="after")
    def _features_follow(self) -> Self:
        data = self.data
        if data.features is None:
            return self
        if data.refined is not None:
            raise ValueError("data.features and data.refined both say what was seen; set one of them to null")
        if self.model.spec.refiner is None:
            raise ValueError(f"data.features={data.features}: {_SPEC} has no refiner, so that nothing reads them")
        if data.augmentation is not None and data.augmentation.flip:
            raise ValueError(
                "data.features are of images as they are, and a mirrored object looks different: set "
                "data.augmentation.flip=0 (crops are followed), or data.augmentation=null"
            )
        return self

    @model_validator(mode="after")
    def _groups_are_trained(self) -> Self:
        for part in self.optimization.groups:
            if self.stage not in _GROUPS[part]:
                raise ValueError(f"optimization.groups.{part}: is not trained in stage {self.stage}; take it out")
        if "image_encoder" in self.optimization.groups and not self.model.spec.train_image_encoder:
            raise ValueError(
                f"optimization.groups.image_encoder: it is frozen; set {_SPEC}.train_image_encoder=true, or take the "
                "group out"
            )
        return self

    @model_validator(mode="after")
    def _text_can_be_dropped(self) -> Self:
        data, spec = self.data, self.model.spec
        for name, share, where, there in (
            ("drop_text", data.drop_text, "spatial_in_prompt is off", spec.spatial_in_prompt),
            ("drop_queries_text", data.drop_queries_text, "sees lacks spatial", "spatial" in spec.sees),
        ):
            if share and self.stage == "pretrain":
                raise ValueError(f"data.{name} is of stage 2; in stage 1 objectives have options of their own for it")
            if share and not there:
                raise ValueError(f"data.{name}={share} has nothing to leave out: {_SPEC}.{where}; set one of them back")
        return self

    def with_overrides(self, overrides: Mapping[str, Any], registry: Registry | None = None) -> TrainConfig:
        """A copy with dotted paths set, e.g. ``{"optimization.steps": 100, "model.spec.refiner.detector": "cached"}``.

        Raises ``SpecError`` for a path that does not exist, with the nearest one that does.
        """
        check_overrides(overrides)
        inner = {p.removeprefix(f"{_SPEC}."): v for p, v in overrides.items() if p.startswith(f"{_SPEC}.")}
        data = self.model_dump(mode="json")
        try:
            data["model"]["spec"] = overridden(self.model.spec, inner, registry).model_dump(mode="json")
        except SpecError as error:
            raise SpecError("\n".join(f"{_SPEC}: {line}" for line in str(error).splitlines())) from None
        outer = {path: value for path, value in overrides.items() if not path.startswith(f"{_SPEC}.")}
        for path, value in sorted(current_paths(outer, TrainConfig).items(), key=lambda item: item[0].count(".")):
            first = path.partition(".")[0]
            if first in ModelSpec.model_fields and first not in TrainConfig.model_fields:
                raise UnknownNameError(f"override {path!r}: parts of the model are set by {_SPEC}.{path}.")
            set_path(data, path, value, TrainConfig)
        return validate(data, TrainConfig)


def load_config(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    registry: Registry | None = None,
) -> TrainConfig:
    """Return a configuration from a recipe's name (``lyrics list recipe``), a YAML or JSON file, or a mapping.

    Component options are filled in and checked, so that what is saved says everything. Raises ``SpecError`` naming the
    file and the path in it.
    """
    check_overrides(overrides or {})
    overrides = dict(overrides or {})
    data, where = _read(source, registry)
    if "out" in overrides:  # it has no default, and need not stand in the file
        data.setdefault("out", overrides["out"])
    try:
        _name_the_model(data, overrides)
        _write_the_model_out(data, registry)
        config = validate(data, TrainConfig)
    except SpecError as error:
        raise SpecError("\n".join(f"{where}{line}" for line in str(error).splitlines())) from None
    config = config.with_overrides(overrides, registry)
    resolved = resolve(config.model.spec, registry=registry).spec
    return config.model_copy(update={"model": config.model.model_copy(update={"spec": resolved})})


def _read(source: str | Path | Mapping[str, Any], registry: Registry | None) -> tuple[dict[str, Any], str]:
    """Return plain data, and what stands before messages about them."""
    if isinstance(source, Mapping):
        return dict(source), ""
    path = Path(source)
    if path.suffix in {".yaml", ".yml", ".json"}:
        data = parse_yaml(read_text(path, SpecError), source=str(path))
        if not isinstance(data, dict):
            raise SpecError(f"{path}: a training configuration is a mapping with keys such as stage and model.")
        return data, f"{path}: "
    try:
        recipe = (registry or default_registry()).recipe(str(source))
    except UnknownNameError as error:
        raise UnknownNameError(f"{error} A file of a configuration ends in .yaml, .yml or .json.") from None
    return recipe.model_dump(mode="json"), ""


def _name_the_model(data: dict[str, Any], overrides: dict[str, Any]) -> None:
    """``model.spec`` given as an override takes the place of the file's, overrides of that one included."""
    if _SPEC not in overrides:
        return
    model = data.get("model")
    kept = {key: value for key, value in model.items() if key != "overrides"} if isinstance(model, dict) else {}
    data["model"] = {**kept, "spec": overrides.pop(_SPEC)}


def _write_the_model_out(data: dict[str, Any], registry: Registry | None) -> None:
    """Replace a preset's name or a path, and the overrides beside it, by the specification they stand for."""
    model = data.get("model")
    if not isinstance(model, Mapping) or "spec" not in model:
        return  # validation says what is wrong
    spec = model["spec"]
    changes = model.get("overrides", {})
    if not isinstance(changes, Mapping):
        raise SpecError("model.overrides: is a mapping of dotted paths to values.")
    if isinstance(spec, str) or changes:
        try:
            written = overridden(read_spec(spec, registry), changes, registry)
        except SpecError as error:
            raise SpecError("\n".join(f"{_SPEC}: {line}" for line in str(error).splitlines())) from None
        data["model"] = {**model, "spec": written.model_dump(mode="json")}
    data["model"] = {key: value for key, value in data["model"].items() if key != "overrides"}


def dump_config(config: TrainConfig) -> str:
    """Return the configuration as YAML; ``load_config`` of it gives the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120, allow_unicode=True)


def digest(config: TrainConfig) -> str:
    """Return sha256 of the configuration as YAML."""
    return hashlib.sha256(dump_config(config).encode()).hexdigest()
