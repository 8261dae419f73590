"""The paper's numbers, as a resolved preset has them. Sections are those of arXiv 2312.05278."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lyrics.core.errors import SpecError, WiringError
from lyrics.core.registry.registry import default_registry
from lyrics.core.resolve import Resolved, resolve, resolve_refiner, wire
from lyrics.core.spec import ModelSpec
from lyrics.plugins.paper.presets import PAPER_TRAINABLE
from tests.fresh import fresh

PRESETS = (
    "blip2-13b",
    "lyrics-13b",
    "lyrics-7b",
    "lyrics-mini",
    "lyrics-released-14b",
    "lyrics-tiny",
    "lyrics-tiny-plain",
    "lyrics-tiny-stage1",
    "modern",
)


REFINERS = ("grounded-sam", "paper-refiner", "photo", "photo-open", "tiny-refiner")


def value(spec: ModelSpec, path: str) -> Any:
    found: Any = spec.model_dump(mode="json")
    for key in path.split("."):
        found = found[key]
    return found


def test_these_are_the_presets() -> None:
    assert tuple(preset.name for preset, _ in default_registry().presets) == tuple(sorted((*PRESETS, *REFINERS)))


@pytest.fixture(scope="module")
def resolved() -> Mapping[str, Resolved]:
    return {name: resolve(name) for name in PRESETS}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_resolves_and_wires(name: str, resolved: Mapping[str, Resolved]) -> None:
    wire(resolved[name])
    assert set(resolved[name].parts) == {path for path, _, _ in resolved[name].spec.slots()}


NUMBERS: Mapping[str, Mapping[str, Any]] = {
    "lyrics-13b": {
        "image_encoder.use": "clip-vit",  # section 4: "ViT-L/14 initialized from pre-trained CLIP"
        "image_encoder.options.image_size": 224,
        "image_encoder.options.patch_size": 14,
        "image_encoder.options.width": 1024,  # section 3.1: 257 x 1024
        "refiner.tagger.use": "ram-plus",
        "refiner.tagger.options.backbone": "swin-b",
        "refiner.detector.use": "grounding-dino",
        "refiner.detector.options.queries": 900,  # section 4
        "refiner.segmenter.use": "sam-hq",
        "refiner.segmenter.options.width": 1280,  # ViT-H
        "refiner.segmenter.options.layers": 32,
        "query_transformer.use": "mqformer",
        "query_transformer.options.num_visual": 32,  # section 3.1
        "query_transformer.options.num_grounding": 32,
        "query_transformer.options.hidden_size": 768,
        "query_transformer.options.num_layers": 12,
        "query_transformer.options.cross_attention_every": 2,
        "language_model.options.hidden_size": 5120,
        "language_model.options.num_layers": 40,
        "language_model.options.adaptation": "lora",
        "language_model.options.lora.target_modules": ["q_proj", "v_proj"],  # section 4
        "codec": "lyrics",
        "sees": ["spatial", "instruction"],
    },
    "lyrics-7b": {
        "language_model.options.checkpoint": "lmsys/vicuna-7b-v1.5",
        "language_model.options.hidden_size": 4096,
        "language_model.options.num_layers": 32,
        "language_model.options.intermediate_size": 11008,
        "language_model.options.lora.target_modules": ["q_proj", "v_proj"],
        "query_transformer.options.num_grounding": 32,
    },
    "lyrics-released-14b": {
        "image_encoder.use": "eva-vit-g",
        "image_encoder.options.width": 1408,
        "refiner.tagger.use": "ram",
        "refiner.tagger.options.backbone": "swin-l",
        "refiner.segmenter": None,
        "query_transformer.options.num_visual": 32,
        "query_transformer.options.num_grounding": 64,
        "query_transformer.options.local_dims": {"detector": 260},
        "query_transformer.options.vocab_size": 30523,
        "codec": "released",
        "sees": ["instruction"],
    },
    "blip2-13b": {
        "refiner": None,
        "query_transformer.use": "qformer",
        "query_transformer.options.num_visual": 32,
        "language_model.options.hidden_size": 5120,
        "sees": ["instruction"],
    },
}


@pytest.mark.parametrize(
    ("name", "path", "expected"), [(n, p, e) for n, numbers in NUMBERS.items() for p, e in numbers.items()]
)
def test_number_is_the_papers(name: str, path: str, expected: Any, resolved: Mapping[str, Resolved]) -> None:
    assert value(resolved[name].spec, path) == expected


def test_objectives_are_the_four_with_weight_one(resolved: Mapping[str, Resolved]) -> None:
    """Equation 5; the baseline has nothing spatial to mask."""
    for name in PRESETS:
        objectives = resolved[name].spec.objectives
        assert list(objectives) == (["itc", "itm", "icg"] if name == "blip2-13b" else ["itc", "itm", "icg", "msp"])
        assert {slot.weight for slot in objectives.values()} == {1.0}
        recipes = {slot.use: slot.options["recipe"] for slot in objectives.values()}
        if name in ("lyrics-tiny", "lyrics-tiny-stage1"):
            assert recipes.pop("itm") == "released"  # docs/fine-stage1.md says why
        assert set(recipes.values()) == {"released" if name == "lyrics-released-14b" else "paper"}


def test_tiny_downloads_nothing(resolved: Mapping[str, Resolved]) -> None:
    spec = resolved["lyrics-tiny"].spec
    assert spec.refiner is not None
    uses = [slot.use for _, kind, slot in spec.slots() if kind in ("image-encoder", "tagger", "detector", "segmenter")]
    assert uses == ["tiny-vit", "tiny-tagger", "tiny-detector", "tiny-segmenter"]


def test_the_papers_count_of_trainable_parameters_is_kept_with_the_preset() -> None:
    reported = {preset.name: preset.reported_trainable for preset, _ in default_registry().presets}
    assert reported["lyrics-13b"] == PAPER_TRAINABLE == 278_000_000
    assert reported["lyrics-tiny"] is None
    note = next(preset.reported_note for preset, _ in default_registry().presets if preset.name == "lyrics-13b")
    assert "rank" in note


def test_presets_are_functions_that_give_a_fresh_equal_spec_each_time() -> None:
    for preset, _ in default_registry().presets:
        assert preset.spec() == preset.spec()


@pytest.fixture(scope="module")
def without_torch() -> Mapping[str, Any]:
    done = fresh(
        "import json, time\n"
        "from lyrics.core.registry.registry import default_registry\n"
        "from lyrics.core.resolve import resolve, wire\n"
        "from lyrics.core.spec import dumps\n"
        "start = time.process_time()\n"
        "found = {}\n"
        f"for name in {PRESETS!r}:\n"
        "    parts = resolve(name)\n"
        "    wire(parts)\n"
        "    found[name] = dumps(parts.spec, format='json')\n"
        "heavy = [name for name in ('torch', 'transformers', 'triton') if name in sys.modules]\n"
        "print(json.dumps({'specs': found, 'heavy': heavy, 'seconds': time.process_time() - start}))\n"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_resolving_and_wiring_takes_no_torch(
    without_torch: Mapping[str, Any], resolved: Mapping[str, Resolved]
) -> None:
    assert without_torch["heavy"] == []
    assert {name: json.loads(text) for name, text in without_torch["specs"].items()} == {
        name: found.spec.model_dump(mode="json") for name, found in resolved.items()
    }


def test_resolving_all_presets_takes_seconds_at_most(without_torch: Mapping[str, Any]) -> None:
    """Of processor time: under half a second for all five on an idle machine; ten times that on a busy one."""
    assert without_torch["seconds"] < 5


def test_a_preset_is_shown_as_yaml_that_builds_the_same(tmp_path: Path, resolved: Mapping[str, Resolved]) -> None:
    from lyrics.core.spec import dump

    for name in PRESETS:
        dump(default_registry().preset(name), tmp_path / f"{name}.yaml")
        assert resolve(tmp_path / f"{name}.yaml").spec == resolved[name].spec


def test_presets_of_a_refiner_are_the_refiners_of_the_models() -> None:
    """One function each: the numbers of the paper's experts are written down once."""
    paper, tiny = resolve("lyrics-13b").spec.refiner, resolve("lyrics-tiny").spec.refiner
    assert paper is not None
    assert resolve_refiner("paper-refiner").spec.refiner == paper == resolve_refiner("lyrics-13b").spec.refiner
    assert resolve_refiner("tiny-refiner").spec.refiner == tiny
    assert resolve_refiner("grounded-sam").spec.refiner == paper.model_copy(update={"tagger": None})
    for name in REFINERS:
        with pytest.raises(SpecError, match=f"^{name}: is a refiner alone.*a whole model is needed"):
            resolve(name)


