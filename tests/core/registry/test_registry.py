"""Discovery, look-up and the judgment of records, on plugins that exist in this file only."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from lyrics.core.errors import AmbiguousNameError, PluginError, UnknownNameError
from lyrics.core.registry import registry as registry_module
from lyrics.core.registry.component import Component, NoOptions, Options, Preset, Vocabulary, hookimpl
from lyrics.core.registry.registry import PluginSource, Registry, default_registry, describe
from lyrics.core.spec import ModelSpec
from lyrics.plugins.tiny.presets import lyrics_tiny

GOOD = Component("detector", "acme-boxes", build="acme.model:build", summary="boxes")


def plugin(components: Iterable[Any] = (), presets: Iterable[Any] = (), vocabularies: Iterable[Any] = ()) -> Any:
    """An object with these hooks."""

    class Plugin:
        @hookimpl
        def lyrics_components(self) -> Iterable[Any]:
            return components

        @hookimpl
        def lyrics_presets(self) -> Iterable[Any]:
            return presets

        @hookimpl
        def lyrics_vocabularies(self) -> Iterable[Any]:
            return vocabularies

    return Plugin()


def registry(*plugins: Any, names: tuple[str, ...] = ("acme", "zeta")) -> Registry:
    def loader(module: Any) -> Callable[[], Any]:
        return lambda: module

    return Registry(
        (PluginSource(name, "1.2", f"{name}-entry"), loader(module))
        for name, module in zip(names, plugins, strict=False)
    )


def test_component_is_found_by_bare_and_by_qualified_name() -> None:
    found = registry(plugin([GOOD]))
    for name in ("acme-boxes", "acme/acme-boxes"):
        entry = found.component("detector", name)
        assert entry.component is GOOD
        assert str(entry.source) == "acme 1.2 (entry point 'acme-entry')"


@pytest.mark.parametrize("name", ["zeta/acme-boxes", "acme/", "/acme-boxes", "Acme-Boxes", ""])
def test_another_name_is_not_found(name: str) -> None:
    with pytest.raises(UnknownNameError):
        registry(plugin([GOOD])).component("detector", name)


def test_unknown_name_gets_the_nearest_of_its_kind_and_the_choices() -> None:
    other = Component("tagger", "acme-boxer", build="a:b")
    with pytest.raises(UnknownNameError) as caught:
        registry(plugin([GOOD, other])).component("detector", "acme-boxs")
    assert str(caught.value) == "no detector named 'acme-boxs'. Did you mean 'acme-boxes'? Installed: acme-boxes."


def test_name_of_another_kind_is_said_to_be_one() -> None:
    with pytest.raises(UnknownNameError, match=r"'acme-boxes' is of kind detector\."):
        registry(plugin([GOOD])).component("tagger", "acme-boxes")


def test_unknown_kind_gets_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"there is no kind 'detektor'\. Did you mean 'detector'\?"):
        registry(plugin([GOOD])).component("detektor", "acme-boxes")


def test_empty_registry_says_what_to_install() -> None:
    with pytest.raises(UnknownNameError, match="pip install lyrics-vl"):
        Registry([]).component("detector", "acme-boxes")


def test_same_name_in_two_distributions_is_an_error_only_when_used() -> None:
    both = registry(plugin([GOOD, dataclasses.replace(GOOD, name="other")]), plugin([GOOD]))
    assert not both.failures
    assert both.component("detector", "other").source.distribution == "acme"
    with pytest.raises(AmbiguousNameError) as caught:
        both.component("detector", "acme-boxes")
    assert str(caught.value) == (
        "detector 'acme-boxes' is provided by acme 1.2 (entry point 'acme-entry') and zeta 1.2 (entry point "
        "'zeta-entry'); write 'acme/acme-boxes' or 'zeta/acme-boxes'."
    )
    assert both.component("detector", "zeta/acme-boxes").source.distribution == "zeta"


def test_one_name_may_serve_two_kinds() -> None:
    found = registry(plugin([GOOD, dataclasses.replace(GOOD, kind="segmenter")]))
    assert not found.failures
    assert found.component("segmenter", "acme-boxes").component.kind == "segmenter"


def test_name_given_twice_by_one_plugin_is_a_failure() -> None:
    found = registry(plugin([GOOD, GOOD]))
    assert [failure.cause for failure in found.failures] == ["it yields the detector 'acme-boxes' twice."]
    assert len(found.entries) == 1


def test_entries_are_sorted_by_kind_then_name() -> None:
    records = [
        Component("segmenter", "a", build="a:b"),
        Component("detector", "z", build="a:b"),
        Component("image-encoder", "m", build="a:b"),
        Component("detector", "b", build="a:b"),
    ]
    found = [entry.component.name for entry in registry(plugin(records)).entries]
    assert found == ["m", "b", "z", "a"]


UNSOUND: list[tuple[str, Any]] = [
    ("yielded a str, not a lyrics.Component", "acme-boxes"),
    ("yielded a type, not a lyrics.Component", Component),
    ("unknown kind 'detektor'. Did you mean 'detector'?", dataclasses.replace(GOOD, kind="detektor")),
    ("'Acme Boxes' is not a component name", dataclasses.replace(GOOD, name="Acme Boxes")),
    ("'acme--boxes' is not a component name", dataclasses.replace(GOOD, name="acme--boxes")),
    ("'a/b' is not a component name", dataclasses.replace(GOOD, name="a/b")),
    ("7 is not a component name", dataclasses.replace(GOOD, name=7)),
    ("must be 'package.module:callable', not 'acme.model'", dataclasses.replace(GOOD, build="acme.model")),
    ("must be 'package.module:callable', not 'os; rm:x'", dataclasses.replace(GOOD, build="os; rm:x")),
    ("must be 'package.module:callable', not <built-in", dataclasses.replace(GOOD, build=len)),
    ("options must be a subclass of lyrics.Options", dataclasses.replace(GOOD, options=dict)),
    ("options must be a subclass of lyrics.Options", dataclasses.replace(GOOD, options=NoOptions())),
    ("keeps contract version 2; this lyrics knows 1", dataclasses.replace(GOOD, contract=2)),
    ("the requirement 'acme engine' is not valid", dataclasses.replace(GOOD, requires=("acme engine",))),
    ("requires must be a tuple of requirement strings, not 'timm'", dataclasses.replace(GOOD, requires="timm")),
    ("requires must be a tuple of requirement strings, not (3,)", dataclasses.replace(GOOD, requires=(3,))),
    ("summary must be a string, not None", dataclasses.replace(GOOD, summary=None)),
    ("install must be a string", dataclasses.replace(GOOD, install=["pip"])),
    ("license must be a string", dataclasses.replace(GOOD, license=0)),
]


@pytest.mark.parametrize(("cause", "record"), UNSOUND, ids=[cause[:40] for cause, _ in UNSOUND])
def test_unsound_record_fails_by_itself(cause: str, record: Any) -> None:
    """The other records of the same plugin stay usable."""
    sound = Component("detector", "sound", build="acme.model:build")
    found = registry(plugin([record, sound]))
    assert [entry.component for entry in found.entries] == [sound]
    assert len(found.failures) == 1
    assert cause in found.failures[0].cause
    assert found.failures[0].cause.endswith((".", "?"))


@pytest.mark.parametrize(
    ("cause", "preset"),
    [
        ("yielded a dict, not a lyrics.Preset", {}),
        ("is not a preset name", Preset("Lyrics 13B", lyrics_tiny)),
        ("spec must be a function", Preset("acme", lyrics_tiny())),  # type: ignore[arg-type]
        ("summary must be a string", Preset("acme", lyrics_tiny, summary=3)),  # type: ignore[arg-type]
    ],
)
def test_unsound_preset_fails_by_itself(cause: str, preset: Any) -> None:
    found = registry(plugin([GOOD], [preset, Preset("sound", lyrics_tiny)]))
    assert [p.name for p, _ in found.presets] == ["sound"]
    assert [entry.component for entry in found.entries] == [GOOD]
    assert cause in found.failures[0].cause


def test_failing_preset_names_its_origin() -> None:
    def raises() -> ModelSpec:
        raise RuntimeError("no numbers")

    def invalid() -> ModelSpec:
        return lyrics_tiny().with_overrides({"codec": "morse"})

    def other() -> Any:
        return {"image_encoder": "tiny-vit"}

    found = registry(plugin((), [Preset("raises", raises), Preset("invalid", invalid), Preset("other", other)]))
    for name, cause in {
        "raises": "failed: RuntimeError: no numbers.",
        "invalid": "is not valid: codec: 'morse' is not allowed",
        "other": "returned a dict, not a ModelSpec.",
    }.items():
        with pytest.raises(PluginError) as caught:
            found.preset(name)
        assert f"preset {name!r} of acme 1.2 (entry point 'acme-entry')" in str(caught.value)
        assert cause in str(caught.value)


def test_preset_names_are_looked_up_like_components() -> None:
    found = registry(plugin((), [Preset("tiny", lyrics_tiny)]), plugin((), [Preset("tiny", lyrics_tiny)]))
    with pytest.raises(AmbiguousNameError, match="'acme/tiny' or 'zeta/tiny'"):
        found.preset("tiny")
    assert found.preset("zeta/tiny") == lyrics_tiny()
    with pytest.raises(UnknownNameError, match=r"no preset named 'tinny'\. Did you mean 'tiny'\?"):
        found.preset("tinny")


def test_preset_prefers_its_own_distributions_parts() -> None:
    """Its options stay; a part that only a stranger provides, or that nobody else provides, keeps its bare name."""
    ours = [
        Component("image-encoder", "tiny-vit", build="a:b"),
        Component("detector", "tiny-detector", build="a:b"),
    ]
    theirs = [
        Component("image-encoder", "tiny-vit", build="a:b"),
        Component("tagger", "tiny-tagger", build="a:b"),
    ]

    def spec() -> ModelSpec:
        return lyrics_tiny().with_overrides({"image_encoder.options": {"width": 16}})

    found = registry(plugin(ours, [Preset("mine", spec)]), plugin(theirs)).preset("mine")
    assert found.image_encoder.use == "acme/tiny-vit"
    assert found.image_encoder.options == {"width": 16}
    assert found.refiner is not None
    assert [slot.use for slot in (found.refiner.tagger, found.refiner.detector) if slot] == [
        "tiny-tagger",
        "tiny-detector",
    ]


def test_preset_prefers_its_own_distributions_vocabulary() -> None:
    tiny = next(p for p in default_registry().plugins if any(v.name == "words" for v in p.vocabularies))
    parts = [entry.component for entry in default_registry().entries if entry.source.distribution == "lyrics-vl"]
    ours = plugin(parts, [Preset("mine", lyrics_tiny)], tiny.vocabularies)
    theirs = plugin(vocabularies=[Vocabulary("words", "acme.words:lists")])
    assert registry(ours).preset("mine") == lyrics_tiny()
    found = registry(ours, theirs).preset("mine")
    assert found.query_transformer.options["builtin_tokenizer"] == "acme/words"
    assert found.language_model.options == {**lyrics_tiny().language_model.options, "builtin_tokenizer": "acme/words"}
    with pytest.raises(AmbiguousNameError, match="'acme/words' or 'zeta/words'"):
        registry(ours, theirs).vocabulary("words")


@pytest.mark.parametrize(
    ("cause", "record"),
    [
        ("yielded a tuple, not a lyrics.Vocabulary", ("dog", "cat")),
        ("'Street Words' is not a vocabulary name", Vocabulary("Street Words", "acme.words:lists")),
        ("'bytes' is not a vocabulary name: it is", Vocabulary("bytes", "acme.words:lists")),
        ("words must be 'package.module:callable', not ('dog',)", Vocabulary("acme", ("dog",))),  # type: ignore[arg-type]
        ("summary must be a string, not 3", Vocabulary("acme", "acme.words:lists", 3)),  # type: ignore[arg-type]
        ("it yields the vocabulary 'sound' twice", Vocabulary("sound", "acme.words:lists")),
    ],
)
def test_unsound_vocabulary_fails_by_itself(cause: str, record: Any) -> None:
    sound = Vocabulary("sound", "acme.words:lists")
    found = registry(plugin([GOOD], [], [sound, record]))
    assert [one for one, _ in found.vocabularies] == [sound]
    assert [entry.component for entry in found.entries] == [GOOD]
    assert cause in found.failures[0].cause
    assert found.failures[0].kind == "vocabulary"


WORDS: list[tuple[str, Any]] = [
    ("failed: ZeroDivisionError: division by zero.", lambda: 1 / 0),
    ("its words must be lists in a list, not ['dog', 'cat'].", lambda: ["dog", "cat"]),
    ("its words must be lists in a list, not 'dog'.", lambda: "dog"),
    ("its words must be lists in a list, not [{'dog'}].", lambda: [{"dog"}]),
    ("'fire truck' is no word of the letters A to Z and a to z.", lambda: [["dog", "fire truck"]]),
    ("'caf\u00e9' is no word", lambda: [["caf\u00e9"]]),
    ("7 is no word", lambda: [[7]]),
    ("'' is no word", lambda: [[""]]),
    ("'dog' is there twice.", lambda: [["dog"], ["cat", "dog"]]),
    ("it has no words.", lambda: [[]]),
]


@pytest.mark.parametrize(("cause", "lists"), WORDS, ids=[cause[:30] for cause, _ in WORDS])
def test_words_that_are_none_name_their_origin(
    cause: str, lists: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_these_words", lists, raising=False)
    found = registry(plugin(vocabularies=[Vocabulary("acme-words", f"{registry_module.__name__}:_these_words")]))
    with pytest.raises(PluginError) as caught:
        found.vocabulary("acme-words")
    assert str(caught.value).startswith("vocabulary 'acme-words' of acme 1.2 (entry point 'acme-entry') ")
    assert cause in str(caught.value)


def test_loader_that_raises_keeps_its_traceback_and_its_seconds() -> None:
    def loader() -> Any:
        raise SystemExit(4)

    found = Registry([(PluginSource("acme", "1.2", "e"), loader)])
    assert found.failures[0].cause == "it called sys.exit(4)."
    assert "raise SystemExit(4)" in found.failures[0].traceback
    assert found.plugins[0].seconds >= 0


def test_interrupting_is_not_a_broken_plugin() -> None:
    def loader() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Registry([(PluginSource("acme", "1.2", "e"), loader)])


def test_hook_that_breaks_while_it_yields_is_a_failure() -> None:
    def components() -> Iterable[Component]:
        yield GOOD
        raise OSError("disk")

    found = registry(plugin(components()))
    assert not found.entries
    assert found.failures[0].cause == "OSError: disk."


def test_misspelled_hook_and_missing_mark_are_failures() -> None:
    misspelled = SimpleNamespace(lyrics_component=hookimpl(lambda: ()))
    unmarked = SimpleNamespace(lyrics_components=lambda: [GOOD])
    causes = [failure.cause for failure in registry(misspelled, unmarked).failures]
    assert "lyrics_component" in causes[0]
    assert causes[1].startswith("TypeError: it implements none of")


def test_heavy_import_of_a_manifest_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "timm", raising=False)

    def loader() -> Any:
        sys.modules["timm"] = SimpleNamespace()  # type: ignore[assignment]
        return plugin([GOOD])

    try:
        found = Registry(
            [(PluginSource("acme", "1.2", "e"), loader), (PluginSource("zeta", "1.2", "e"), lambda: plugin())]
        )
    finally:
        sys.modules.pop("timm", None)
    assert [p.heavy_imports for p in found.plugins] == [("timm",), ()]


def test_manifest_that_prints_does_not_spoil_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    def loader() -> Any:
        sys.stdout.write("hello\n")
        return plugin([GOOD])

    Registry([(PluginSource("acme", "1.2", "e"), loader)])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_in_process_plugins_join_the_installed_ones() -> None:
    found = Registry.discover(plugin([GOOD]))
    assert found.component("detector", "acme-boxes").source.version == "in-process"
    assert found.component("detector", "tiny-detector").source.distribution == "lyrics-vl"


@pytest.mark.parametrize(
    ("requirement", "complaint"),
    [
        ("pydantic>=2", None),
        ("pydantic>=99", r"pydantic>=99 \(found 2\."),
        ("acme-engine", r"acme-engine \(not installed\)"),
        ("acme-engine; python_version < '3'", None),
        ("Pydantic", None),
    ],
)
def test_unmet_requirements(requirement: str, complaint: str | None) -> None:
    import re

    entry = registry(plugin([dataclasses.replace(GOOD, requires=(requirement,))])).entries[0]
    found = entry.unmet()
    if complaint is None:
        assert found == []
    else:
        assert len(found) == 1
        assert re.match(complaint, found[0])


def test_installed_registry_is_discovered_once_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def discover() -> Registry:
        calls.append(1)
        return Registry([])

    monkeypatch.setattr(Registry, "discover", discover)
    registry_module._discover_once.cache_clear()
    try:
        threads = [threading.Thread(target=default_registry) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert calls == [1]
    finally:
        registry_module._discover_once.cache_clear()


def test_nothing_is_discovered_at_import() -> None:
    code = (
        "import sys, lyrics, lyrics.core.registry.registry, lyrics.cli\n"
        "found = [name for name in sys.modules if name.startswith('lyrics.plugins') or name == "
        "'lyrics.plugins.paper']\nassert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_description_of_an_exception_is_one_line() -> None:
    assert describe(ValueError("a\n  b.")) == "ValueError: a b."
    assert describe(ValueError()) == "ValueError."
    assert len(describe(ValueError("x" * 9000))) < 330


class _Wide(Options):
    feature_dim: int = 3


def test_options_are_frozen_and_refuse_unknown_keys_and_nan() -> None:
    for values in ({"width": 3}, {"feature_dim": float("nan")}):
        with pytest.raises(ValueError):
            _Wide(**values)
    with pytest.raises(ValueError):
        _Wide().feature_dim = 4  # type: ignore[misc]
