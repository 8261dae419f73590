"""Which parts exist: discover plugins, isolate broken ones, look components and presets up.

This is the only file that touches pluggy. Entry points in group ``lyrics`` find the plugins; each is loaded by itself,
in a manager of its own, so that a failure stays with the plugin it belongs to and is shown when its name is asked for.
Built-ins come the same way as third-party ones and have no priority over them. Nothing heavy is imported here: a
component's ``build`` string is resolved when it is built.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import pkgutil
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lyrics.core.clean_text import one_line
from lyrics.core.errors import AmbiguousNameError, LyricsError, PluginError, UnknownNameError, did_you_mean
from lyrics.core.json_reading import parse_json
from lyrics.core.registry import hookspecs, judging, plugin_process
from lyrics.core.registry.component import (
    BYTES,
    KINDS,
    Component,
    NamesVocabulary,
    Options,
    Preset,
    PublicModel,
    Recipe,
    Template,
    Vocabulary,
)
from lyrics.core.spec import ModelSpec, RefinerOnlySpec, RefinerSpec, Slot

S = TypeVar("S", ModelSpec, RefinerOnlySpec)
GROUP = "lyrics"
DISTRIBUTION = "lyrics-vl"
#: What a user can do about a plugin that is in the way.
_LEAVE_OUT = "Until that is fixed, uninstall it or set LYRICS_PLUGINS=none (or to the names of those to keep)."
HEAVY_MODULES = ("torch", "transformers", "triton", "timm", "torchvision")
R = TypeVar("R", Component, Preset, Recipe, Vocabulary, Template, PublicModel)
N = TypeVar("N", Preset, Recipe, Vocabulary, Template)
#: Most characters of what a record says in words.
_LONGEST = {"summary": 160, "license": 200, "install": 300, "reported_note": 1000}
_MANIFEST = re.compile(r"\w+(\.\w+)*(\s*:\s*\w+(\.\w+)*)?")


@dataclass(frozen=True)
class PluginSource:
    """Where a plugin comes from. ``module`` is its manifest, as the entry point names it."""

    distribution: str
    version: str
    entry_point: str
    module: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} (entry point {self.entry_point!r})"


@dataclass(frozen=True)
class Failure:
    """A plugin, or one record of a plugin, that cannot be used, and why."""

    source: PluginSource
    cause: str
    traceback: str = ""
    kind: str = ""
    name: str = ""


@dataclass(frozen=True)
class Entry:
    """A component with its origin."""

    component: Component
    source: PluginSource

    @property
    def qualified_name(self) -> str:
        return f"{self.source.distribution}/{self.component.name}"

    def unmet(self) -> list[str]:
        """Return the requirements that this environment does not meet, each with what is there instead."""
        return [complaint for text in self.component.requires if (complaint := _unmet(text))]


@dataclass
class Plugin:
    """What came of loading one entry point."""

    source: PluginSource
    seconds: float = 0.0
    heavy_imports: tuple[str, ...] = ()
    components: list[Component] = field(default_factory=list)
    presets: list[Preset] = field(default_factory=list)
    recipes: list[Recipe] = field(default_factory=list)
    vocabularies: list[Vocabulary] = field(default_factory=list)
    templates: list[Template] = field(default_factory=list)
    public_models: list[PublicModel] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class _Hook:
    """A hook, where its records are kept, and how they are judged.

    ``kind`` is what a record of it is called in messages; a component's is its own. ``texts`` are the fields that say
    something in words.
    """

    name: str
    field: str
    kind: str
    problem_with: Callable[[Any], str | None]
    texts: tuple[str, ...] = ("summary",)


_HOOKS = (
    _Hook("lyrics_components", "components", "", judging.problem_with_component, ("summary", "license", "install")),
    _Hook("lyrics_presets", "presets", "preset", judging.problem_with_preset, ("summary", "reported_note")),
    _Hook("lyrics_recipes", "recipes", "recipe", judging.problem_with_recipe),
    _Hook("lyrics_vocabularies", "vocabularies", "vocabulary", judging.problem_with_vocabulary),
    _Hook("lyrics_templates", "templates", "chat template", judging.problem_with_template),
    _Hook("lyrics_public_models", "public_models", "public model", judging.problem_with_public_model),
)
#: What a name may be of that is no component.
_NAMED = tuple(hook.kind for hook in _HOOKS if hook.kind)


class Registry:
    """The components, presets, recipes, vocabularies and chat templates of a set of plugins.

    Args:
        plugins: (origin, loader) pairs; a loader returns the module or object that holds the hooks, and may fail.
            ``discover`` makes them from entry points; tests give their own.
    """

    def __init__(self, plugins: Iterable[tuple[PluginSource, Callable[[], Any]]]) -> None:
        self.plugins = [_load(source, loader) for source, loader in plugins]

    @classmethod
    def discover(cls, *in_process: Any) -> Registry:
        """Return every installed plugin, and the given modules or objects as if they were installed.

        The environment variable ``LYRICS_PLUGINS`` limits third parties: ``none``, or distribution names separated by
        commas. Those that are left are tried in a process of their own first; one that would take this process with it,
        or never return, is left out and warned of. With built-ins alone no process is started.
        """
        found = _tried(_installed())
        found += [
            (PluginSource(_name_of(module), "in-process", _name_of(module)), functools.partial(_itself, module))
            for module in in_process
        ]
        return cls(found)

    @property
    def entries(self) -> list[Entry]:
        """Every usable component, sorted by kind and name."""
        found = [Entry(component, plugin.source) for plugin in self.plugins for component in plugin.components]
        return sorted(found, key=lambda e: (KINDS.index(e.component.kind), e.component.name, e.source.distribution))

    @property
    def failures(self) -> list[Failure]:
        return [failure for plugin in self.plugins for failure in plugin.failures]

    @property
    def presets(self) -> list[tuple[Preset, PluginSource]]:
        found = [(preset, plugin.source) for plugin in self.plugins for preset in plugin.presets]
        return sorted(found, key=lambda pair: (pair[0].name, pair[1].distribution))

    @property
    def recipes(self) -> list[tuple[Recipe, PluginSource]]:
        found = [(recipe, plugin.source) for plugin in self.plugins for recipe in plugin.recipes]
        return sorted(found, key=lambda pair: (pair[0].name, pair[1].distribution))

    @property
    def vocabularies(self) -> list[tuple[Vocabulary, PluginSource]]:
        found = [(vocabulary, plugin.source) for plugin in self.plugins for vocabulary in plugin.vocabularies]
        return sorted(found, key=lambda pair: (pair[0].name, pair[1].distribution))

    @property
    def templates(self) -> list[tuple[Template, PluginSource]]:
        found = [(template, plugin.source) for plugin in self.plugins for template in plugin.templates]
        return sorted(found, key=lambda pair: (pair[0].name, pair[1].distribution))

    @property
    def public_models(self) -> list[tuple[PublicModel, PluginSource]]:
        found = [(model, plugin.source) for plugin in self.plugins for model in plugin.public_models]
        return sorted(found, key=lambda pair: (pair[0].name, pair[1].distribution))

    def public_model(self, model_type: str) -> tuple[PublicModel, PluginSource] | None:
        """Return what reads models of that ``model_type``, and the plugin that brings it; None where nothing does.

        Raises ``AmbiguousNameError`` where two plugins do.
        """
        found = [(model, source) for model, source in self.public_models if model.model_type == model_type]
        if len(found) > 1:
            providers = " and ".join(str(source) for _, source in found)
            raise AmbiguousNameError(
                f"models of the type {model_type!r} are read by {providers}; limit them with LYRICS_PLUGINS."
            )
        return found[0] if found else None

    def component(self, kind: str, name: str) -> Entry:
        """Return the component called ``name``, bare or as ``distribution/name``.

        Raises ``UnknownNameError`` with the nearest name, ``AmbiguousNameError`` with both spellings, or
        ``PluginError`` when the name belongs to a plugin that failed.
        """
        if kind not in KINDS:
            raise UnknownNameError(f"there is no kind {kind!r}.{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}.")
        of_kind = [entry for entry in self.entries if entry.component.kind == kind]
        found = [entry for entry in of_kind if name in (entry.component.name, entry.qualified_name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise self._ambiguous(kind, name, [(entry.source, entry.qualified_name) for entry in found])
        raise self._unknown(kind, name, [entry.component.name for entry in of_kind])

    def preset(self, name: str) -> ModelSpec | RefinerOnlySpec:
        """Return the specification that the preset ``name`` returns: of a model, or of a refiner alone.

        A part that the preset names without its distribution is the preset's own distribution's, where two
        distributions provide it: a third-party component of the same name does not disturb a preset.
        """
        preset, source = self._preset(name)
        try:
            found = preset.spec()
        except LyricsError as error:
            raise PluginError(f"preset {name!r} of {source} is not valid: {error}") from error
        except Exception as error:
            raise PluginError(f"preset {name!r} of {source} failed: {describe(error)}") from error
        if isinstance(found, RefinerSpec):
            return self._prefer(RefinerOnlySpec(refiner=found), source.distribution)
        if not isinstance(found, ModelSpec):
            raise PluginError(f"preset {name!r} of {source} returned a {type(found).__name__}, not a ModelSpec.")
        return self._prefer(found, source.distribution)

    def preset_weights(self, name: str) -> str | None:
        """Return what the preset ``name`` says of its trained weights (``Preset.weights``). Raises as ``preset``."""
        return self._preset(name)[0].weights

    def recipe(self, name: str) -> Any:
        """Return the training configuration that the recipe ``name`` returns. Raises as ``preset``."""
        recipe, source = self._named("recipe", name, self.recipes)
        try:
            return pkgutil.resolve_name(recipe.config)()
        except LyricsError as error:
            raise PluginError(f"recipe {name!r} of {source} is not valid: {error}") from error
        except Exception as error:
            raise PluginError(f"recipe {name!r} of {source} failed: {describe(error)}") from error

    def vocabulary(self, name: str) -> tuple[tuple[str, ...], ...]:
        """Return the words of the vocabulary ``name``, in the lists in which they came.

        Raises as ``preset``; ``PluginError`` also where they are not lists of words made of letters, each word once.
        """
        vocabulary, source = self._named("vocabulary", name, self.vocabularies)
        try:
            found = pkgutil.resolve_name(vocabulary.words)()
        except Exception as error:
            raise PluginError(f"vocabulary {name!r} of {source} failed: {describe(error)}") from error
        if problem := judging.problem_with_words(found):
            raise PluginError(f"vocabulary {name!r} of {source} is not valid: {problem}")
        return tuple(map(tuple, found))

    def check_vocabulary(self, name: str) -> None:
        """Raise as ``vocabulary`` where no built-in tokenizer of that name exists. Imports no words."""
        if name != BYTES:
            self._named("vocabulary", name, self.vocabularies, others=(BYTES,))

    def template(self, name: str) -> tuple[Any, PluginSource]:
        """Return what the chat template ``name`` is, and the plugin that brings it. Raises as ``preset``."""
        template, source = self._named("chat template", name, self.templates)
        try:
            return pkgutil.resolve_name(template.template), source
        except Exception as error:
            raise PluginError(f"chat template {name!r} of {source} failed: {describe(error)}") from error

    def _preset(self, name: str) -> tuple[Preset, PluginSource]:
        return self._named("preset", name, self.presets)

    def _named(
        self, what: str, name: str, records: Sequence[tuple[N, PluginSource]], others: tuple[str, ...] = ()
    ) -> tuple[N, PluginSource]:
        found = [(one, s) for one, s in records if name in (one.name, f"{s.distribution}/{one.name}")]
        if len(found) > 1:
            raise self._ambiguous(what, name, [(s, f"{s.distribution}/{one.name}") for one, s in found])
        if not found:
            raise self._unknown(what, name, [*others, *(one.name for one, _ in records)])
        return found[0]

    def _prefer(self, spec: S, distribution: str) -> S:
        changes = {}
        for path, kind, slot in spec.slots():
            owners = {
                e.source.distribution for e in self.entries if (e.component.kind, e.component.name) == (kind, slot.use)
            }
            written = slot.model_dump(mode="json")
            options = {**written["options"], **self._preferred_vocabularies(kind, slot, distribution)}
            if len(owners) > 1 and distribution in owners:
                changes[path] = {**written, "use": f"{distribution}/{slot.use}", "options": options}
            elif options != written["options"]:
                changes[path] = {**written, "options": options}
        return spec.with_overrides(changes) if changes else spec

    def _preferred_vocabularies(self, kind: str, slot: Slot, distribution: str) -> dict[str, str]:
        """Options of a slot that name a vocabulary which two distributions provide, one of them the preset's own."""
        marked: set[str] = set()
        for entry in self.entries:
            if entry.component.kind == kind and slot.use in (entry.component.name, entry.qualified_name):
                marked |= vocabulary_options(entry.component.options).keys()
        found = {}
        for option in marked & slot.options.keys():
            value = slot.options[option]
            owners = {source.distribution for one, source in self.vocabularies if one.name == value}
            if len(owners) > 1 and distribution in owners:
                found[option] = f"{distribution}/{value}"
        return found

    def _ambiguous(self, kind: str, name: str, owners: list[tuple[PluginSource, str]]) -> AmbiguousNameError:
        providers = " and ".join(str(source) for source, _ in owners)
        spellings = " or ".join(repr(qualified) for _, qualified in owners)
        return AmbiguousNameError(f"{kind} {name!r} is provided by {providers}; write {spellings}.")

    def _unknown(self, kind: str, name: str, choices: list[str]) -> UnknownNameError | PluginError:
        bare = name.rpartition("/")[2]
        for failure in self.failures:
            if failure.name:
                # A record of a kind that does not exist answers to its name, whatever kind is asked for.
                belongs = failure.name == bare and (failure.kind == kind or failure.kind not in (*KINDS, *_NAMED))
            else:
                belongs = not {bare, name.partition("/")[0]}.isdisjoint(
                    (failure.source.distribution, failure.source.entry_point)
                )
            if belongs:
                asked = f"{kind} {name!r}" if failure.kind == kind else repr(name)
                return PluginError(
                    f"{asked}: the plugin {failure.source} is installed but broken: {failure.cause} See 'lyrics "
                    "doctor'."
                )
        message = f"no {kind} named {name!r}.{did_you_mean(bare, choices)}"
        elsewhere = sorted({e.component.kind for e in self.entries if e.component.name == bare})
        if elsewhere:
            message += f" {bare!r} is of kind {' and '.join(elsewhere)}."
        message += f" Installed: {', '.join(sorted(set(choices))) or 'none'}."
        if self.failures:
            broken = ", ".join(dict.fromkeys(str(failure.source) for failure in self.failures))
            message += f" Failed to load: {broken}; see 'lyrics doctor'."
        if not self.plugins:
            message += f" No plugin is installed at all, not even the built-in ones: run 'pip install {DISTRIBUTION}'."
        return UnknownNameError(message)