@pytest.mark.parametrize("form", ["file", "mapping", "slots"])
def test_a_refiner_is_a_specification_of_its_own(form: str, tmp_path: Path) -> None:
    from lyrics.core.build import build_refiner
    from lyrics.core.spec import RefinerSpec, load, load_any

    file = tmp_path / "my-refiner.yaml"
    file.write_text("refiner:\n  detector: tiny-detector\n  max_objects: 3\n")
    forms: dict[str, Any] = {
        "file": file,
        "mapping": {"refiner": {"detector": "tiny-detector", "max_objects": 3}},
        "slots": RefinerSpec(detector="tiny-detector", max_objects=3),  # type: ignore[arg-type]
    }
    spec = forms[form]
    refiner = build_refiner(spec, overrides={"refiner.segmenter": "tiny-segmenter"}, weights="random")
    assert (sorted(refiner.experts), refiner.max_objects) == (["detector", "segmenter"], 3)
    with pytest.raises(WiringError, match="needs boxes"):
        build_refiner(spec, overrides={"refiner.segmenter": "tiny-segmenter", "refiner.detector": None})
    with pytest.raises(SpecError, match="there is no language_model"):
        build_refiner(spec, overrides={"language_model": "causal-lm"})
    if form == "file":
        assert load_any(file) == load_any(_written(file, tmp_path))
        with pytest.raises(SpecError, match=r"my-refiner\.yaml: is a refiner alone"):
            load(file)


def _written(file: Path, folder: Path) -> Path:
    from lyrics.core.spec import dump, load_any

    dump(load_any(file), folder / "again.json")
    return folder / "again.json"
