"""Both stages' steps and generation on a model small enough to be looked through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lyrics.core.data.augmentation import Augmentation
from lyrics.core.data.collate import Collator, InstructionExamples, PretrainExamples
from lyrics.core.data.stream import Example
from lyrics.core.errors import DatasetError, PromptError
from lyrics.core.geometry import Box
from lyrics.core.language.codecs import format_box
from lyrics.core.language.prompts import Exchange
from lyrics.core.language.soft_prompts import groups_by_length
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.refining.refinement import Refinement
from lyrics.core.types import DetectedObject, Sample, Turn
from tests.core.small import drawn, small

CACHED = {
    f"refiner__{part}": {"use": "cached", "options": {"missing": "empty"}}
    for part in ("tagger", "detector", "segmenter")
}
RED, BLUE = (
    DetectedObject("red circle", Box(0.2, 0.2, 0.5, 0.6), 0.9),
    DetectedObject("blue box", Box(0.6, 0.1, 0.9, 0.5), 0.8),
)


def made(**overrides: Any) -> LyricsModel:
    torch.manual_seed(0)
    defaults = {
        **CACHED,
        "objectives": {name: name for name in ("itc", "itm", "icg", "msp")},
        "language_model__options__max_positions": 512,
        "language_model__options__lora": {"rank": 2, "dropout": 0.0},
        "query_transformer__options__hidden_dropout": 0.0,
        "query_transformer__options__attention_dropout": 0.0,
        "query_transformer__options__max_positions": 256,
    }
    model = build_model(small(**defaults | overrides), weights="random")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    return made()


def example(position: int, objects: tuple[DetectedObject, ...] = (RED, BLUE), **changes: Any) -> Example:
    sample = Sample(f"{position}.png", ("a red circle", "a circle and a box"), objects, source="test")
    picture = drawn(80 + 8 * position, 64, ("red", "blue", "green")[position % 3])
    return replace(Example(position, "toy", position, sample, picture), **changes)


def talk(position: int, *turns: tuple[str, str], **extra: Any) -> Example:
    one = example(position)
    return replace(one, sample=replace(one.sample, turns=tuple(Turn(*turn) for turn in turns), extra=extra))


def collated(model: LyricsModel, stage: Any, *examples: Example, **options: Any) -> Any:
    return Collator(stage, model.processor, seed=0, **options)(list(examples))


# --- stage 1 ---


def test_stage_1_gives_every_loss_and_trains_what_it_should(model: LyricsModel) -> None:
    batch = collated(model, "pretrain", *(example(position) for position in range(3)))
    assert isinstance(batch, PretrainExamples)
    trained = model.trainable_parameters("pretrain")
    losses = model.pretraining_step(batch, seed=0, step=5)
    assert set(losses) == {"itc", "itm", "icg", "msp"}
    assert all(torch.isfinite(loss.sum) for loss in losses.values())
    assert losses["icg"].count == sum(len(model._words([c])[0]) + 1 for c in batch.captions)
    model.zero_grad()
    sum(loss.sum for loss in losses.values()).backward()  # type: ignore[union-attr]
    moved = {name for name, one in model.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0}
    assert moved <= set(trained)
    assert {name.partition(".")[0] for name in moved} == {"query_transformer", "objectives"}
    assert not any(one.requires_grad for name, one in model.named_parameters() if name not in trained)


def test_an_objective_of_weight_0_is_kept_and_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"itc": {"use": "itc", "weight": 0.0}, "itm": {"use": "itm", "weight": 0.0}, "icg": "icg"}
    model = made(objectives=parts)
    batch = collated(model, "pretrain", *(example(position) for position in range(3)))
    trained = model.trainable_parameters("pretrain")
    assert any(name.startswith("objectives.itm.") for name in trained)
    losses = model.pretraining_step(batch, seed=0, step=0)
    assert set(losses) == {"icg"}
    model.zero_grad()
    losses["icg"].sum.backward()
    assert all(one.grad is None for name, one in trained.items() if name.startswith("objectives."))
    # Several processes average a gradient of every parameter.
    monkeypatch.setattr("lyrics.core.composed.world_size", lambda: 2)
    assert set(model.pretraining_step(batch, seed=0, step=0)) == {"itc", "itm", "icg"}
    monkeypatch.undo()
    nothing = {name: {"use": name, "weight": 0.0} for name in parts}
    assert set(made(objectives=nothing).pretraining_step(batch, seed=0, step=0)) == set(parts), "a step has a loss"


def test_stage_1_masks_objects_as_seed_step_and_position_say(model: LyricsModel) -> None:
    batch = collated(model, "pretrain", *(example(position) for position in range(4)))
    counts = {model.pretraining_step(batch, seed=0, step=step)["msp"].count for step in range(12)}
    assert len(counts) > 1
    first, again = (model.pretraining_step(batch, seed=0, step=3) for _ in range(2))
    assert all(torch.equal(first[name].sum, again[name].sum) for name in first)
    hidden = model._objects([Refinement((80, 64), objects=(RED,)), Refinement((80, 64))])
    assert hidden.objects_B.tolist() == [1, 0]
    assert hidden.unit_T.max() > 5  # tag, coordinates and the markup between them, each a unit


def test_stage_1_without_objects_or_captions_is_finite(model: LyricsModel) -> None:
    empty = replace(example(0, ()).sample, captions=())
    for examples in ([example(0, ())], [replace(example(0), sample=empty)], [example(0, ()), example(1)]):
        losses = model.pretraining_step(collated(model, "pretrain", *examples), seed=0, step=0)
        assert all(torch.isfinite(loss.sum) for loss in losses.values())
    losses = model.pretraining_step(collated(model, "pretrain", example(0, ()), example(1, ())), seed=0, step=0)
    assert (float(losses["msp"].sum), losses["msp"].count) == (0.0, 0)


def test_stage_1_needs_pictures_and_objectives(model: LyricsModel) -> None:
    text = replace(example(0), picture=None, sample=Sample(None, ("words",)))
    with pytest.raises(DatasetError, match=r"'toy', row 0: stage 1 aligns images with text"):
        collated(model, "pretrain", text)
    bare = made(objectives={})
    with pytest.raises(ValueError, match="no objectives"):
        bare(collated(bare, "pretrain", example(0)))


# --- collation ---


def test_objects_move_with_the_augmented_picture(model: LyricsModel) -> None:
    augmentation = Augmentation(flip=1.0)
    batch = collated(model, "pretrain", example(0), augmentation=augmentation)
    sample, picture, frame = augmentation(example(0).sample, example(0).picture, seed=0, position=0)  # type: ignore[arg-type]
    images = batch.images.by_expert["detector"]
    assert images.known_objects == (sample.objects,)
    assert batch.images.sizes_px == (picture.size,)
    _, refinements = model.features(batch.images)
    assert [found.tag for found in refinements[0].objects] == [found.tag for found in sample.objects]
    assert refinements[0].objects[0].box_norm.iou(sample.objects[0].box_norm) > 0.999
    assert frame.steps


def test_stored_refinements_stand_above_annotations(model: LyricsModel) -> None:
    stored = {"0.png": Refinement((80, 64), objects=(BLUE,))}
    batch = collated(model, "pretrain", example(0), refined=stored)
    assert batch.images.by_expert["tagger"].known_objects == ((BLUE,),)
    with pytest.raises(DatasetError, match=r"1\.png .*row 1.* not among the stored refinements"):
        collated(model, "pretrain", example(1), refined=stored)


@pytest.mark.parametrize(
    ("extra", "shown"),
    [
        ({"task": "rec"}, ["blue square"]),
        ({"task": "grounded-caption"}, ["blue square"]),
        ({"task": "rec", "absent": "a green star"}, ["the thing on the left", "blue square"]),
        ({"task": "caption"}, ["the thing on the left", "blue square"]),
    ],
)
def test_annotated_objects_do_not_give_the_answer_away(model: LyricsModel, extra: dict, shown: list[str]) -> None:
    """The object that is asked for stands first, under the expression that asks for it."""
    asked = DetectedObject("the thing on the left", BLUE.box_norm, 1.0)
    given = example(0)
    sample = replace(given.sample, objects=(asked, replace(BLUE, tag="blue square")), extra=extra)
    batch = collated(model, "instruct", replace(given, sample=sample))
    (known,) = batch.images.by_expert["detector"].known_objects
    assert [found.tag for found in known or ()] == shown


def test_captions_and_pictures_have_fixed_draws(model: LyricsModel) -> None:
    one, two = (collated(model, "pretrain", *(example(p) for p in range(6))) for _ in range(2))
    assert one.captions == two.captions
    assert len(set(one.captions)) == 2
    assert len(set(one.image_ids)) == 6
    same = replace(example(1), row=9, sample=replace(example(1).sample, image="0.png"))
    assert len(set(collated(model, "pretrain", example(0), same).image_ids)) == 1


def test_a_sample_that_augmentation_empties_is_taken_as_it_was(model: LyricsModel) -> None:
    rec = replace(example(0, (replace(RED, box_norm=Box(0.0, 0.0, 0.02, 0.02)),)), position=3)
    rec = replace(rec, sample=replace(rec.sample, extra={"task": "rec"}))
    batch = collated(model, "instruct", rec, augmentation=Augmentation(scale=(0.2, 0.3), flip=0.0))
    assert batch.dialogues[0]
    assert batch.images.sizes_px == (rec.picture.size,)  # type: ignore[union-attr]


# --- stage 2 ---


def test_stage_2_is_the_mean_over_answer_tokens(model: LyricsModel) -> None:
    """Against the language model called by hand, one conversation at a time and without padding, where it reads two
    groups of them.
    """
    examples = [
        talk(0, ("What is red?", "a circle"), ("And blue?", "a box"), task="text"),
        talk(1, ("How many?", "2"), task="vqa"),
        replace(talk(2, ("Say hello.", "hello there"), task="text"), picture=None),
        *(talk(3 + more, ("And what is " + "very " * 60 + "red?", "this"), task="text") for more in range(5)),
    ]
    batch = collated(model, "instruct", *examples)
    assert isinstance(batch, InstructionExamples)
    assert [dialogue[0].images for dialogue in batch.dialogues][:4] == [(0,), (1,), (), (2,)]
    loss = model.instruction_step(batch)["answer"]
    total, count = 0.0, 0
    prompts = []
    for index in range(len(examples)):
        alone = collated(model, "instruct", examples[index])
        instruction = alone.dialogues[0][0].instruction
        encoded = model.encode_images(alone.images, [instruction] * len(alone.images))
        prompt = model._prompt(alone.dialogues[0], encoded, 512)
        prompts.append(prompt)
        embeddings = model.language_model.embed(torch.tensor([prompt.ids]))
        for start, picture in prompt.slots:
            queries = encoded.soft_tokens_PQD[picture]
            embeddings[0, start : start + len(queries)] = queries
        logits = model.language_model(embeddings, torch.ones(1, len(prompt), dtype=torch.long))[0]
        for position, learned in enumerate(prompt.targets):
            if learned:
                total += float(F.cross_entropy(logits[position - 1], torch.tensor(prompt.ids[position])))
                count += 1
    assert len(groups_by_length(prompts)) == 2
    assert loss.count == count
    assert float(loss.sum) == pytest.approx(total, rel=1e-4)
    answers = [turn.answer for dialogue in batch.dialogues for turn in dialogue]
    assert count == sum(len(answer) + 1 for answer in answers if answer is not None)  # bytes, and </s>


def test_stage_2_answers_with_the_boxes_that_the_refiner_found_where_it_is_told_to(model: LyricsModel) -> None:
    """Only answers, and only boxes that are nearly the refiner's: instructions name boxes as a user would."""
    near, far = Box(0.22, 0.18, 0.5, 0.58), Box(0.0, 0.7, 0.3, 1.0)

    def asked(answer: str) -> Example:
        return talk(0, (f"What is at {format_box(near)}?", "a circle"), ("Where?", answer), task="text")

    def loss(answer: str, **options: Any) -> float:
        return float(
            model.instruction_step(collated(model, "instruct", asked(answer), **options))["answer"].sum.detach()
        )

    text = f"here {format_box(near)} or {format_box(far)}"
    copied = text.replace(format_box(near), format_box(RED.box_norm))
    assert loss(text, snap_iou=0.5) == loss(copied) == loss(copied, snap_iou=0.5) != loss(text)
    assert loss(text, snap_iou=0.99) == loss(text)
    words = replace(talk(0, ("Say it.", text), task="text"), picture=None)
    assert float(model.instruction_step(collated(model, "instruct", words, snap_iou=0.5))["answer"].sum) > 0