def vocabulary_options(options: type[Options]) -> dict[str, Any]:
    """Return the fields of a component's options that name a vocabulary (``NamesVocabulary``)."""
    return {
        name: field
        for name, field in options.model_fields.items()
        if any(isinstance(mark, NamesVocabulary) for mark in field.metadata)
    }


_lock = threading.RLock()
_discovering = False


@functools.cache
def _discover_once() -> Registry:
    return Registry.discover()


def default_registry() -> Registry:
    """Return the registry of everything installed, discovered at the first call and not before.

    Raises ``PluginError`` within a manifest: what it asks for is not known before it has been loaded itself.
    """
    global _discovering
    with _lock:
        if _discovering:
            raise PluginError(
                "a manifest asks for other plugins while they are being looked for; do that in its build."
            )
        _discovering = True
        try:
            return _discover_once()
        finally:
            _discovering = False


def describe(error: BaseException) -> str:
    """Return one line for an exception, ending in a full stop."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({one_line(repr(error.code))})."
    try:
        text = one_line(str(error), 300)
    except Exception:  # a third-party exception may even fail to say what it is
        text = ""
    return f"{type(error).__name__}: {text.rstrip('.')}." if text else f"{type(error).__name__}."


def _installed() -> list[tuple[PluginSource, Callable[[], Any]]]:
    """(origin, loader) of every entry point in the group.

    A distribution whose entry points cannot be read counts as one broken plugin.

    ``importlib.metadata.entry_points`` is not used: it fails as a whole when the metadata of one distribution is
    damaged.
    """
    found: dict[tuple[str, str], tuple[PluginSource, Callable[[], Any]]] = {}
    for distribution in importlib.metadata.distributions():
        try:
            manifests = [entry_point for entry_point in distribution.entry_points if entry_point.group == GROUP]
        except Exception as error:  # damaged metadata may raise anything
            source = PluginSource(*_identity(distribution), entry_point="entry_points.txt")
            problem = ValueError(f"its entry_points.txt cannot be read ({describe(error).rstrip('.')})")
            found.setdefault((source.distribution, ""), (source, functools.partial(_fail, problem)))
            continue
        if manifests:
            identity = _identity(distribution)
            for entry_point in manifests:
                source = PluginSource(*identity, one_line(entry_point.name, 100), entry_point.value.partition(":")[0])
                # Of two copies of a distribution the first on the path is the one that Python imports.
                loader = functools.partial(_load_manifest, entry_point)
                found.setdefault((source.distribution, entry_point.name), (source, loader))
    return _limited(list(found.values()))


def plugin_packages() -> frozenset[str]:
    """Top-level packages of the distributions that provide a plugin. Nothing is imported to find them."""
    modules = (source.module for source, _ in _installed())
    return frozenset(module.partition(".")[0] for module in modules if _MANIFEST.fullmatch(module))


def _tried(found: list[tuple[PluginSource, Callable[[], Any]]]) -> list[tuple[PluginSource, Callable[[], Any]]]:
    """Return the loaders, where one that does not survive the trial fails with what came of it.

    Nothing is remembered from one process to the next: a trial costs about as much as a manifest, 0.15 s, and what was
    true of a plugin yesterday need not be true under another driver or beside another package.
    """
    names = [str(source) for source, _ in found if canonicalize_name(source.distribution) != DISTRIBUTION]
    if not names or plugin_process.INSIDE in os.environ:
        return found
    trials = plugin_process.try_plugins(
        names, "from lyrics.core.registry.registry import load_in_child\nload_in_child()"
    )
    kept: list[tuple[PluginSource, Callable[[], Any]]] = []
    for source, loader in found:
        trial = trials.get(str(source), plugin_process.Trial())
        if trial.fatal:
            warnings.warn(
                f"the plugin {source} was left out: {trial.cause} {_LEAVE_OUT}",
                stacklevel=4,
            )
        kept.append((source, functools.partial(_fail, _TrialError(trial)) if trial.cause else loader))
    return kept


class _TrialError(Exception):
    """What came of a plugin in the process that tried it."""

    def __init__(self, trial: plugin_process.Trial) -> None:
        super().__init__(trial.cause)
        self.trial = trial


def load_in_child() -> None:
    """Load the plugins that ``sys.argv`` names, and report each to the parent process. Never returns."""
    global _discovering
    _discovering = True
    messages = plugin_process.Messages()
    loaders = {str(source): (source, loader) for source, loader in _installed()}
    for name in parse_json(sys.argv[1]):
        messages.begin(name)
        try:
            plugin = _load(*loaders[name])
            failed = next((failure for failure in plugin.failures if failure.traceback), None)
            for preset in plugin.presets:
                # `lyrics list` and `lyrics show` call it; what it raises is told there.
                with contextlib.suppress(Exception, SystemExit):
                    preset.spec()
            trial = plugin_process.Trial(
                failed.cause if failed else "", failed.traceback if failed else "", plugin.seconds
            )
        except KeyboardInterrupt:
            trial = plugin_process.Trial("it raised KeyboardInterrupt.", traceback.format_exc())
        messages.finish(name, trial)
    messages.end()


def _limited(found: list[tuple[PluginSource, Callable[[], Any]]]) -> list[tuple[PluginSource, Callable[[], Any]]]:
    """Without the third parties that ``LYRICS_PLUGINS`` leaves out."""
    wanted = os.environ.get("LYRICS_PLUGINS")
    if wanted is None:
        return found
    names = {canonicalize_name(name.strip()) for name in wanted.split(",") if name.strip()} - {"none"}
    unknown = names - {canonicalize_name(source.distribution) for source, _ in found}
    if unknown:
        warnings.warn(
            f"LYRICS_PLUGINS names {', '.join(sorted(unknown))}, which no installed plugin is called.", stacklevel=2
        )
    allowed = names | {canonicalize_name(DISTRIBUTION)}
    return [(source, loader) for source, loader in found if canonicalize_name(source.distribution) in allowed]


def _identity(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Name and version, as far as the metadata tell."""
    try:
        return one_line(distribution.name or "unknown", 100), one_line(distribution.version or "?", 100)
    except Exception:  # no metadata, or damaged
        return "unknown", "?"


