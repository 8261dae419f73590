"""Table 5: the specification of every variant, and both readings from models to rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lyrics.core.errors import LyricsError, SpecError, UnknownNameError
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.resolve import resolve, wire
from lyrics.core.runs.config import load_config
from lyrics.core.spec import ModelSpec
from lyrics.core.training import assemble
from lyrics.core.training.loop import Outcome
from lyrics.plugins.paper.presets import blip2_13b, lyrics_13b
from lyrics.workflows.ablations import architecture, runs
from lyrics.workflows.ablations.architecture import (
    BASELINES,
    VARIANTS,
    answered,
    chosen,
    removed,
    variant_config,
    without,
)
from lyrics.workflows.ablations.runs import is_trained, train_once
from tests.core.small import drawn, small
from tests.core.training.runs import losses
from tests.workflows.ablations.toys import LOSSES, config, evaluating, stages, written

#: The rows that the paper has.
PARTS = ("full", "no-vit", "no-odm", "no-ssm", "no-vr")
CACHED = {"use": "cached", "options": {"missing": "empty"}}


# --- specifications ---

EXPERTS = ("refiner.tagger", "refiner.detector", "refiner.segmenter")


def parts(spec: ModelSpec) -> set[str]:
    return {path for path, _, _ in spec.slots() if path.startswith(("refiner", "objectives"))}


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("full", ()),
        ("no-vit", ()),
        ("no-odm", ("refiner.detector", "refiner.segmenter")),
        ("no-ssm", ("refiner.segmenter",)),
        ("no-vr", ("refiner.tagger", "refiner.detector", "refiner.segmenter")),
        ("blip2", ("refiner.tagger", "refiner.detector", "refiner.segmenter", "objectives.msp")),
        ("mlp-projector", (*EXPERTS, *(f"objectives.{name}" for name in LOSSES))),
        ("perceiver-resampler", (*EXPERTS, *(f"objectives.{name}" for name in LOSSES))),
    ],
)
def test_the_spec_of_each_variant(name: str, gone: tuple[str, ...]) -> None:
    before = resolve(lyrics_13b()).spec
    after = before.with_overrides(without(before, name))
    wire(resolve(after))
    assert parts(before) - parts(after) == set(gone)
    assert after.image_encoder == before.image_encoder
    assert after.language_model == before.language_model
    if name == "blip2":
        wanted = resolve(blip2_13b()).spec
        assert (after.query_transformer, after.objectives, after.sees, after.refiner) == (
            wanted.query_transformer,
            wanted.objectives,
            wanted.sees,
            None,
        )
    elif name in BASELINES:
        assert after.query_transformer.use == name
        assert (after.sees, after.refiner) == ((), None)
    else:
        assert after.query_transformer == before.query_transformer


def test_pinned_widths_of_local_tokens_do_not_stand_in_the_way() -> None:
    spec = small(query_transformer__options__local_dims={"detector": 20, "segmenter": 20})
    wire(resolve(spec.with_overrides(without(spec, "no-ssm"))))


def test_what_a_variant_is_about_must_be_there() -> None:
    with pytest.raises(SpecError, match=r"w/o SSM: this model has no refiner\.segmenter.*--only"):
        without(small(refiner__segmenter=None), "no-ssm")
    with pytest.raises(SpecError, match="BLIP-2's way: this model has no refiner"):
        without(small(refiner=None), "blip2")


def test_stored_objects_are_not_asked_for_where_nobody_reads_them(tmp_path: Path) -> None:
    given = {"model__spec__refiner__detector": CACHED, "data__refined": "objects.jsonl"}
    base = config("pretrain", **given)
    assert variant_config(base, "no-ssm", 0, tmp_path).data.refined == "objects.jsonl"
    assert variant_config(base, "no-odm", 0, tmp_path).data.refined is None


@pytest.mark.parametrize("recipes", [("tiny-stage1", "tiny-stage2"), ("tiny-plain-stage1", "tiny-plain-stage2")])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_recipes_fit_each_variant(name: str, recipes: tuple[str, str], tmp_path: Path) -> None:
    """What is dropped from the text of some samples is not asked for where there is no such text."""
    for recipe in recipes:
        found = variant_config(load_config(recipe), name, 0, tmp_path)
        dropped = found.data.drop_queries_text
        assert dropped == (load_config(recipe).data.drop_queries_text if "spatial" in found.model.spec.sees else 0)


def test_connectors_have_as_many_soft_tokens_as_visual_queries() -> None:
    spec = small(query_transformer__options__num_visual=3)
    changed = spec.with_overrides(without(spec, "perceiver-resampler"))
    assert changed.query_transformer.options["num_queries"] == 3


def test_variants_are_chosen_by_name() -> None:
    assert chosen((), "blank") == ["full", "no-vit", "no-odm", "no-ssm", "no-vr", "text-only", "soft-only"]
    assert chosen((), "features") == chosen((), "blank")
    assert chosen((), "removed") == list(VARIANTS)
    assert chosen(["no-vr", "full"], "removed") == ["full", "no-vr"]
    with pytest.raises(UnknownNameError, match=r"--only no-sam: .*Did you mean 'no-ssm'"):
        chosen(["no-sam"], "blank")
    for name in BASELINES:
        with pytest.raises(SpecError, match=f"--only {name}: is trained without a refiner; it needs --reading removed"):
            chosen([name], "blank")


def test_the_papers_figures() -> None:
    assert architecture.PUBLISHED["vqav2", "", "w/o VR"] == 77.2
    assert architecture.PUBLISHED["refcocog", "test", "w/o ODM"] == 87.55
    assert len(architecture.PUBLISHED) == 10


# --- blank ---


def tiny() -> LyricsModel:
    torch.manual_seed(0)
    return build_model(small(language_model__options__max_positions=512), weights="random").eval()


def test_a_trained_model_with_a_blank_picture_for_each_part(tmp_path: Path) -> None:
    blanked: list[list[str]] = []

    def load() -> LyricsModel:
        model = tiny()
        say = model.generate

        def generate(pictures: Any, instructions: Any, **named: Any) -> Any:
            # Two different pictures are the same to a part that sees neither.
            one, two = (model.processor.images([drawn(80, 80, color)]) for color in ("red", "blue"))
            same = {
                name
                for name, batch in one.by_expert.items()
                if batch.pixels_BCHW.equal(two.by_expert[name].pixels_BCHW)
            }
            blanked.append(sorted(same))
            return say(pictures, instructions, **named)

        model.generate = generate  # type: ignore[method-assign]
        return model

    rows = answered("blank", load, "tiny", evaluating(), tmp_path, PARTS)
    assert blanked == [[], ["image_encoder"], ["detector"], ["segmenter"], ["detector", "segmenter", "tagger"]]
    assert list(dict.fromkeys(row.variant for row in rows)) == ["Lyrics", "w/o ViT", "w/o ODM", "w/o SSM", "w/o VR"]
    assert {(row.reading, row.seed, row.samples, row.benchmark) for row in rows} == {("blank", None, 5, "scenes-test")}
    about = json.loads((tmp_path / "no-odm" / "scenes-test" / "run.json").read_text())
    assert about == {"benchmark": "scenes", "split": "test", "model": "tiny, blank for detector"}

    def never() -> LyricsModel:
        raise AssertionError("everything is answered")

    assert answered("blank", never, "tiny", evaluating(), tmp_path, PARTS) == rows
    with pytest.raises(LyricsError, match="answers there are of model 'tiny', not 'another'"):
        answered("blank", never, "another", evaluating(), tmp_path, PARTS)


def test_a_model_without_the_part_is_refused_before_it_answers(tmp_path: Path) -> None:
    def load() -> LyricsModel:
        return build_model(small(refiner__segmenter=None), weights="random")

    with pytest.raises(SpecError, match=r"w/o SSM: this model has no refiner\.segmenter"):
        answered("blank", load, "tiny", evaluating(), tmp_path, PARTS)
    assert not list(tmp_path.rglob("*.jsonl"))
    with pytest.raises(SpecError, match=r"w/o VR: refiner\.tagger is 'cached'"):
        answered(
            "blank",
            lambda: build_model(small(refiner__tagger=CACHED), weights="random"),
            "t",
            evaluating(),
            tmp_path,
            PARTS,
        )


# --- features, and what reaches the language model by which way ---


def test_only_the_tokens_of_a_part_are_blank(tmp_path: Path) -> None:
    """The prompt's text stays letter for letter, whatever part is blank, and soft tokens do not."""
    seen: list[tuple[list[str], torch.Tensor]] = []

    def load() -> LyricsModel:
        model = tiny()
        look = model.look

        def looking(pictures: Any, instructions: Any, **named: Any) -> Any:
            encoded = look(pictures, instructions, **named)
            seen.append((list(encoded.spatial_texts), encoded.soft_tokens_PQD))
            return encoded

        model.look = looking  # type: ignore[method-assign]
        return model

    rows = answered("features", load, "tiny", evaluating(), tmp_path, PARTS)
    texts, soft = zip(*seen, strict=True)
    assert len(seen) == len(PARTS)
    assert all(text == texts[0] for text in texts)
    assert any(any(one) for one in texts[0]), "there is no text that could stay"
    assert all(not torch.equal(soft[0], other) for other in soft[1:])
    assert {row.reading for row in rows} == {"features"}
    about = json.loads((tmp_path / "no-vr" / "scenes-test" / "run.json").read_text())
    assert about["model"] == "tiny, blank tokens for tagger, detector, segmenter"