def test_stage_2_leaves_spatial_text_out_of_the_prompt_and_out_of_what_the_queries_read(model: LyricsModel) -> None:
    one = talk(0, ("What?", "a circle"), task="text")
    other = talk(1, ("Where?", "here"), task="text")

    def seen(**options: Any) -> tuple[torch.Tensor, list[str]]:
        batch = collated(model, "instruct", one, other, **options)
        encoded = model.encode_images(batch.images, ["What?", "Where?"], dropped=batch.dropped)
        prompts = [model._prompt(dialogue, encoded, 512) for dialogue in batch.dialogues]
        return encoded.soft_tokens_PQD, [model.language_model.tokenizer.decode(prompt.ids) for prompt in prompts]

    soft, prompts = seen()
    assert all("red circle" in prompt for prompt in prompts)
    untold, without = seen(drop_text=1.0)
    assert torch.equal(untold, soft)
    assert not any("red circle" in prompt for prompt in without)
    unread, with_text = seen(drop_queries_text=1.0)
    assert with_text == prompts
    assert not torch.allclose(unread, soft)
    blank = [replace(example.sample, objects=()) for example in (one, other)]
    alone = collated(model, "instruct", *(replace(e, sample=s) for e, s in zip((one, other), blank, strict=True)))
    # Without objects there are no local tokens either; so compare with the stream of no text over the same features.
    features, _ = model.features(collated(model, "instruct", one, other).images)
    stream = model._stream([Refinement(size) for size in alone.images.sizes_px], ["What?", "Where?"])
    outputs = model.query_transformer([stream], features)
    expected = model.projection(torch.cat([outputs("stage2", segment) for segment in stream.wanted], dim=1))
    torch.testing.assert_close(unread, expected)

    def loss(**options: Any) -> float:
        return float(model.instruction_step(collated(model, "instruct", one, other, **options))["answer"].sum.detach())

    assert (
        len({loss(), loss(drop_text=1.0), loss(drop_queries_text=1.0), loss(drop_text=1.0, drop_queries_text=1.0)}) == 4
    )
    assert loss(drop_text=0.0, drop_queries_text=0.0) == loss()