def _load_manifest(entry_point: importlib.metadata.EntryPoint) -> Any:
    if not _MANIFEST.fullmatch(entry_point.value):
        raise ValueError(f"the entry point is {entry_point.value!r}, not 'package.module' or 'package.module:object'")
    return entry_point.load()


def _fail(error: Exception) -> Any:
    raise error


def _itself(module: Any) -> Any:
    return module


def _name_of(module: Any) -> str:
    return str(getattr(module, "__name__", type(module).__name__))


def _load(source: PluginSource, loader: Callable[[], Any]) -> Plugin:
    """Load one plugin. Never raises, save for KeyboardInterrupt: whatever goes wrong is kept in ``failures``."""
    plugin = Plugin(source)
    before = set(sys.modules)
    start = time.perf_counter()
    try:
        # A manifest that prints must not spoil the output of `lyrics list --json`.
        with contextlib.redirect_stdout(sys.stderr):
            module = loader()
            manager = pluggy.PluginManager(GROUP)
            manager.add_hookspecs(hookspecs)
            manager.register(module, name=f"{source.distribution}:{source.entry_point}")
            manager.check_pending()
            if not manager.get_hookcallers(module):
                names = [hook.name for hook in _HOOKS]
                raise TypeError(
                    f"it implements none of {', '.join(names[:-1])} and {names[-1]} (is @hookimpl missing?)"
                )
            found = [[record for result in getattr(manager.hook, hook.name)() for record in result] for hook in _HOOKS]
            seen: set[tuple[str, str]] = set()
            for hook, records in zip(_HOOKS, found, strict=True):
                _take_in(plugin, hook, records, seen)
    except KeyboardInterrupt:
        raise
    except _TrialError as error:
        advice = f" {_LEAVE_OUT}" if error.trial.fatal else ""
        plugin.failures.append(Failure(source, f"{error.trial.cause}{advice}", error.trial.output))
        plugin.seconds = error.trial.seconds
        return plugin
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        plugin.failures.append(Failure(source, describe(error), traceback.format_exc()))
    plugin.seconds = time.perf_counter() - start
    plugin.heavy_imports = tuple(name for name in HEAVY_MODULES if name in sys.modules and name not in before)
    return plugin