@pytest.mark.parametrize("reading", ["blank", "features"])
def test_text_only_and_soft_only(tmp_path: Path, reading: str) -> None:
    prompts: list[tuple[list[str], bool, torch.Tensor]] = []

    def load() -> LyricsModel:
        model = tiny()
        answer = model.answer

        def answering(dialogues: Any, encoded: Any, **named: Any) -> Any:
            prompts.append((list(encoded.spatial_texts), model.spec.spatial_in_prompt, encoded.soft_tokens_PQD))
            return answer(dialogues, encoded, **named)

        model.answer = answering  # type: ignore[method-assign]
        return model

    # Two scenes in one batch: with one there would be no other image to take soft tokens from.
    rows = answered(
        reading, load, "tiny", evaluating(2, batch=10), tmp_path, ["no-vit", "text-only", "soft-only", "full"]
    )
    assert list(dict.fromkeys(row.variant for row in rows)) == ["Lyrics", "w/o ViT", "text only", "soft only"]
    assert [shown for _, shown, _ in prompts][-1:] == [True], "text only reads the text"
    model = tiny()
    (text, _, swapped) = prompts[-1]
    about = json.loads((tmp_path / "text-only" / "scenes-test" / "run.json").read_text())
    assert about["condition"] == "soft-shuffled, exchanged among 10 samples"
    assert json.loads((tmp_path / "soft-only" / "scenes-test" / "run.json").read_text())["model"] == (
        "tiny, no spatial text"
    )
    assert len(text) == len(swapped) == 10
    assert model.spec.spatial_in_prompt
    with pytest.raises(LyricsError, match="condition"):
        answered(reading, load, "tiny", evaluating(3, batch=10), tmp_path, ["text-only"])


