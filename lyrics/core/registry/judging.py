"""What is wrong with a record that a plugin yields: judged without importing what the record names."""

from __future__ import annotations

import re
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from lyrics.core.clean_text import one_line
from lyrics.core.errors import did_you_mean
from lyrics.core.registry.component import (
    BYTES,
    CAPABILITIES,
    CONTRACTS,
    KINDS,
    Component,
    Converter,
    Options,
    Preset,
    PublicModel,
    Recipe,
    Template,
    Vocabulary,
)

#: Most characters of a name.
LONGEST_NAME = 64
_WORD = re.compile(r"[A-Za-z]+")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_BUILD = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def problem_with_component(record: Any) -> str | None:
    """Return what is wrong with a yielded record, judged without importing what it names."""
    if not isinstance(record, Component):
        return f"lyrics_components yielded a {type(record).__name__}, not a lyrics.Component."
    if record.kind not in KINDS:
        return f"component {_repr(record.name)} has the unknown kind {_repr(record.kind)}." + did_you_mean(
            str(record.kind), KINDS
        )
    if not isinstance(record.name, str) or not _NAME.fullmatch(record.name) or len(record.name) > LONGEST_NAME:
        return (
            f"{_repr(record.name)} is not a component name: lower-case words joined by hyphens, "
            f"{LONGEST_NAME} characters at most."
        )
    for field_name in ("install", "summary", "license"):
        if not isinstance(value := getattr(record, field_name), str):
            return f"{record.kind} {record.name!r}: {field_name} must be a string, not {value!r}."
    if not isinstance(record.build, str) or not _BUILD.fullmatch(record.build):
        return f"{record.kind} {record.name!r}: build must be 'package.module:callable', not {record.build!r}."
    if not (isinstance(record.options, type) and issubclass(record.options, Options)):
        return f"{record.kind} {record.name!r}: options must be a subclass of lyrics.Options, not {record.options!r}."
    if not isinstance(record.converters, tuple) or not all(isinstance(one, Converter) for one in record.converters):
        return (
            f"{record.kind} {record.name!r}: converters must be a tuple of lyrics Converter records, "
            f"not {record.converters!r}."
        )
    if not isinstance(record.capabilities, tuple) or not set(record.capabilities) <= set(CAPABILITIES):
        return (
            f"{record.kind} {record.name!r}: capabilities must be a tuple of {', '.join(CAPABILITIES)}, "
            f"not {record.capabilities!r}."
        )
    if record.contract not in CONTRACTS:
        known = ", ".join(str(version) for version in CONTRACTS)
        return (
            f"{record.kind} {record.name!r} keeps contract version {record.contract}; this lyrics knows {known}. "
            "Update whichever is older."
        )
    if not isinstance(record.requires, tuple | list) or not all(isinstance(text, str) for text in record.requires):
        return (
            f"{record.kind} {record.name!r}: requires must be a tuple of requirement strings, not {record.requires!r}."
        )
    for requirement in record.requires:
        try:
            Requirement(requirement)
        except InvalidRequirement as error:
            why = str(error).splitlines()[0]
            return f"{record.kind} {record.name!r}: the requirement {requirement!r} is not valid: {why}."
    return None


def problem_with_recipe(record: Any) -> str | None:
    if not isinstance(record, Recipe):
        return f"lyrics_recipes yielded a {type(record).__name__}, not a lyrics.Recipe."
    if problem := _problem_with_name(record.name, "recipe"):
        return problem
    if not isinstance(record.summary, str):
        return f"recipe {record.name!r}: summary must be a string, not {_repr(record.summary)}."
    if not isinstance(record.config, str) or not _BUILD.fullmatch(record.config):
        return f"recipe {record.name!r}: config must be 'package.module:callable', not {_repr(record.config)}."
    return None


def problem_with_vocabulary(record: Any) -> str | None:
    if not isinstance(record, Vocabulary):
        return f"lyrics_vocabularies yielded a {type(record).__name__}, not a lyrics.Vocabulary."
    if problem := _problem_with_name(record.name, "vocabulary"):
        return problem
    if record.name == BYTES:
        return f"{BYTES!r} is not a vocabulary name: it is the built-in tokenizer without words."
    if not isinstance(record.summary, str):
        return f"vocabulary {record.name!r}: summary must be a string, not {_repr(record.summary)}."
    if not isinstance(record.words, str) or not _BUILD.fullmatch(record.words):
        return f"vocabulary {record.name!r}: words must be 'package.module:callable', not {_repr(record.words)}."
    return None


def problem_with_template(record: Any) -> str | None:
    if not isinstance(record, Template):
        return f"lyrics_templates yielded a {type(record).__name__}, not a lyrics.Template."
    if problem := _problem_with_name(record.name, "chat template"):
        return problem
    if not isinstance(record.summary, str):
        return f"chat template {record.name!r}: summary must be a string, not {_repr(record.summary)}."
    if not isinstance(record.template, str) or not _BUILD.fullmatch(record.template):
        return (
            f"chat template {record.name!r}: template must be 'package.module:attribute', not {_repr(record.template)}."
        )
    return None


def problem_with_public_model(record: Any) -> str | None:
    if not isinstance(record, PublicModel):
        return f"lyrics_public_models yielded a {type(record).__name__}, not a lyrics.PublicModel."
    if problem := _problem_with_name(record.name, "public model"):
        return problem
    for field_name in ("model_type", "summary"):
        if not isinstance(value := getattr(record, field_name), str):
            return f"public model {record.name!r}: {field_name} must be a string, not {_repr(value)}."
    if not isinstance(record.read, str) or not _BUILD.fullmatch(record.read):
        return f"public model {record.name!r}: read must be 'package.module:callable', not {_repr(record.read)}."
    return None


def problem_with_words(found: Any) -> str | None:
    """Return what is wrong with the lists of words that a vocabulary returns."""
    if not isinstance(found, list | tuple) or not all(isinstance(one, list | tuple) for one in found):
        return f"its words must be lists in a list, not {_repr(found)}."
    seen: set[str] = set()
    for word in (word for one in found for word in one):
        if not isinstance(word, str) or not _WORD.fullmatch(word):
            return f"{_repr(word)} is no word of the letters A to Z and a to z."
        if word in seen:
            return f"{word!r} is there twice."
        seen.add(word)
    return None if seen else "it has no words."


def _problem_with_name(name: Any, what: str) -> str | None:
    named = isinstance(name, str) and re.fullmatch(r"[a-z0-9]+([-.][a-z0-9]+)*", name) and len(name) <= LONGEST_NAME
    if named:
        return None
    return f"{_repr(name)} is not a {what} name: lower-case words joined by hyphens, {LONGEST_NAME} characters at most."


def problem_with_preset(record: Any) -> str | None:
    if not isinstance(record, Preset):
        return f"lyrics_presets yielded a {type(record).__name__}, not a lyrics.Preset."
    if problem := _problem_with_name(record.name, "preset"):
        return problem
    for field_name in ("summary", "reported_note"):
        if not isinstance(value := getattr(record, field_name), str):
            return f"preset {record.name!r}: {field_name} must be a string, not {_repr(value)}."
    if not isinstance(record.weights, str | None):
        return f"preset {record.name!r}: weights must be a string or None, not {record.weights!r}."
    if not callable(record.spec):
        return f"preset {record.name!r}: spec must be a function returning a ModelSpec, not {record.spec!r}."
    return None


def _repr(value: Any) -> str:
    return one_line(repr(value), 80)
