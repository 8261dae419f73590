"""The component: contract, frames, several prompts, independence of the batch, true sizes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError
from lyrics.core.geometry import Box, Frame
from lyrics.core.language.phrase_prompts import BERT_DELIMITERS, PromptWriter
from lyrics.core.types import ImageBatch
from lyrics.plugins.grounding_dino import GroundingDinoOptions
from lyrics.plugins.grounding_dino import detector as module
from lyrics.plugins.grounding_dino.detector import build

PHRASES = [["dog", "red car"], ["a long phrase about a tree"], [], ["x", "U.S. flag", "y z"]]
SIZES = [(80, 60), (70, 100), (80, 60), (300, 20)]


@pytest.fixture
def answering(small, monkeypatch):
    """``answering(reply, **options)``: a component whose network says
    ``reply(prompt) -> (probabilities by phrase, boxes)``.

    Probabilities are [Q][P]; every token of a phrase gets its phrase's, boxes are cxcywh of the canvas.
    """

    def make(reply, **options):
        component = small(**options)
        component.asked = []

        def query(images, pictures, prompts):
            rows = []
            for prompt in prompts:
                component.asked.append(prompt)
                probability, boxes = reply(prompt)
                logits = torch.full((len(boxes), max(len(other.input_ids) for other in prompts)), -torch.inf)
                for phrase, (first, end) in enumerate(prompt.spans):
                    logits[:, first:end] = torch.tensor([row[phrase] for row in probability]).logit()[:, None]
                rows.append((logits, torch.tensor(boxes)))
            tokens = torch.full((len(rows), len(rows[0][1]), component.feature_dim), float(len(component.asked)))
            return module._Queries(torch.stack([a for a, _ in rows]), torch.stack([b for _, b in rows]), tokens)

        monkeypatch.setattr(component, "query", query)
        return component

    return make


def canvas(frame):
    width, height = frame.size
    return ImageBatch(torch.zeros(1, 3, height, width), (frame,))


@torch.no_grad()
def test_contract(small, pictures):
    component = small()
    images = pictures(component, *SIZES)
    found = component(images, PHRASES)
    assert found.tokens_BMD.shape == (4, 20, 68)
    assert found.tokens_BMD.dtype == torch.float32
    assert found.mask_BM.dtype == torch.bool
    assert found.mask_BM.shape == (4, 20)
    assert found.mask_BM.all()
    assert component.feature_dim == component.options.feature_dim == 68
    assert [len(detections) > 0 for detections in found.detections] == [True, True, False, True]
    for detections, asked in zip(found.detections, PHRASES, strict=True):
        scores = [detection.score for detection in detections]
        assert scores == sorted(scores, reverse=True)
        assert {detection.phrase for detection in detections} <= set(asked)
        assert all(0.2 < score <= 1 for score in scores)


@torch.no_grad()
def test_tokens_are_the_last_state_and_the_last_reference_box(small, pictures):
    component = small()
    images = pictures(component, (80, 60))
    (prompt,) = component.writer.prompts(component.writer.tokens(["dog"]))
    output = component.network(
        images.pixels_BCHW, torch.tensor([prompt.input_ids]), pixel_mask=images.pixel_mask_BHW, return_dict=True
    )
    (tokens,) = component(images, [["dog"]]).tokens_BMD
    torch.testing.assert_close(tokens[:, :64], output.last_hidden_state[0])
    torch.testing.assert_close(tokens[:, 64:], output.intermediate_reference_points[0, -1])
    assert (tokens[:, 64:] - output.pred_boxes[0]).abs().max() > 1e-3
    assert ((tokens[:, 64:] > 0) & (tokens[:, 64:] < 1)).all()


@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch(small, pictures):
    component = small()
    together = component(pictures(component, *SIZES), PHRASES)
    for row, (size, phrases) in enumerate(zip(SIZES, PHRASES, strict=True)):
        alone = component(pictures(component, size), [phrases])
        torch.testing.assert_close(together.tokens_BMD[row], alone.tokens_BMD[0], atol=1e-4, rtol=0)
        ours, theirs = together.detections[row], alone.detections[0]
        assert [d.phrase for d in ours] == [d.phrase for d in theirs]
        np.testing.assert_allclose([d.score for d in ours], [d.score for d in theirs], atol=1e-4)
        boxes = [[d.box_norm.as_tuple() for d in found] for found in (ours, theirs)]
        np.testing.assert_allclose(*boxes, atol=1e-4)


@torch.no_grad()
def test_picture_and_phrases_both_matter(small, pictures):
    component = small()
    images = pictures(component, (80, 60))
    dog, cat = (component(images, [[phrase]]).tokens_BMD for phrase in ("dog", "cat"))
    assert (dog - cat).abs().max() > 1e-3
    darker = ImageBatch(images.pixels_BCHW * 0.5, images.frames)
    assert (dog - component(darker, [["dog"]]).tokens_BMD).abs().max() > 1e-3


@torch.no_grad()
def test_an_empty_batch(small, pictures):
    component = small()
    found = component(pictures(component), [])
    assert found.detections == ()
    assert found.tokens_BMD.shape == (0, 20, 68)
    assert found.mask_BM.shape == (0, 20)


@torch.no_grad()
def test_without_phrases_there_are_tokens_all_the_same(small, pictures):
    component = small()
    found = component(pictures(component, (80, 60)), [["", " . ", "\n?"]])
    assert found.detections == ((),)
    assert found.tokens_BMD.abs().sum() > 0
    assert torch.equal(found.tokens_BMD, component(pictures(component, (80, 60)), [[]]).tokens_BMD)


@pytest.mark.parametrize("phrases", [[], [["a"], ["b"]], ["dog"]])
def test_one_list_of_phrases_per_picture(small, pictures, phrases):
    component = small()
    with pytest.raises(ValueError, match="one list of phrases for each of the 1 images"):
        component(pictures(component, (80, 60)), phrases)


def test_boxes_come_back_through_the_frame(answering):
    frame = Frame.of(400, 100).crop(100, 0, 200, 100).resize(60, 30).flip()
    component = answering(lambda prompt: ([[0.9]], [[0.25, 0.5, 0.5, 0.5]]))
    ((detection,),) = component(canvas(frame), [["dog"]]).detections
    # Columns 0 to 30 of the flipped canvas are columns 30 to 60 of the crop, 200 to 300 of the picture.
    np.testing.assert_allclose(detection.box_norm.as_tuple(), (0.5, 0.25, 0.75, 0.75), atol=1e-6)
    assert detection.phrase == "dog"
    assert detection.score == pytest.approx(0.9)


def test_boxes_are_shares_of_the_canvas_without_its_padding(answering):
    component = answering(lambda prompt: ([[0.9]], [[0.5, 0.5, 1.0, 1.0]]))
    frames = (Frame.of(100, 50).resize(40, 20), Frame.of(30, 30).resize(60, 60))
    images = ImageBatch(torch.zeros(2, 3, 60, 60), frames)
    for (detection,) in component(images, [["a"], ["b"]]).detections:
        assert detection.box_norm == Box(0.0, 0.0, 1.0, 1.0)


def test_boxes_outside_the_picture_are_clipped_or_dropped(answering):
    boxes = [[0.0, 0.5, 0.5, 0.5], [1.5, 0.5, 0.2, 0.2], [float("nan"), 0.5, 0.2, 0.2], [0.5, 0.5, -0.2, 0.2]]
    component = answering(lambda prompt: ([[0.9]] * 4, boxes))
    ((detection,),) = component(canvas(Frame.of(64, 64)), [["a"]]).detections
    assert detection.box_norm == Box(0.0, 0.25, 0.25, 0.75)


def test_phrases_are_the_callers_letter_for_letter(answering):
    phrases = [
        "Car",
        "car taxi",
        "TOOTH",
        "toothbrush ",
        "U.S. flag",
        "a, b",
        "\u00c9toile",
        "x" * 1000,
        "",
        "CAR",
        " car ",
    ]

    def reply(prompt):  # one query for each phrase
        count = len(prompt.spans)
        return (0.8 * np.eye(count) + 0.01).tolist(), [[0.5, 0.5, 0.5, 0.5]] * count

    component = answering(reply)
    ((*found,),) = component(canvas(Frame.of(64, 64)), [phrases]).detections
    assert sorted(d.phrase for d in found) == sorted(phrases[:8])


def test_phrases_that_share_words_do_not_share_scores(answering):
    component = answering(lambda prompt: ([[0.9, 0.1, 0.05], [0.1, 0.8, 0.3]], [[0.5, 0.5, 0.5, 0.5]] * 2))
    (found,) = component(canvas(Frame.of(64, 64)), [["car taxi", "car", "taxi"]]).detections
    assert [(d.phrase, round(d.score, 4)) for d in found] == [("car taxi", 0.9), ("car", 0.8), ("taxi", 0.3)]


def test_several_prompts_are_merged_best_first(answering, caplog):
    scores = {"aaaa": 0.5, "bbbb": 0.9, "cccc": 0.7, "dddd": 0.3}
    component = answering(
        lambda prompt: ([[list(scores.values())[phrase] for phrase in prompt.phrases]], [[0.5, 0.5, 0.5, 0.5]]),
        max_text_tokens=12,
    )
    with caplog.at_level(logging.INFO):
        output = component(canvas(Frame.of(64, 64)), [list(scores)])
    assert [prompt.phrases for prompt in component.asked] == [(0, 1), (2, 3)]
    assert [d.phrase for d in output.detections[0]] == ["bbbb", "cccc", "aaaa", "dddd"]
    assert (output.tokens_BMD == 1).all()  # of the first prompt
    assert "4 phrases do not fit in 12 tokens; they are detected in 2 prompts" in caplog.text


def test_pictures_with_few_phrases_are_not_asked_again(answering):
    component = answering(lambda prompt: ([[0.9] * len(prompt.spans)], [[0.5, 0.5, 0.5, 0.5]]), max_text_tokens=12)
    images = ImageBatch(torch.zeros(2, 3, 64, 64), (Frame.of(64, 64),) * 2)
    found = component(images, [["aaaa"], ["aaaa", "bbbb", "cccc"]]).detections
    assert [len(prompt.phrases) for prompt in component.asked] == [1, 2, 1]
    assert [len(detections) for detections in found] == [1, 3]


def test_max_detections_keeps_the_best_and_says_so(answering, caplog):
    def reply(prompt):
        boxes = [[0.05 * i + 0.1, 0.5, 0.01, 0.5] for i in range(10)]
        return [[0.9 - 0.01 * (10 * prompt.phrases[0] + i)] * len(prompt.spans) for i in range(10)], boxes

    component = answering(reply, max_text_tokens=8, max_detections=12)
    (found,) = component(canvas(Frame.of(64, 64)), [["aaaa", "bbbb"]]).detections
    assert len(component.asked) == 2
    assert [round(d.score, 4) for d in found] == [round(0.9 - 0.01 * i, 4) for i in range(12)]
    assert "image 0: 20 detections, of which the best 12 are kept" in caplog.text


def test_what_cannot_be_looked_for_is_logged(answering, caplog):
    component = answering(lambda prompt: ([[0.9]], [[0.5, 0.5, 0.5, 0.5]]))
    component(canvas(Frame.of(64, 64)), [["...", "y" * 500]])
    assert "'...' has no word that the detector knows" in caplog.text
    assert "has 500 tokens; only the first 61 are read" in caplog.text


@pytest.mark.parametrize("phrase", ["person . dog .", "a cat. a remote control.", "car . dog"])
def test_several_phrases_written_as_one_are_said(phrase, answering, caplog):
    answering(lambda prompt: ([], []))._prompts([phrase, "U.S. flag", "St. Bernard", "Mr. Coffee"], 0)
    assert f"'{phrase}' is looked for as one phrase" in caplog.text
    assert caplog.text.count("is looked for as one phrase") == 1


@torch.no_grad()
def test_the_whole_tag_list_of_ram_is_bounded(small, pictures, word_pieces, caplog):
    tags = [f"w{number}" for number in range(4585)]
    component = small(max_text_tokens=512, text_positions=512, text_vocabulary=6000, queries=5)
    component.writer = PromptWriter(word_pieces(tags), BERT_DELIMITERS, 512)
    with caplog.at_level(logging.INFO):
        output = component(pictures(component, (64, 64)), [tags])
    assert "4585 phrases do not fit in 512 tokens; they are detected in 18 prompts" in caplog.text
    assert len(output.detections[0]) == 300
    assert {d.phrase for d in output.detections[0]} <= set(tags)
    first_only = component(pictures(component, (64, 64)), [tags[:255]])
    assert torch.equal(output.tokens_BMD, first_only.tokens_BMD)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (3000, 10), (10, 3000)])
def test_pictures_of_extreme_shape(small, pictures, size):
    component = small(queries=60)
    found = component(pictures(component, size), [["dog"]])
    assert found.tokens_BMD.shape == (1, 60, 68)
    assert found.tokens_BMD.isfinite().all()


@torch.no_grad()
def test_eval_is_deterministic_and_bfloat16_runs(small, pictures):
    component = small()
    images = pictures(component, (80, 60))
    first, again = (component(images, [["dog"]]).tokens_BMD for _ in range(2))
    assert torch.equal(first, again)
    low = component.to(torch.bfloat16)(images, [["dog"]])
    assert low.tokens_BMD.dtype == torch.bfloat16
    assert low.tokens_BMD.isfinite().all()


def test_true_size_on_the_meta_device():
    with torch.device("meta"):
        component = build(GroundingDinoOptions(), BuildContext("meta"))
    count = sum(parameter.numel() for parameter in component.parameters())
    assert 172.0e6 < count < 172.5e6  # Liu et al. 2023: 172 M
    assert {tensor.device.type for tensor in (*component.parameters(), *component.buffers())} == {"meta"}
    assert component.feature_dim == GroundingDinoOptions().feature_dim == 260
    bert = sum(p.numel() for p in component.network.model.text_backbone.parameters())
    assert 108e6 < bert < 110e6
    assert component.preprocessing.size == 800
    assert component.preprocessing.max_size == 1333
    assert component.preprocessing.resampling == "bilinear"


def test_the_stand_in_tokenizer_must_fit():
    with pytest.raises(SpecError, match="set text_vocabulary to 1286 or more"):
        build(GroundingDinoOptions(text_vocabulary=1000), BuildContext("meta"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 6}, "width 256 is not a multiple of heads 6"),
        ({"text_heads": 7}, "text_width 768 is not a multiple of text_heads 7"),
        ({"swin_heads": (5, 6, 12, 24)}, "96 channels of Swin stage 0 are not a multiple of its 5 heads"),
        ({"text_positions": 100}, "text_positions 100 is less than max_text_tokens 256"),
        ({"decoder_layers": 1}, "decoder_layers"),
        ({"box_treshold": 0.3}, "box_treshold"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        GroundingDinoOptions(**options)