def _take_in(plugin: Plugin, hook: _Hook, records: Iterable[Any], seen: set[tuple[str, str]]) -> None:
    """Keep the records that are sound; each unsound one becomes a failure of its own."""
    kept: list[Any] = getattr(plugin, hook.field)
    for record in records:
        name = one_line(str(getattr(record, "name", "")), 100)
        kind = hook.kind or one_line(str(getattr(record, "kind", "")), 100)
        problem = _judged(hook.problem_with, record) or _repeated(seen, kind, name)
        if problem:
            plugin.failures.append(Failure(plugin.source, one_line(problem, 400), kind=kind, name=name))
        else:
            kept.append(_clean(record, hook.texts))


def _clean(record: R, names: Iterable[str]) -> R:
    """Return the record with these of its texts as they may be printed."""
    changes: dict[str, Any] = {name: one_line(getattr(record, name), _LONGEST[name]) for name in names}
    if isinstance(record, Component):
        changes["converters"] = tuple(replace(one, summary=one_line(one.summary)) for one in record.converters)
    changed = {name: value for name, value in changes.items() if value != getattr(record, name)}
    return replace(record, **changed) if changed else record


def _repeated(seen: set[tuple[str, str]], kind: str, name: str) -> str | None:
    if (kind, name) in seen:
        return f"it yields the {kind} {name!r} twice."
    seen.add((kind, name))
    return None


def _judged(problem_with: Callable[[Any], str | None], record: Any) -> str | None:
    try:
        return problem_with(record)
    except Exception as error:  # a third-party record may do anything when it is looked at
        return f"a {type(record).__name__} that it yields cannot be read: {describe(error)}"


def _unmet(text: str) -> str | None:
    requirement = Requirement(text)
    if requirement.marker is not None and not requirement.marker.evaluate():
        return None
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{one_line(text)} (not installed)"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{one_line(text)} (found {one_line(version)})"
    return None
