"""The records a plugin yields: components, presets, recipes and others, and the options a component takes.

This file is all that a plugin's manifest needs, and it imports no torch::

    from lyrics import Component, Options, hookimpl
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import pluggy
from pydantic import ConfigDict

from lyrics.core.renamed_fields import FormerNames
from lyrics.core.renaming import renamed

if TYPE_CHECKING:
    from lyrics.core.spec import ModelSpec, RefinerSpec

Kind = Literal[
    "image-encoder",
    "tagger",
    "detector",
    "segmenter",
    "query-transformer",
    "language-model",
    "objective",
    "dataset",
    "benchmark",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: What a component says of itself, so that behavior follows from it and not from its name; see ``Component``.
Capability = Literal["compares_across_batch", "reads_boxes_in_captions", "reads_known_objects"]
CAPABILITIES: tuple[Capability, ...] = get_args(Capability)

#: Contract versions this release accepts (``Component.contract``). See ``lyrics.core.contracts`` for what each kind
#: promises.
CONTRACTS = (1,)

#: The built-in tokenizer that knows no words; no vocabulary may have this name.
BYTES = "bytes"

hookimpl = pluggy.HookimplMarker("lyrics")


class Options(FormerNames):
    """Base of every component's options: frozen, unknown keys refused, every default stated here and nowhere else.

    Give each field a ``Field(description=...)`` and its range (``ge``, ``le``): ``lyrics show NAME`` prints them and a
    value outside is refused with its place in the spec. A field or property named ``feature_dim`` lets parts be
    compared before anything is built; so do ``segments`` of a query transformer and ``needs_segments`` of an objective
    (``lyrics.core.contracts``). A field that is renamed stays known for a while by
    ``FORMER_NAMES = {"former_name": "name"}``.
    """

    # `defer_build`: listing components must not pay for validators that only a build needs.
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )


class CheckpointOptions(Options):
    """Base of options whose numbers a checkpoint's own ``config.json`` states: each that is None is the checkpoint's.

    ``PUBLIC`` holds the numbers of the default checkpoint. They serve where no configuration is at hand: for random
    weights, where nothing is downloaded, and for a checkpoint in another format than transformers'.
    """

    PUBLIC: ClassVar[Mapping[str, Any]] = {}

    checkpoint: str | None = None

    @property
    def stated(self) -> dict[str, Any]:
        """The numbers of the model that are set; what is not is left to the checkpoint."""
        return {name: value for name in self.PUBLIC if (value := getattr(self, name)) is not None}

    @property
    def numbers(self) -> dict[str, Any]:
        """All numbers of the model: those that are set, and otherwise the default checkpoint's."""
        return {**self.PUBLIC, **self.stated}

    @property
    def is_known(self) -> bool:
        """Whether ``numbers`` are the model's for certain: all are set, or the checkpoint is the default one."""
        default = type(self).model_fields["checkpoint"].default
        return len(self.stated) == len(self.PUBLIC) or self.checkpoint in (None, default)


@dataclass(frozen=True)
class NamesWeights:
    """Marks an option that names pretrained files: a hub id, a file, a folder, or ``package:NAME/PATH``.

    ``lyrics list`` then says, without building anything, what a part or a preset still needs::

        checkpoint: Annotated[str | None, NamesWeights(required=True)] = Field(None, description="...")

    Args:
        required: whether the part refuses to be built with pretrained weights while the option is null.
    """

    required: bool = False


@dataclass(frozen=True)
class NamesVocabulary:
    """Marks an option that names a built-in tokenizer: ``bytes``, or a vocabulary that some plugin provides.

    The name is looked up when a specification is resolved, and a preset prefers the vocabulary of its own
    distribution::

        builtin_tokenizer: Annotated[str, NamesVocabulary()] = Field("bytes", description="...")

    ``lyrics.types.builtin_tokenizer(name, special_tokens, context.registry)`` makes the tokenizer in the build.
    """


class NoOptions(Options):
    """For a component that has nothing to set."""


@dataclass(frozen=True)
class Converter:
    """How ``lyrics convert`` makes weights of a component from a public checkpoint of another project.

    Args:
        format: kebab-case name of the checkpoint's format. Components that declare the same format are alternatives
            (they read the same result), or, with ``whole_model``, parts of one model.
        convert: ``"package.module:callable"``, called as ``callable(source, options, context)`` with a
            ``SourceCheckpoint``, the component's options and a ``BuildContext``; returns a ``ConversionPlan`` (all in
            ``lyrics.types``). Imported only when a checkpoint is converted.
        marks: keys that every checkpoint of the format has. They tell which format a file is of.
        summary: one line for ``lyrics convert --help``.
        whole_model: the checkpoint is of a model whose other parts convert their own tensors; the format has the
            name of the preset that it fills, and the plan names tensors as the component's own state dict does.
        published: where checkpoints of the format are to be had, each in a form that ``lyrics convert`` takes as SRC
            (``hub:OWNER/NAME/FILE`` or an address).
        beside: what belongs beside a checkpoint and is published elsewhere: file name -> its address (``https://``). A
            SRC that is fetched has them fetched, too; their SHA-256 go into the report.
    """

    format: str
    convert: str
    marks: tuple[str, ...] = ()
    summary: str = ""
    whole_model: bool = False
    published: tuple[str, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.format):
            raise ValueError(f"{self.format!r} is not the name of a format: lower-case words joined by hyphens")
        if not re.fullmatch(r"\w+(\.\w+)*:\w+", self.convert):
            raise ValueError(
                f"converter {self.format!r}: convert must be 'package.module:callable', not {self.convert!r}"
            )