def test_stage_2_trains_queries_projection_and_lora(model: LyricsModel) -> None:
    trained = model.trainable_parameters("instruct")
    model.zero_grad()
    batch = collated(model, "instruct", talk(0, ("What?", "a circle"), task="text"))
    model.instruction_step(batch)["answer"].sum.backward()
    moved = {name for name, one in model.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0}
    assert moved <= set(trained)
    assert {name.partition(".")[0] for name in moved} == {"query_transformer", "projection", "language_model"}
    assert all("lora_" in name for name in moved if name.startswith("language_model"))
    assert not any(name.startswith("objectives") or "token_head" in name for name in trained)
    assert model.trainable_parameters("pretrain").keys() != trained.keys()
    assert model.trainable_parameters("instruct").keys() == trained.keys()  # what LoRA trains is not forgotten
    with pytest.raises(ValueError, match="no stage 'both'"):
        model.trainable_parameters("both")


def test_stage_2_with_text_alone_and_with_nothing_to_learn(model: LyricsModel) -> None:
    model.trainable_parameters("instruct")
    words = replace(talk(0, ("Say it.", "hello"), task="text"), picture=None)
    loss = model.instruction_step(collated(model, "instruct", words))["answer"]
    assert loss.count == len("hello") + 1
    long = collated(model, "instruct", talk(0, ("What?", "a circle"), task="text"))
    nothing = model.instruction_step(long, longest=4)["answer"]
    assert (float(nothing.sum), nothing.count) == (0.0, 0)
    nothing.sum.backward()


