"""What stage 1 taught: the same numbers however samples are batched, and captions that are the model's own first
choices.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from lyrics.core.data.build import build_dataset
from lyrics.core.data.collate import Collator
from lyrics.core.data.stream import Example
from lyrics.core.errors import MissingRequirementError, SpecError
from lyrics.core.evaluation import alignment as module
from lyrics.core.evaluation.alignment import alignment
from lyrics.core.evaluation.metrics.captions import CaptionScores
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.stage1.step import pretrain_state
from lyrics.core.stage1.streams import Text
from lyrics.plugins.tiny.presets import lyrics_tiny


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    """Trained experts, everything else random, with logits far enough from each other to be ordered alike
    in any batch.
    """
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = build_model(lyrics_tiny())
    with torch.no_grad():
        for parameter in made.query_transformer.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return made.eval()


@pytest.fixture(scope="module")
def scenes():
    return build_dataset("scenes", {"split": "validation", "scenes": 7, "task": "caption", "attributes": "plain"})


@pytest.fixture(autouse=True)
def no_pycocoevalcap(monkeypatch: pytest.MonkeyPatch) -> None:
    def scored(captions, references, *, java):
        assert len(captions) == len(references)
        return CaptionScores({"captions": len(captions)}, (0.0,) * len(captions), ())

    monkeypatch.setattr(module, "caption_scores", scored)


def test_batches_do_not_change_what_is_measured(model, scenes) -> None:
    whole = alignment(model, scenes, samples=7, batch=7, longest_caption=5)
    parts = alignment(model, scenes, samples=7, batch=3, longest_caption=5)
    assert whole.samples == parts.samples == 7
    assert whole.captions == parts.captions
    assert whole.caption_scores == {"captions": 7}
    # Hard negatives are those of the batch; all else is the samples' own.
    for name in set(whole.shares) - {"ITM accuracy"}:
        assert whole.shares[name] == pytest.approx(parts.shares[name]), name
    assert set(whole.shares) == {
        "ITM accuracy",
        "caption token accuracy",
        *(f"masked {kind} accuracy" for kind in ("markup", "names", "coordinates")),
        "masked coordinates within 2% of the side",
        "masked coordinates within 2% of the side, one object masked",
        *(f"{way} R@1 of 7{text}" for way in ("image to text", "text to image") for text in ("", ", captions alone")),
    }
    assert whole.shares["ITM accuracy"][1] == 21


def test_without_pycocoevalcap_the_rest_is_measured_and_a_note_says_so(model, scenes, monkeypatch) -> None:
    def missing(captions, references, *, java):
        raise MissingRequirementError("caption scores need pycocoevalcap")

    monkeypatch.setattr(module, "caption_scores", missing)
    found = alignment(model, scenes, samples=2, longest_caption=2)
    assert (found.caption_scores, found.notes) == ({}, ("caption scores need pycocoevalcap",))
    assert len(found.captions) == 2
    assert found.shares["ITM accuracy"][1] == 6


def test_retrieval_counts_what_is_nearest(model, scenes, monkeypatch) -> None:
    """By hand: the features of the objective, all against all."""
    seen = []
    itc = model.objectives["itc"]
    features = itc.features

    def noted(outputs):
        seen.append(features(outputs))
        return seen[-1]

    monkeypatch.setattr(itc, "features", noted)
    found = alignment(model, scenes, samples=7, batch=4, longest_caption=1).shares
    image_N1E, text_NE = seen[-1]  # captions alone come last
    scores_NN = image_N1E[:, 0] @ text_NE.T
    right = sum(int(row.argmax()) == index for index, row in enumerate(scores_NN))
    assert found["image to text R@1 of 7, captions alone"] == (pytest.approx(right / 7), 7)
    image_N1E, text_NE = seen[-2]
    right = sum(int(row.argmax()) == index for index, row in enumerate(text_NE @ image_N1E[:, 0].T))
    assert found["text to image R@1 of 7"] == (pytest.approx(right / 7), 7)


def test_masked_coordinates_are_near_within_two_hundredths(model, scenes, monkeypatch) -> None:
    """Numbers of one to three digits, each moved by so many thousandths; what is no number is wrong."""
    msp, tokenizer = model.objectives["msp"], model.query_transformer.tokenizer
    monkeypatch.setattr(msp, "options", msp.options.model_copy(update={"mask_probability": 0.6}))

    def shares(moved) -> dict[str, tuple[float, int]]:
        def restored(state):
            ids = state.batch.spatial.text.ids_RL[msp.masked(state.batch)]
            for place, text in enumerate(tokenizer.decode([i]) for i in ids.tolist()):
                if text.isdigit():
                    ids[place] = tokenizer.convert_tokens_to_ids(moved(int(text)))
            return ids

        monkeypatch.setattr(msp, "restored", restored)
        found = alignment(model, scenes, samples=7, batch=4, longest_caption=1).shares
        return {name.partition("side")[2]: both for name, both in found.items() if "within 2%" in name}

    def by(step: int):
        return lambda number: str(number + step if number + step < 1000 else number - step)

    all_of_them, alone = shares(str)[""], shares(str)[", one object masked"]
    assert all_of_them[0] == alone[0] == 1.0
    assert 0 < alone[1] < all_of_them[1]
    assert all_of_them[1] % 4 == 0, "four of each masked object"
    assert shares(by(19))[""] == (1.0, all_of_them[1])
    assert shares(by(20))[""] == (0.0, all_of_them[1])
    assert shares(lambda number: "star")[""] == (0.0, all_of_them[1])


def test_captions_of_twins_are_judged_of_both_images(model, monkeypatch) -> None:
    """Rows 0 and 1 are twins, 2 and 3 have one caption for both and are left out, 4 has no twin."""
    captions = ["a red star", "a blue star", "a ring", "a ring", "a heart"]
    drawn = build_dataset("scenes", {"split": "validation", "scenes": 5, "task": "caption", "attributes": "plain"})

    class Told:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, row: int):
            return replace(drawn[row], captions=(captions[row],))

        def picture(self, sample):
            return drawn.picture(sample)

    itm = model.objectives["itm"]
    seen = []

    def logits(outputs, name):
        visual = outputs(name, "V").mean(1)
        seen.append(len(visual))
        return [torch.stack([torch.zeros(len(visual)), torch.ones(len(visual))], 1) * sign[0]]

    monkeypatch.setattr(itm, "logits", logits)
    for always, share in ((1.0, 0.5), (-1.0, 0.5)):
        sign = [always]
        found = alignment(model, Told(), samples=5, batch=4, longest_caption=1, twins=True).shares
        assert found["ITM accuracy on twins"] == (share, 4), "what is the same for both is right of one"
    judged = itm.__class__.logits.__get__(itm)
    texts, truth = [], []

    def noted(outputs, name):
        texts.append(judged(outputs, name)[0])
        return [texts[-1]]

    monkeypatch.setattr(itm, "logits", noted)
    found = alignment(model, Told(), samples=2, batch=2, longest_caption=1, twins=True).shares
    own, other = texts[-2:]
    truth = (own.argmax(1) == 1).sum() + (other.argmax(1) == 0).sum()
    assert found["ITM accuracy on twins"] == (pytest.approx(float(truth) / 4), 4)
    assert not torch.allclose(own, other)
    with pytest.raises(SpecError, match="batches of 3 samples would part twins"):
        alignment(model, Told(), samples=2, batch=3, twins=True)


@torch.no_grad()
def test_captions_are_first_choices_given_what_is_written(model, scenes) -> None:
    collator = Collator("pretrain", model.processor, seed=0, codec=model.spec.codec)
    samples = [scenes[row] for row in range(4)]
    examples = [Example(row, "", row, one, scenes.picture(one)) for row, one in enumerate(samples)]
    features, texts = model.pretraining_inputs(collator(examples), 0, 0)
    icg = model.objectives["icg"]
    written = icg.captions(model.query_transformer, features, texts, 6)
    assert all(1 <= len(row) <= 6 for row in written)
    again = module.replace(texts, caption=Text.from_lists(written))
    state = pretrain_state(model.query_transformer, {"icg": icg}, features, again)
    logits, targets = icg._predicted(state)
    foretold = logits.argmax(-1)
    start = 0
    for row in written:
        # The target after the last token is the end, which was chosen only where the caption is short.
        assert foretold[start : start + len(row)].tolist() == row == targets[start : start + len(row)].tolist()
        if len(row) < 6:
            assert foretold[start + len(row)] == texts.special.sep
        start += len(row) + 1


def test_a_model_without_objectives_says_so(scenes) -> None:
    bare = build_model("lyrics-tiny", overrides={"objectives": {}}, weights="random")
    with pytest.raises(SpecError, match="no objectives"):
        alignment(bare, scenes, samples=1)
