"""Former names: each still works, warns, and is refused beside the current one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import lyrics
import lyrics.data
from lyrics.core.chat import Chat
from lyrics.core.errors import LyricsError, SpecError
from lyrics.core.registry.registry import default_registry
from lyrics.core.renaming import FormerSettingWarning, current_names, moved_names, renamed
from lyrics.core.resolve import read_any_spec, resolve, resolve_refiner
from lyrics.core.runs.config import TrainConfig, dump_config, load_config
from lyrics.core.spec import RefinerOnlySpec, Specification, validate
from lyrics.data import Augmentation, draw_objects, find_images, prepare
from lyrics.evaluation import mme_scores
from lyrics.types import Exchange, Sample
from tests.core.small import drawn

OLD_STEPS = {"optimisation.steps": 7}
NORMALIZED = "query_transformer.options.normalize_image_tokens"
NORMALISED = "query_transformer.options.normalise_image_tokens"


def as_before(data: dict[str, Any]) -> dict[str, Any]:
    """A configuration, or a specification, as the release before wrote it."""
    text = json.dumps(data).replace('"optimization"', '"optimisation"').replace("normalize_image", "normalise_image")
    assert text != json.dumps(data)
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return load_config("tiny-stage1", {NORMALIZED.replace("query", "model.spec.query", 1): True})


def test_a_configuration_with_former_names_loads_and_warns(config: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(as_before(config.model_dump(mode="json"))), encoding="utf-8")
    with pytest.warns(FormerSettingWarning) as found:
        assert load_config(path) == config
    said = {str(one.message) for one in found}
    assert said == {
        "optimisation is now optimization; the former name goes in 0.3.",
        f"{NORMALISED} is now {NORMALIZED}; the former name goes in 0.3.",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(path) == config


def test_both_names_in_a_configuration_are_an_error(config: TrainConfig) -> None:
    data = config.model_dump(mode="json")
    with pytest.raises(SpecError, match="optimisation is the former name of optimization; give optimization alone"):
        load_config({**data, "optimisation": {"steps": 1, "global_batch": 1}})


def test_overrides_with_former_names(config: TrainConfig) -> None:
    with pytest.warns(FormerSettingWarning, match=r"^optimisation\.steps is now optimization\.steps"):
        assert config.with_overrides(OLD_STEPS).optimization.steps == 7
    with pytest.raises(SpecError, match=r"optimisation\.steps is the former name of optimization\.steps"):
        config.with_overrides({**OLD_STEPS, "optimization.steps": 8})
    path = f"model.spec.{NORMALISED}"
    with pytest.warns(FormerSettingWarning, match=f"^{NORMALISED} is now {NORMALIZED}"):
        changed = config.with_overrides({path: False})
    assert changed.model.spec == config.with_overrides({f"model.spec.{NORMALIZED}": False}).model.spec
    assert changed.model.spec != config.model.spec
    with pytest.raises(SpecError, match=f"{NORMALISED} is the former name of {NORMALIZED}"):
        config.with_overrides({path: False, f"model.spec.{NORMALIZED}": True})


def test_the_attribute_and_copies_answer_to_the_former_name(config: TrainConfig) -> None:
    with pytest.warns(DeprecationWarning, match=r"TrainConfig\.optimisation is now"):
        assert config.optimisation is config.optimization  # type: ignore[attr-defined]
    other = config.optimization.model_copy(update={"steps": 3})
    with pytest.warns(FormerSettingWarning):
        assert config.model_copy(update={"optimisation": other}).optimization.steps == 3
    with pytest.raises(AttributeError, match="no_such_field"):
        _ = config.no_such_field  # type: ignore[attr-defined]


def test_the_class_of_the_section_answers_to_its_former_name() -> None:
    from lyrics.core.runs import config as module

    with pytest.warns(DeprecationWarning, match="OptimisationSection is now"):
        assert module.OptimisationSection is module.OptimizationSection  # type: ignore[attr-defined]


@pytest.mark.parametrize("written", ["spec", "override", "both"])
def test_an_option_by_its_former_name_in_a_specification(written: str) -> None:
    """Also where the specification already has every option written out, by either name."""
    full = resolve("lyrics-13b").spec
    spec: Specification = (
        type(full).model_validate(as_before(full.model_dump(mode="json"))) if written != "override" else full
    )
    overrides = {} if written == "spec" else {NORMALISED: False}
    with pytest.warns(FormerSettingWarning):
        found = resolve(spec, overrides).spec
    assert found == (full if written == "spec" else resolve("lyrics-13b", {NORMALIZED: False}).spec)


def test_a_saved_model_with_former_names_loads_and_takes_overrides(tmp_path: Path) -> None:
    model = lyrics.build_model("lyrics-tiny", weights="random")
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "spec.json"
    path.write_text(json.dumps(as_before(json.loads(path.read_text()))), encoding="utf-8")
    with pytest.warns(FormerSettingWarning):
        again = lyrics.load_model(str(tmp_path / "model"))
    assert again.spec == model.spec
    asked = [drawn()], ["What?"]
    assert again.encode(*asked).soft_tokens_PQD.equal(model.encode(*asked).soft_tokens_PQD)
    with pytest.warns(FormerSettingWarning, match=NORMALISED):
        changed = lyrics.load_model(str(tmp_path / "model"), overrides={NORMALISED: True})
    assert changed.spec.query_transformer.options["normalize_image_tokens"] is True


def test_what_the_package_brings_uses_current_names() -> None:
    registry = default_registry()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        for preset, _ in registry.presets:
            alone = isinstance(read_any_spec(preset.name), RefinerOnlySpec)
            (resolve_refiner if alone else resolve)(preset.name)
        for recipe, _ in registry.recipes:
            load_config(recipe.name)
        lyrics.load_model("lyrics-tiny")


def test_a_component_takes_the_former_name_of_its_license() -> None:
    given = {"kind": "tagger", "name": "mine", "build": "mine:build"}
    with pytest.warns(DeprecationWarning, match=r"Component: licence is now Component: license"):
        component = lyrics.Component(**given, licence="MIT")  # type: ignore[arg-type,call-arg]
    assert component == lyrics.Component(**given, license="MIT")  # type: ignore[arg-type]
    with pytest.warns(DeprecationWarning, match=r"Component\.licence is now Component\.license"):
        assert component.licence == "MIT"  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="licence is the former name"):
        lyrics.Component(**given, licence="MIT", license="MIT")  # type: ignore[arg-type,call-arg]


def test_functions_take_arguments_by_former_names() -> None:
    @renamed(colour="color")
    def paint(what: str, *, color: str = "red") -> str:
        """Paint."""
        return f"{color} {what}"

    assert (paint("door"), paint("door", color="blue"), paint.__doc__) == ("red door", "blue door", "Paint.")
    with pytest.warns(DeprecationWarning, match="paint: colour is now") as found:
        assert paint("door", colour="blue") == "blue door"  # type: ignore[call-arg]
    assert found[0].filename == __file__, "the warning points at the caller"
    with pytest.raises(TypeError, match=r"give .*color alone"):
        paint("door", colour="blue", color="red")  # type: ignore[call-arg]


def test_names_of_a_module() -> None:
    find = moved_names("old.place", {"resolver": "lyrics.core.resolve.resolve"})
    with pytest.warns(DeprecationWarning, match=r"old\.place\.resolver is now lyrics\.core\.resolve\.resolve"):
        assert find("resolver") is resolve
    with pytest.raises(AttributeError, match=r"module 'old\.place' has no attribute 'other'"):
        find("other")


def test_current_names_keep_order_and_values() -> None:
    with pytest.warns(FormerSettingWarning, match=r"a\.old is now a\.new"):
        found = current_names({"one": 1, "old": 2, "three": 3}, {"old": "new", "gone": "there"}, where="a.")
    assert list(found.items()) == [("one", 1), ("new", 2), ("three", 3)]
    error: Callable[[str], Exception] = SpecError
    with pytest.raises(LyricsError, match="old is the former name of new; give new alone"):
        current_names({"old": 1, "new": 2}, {"old": "new"}, error=error)


def test_images_by_their_former_name() -> None:
    model = lyrics.build_model("lyrics-tiny", weights="random")
    with pytest.warns(DeprecationWarning, match=r"generate: pictures is now .*images"):
        old = model.generate(pictures=drawn(), instructions="What?", max_new_tokens=2)  # type: ignore[call-overload]
    assert old == model.generate(drawn(), "What?", max_new_tokens=2)
    with pytest.warns(DeprecationWarning, match=" is now "):
        soft = model.encode(pictures=[drawn()]).soft_tokens_PQD  # type: ignore[call-arg]
    assert soft.equal(model.encode([drawn()]).soft_tokens_PQD)
    with pytest.warns(DeprecationWarning, match=r"Exchange: pictures is now Exchange: images"):
        exchange = Exchange("What?", pictures=(0,))  # type: ignore[call-arg]
    assert exchange == Exchange("What?", images=(0,))
    with pytest.warns(DeprecationWarning, match=r"Exchange\.pictures is now"):
        assert exchange.pictures == (0,)  # type: ignore[attr-defined]
    refiner = model.refiner
    assert refiner is not None
    with pytest.warns(DeprecationWarning, match=" is now "):
        refined = refiner(pictures=drawn())
    assert refined == refiner(drawn())
    with pytest.warns(DeprecationWarning, match=" is now "):
        drawing = refined.draw(picture=drawn())
    assert drawing.tobytes() == refined.draw(drawn()).tobytes()
    processor = model.processor
    with pytest.warns(DeprecationWarning, match=r"Processor\.images: pictures is now"):
        prepared = processor.images(pictures=[drawn()])  # type: ignore[call-arg]
    ours = processor.images([drawn()]).by_expert["image_encoder"].pixels_BCHW
    assert prepared.by_expert["image_encoder"].pixels_BCHW.equal(ours)
    with pytest.warns(DeprecationWarning, match="prepare: pictures is now"):
        batch = prepare(pictures=[drawn()], preprocessing=processor.preprocessing["image_encoder"])  # type: ignore[call-arg]
    assert batch.pixels_BCHW.equal(ours)
    with pytest.warns(DeprecationWarning, match="draw_objects: picture is now"):
        drawing = draw_objects(picture=drawn(), objects=())  # type: ignore[call-arg]
    assert drawing.tobytes() == draw_objects(drawn(), ()).tobytes()
    with pytest.warns(DeprecationWarning, match=r"frame: picture_size is now .*image_size"):
        frame = Augmentation().frame(Sample("a"), picture_size=(60, 40), seed=0, position=0)  # type: ignore[call-arg]
    assert frame == Augmentation().frame(Sample("a"), (60, 40), seed=0, position=0)
    with pytest.warns(DeprecationWarning, match="mme_scores: pictures is now"):
        scores = mme_scores([True, False], [True, False], ["count"] * 2, pictures=["1"] * 2)  # type: ignore[call-arg]
    assert scores == mme_scores([True, False], [True, False], ["count"] * 2, ["1"] * 2)
    with pytest.warns(DeprecationWarning, match=r"Chat\.__init__: pictures is now"):
        talk = Chat(model, pictures=[drawn()])  # type: ignore[call-arg]
    assert talk.ask("What?", max_new_tokens=2) == model.chat(drawn()).ask("What?", max_new_tokens=2)
    with pytest.warns(DeprecationWarning, match=r"find_pictures is now lyrics\.data\.find_images"):
        assert lyrics.data.find_pictures is find_images  # type: ignore[attr-defined]


def test_options_of_a_benchmark_by_former_names() -> None:
    options = default_registry().component("benchmark", "pope").component.options
    with pytest.warns(FormerSettingWarning):
        found = validate({"pictures": 2, "per_picture": 1}, options)
    assert found == validate({"num_images": 2, "per_image": 1}, options)