def test_text_and_soft_only_need_something_to_take_away(tmp_path: Path) -> None:
    def load() -> LyricsModel:
        return build_model(small(spatial_in_prompt=False, language_model__options__max_positions=512), weights="random")

    with pytest.raises(SpecError, match="soft only: this model's prompts have no spatial text"):
        answered("features", load, "tiny", evaluating(), tmp_path, ["soft-only"])
    with pytest.raises(LyricsError, match=r"is the only sample with 1 image.*--soft shuffled"):
        answered("features", tiny, "tiny", evaluating(limit=1), tmp_path, ["text-only"])


# --- removed ---


def test_every_variant_is_trained_in_both_stages_and_evaluated(tmp_path: Path) -> None:
    rows = removed(stages(), evaluating(2, batch=10), tmp_path, 1)
    assert list(dict.fromkeys(row.variant for row in rows)) == [variant.name for variant in VARIANTS.values()]
    assert {(row.reading, row.seed) for row in rows} == {("removed", 0)}
    before = written(tmp_path)
    trained = [name for name, variant in VARIANTS.items() if not variant.of_full]
    assert [name for name in VARIANTS if name not in trained] == ["text-only", "soft-only"]
    for name in VARIANTS:
        assert (tmp_path / name / "seed-0" / "results" / "scenes-test" / "predictions.jsonl").is_file()
        # These two answer with what was trained for the whole model.
        assert (tmp_path / name / "seed-0" / "finetune").is_dir() == (name in trained)
    in_both = [name for name in trained if name not in ("mlp-projector", "perceiver-resampler")]
    for name in trained:
        folder = tmp_path / name / "seed-0"
        if name in in_both:
            for stage in ("pretrain", "finetune"):
                assert [step for step, _ in losses(folder / stage)] == [1, 2]
        else:  # it reads no text: no stage 1, and its samples in stage 2
            assert not (folder / "pretrain").exists()
            assert [step for step, _ in losses(folder / "finetune")] == [1, 2, 3, 4]
    # The first losses say that the variants differ, and that stage 2 came from stage 1.
    first = {name: losses(tmp_path / name / "seed-0" / "pretrain")[0][1] for name in in_both}
    assert len({exact["itc"] for exact in first.values()}) > 3
    assert first["no-vit"]["itc"] != first["full"]["itc"]
    assert "msp" not in first["blip2"]
    assert (
        f"model.start_from: {tmp_path}" not in (tmp_path / "full" / "seed-0" / "pretrain" / "config.yaml").read_text()
    )
    assert (
        f"start_from: {tmp_path / 'full/seed-0/pretrain'}"
        in (tmp_path / "full" / "seed-0" / "finetune" / "config.yaml").read_text()
    )

    assert removed(stages(), evaluating(2, batch=10), tmp_path, 1) == rows
    after = written(tmp_path)
    changed = {path for path in after if after[path] != before.get(path)}
    assert {Path(path).name for path in changed} <= {"scores.json", "table.md", "worst.html", "risk.svg"}

    with pytest.raises(LyricsError, match=r"was trained with optimization\.learning_rate=0\.001, not 0\.5"):
        removed(stages(optimization__learning_rate=0.5), evaluating(2, batch=10), tmp_path, 1, ["full"])


