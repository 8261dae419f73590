"""Names found, options validated, widths compared: all before anything is built."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, field_validator

from lyrics.core.errors import PluginError, SpecError, UnknownNameError, WiringError
from lyrics.core.registry.component import Component, Options, hookimpl
from lyrics.core.registry.registry import Registry, default_registry
from lyrics.core.resolve import Wiring, read_spec, resolve, resolve_refiner, wire
from lyrics.core.spec import ModelSpec, dump

TINY = "lyrics-tiny"


def wired(overrides: Mapping[str, Any] | None = None, preset: str = TINY) -> Wiring:
    return wire(resolve(preset, overrides))


# --- reading ---


def test_every_form_of_spec_is_read(tmp_path: Path) -> None:
    spec = read_spec(TINY)
    dump(spec, tmp_path / "tiny.yaml")
    dump(spec, tmp_path / "tiny.json")
    forms = [spec, tmp_path / "tiny.yaml", str(tmp_path / "tiny.json"), spec.model_dump(), spec.model_dump(mode="json")]
    for form in [*forms, "lyrics-vl/lyrics-tiny"]:
        assert read_spec(form) == spec


@pytest.mark.parametrize(
    ("spec", "error", "complaint"),
    [
        ("lyrics-tinny", UnknownNameError, "no preset named 'lyrics-tinny'. Did you mean 'lyrics-tiny'?"),
        ("", UnknownNameError, "no preset named ''"),
        ("my/configs/tiny", SpecError, "my/configs/tiny: a spec file ends in .yaml, .yml or .json."),
        ("/tmp", SpecError, "/tmp: a spec file ends in .yaml, .yml or .json."),
        ("acme/lyrics-tinny", UnknownNameError, "no preset named 'acme/lyrics-tinny'. Did you mean 'lyrics-tiny'?"),
        (Path("tiny"), SpecError, "tiny: a spec file ends in .yaml, .yml or .json."),
        ("nowhere.yaml", SpecError, "nowhere.yaml: cannot be read: No such file or directory."),
        ("a\0b.yaml", SpecError, "cannot be read"),
        ({"image_encoder": "tiny-vit"}, SpecError, "query_transformer: is required and was not given."),
        (3, SpecError, "a spec is a preset's name, a path, a mapping or a ModelSpec, not a int."),
        (None, SpecError, "not a NoneType"),
        (b"lyrics-tiny", SpecError, "not a bytes"),
    ],
)
def test_spec_that_cannot_be_read(spec: Any, error: type[SpecError], complaint: str) -> None:
    with pytest.raises(error) as caught:
        resolve(spec)
    assert complaint in str(caught.value)


# --- resolving ---


def test_defaults_are_filled_in_and_distributions_recorded() -> None:
    resolved = resolve(TINY)
    options = resolved.parts["query_transformer"].options
    assert resolved.spec.query_transformer.options == options.model_dump(mode="json")
    assert resolved.spec.query_transformer.options["layer_norm_eps"] == 1e-12
    version = next(e.source.version for e in default_registry().entries)
    assert resolved.spec.distributions == dict.fromkeys(resolved.parts, f"lyrics-vl {version}")


def test_resolving_twice_changes_nothing() -> None:
    for preset, _ in default_registry().presets:
        is_model = isinstance(default_registry().preset(preset.name), ModelSpec)
        once: Any = resolve(preset.name) if is_model else resolve_refiner(preset.name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert (resolve if is_model else resolve_refiner)(once.spec).spec == once.spec


def test_part_of_another_version_is_warned_of() -> None:
    spec = resolve(TINY).spec.with_overrides({"distributions.image_encoder": "lyrics-vl 0.0.1"})
    with pytest.warns(UserWarning, match=r"image_encoder was written for lyrics-vl 0\.0\.1, this is lyrics-vl "):
        resolve(spec)


VERSION = version("lyrics-vl")
SERIES = VERSION.rpartition(".")[0]


@pytest.mark.parametrize(
    ("written", "warned"),
    [
        (f"lyrics-vl {VERSION}", False),
        (f"lyrics-vl {SERIES}.99", False),
        (f"Lyrics_VL {SERIES}", False),
        ("lyrics-vl 99.0", True),
        (f"lyrics-vl {SERIES}1.0", True),
        (f"acme-boxes {VERSION}", True),
        ("lyrics-vl", True),
        ("", True),
        ("\x1b[2J" + "x" * 100_000, True),
    ],
)
def test_only_another_distribution_or_series_is_warned_of(written: str, warned: bool) -> None:
    spec = resolve(TINY).spec
    changed = {f"distributions.{path}": written for path in ("image_encoder", "language_model")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resolve(spec.with_overrides(changed))
    messages = [str(one.message) for one in caught]
    assert len(messages) == warned, messages
    if warned:
        assert messages[0].startswith("image_encoder, language_model was written for ")
        assert len(messages[0]) < 400
        assert "\x1b" not in messages[0]


def test_part_that_was_chosen_anew_is_not_warned_of() -> None:
    spec = resolve(TINY).spec.with_overrides({"distributions": {"refiner.detector": "acme-boxes 3.0"}})
    for overrides in ({"refiner.detector": "cached"}, {"refiner.detector.use": "cached"}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            resolve(spec, overrides)


@pytest.mark.parametrize(
    ("overrides", "error", "complaint"),
    [
        (
            {"refiner.detector": "tiny-detectr"},
            UnknownNameError,
            "refiner.detector: no detector named 'tiny-detectr'. Did you mean 'tiny-detector'? Installed: ",
        ),
        (
            {"refiner.detector": "tiny-vit"},
            UnknownNameError,
            "'tiny-vit' is of kind image-encoder.",
        ),
        (
            {"refiner.detector.options.score_treshold": 0.1},
            SpecError,
            "refiner.detector.options.score_treshold: unknown key. Did you mean 'score_threshold'?",
        ),
        (
            {"refiner.detector.options.score_threshold": 25},
            SpecError,
            "refiner.detector.options.score_threshold: 25 is not allowed; should be less than or equal to 1.",
        ),
        (
            {"refiner.detector.options.score_threshold": "high"},
            SpecError,
            "refiner.detector.options.score_threshold: 'high' is not allowed; should be a valid number",
        ),
        (
            {"language_model.options.lora.rank": 0},
            SpecError,
            "language_model.options.lora.rank: 0 is not allowed; should be greater than or equal to 1.",
        ),
        (
            {"language_model.options.lora.rnak": 4},
            SpecError,
            "language_model.options.lora.rnak: unknown key. Did you mean 'rank'?",
        ),
        (
            {"language_model.options.adaptation": "frozn"},
            SpecError,
            "allowed: 'lora', 'frozen' or 'full'. Did you mean 'frozen'?",
        ),
        (
            {"objectives.itc.options.recipe": "papper"},
            SpecError,
            "objectives.itc.options.recipe: 'papper' is not allowed; allowed: 'paper' or 'released'. Did you mean "
            "'paper'?",
        ),
        (
            {"image_encoder.options.width": 130},
            SpecError,
            "image_encoder.options.width: 130 is not allowed; should be a multiple of 8.",
        ),
    ],
)
def test_fault_is_reported_at_its_path(overrides: Mapping[str, Any], error: type[SpecError], complaint: str) -> None:
    with pytest.raises(error) as caught:
        resolve(TINY, overrides)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(next(iter(overrides)).partition(".options")[0])


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(SpecError) as caught:
        resolve(
            TINY,
            {
                "image_encoder": "x",
                "refiner.detector.options.nms_iou": 2,
                "refiner.detector.options.score_threshold": -1,
                "language_model.options.oops": 1,
            },
        )
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "image_encoder",
        "refiner.detector.options.score_threshold",
        "refiner.detector.options.nms_iou",
        "language_model.options.oops",
    ]


def test_strangers_options_are_validated_as_ours() -> None:
    registry = with_detector(feature_dim=5)
    assert resolve(TINY, {"refiner.detector": "acme"}, registry=registry).spec.refiner.detector.options == {  # type: ignore[union-attr]
        "feature_dim": 5,
        "flavour": "sweet",
    }
    with pytest.raises(SpecError, match=r"refiner\.detector\.options\.flavor: unknown key\. Did you mean 'flavour'\?"):
        resolve(TINY, {"refiner.detector": "acme", "refiner.detector.options.flavor": "x"}, registry=registry)


def test_strangers_validator_that_breaks_names_its_origin() -> None:
    with pytest.raises(PluginError) as caught:
        resolve(
            TINY,
            {"refiner.detector": "acme", "refiner.detector.options.flavour": "broken"},
            registry=with_detector(feature_dim=5),
        )
    assert "refiner.detector.options: the options of Plugin in-process (entry point 'Plugin') failed: KeyError" in str(
        caught.value
    )


# --- wiring ---


def with_detector(feature_dim: Any, kind: str = "detector") -> Registry:
    class AcmeOptions(Options):
        feature_dim: Any = Field(None, description="width")
        flavour: str = Field("sweet", description="taste")

        @field_validator("flavour")
        @classmethod
        def _known(cls, flavour: str) -> str:
            if flavour == "broken":
                raise KeyError(flavour)
            return flavour

    AcmeOptions.model_fields["feature_dim"].default = feature_dim
    AcmeOptions.model_rebuild(force=True)

    class Plugin:
        @hookimpl
        def lyrics_components(self) -> Iterable[Component]:
            yield Component(kind, "acme", build="acme:build", options=AcmeOptions)  # type: ignore[arg-type]

    return Registry.discover(Plugin())


def test_wiring_of_the_presets() -> None:
    assert wired() == Wiring(128, {"detector": 36, "segmenter": 68})
    assert wired(preset="lyrics-13b") == Wiring(1024, {"detector": 260, "segmenter": 260})
    assert wired(preset="lyrics-released-14b") == Wiring(1408, {"detector": 260})
    assert wired(preset="blip2-13b") == Wiring(1024, {})


def mend(message: str) -> dict[str, Any]:
    """The override that a wiring error proposes."""
    found = re.search(r"set (\S+)=([^\s,.]+)", message)
    assert found is not None, message
    path, value = found.groups()
    return {path: None if value == "null" else int(value)}


MISFITS: list[tuple[str, Mapping[str, Any], str]] = [
    (
        TINY,
        {"query_transformer.options.image_dim": 64},
        "image_encoder 'tiny-vit' gives feature_dim 128, but query_transformer 'mqformer' is set to read 64",
    ),
    (
        TINY,
        {"query_transformer.options.local_dims": {"detector": 99, "segmenter": 68}},
        "refiner.detector 'tiny-detector' gives feature_dim 36, but query_transformer 'mqformer' is set to read 99",
    ),
    (
        TINY,
        {"query_transformer.options.local_dims": {"detector": 36, "segmenter": 69}},
        "refiner.segmenter 'tiny-segmenter' gives feature_dim 68, but query_transformer 'mqformer' is set to read 69",
    ),
    (
        TINY,
        {"query_transformer.options.local_dims": {"detector": 36}},
        "query_transformer.options.local_dims: 'mqformer' does not read tokens of a segmenter, but refiner.segmenter "
        "gives them",
    ),
    (
        TINY,
        {"query_transformer.options.local_dims": {"detector": 36, "segmenter": 68}, "refiner.segmenter": None},
        "'mqformer' reads tokens of a segmenter, but refiner.segmenter gives none",
    ),
    (
        TINY,
        {"query_transformer.options.local_dims": {"detector": 36}, "refiner": None},
        "'mqformer' reads tokens of a detector, but refiner.detector gives none",
    ),
    (
        TINY,
        {"query_transformer.options.local_dims": {"detecter": 100}, "refiner": None},
        "'detecter' gives no local tokens. Did you mean 'detector'?",
    ),
    (
        TINY,
        {"refiner.detector": None},
        "refiner.segmenter 'tiny-segmenter' needs boxes, but refiner.detector is null",
    ),
    (
        "lyrics-released-14b",
        {"image_encoder": "clip-vit"},
        "image_encoder 'clip-vit' gives feature_dim 1024, but query_transformer 'mqformer' is set to read 1408",
    ),
    (
        "lyrics-released-14b",
        {"refiner.detector": "tiny-detector"},
        "refiner.detector 'tiny-detector' gives feature_dim 36, but query_transformer 'mqformer' is set to read 260",
    ),
]


@pytest.mark.parametrize(("preset", "overrides", "complaint"), MISFITS, ids=[c[:50] for *_, c in MISFITS])
def test_misfit_gives_both_numbers_and_what_mends_it(preset: str, overrides: Mapping[str, Any], complaint: str) -> None:
    with pytest.raises(WiringError) as caught:
        wired(overrides, preset)
    assert complaint in str(caught.value)
    mended = resolve(resolve(preset, overrides).spec, mend(str(caught.value)))
    wire(mended)


def test_numbers_that_are_pinned_rightly_fit() -> None:
    pinned = {"query_transformer.options.local_dims": {"detector": 36, "segmenter": 68}}
    assert wired({**pinned, "query_transformer.options.image_dim": 128}) == wired()


def test_baseline_with_a_refiner_warns_that_nothing_reads_its_tokens() -> None:
    with pytest.warns(UserWarning, match="query-transformer 'qformer' reads no local tokens: .*detector and segmenter"):
        wired({"query_transformer": "qformer", "objectives": {}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wired({"query_transformer": "qformer", "objectives": {}, "refiner.detector": None, "refiner.segmenter": None})


@pytest.mark.filterwarnings("ignore:.*reads no local tokens")
def test_objectives_that_the_query_transformer_cannot_have_are_named_with_the_override() -> None:
    with pytest.raises(WiringError) as caught:
        wired({"query_transformer": "qformer"})
    assert str(caught.value) == (
        "query_transformer 'qformer' reads visual queries, captions (C) and nothing else, so stage 1 cannot have all "
        "of its objectives: objectives.msp needs spatial text (S). Remove them: --set objectives.msp=null"
    )


def test_width_that_no_option_declares_is_left_to_the_built_part() -> None:
    resolved = resolve(TINY, {"refiner.detector": "acme"}, registry=with_detector(None))
    assert wire(resolved).local_dims == {"detector": None, "segmenter": 68}
    pinned = {"query_transformer.options.local_dims": {"detector": 3, "segmenter": 68}}
    wire(resolve(TINY, {"refiner.detector": "acme", **pinned}, registry=with_detector(None)))


@pytest.mark.parametrize("dim", [0, -3, 2.5, "12"])
def test_declared_width_that_is_no_width_names_the_plugin(dim: Any) -> None:
    resolved = resolve(TINY, {"refiner.detector": "acme"}, registry=with_detector(dim))
    with pytest.raises(PluginError, match=r"refiner\.detector: feature_dim of Plugin in-process .* must be a positive"):
        wire(resolved)
