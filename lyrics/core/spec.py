"""What a model is, as plain data: ``ModelSpec``, its slots, dotted overrides, and YAML and JSON files.

Validation has two steps. This file does the first: structure, names of fields, types. A slot's ``options`` stay a
mapping here; they are validated by the component's own ``Options`` class when the spec is resolved
(``lyrics.core.build.resolve``), so that third-party components are validated exactly as ours.
"""

from __future__ import annotations

import contextlib
import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, cast, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from lyrics.core.errors import SpecError, UnknownNameError, did_you_mean
from lyrics.core.json_reading import parse_json, read_text
from lyrics.core.renamed_fields import BOTH_NAMES, FormerNames
from lyrics.core.renaming import current_names

M = TypeVar("M", bound=BaseModel)
#: Lists and mappings within each other in a part's options. Real options need three; a spec that refers to itself needs
#: infinitely many.
MAX_DEPTH = 32


class _Frozen(FormerNames):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )


class Slot(_Frozen):
    """A place for a component: ``{use: name, options: {...}}``. A bare string is a slot without options."""

    use: str = Field(min_length=1, description="name of the component, or distribution/name")
    options: Annotated[dict[str, JsonValue], BeforeValidator(lambda value: _plain(value))] = Field(
        default_factory=dict, description="the component's own options"
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_a_bare_name(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value


class ObjectiveSlot(Slot):
    """A loss of stage 1 and its factor in the sum."""

    weight: float = Field(
        1.0,
        ge=0,
        description="factor of this loss in the sum; equation 5 of the paper is the plain sum. 0 keeps its parameters "
        "for a later stage, and does not compute it",
    )


class RefinerSpec(_Frozen):
    """The visual refiner: tagger -> detector -> segmenter. Any part may be absent."""

    tagger: Slot | None = Field(None, description="names what is in the image; null: the caller gives the tags")
    detector: Slot | None = Field(None, description="boxes for the tags, and local tokens")
    segmenter: Slot | None = Field(None, description="a mask and a local token for each box")
    max_objects: int = Field(100, ge=1, description="objects kept per image, best first")


class Specification(_Frozen):
    """What a specification of a model and that of a refiner alone have in common."""

    if TYPE_CHECKING:  # each declares them in its own order, in which they are written
        refiner: RefinerSpec | None
        distributions: dict[str, str]

    def slots(self) -> Iterator[tuple[str, str, Slot]]:
        """Yield (spec path, kind, slot) of every part that the spec names, in the order of a forward pass."""
        if self.refiner is not None:
            for part in ("tagger", "detector", "segmenter"):
                slot = getattr(self.refiner, part)
                if slot is not None:
                    yield f"refiner.{part}", part, slot

    def with_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """Return a copy with dotted paths set, e.g. ``{"refiner.detector": "cached"}``.

        Giving a slot another ``use`` drops the options of the part it replaces. ``None`` removes an entry that has a
        name of the user's choice, such as ``{"objectives.msp": None}``. Raises ``SpecError`` for a path that does not
        exist, with the nearest one that does.
        """
        check_overrides(overrides)
        data = self.model_dump(mode="json")
        for path, value in sorted(current_paths(overrides, type(self)).items(), key=_replacements_first):
            set_path(data, path, value, type(self))
        return validate(data, type(self))


_DISTRIBUTIONS = "spec path -> 'distribution version' of the part; written when a model is built"


class RefinerOnlySpec(Specification):
    """A visual refiner without the model around it: a file with no key but ``refiner``."""

    refiner: RefinerSpec = Field(description="the experts")
    distributions: dict[str, str] = Field(default_factory=dict, description=_DISTRIBUTIONS)


class ModelSpec(Specification):
    """A whole model as data.

    Every field can be set by an override, such as ``refiner.detector.options.box_threshold=0.3``.
    """

    image_encoder: Slot = Field(description="global features of the image")
    refiner: RefinerSpec | None = Field(
        None, description="objects of the image; null: the model sees the image as a whole"
    )
    query_transformer: Slot = Field(description="compresses features into query outputs")
    language_model: Slot = Field(description="reads soft tokens and text, and answers")
    objectives: dict[str, ObjectiveSlot] = Field(
        default_factory=dict, description="losses of stage 1, by a name of your choice"
    )
    codec: Literal["lyrics", "released", "shikra", "qwen", "pixel"] = Field(
        "lyrics", description="how boxes are written in text"
    )
    sees: tuple[Literal["spatial", "instruction"], ...] = Field(
        ("spatial", "instruction"), description="texts that the query transformer reads in stage 2"
    )
    spatial_in_prompt: bool = Field(
        True, description="whether the language model reads the spatial representation as text, after each image"
    )
    train_image_encoder: bool = Field(
        False, description="whether both stages train the image encoder, too; it is frozen in the paper"
    )

    distributions: dict[str, str] = Field(default_factory=dict, description=_DISTRIBUTIONS)

    @field_validator("objectives")
    @classmethod
    def _names_fit_into_a_path(cls, objectives: dict[str, ObjectiveSlot]) -> dict[str, ObjectiveSlot]:
        for name in objectives:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"the name {name!r} of a loss must be letters, digits, hyphens and underscores")
        return objectives

    def slots(self) -> Iterator[tuple[str, str, Slot]]:
        yield "image_encoder", "image-encoder", self.image_encoder
        yield from super().slots()
        yield "query_transformer", "query-transformer", self.query_transformer
        yield "language_model", "language-model", self.language_model
        for name, slot in self.objectives.items():
            yield f"objectives.{name}", "objective", slot


def check_overrides(overrides: object) -> None:
    """Raise ``SpecError`` unless these are dotted paths with their values."""
    if not isinstance(overrides, Mapping) or not all(isinstance(path, str) for path in overrides):
        raise SpecError(
            "overrides: a mapping of dotted paths to values, such as {'refiner.tagger': None}, "
            f"not {_short(overrides)}."
        )


def current_paths(overrides: Mapping[str, Any], root: type[BaseModel]) -> dict[str, Any]:
    """Return overrides of a ``root`` with the current names of its fields in their paths; former ones warn.

    Raises ``SpecError`` where both name the same field.
    """
    former_paths = {path: current for path in overrides if (current := _current_path(path, root)) != path}
    return current_names(overrides, former_paths, error=SpecError)


def _current_path(path: str, root: type[BaseModel]) -> str:
    keys, schema = path.split("."), cast(Schema | None, root)
    for index, key in enumerate(keys):
        if _is_model(schema, FormerNames):
            keys[index] = cast(type[FormerNames], schema).FORMER_NAMES.get(key, key)
        schema = None if schema is None else _child(schema, keys[index])
    return ".".join(keys)


def _replacements_first(item: tuple[str, Any]) -> tuple[int, bool]:
    """Return a sort key: a whole slot and its ``use`` come before its options, however the overrides were ordered."""
    parts = item[0].split(".")
    return len(parts), parts[-1] != "use"


class _Free:
    """Schema of what a component's own Options will judge: any key is allowed here."""


class _Leaf:
    """Schema of a value without keys."""


Schema = Any  # a BaseModel class, a dict annotation, _Free or _Leaf


def _is_dict(annotation: Any) -> bool:
    origin: Any = get_origin(annotation)
    return origin is dict


def _schema_of(annotation: Any) -> Schema:
    """Return what stands under a field of this annotation, seen through Optional and Annotated."""
    if annotation is JsonValue:
        return _Free
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if _is_dict(annotation):
        return annotation
    found = [_schema_of(argument) for argument in get_args(annotation)]
    return next((schema for schema in found if schema is not _Leaf), _Leaf)


def _child(schema: Schema, key: str) -> Schema | None:
    """Return the schema under ``key``, or None when there is no such key."""
    if schema is _Free:
        return _Free
    if schema is _Leaf:
        return None
    if _is_dict(schema):
        return _schema_of(get_args(schema)[1])
    field = schema.model_fields.get(key)
    return None if field is None else _schema_of(field.annotation)


def set_path(data: dict[str, Any], path: str, value: Any, root: type[BaseModel]) -> None:
    """Set a dotted path in the plain data of a ``root``, in place.

    ``None`` removes a named entry, such as ``objectives.msp``.

    Raises ``SpecError`` for a path that does not exist.
    """
    keys = path.split(".")
    if not all(keys):
        raise SpecError(f"override {path!r}: a path is names joined by dots, such as refiner.detector.")
    node, schema = data, cast(Schema, root)
    for depth, key in enumerate(keys):
        here = ".".join(keys[:depth])
        if not isinstance(node, dict):
            advice = f"Set {here} first." if node is None else f"Set {here} as a whole."
            raise SpecError(f"override {path!r}: {here} is {'null' if node is None else _short(node)}. {advice}")
        child = _child(schema, key)
        last = depth == len(keys) - 1
        if child is None or not (key in node or last or child is _Free):
            raise _no_such_path(path, here, key, list(node))
        if last and value is None and _is_dict(schema) and _is_model(child, BaseModel):
            if key not in node:
                raise _no_such_path(path, here, key, list(node))
            del node[key]
            return
        if last:
            if key == "use" and _is_model(schema, Slot) and node.get("use") != value:
                node["options"] = {}
            node[key] = _whole(value, child, path)
            return
        if child is _Free:
            node.setdefault(key, {})
        elif node[key] is None and child is RefinerSpec:
            # `refiner.detector=...` on a model without a refiner gives it one.
            node[key] = RefinerSpec().model_dump(mode="json")
        node, schema = node[key], child


def _whole(value: Any, schema: Schema, path: str) -> Any:
    """``value`` as plain data.

    A part given as a whole, by a bare name or some of its keys, gets all its keys for later overrides.
    """
    if value is not None and _is_model(schema, BaseModel):
        return validate(value, schema, where=path).model_dump(mode="json")
    if _is_dict(schema) and isinstance(value, Mapping):
        return {str(key): _whole(item, _child(schema, str(key)), f"{path}.{key}") for key, item in value.items()}
    try:
        return _plain(value)
    except SpecError as error:
        raise SpecError(f"override {path!r}: {error}") from None


def _is_model(schema: Schema, model: type[BaseModel]) -> bool:
    return isinstance(schema, type) and issubclass(schema, model)


def _no_such_path(path: str, here: str, key: str, choices: list[str]) -> SpecError:
    prefix = f"{here}." if here else ""
    hint = did_you_mean(key, choices)
    if not hint and "use" in choices:
        hint = f" An option of the part is written {prefix}options.{key}."
    known = ", ".join(prefix + choice for choice in choices) or "nothing"
    return UnknownNameError(f"override {path!r}: there is no {prefix}{key}.{hint} Known here: {known}.")


def _plain(value: Any, depth: int = 0) -> Any:
    """JSON's types from what Python callers write: tuples become lists, models their data.

    Raises ``SpecError`` beyond ``MAX_DEPTH``.
    """
    if depth > MAX_DEPTH:
        raise SpecError(f"options are nested {MAX_DEPTH} levels deep at most.")
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    return value


def validate(data: Any, model: type[M], *, where: str = "") -> M:
    """Return ``data`` as ``model``; every fault of it is in one ``SpecError``.

    The error names the path, the value and what was expected.

    ``where`` is put before each path; it is how options are reported at their place in the spec.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_sentence(fault, model, where) for fault in error.errors(include_url=False)]
        raise SpecError("\n".join(dict.fromkeys(lines))) from None


def _sentence(fault: Mapping[str, Any], model: type[BaseModel], where: str) -> str:
    keys = _keys_of(fault["loc"], model)
    path = ".".join((*([where] if where else []), *keys)) or "(top level)"
    value = fault.get("input")
    kind = fault["type"]
    if kind == "extra_forbidden":
        choices = _known_keys(model, keys[:-1])
        known = f" Known here: {', '.join(choices)}." if choices else ""
        return f"{path}: unknown key.{did_you_mean(keys[-1], choices)}{known}"
    if kind == BOTH_NAMES:
        return f"{path}: {fault['msg']}"
    if kind == "missing":
        return f"{path}: is required and was not given."
    if kind == "literal_error":
        expected = fault["ctx"]["expected"]
        hint = did_you_mean(str(value), [choice.strip("' ") for choice in expected.replace(" or ", ",").split(",")])
        return f"{path}: {_short(value)} is not allowed; allowed: {expected}.{hint}"
    if kind == "model_type":
        wanted = "a component's name or a mapping with use and options" if "Slot" in fault["msg"] else "a mapping"
        return f"{path}: {_short(value)} is not allowed; should be {wanted}."
    if kind == "value_error" and isinstance(value, Mapping | BaseModel) and _known_keys(model, keys):
        # A check of the whole record, which says by itself what does not go together; the record would fill the screen.
        told = fault["msg"].removeprefix("Value error, ").rstrip(".")
        return f"{path}: {told}." if where or keys else f"{told}."
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    verb = "should be " if fault["msg"].startswith("Input should be ") else ""
    return f"{path}: {_short(value)} is not allowed; {verb}{message[:1].lower()}{message[1:].rstrip('.')}."


def _keys_of(loc: tuple[str | int, ...], model: type[BaseModel]) -> tuple[str, ...]:
    """Return the path of a fault without pydantic's own words.

    Those are the name of a validator and, between the keys of free data, their JSON types.
    """
    keys = [str(key) for key in loc if not (isinstance(key, str) and key.startswith("function-"))]
    schema: Schema | None = model
    for index, key in enumerate(keys):
        if schema is None:
            break
        if schema is _Free:
            return (*keys[:index], *keys[index + 1 :: 2])
        schema = _child(schema, key)
    return tuple(keys)


def _known_keys(model: type[BaseModel], keys: tuple[str, ...]) -> list[str]:
    schema: Schema | None = model
    for key in keys:
        schema = _child(schema, key)
    return list(schema.model_fields) if isinstance(schema, type) and issubclass(schema, BaseModel) else []


_REPR = reprlib.Repr()  # of bounded depth and length, whatever the value
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60


def _short(value: Any) -> str:
    text = _REPR.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


#: Words of the text in the parser's messages; what they expected, such as '<document start>', is the parser's own.
_QUOTED = re.compile(r"'(?!<)[^']{3,}'|\"[^\"]{3,}\"")
_KINDS: Mapping[type, str] = {type(None): "this is empty", str: "this is a text", list: "this is a list"}


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice: YAML itself lets the last one win without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                raise SpecError(f"line {key_node.start_mark.line + 1}: the key {_short(key)} is given twice.")
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise SpecError(
                f"line {line}: aliases are not read (a few lines of them can stand for gigabytes); write the value out."
            )
        return super().compose_node(parent, index)


def _reader_problem(error: yaml.YAMLError) -> str:
    """Of text with characters that YAML has not."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"unacceptable character #x{error.character:04x}"
    return type(error).__name__


def parse_yaml(text: str, *, source: str = "text") -> Any:
    """Return plain data from YAML or JSON text. Raises ``SpecError`` naming ``source`` and the line."""
    loader = None
    try:
        if text.lstrip().startswith("{"):
            # YAML 1.1 is not quite JSON's superset: it reads 1e-12 as a string, and splits surrogate pairs.
            with contextlib.suppress(SpecError):
                return parse_json(text, error=SpecError, unique_keys=True)
        loader = _UniqueKeyLoader(text)
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        # The file may be any file of this machine: what it says is not repeated, only what is wrong with it.
        problem = _QUOTED.sub("a word", str(getattr(error, "problem", None) or _reader_problem(error)))
        raise SpecError(f"{source}{line}: not valid YAML or JSON: {problem}.") from None
    except SpecError as error:
        raise SpecError(f"{source}, {error}") from None
    except (RecursionError, ValueError) as error:
        raise SpecError(f"{source}: not valid YAML or JSON: {type(error).__name__}.") from None
    finally:
        if loader is not None:
            loader.dispose()


def loads(text: str, *, source: str = "text") -> ModelSpec:
    """Return a model's spec from YAML or JSON text. Raises ``SpecError``, also for the spec of a refiner alone."""
    return whole_model(loads_any(text, source=source), source)


def loads_any(text: str, *, source: str = "text") -> ModelSpec | RefinerOnlySpec:
    """As ``loads``; text with no other key than ``refiner`` (and ``distributions``) is a refiner alone."""
    data = parse_yaml(text, source=source)
    if not isinstance(data, dict):
        raise SpecError(
            f"{source}: a model spec is a mapping with keys such as image_encoder, and "
            f"{_KINDS.get(type(data), 'this is a value')}."
        )
    try:
        return validate_any(data)
    except SpecError as error:
        raise SpecError("\n".join(f"{source}: {line}" for line in str(error).splitlines())) from None


def validate_any(data: Mapping[str, Any]) -> ModelSpec | RefinerOnlySpec:
    """Return plain data as the spec of a model, or of a refiner alone where no key is a model's.

    Raises ``SpecError``.
    """
    if data.get("refiner") is not None and set(data) <= set(RefinerOnlySpec.model_fields):
        return validate(dict(data), RefinerOnlySpec)
    return validate(dict(data), ModelSpec)


def whole_model(spec: ModelSpec | RefinerOnlySpec, source: str) -> ModelSpec:
    """Return the spec, if it is of a whole model.

    Raises ``SpecError`` naming ``source`` for that of a refiner alone.
    """
    if isinstance(spec, ModelSpec):
        return spec
    raise SpecError(
        f"{source}: is a refiner alone, without image encoder, query transformer and language model; lyrics refine "
        "--spec and build_refiner take it, here a whole model is needed (to change the refiner of one, set "
        "refiner.tagger, refiner.detector, refiner.segmenter)."
    )


def dumps(spec: ModelSpec | RefinerOnlySpec, *, format: Literal["yaml", "json"] = "yaml") -> str:
    """Return the spec as text; ``loads_any(dumps(spec)) == spec``."""
    data = spec.model_dump(mode="json")
    if format == "json":
        return json.dumps(data, indent=2) + "\n"
    return yaml.safe_dump(data, sort_keys=False, width=120, allow_unicode=True)


def load(path: str | Path) -> ModelSpec:
    """Return a model's spec from a ``.yaml``, ``.yml`` or ``.json`` file. Raises ``SpecError`` naming the file."""
    return whole_model(load_any(path), str(path))


def load_any(path: str | Path) -> ModelSpec | RefinerOnlySpec:
    """As ``load``, also of a refiner alone."""
    return loads_any(read_text(path, SpecError), source=str(path))


def dump(spec: ModelSpec | RefinerOnlySpec, path: str | Path) -> None:
    """Write a spec to a ``.yaml``, ``.yml`` or ``.json`` file."""
    path = Path(path)
    if path.suffix not in {".yaml", ".yml", ".json"}:
        raise SpecError(f"{path}: a spec is written as .yaml, .yml or .json.")
    path.write_text(dumps(spec, format="json" if path.suffix == ".json" else "yaml"), encoding="utf-8")