@renamed(licence="license")
@dataclass(frozen=True)
class Component:
    """One swappable part, described without importing it.

    Args:
        kind: one of ``KINDS``.
        name: kebab-case, unique for its kind within the distribution.
        build: ``"package.module:callable"``, called as ``callable(options, context)`` with an instance of
            ``options`` and a ``lyrics.core.contracts.BuildContext``. Imported only when the component is built.
        options: subclass of ``Options``.
        requires: requirement strings (``"timm>=1.0"``) checked before the build.
        install: the command to print when a requirement is unmet.
        summary: one line for ``lyrics list``.
        license: license of the code and of the weights that the default options name.
        weights_licenses: licenses of checkpoints that presets or documentation name: hub id -> the license, by the
            hub's name for it (``apache-2.0``). A model card beside the files counts more.
        contract: version of the kind's contract that the component keeps.
        test_options: options under which the component is small and builds offline; the conformance suite uses them.
        converters: public checkpoints of other projects that ``lyrics convert`` turns into this component's weights.
        capabilities: what the component does beside what every one of its kind does. ``compares_across_batch``: an
            objective compares samples of a batch with each other, so that its loss is no sum over micro-batches.
            ``reads_known_objects``: an expert of the refiner takes the objects that come with an image
            (``ImageBatch.known_objects``) instead of looking at it. ``reads_boxes_in_captions``: an objective has no
            terms where captions give no box in whole numbers (``PretrainBatch.regions``).
    """

    kind: Kind
    name: str
    build: str
    options: type[Options] = NoOptions
    requires: tuple[str, ...] = ()
    install: str = ""
    summary: str = ""
    license: str = ""
    weights_licenses: Mapping[str, str] = field(default_factory=dict)
    contract: int = 1
    test_options: Mapping[str, Any] = field(default_factory=dict)
    converters: tuple[Converter, ...] = ()
    capabilities: tuple[Capability, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A named training configuration.

    ``config`` is ``"package.module:callable"``, which returns a ``lyrics.core.runs.config.TrainConfig``. It is
    imported when the recipe is used, and not before.
    """

    name: str
    config: str
    summary: str = ""


@dataclass(frozen=True)
class Vocabulary:
    """Words that a built-in tokenizer knows as one token each.

    A query transformer or a language model without a tokenizer of its own takes it by name
    (``builtin_tokenizer: NAME``); any other text is spelled in bytes.

    Args:
        name: kebab-case, unique within the distribution, not ``bytes``.
        words: ``"package.module:callable"``, which returns lists of words of the letters A to Z and a to z; a capital
            makes another word. Imported when a tokenizer is made. The tokens of a later list follow all others, so
            append a new list for words that come later: what was trained before keeps its ids.
        summary: one line for ``lyrics list``.
    """

    name: str
    words: str
    summary: str = ""


@dataclass(frozen=True)
class Template:
    """A named chat template, for the option ``chat_template`` of language models.

    Args:
        name: kebab-case, unique within the distribution.
        template: ``"package.module:attribute"``, which names a ``lyrics.types.ChatTemplate``, or the text of a template
            in Jinja, as transformers' tokenizers have it. Imported when the template is used.
        summary: one line.
    """

    name: str
    template: str
    summary: str = ""


@dataclass(frozen=True)
class PublicModel:
    """Models of another project that are read into parts of this library, told by their ``config.json``.

    ``lyrics.load_model`` and ``lyrics ask --model`` then take a folder or a hub id of such a model, and
    ``model.start_from`` begins training with its trained parts.

    Args:
        name: kebab-case, unique within the distribution.
        model_type: what the entry of that name in ``config.json`` says.
        read: ``"package.module:callable"``, called with a ``PublicCheckpoint``; returns a ``PublicPlan`` (both in
            ``lyrics.types``). Imported when such a model is read.
        summary: one line.
    """

    name: str
    model_type: str
    read: str
    summary: str = ""


@dataclass(frozen=True)
class Preset:
    """A named model, or a named refiner: a function that returns its specification.

    A function that returns a ``RefinerSpec`` names a refiner alone, for ``lyrics refine`` and ``build_refiner``.

    ``reported_trainable`` is the number of trainable parameters that the model's source reports, if it does, and
    ``reported_note`` says why ours may differ; ``lyrics check`` prints both.

    ``weights`` names what training made of it, where that ships with the package: a model folder of trained parts
    (``save_pretrained(folder, trainable_only=True)``), as ``package:NAME/PATH``.
    """

    name: str
    spec: Callable[[], ModelSpec | RefinerSpec]
    summary: str = ""
    weights: str | None = None
    reported_trainable: int | None = None
    reported_note: str = ""
