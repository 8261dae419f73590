"""The six hooks a plugin may implement. All return iterables of frozen records; none does I/O or imports torch.

An entry point in group ``lyrics`` names a light module that holds the hooks::

    [project.entry-points.lyrics]
    acme-boxes = "acme_boxes"
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from lyrics.core.registry.component import Component, Preset, PublicModel, Recipe, Template, Vocabulary

hookspec = pluggy.HookspecMarker("lyrics")


@hookspec
def lyrics_components() -> Iterable[Component]:  # type: ignore[empty-body]
    """Components this plugin provides.

    A complete example::

        from lyrics import Component, Options, hookimpl

        class BoxesOptions(Options):
            score_threshold: float = 0.25

        @hookimpl
        def lyrics_components():
            yield Component(kind="detector", name="acme-boxes", build="acme_boxes.model:build", options=BoxesOptions,
                            requires=("acme-engine>=2",), install="pip install 'acme-boxes[engine]'",
                            summary="Open-vocabulary boxes from the Acme engine")
    """


@hookspec
def lyrics_presets() -> Iterable[Preset]:  # type: ignore[empty-body]
    """Named models this plugin provides.

    A complete example::

        from lyrics import ModelSpec, Preset, hookimpl
        from lyrics import load_spec

        def acme_tiny() -> ModelSpec:
            return load_spec("lyrics-tiny").with_overrides({"refiner.detector": "acme-boxes"})

        @hookimpl
        def lyrics_presets():
            yield Preset(name="acme-tiny", spec=acme_tiny, summary="lyrics-tiny with Acme's boxes")
    """


@hookspec
def lyrics_recipes() -> Iterable[Recipe]:  # type: ignore[empty-body]
    """Named training configurations this plugin provides, for ``lyrics pretrain`` and ``lyrics finetune``.

    A complete example::

        from lyrics import Recipe, hookimpl

        @hookimpl
        def lyrics_recipes():
            yield Recipe("acme-stage1", "acme_boxes.recipes:stage1", "stage 1 with Acme's boxes")
    """


@hookspec
def lyrics_vocabularies() -> Iterable[Vocabulary]:  # type: ignore[empty-body]
    """Lists of words this plugin provides for the built-in tokenizers (option ``builtin_tokenizer``).

    A complete example::

        from lyrics import Vocabulary, hookimpl

        @hookimpl
        def lyrics_vocabularies():
            yield Vocabulary("acme-words", "acme_boxes.words:lists", "the words of Acme's captions")

    and in ``acme_boxes/words.py``::

        def lists():
            return [["dog", "cat"]]
    """


@hookspec
def lyrics_templates() -> Iterable[Template]:  # type: ignore[empty-body]
    """Chat templates this plugin provides, for language models whose tokenizers bring none.

    A complete example::

        from lyrics import Template, hookimpl

        @hookimpl
        def lyrics_templates():
            yield Template("acme-chat", "acme_boxes.chat:ACME_CHAT", "the form that Acme's models were taught")
    """


@hookspec
def lyrics_public_models() -> Iterable[PublicModel]:  # type: ignore[empty-body]
    """Models of other projects that this plugin reads into parts, by the ``model_type`` of their ``config.json``.

    A complete example::

        from lyrics import PublicModel, hookimpl

        @hookimpl
        def lyrics_public_models():
            yield PublicModel("acme-vlm", "acme_vlm", "acme_boxes.public:read", "Acme's models that answer")
    """