def test_each_text_is_an_option(model: LyricsModel) -> None:
    """The language model's spatial text, and both texts that the query transformer reads."""
    batch = collated(model, "instruct", talk(0, ("What?", "a circle"), task="text"))
    found = [float(model.instruction_step(batch)["answer"].sum)]
    for change in ({"spatial_in_prompt": False}, {"sees": ("spatial",)}, {"sees": ("instruction",)}, {"sees": ()}):
        other = made(**change)
        found.append(float(other.instruction_step(batch)["answer"].sum))
    assert len({round(value, 4) for value in found}) == 5


# --- answering ---


def questions() -> tuple[list[Any], list[str]]:
    pictures = [[drawn()], [drawn(40, 90, "blue"), drawn(70, 70)], None, drawn(100, 30, "green")]
    return pictures, ["what is this?", "compare the two, please: which is larger?", "hello", "and?"]


def test_batched_answers_are_those_of_each_alone() -> None:
    model = made()
    pictures, asked = questions()
    together = model.generate(pictures, asked, max_new_tokens=12)
    alone = [model.generate([p], [q], max_new_tokens=12)[0] for p, q in zip(pictures, asked, strict=True)]
    assert together == alone
    assert len({answer.text for answer in together}) > 1


def test_prompts_that_cannot_be_met(model: LyricsModel) -> None:
    for question, complaint in (
        ("", "the prompt is empty"),
        ("   \n", "the prompt is empty"),
        (
            "x" * 100_000,
            r"the prompt has 100,0\d\d tokens, 1 image of 8 tokens included; the language model reads 512, 64",
        ),
    ):
        with pytest.raises(PromptError, match=complaint):
            model.generate([drawn()], [question])
    with pytest.raises(PromptError, match=r"\d+ images of 8 tokens included"):
        model.generate([[drawn(8, 8)] * 80], ["what?"])
    with pytest.raises(PromptError, match="max_new_tokens must be 1 or more, not 0"):
        model.generate([None], ["what?"], max_new_tokens=0)
    with pytest.raises(PromptError, match="names image 3, but there are 0"):
        model.answer([[Exchange("a", None, (3,))]], model.look([], []))
    with pytest.raises(PromptError, match="has an answer already"):
        model.answer([[Exchange("a", "b")]], model.look([], []))
    with pytest.raises(ValueError, match="2 instructions need as many entries of images, not 1"):
        model.generate([None], ["a", "b"])
    assert model.generate([], []) == []


def test_objects_that_have_no_room_are_left_out_of_the_text_and_it_is_said(model: LyricsModel) -> None:
    many = tuple(replace(RED, tag=f"thing {n}", score=1 - n / 100) for n in range(30))
    batch = collated(model, "instruct", example(0, many))
    encoded = model.encode_images(batch.images, ["what?"])
    with pytest.warns(UserWarning, match="no room for all objects"):
        prompt = model._prompt([Exchange("what?", None, (0,))], encoded, 300)
    assert 200 < len(prompt) <= 300
    text = model.language_model.tokenizer.decode(prompt.ids)
    assert "thing 0<" in text
    assert "thing 29<" not in text
    assert text.endswith("what?\n")


def test_answering_is_without_dropout_and_leaves_the_mode(model: LyricsModel) -> None:
    dropping = made(query_transformer__options__hidden_dropout=0.5).train()
    first, second = (dropping.generate([drawn()], ["what?"], max_new_tokens=6) for _ in range(2))
    assert first == second
    assert dropping.training
    assert not dropping.encoder.training