def test_an_exchange_that_cannot_be_made_is_found_before_training(tmp_path: Path) -> None:
    with pytest.raises(LyricsError, match=r"5 of 5 samples with 1 image show test/0.*evaluate more samples"):
        removed(stages(), evaluating(), tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_training_on_blank_pictures_is_otherwise_the_same_training(tmp_path: Path) -> None:
    held_out = {"use": "scenes", "options": {"task": "mixed", "split": "validation", "scenes": 2}}
    measuring = {
        "evaluation__every_steps": 2,
        "evaluation__sets": {"scenes": held_out},
        "evaluation__samples": 2,
        "evaluation__max_new_tokens": 2,
        "data__augmentation": {"flip": 0.5},
        "optimization__frozen_precision": "bf16",
    }
    for folder, blank_for in (("seeing", ()), ("blank", ("image_encoder",))):
        train_once(config("instruct", out=str(tmp_path / folder), **measuring), folder, blank_for)
    assemble.run(config("instruct", out=str(tmp_path / "plain"), **measuring))
    assert losses(tmp_path / "seeing") == losses(tmp_path / "plain")
    assert losses(tmp_path / "blank")[0] != losses(tmp_path / "plain")[0]
    for folder in ("seeing", "blank"):
        assert '"evaluation"' in (tmp_path / folder / "log.jsonl").read_text()


def test_a_stopped_run_is_not_taken_for_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short, whole = (config("pretrain", steps=steps, out=str(tmp_path)) for steps in (1, 3))
    asked: list[Any] = []

    def stopping(config: Any, **_: Any) -> Outcome:
        asked.append(config)
        return Outcome(1, stopped=True)

    monkeypatch.setattr(runs.assemble, "run", stopping)
    with pytest.raises(runs.StoppedError, match="stopped after 1 of 3 steps of it; the same command goes on"):
        train_once(whole, "it")
    assert asked == [whole]
    monkeypatch.undo()
    assert not is_trained(short)
    train_once(short, "it")
    assert is_trained(short)
    # A longer run is another run.
    with pytest.raises(LyricsError, match=r"was trained with optimization\.steps=1, not 3"):
        is_trained(whole)


def test_a_model_folder_is_no_start(tmp_path: Path) -> None:
    given = stages(model__weights=str(tmp_path))
    with pytest.raises(SpecError, match=r"instruct: model\.weights=.* is a model with all its parts"):
        removed(given, evaluating(), tmp_path, 1)


def test_seeds_are_those_of_both_stages(tmp_path: Path) -> None:
    given = runs.Stages(config("pretrain", seed=5), config("instruct", seed=9))
    assert list(given.seeds(3)) == [5, 6, 7]
    assert [variant_config(one, "full", 6, tmp_path).seed for one in (given.pretrain, given.finetune)] == [6, 6]


def test_under_torchrun_nothing_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(architecture, "train_once", lambda config, what, blank: done.append(f"{what} {blank}"))
    assert removed(stages(), evaluating(), tmp_path, 1, ["no-vit"]) == []
    assert done == [f"w/o ViT, removed, seed 0, stage {stage} ('image_encoder',)" for stage in (1, 2)]
    assert not (tmp_path / "no-vit").exists()
