"""Training that is stopped goes on as if it had not been; what is exported is what was trained."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lyrics.core.errors import WeightsError
from lyrics.plugins.tiny import train_experts
from lyrics.plugins.tiny.expert_vocabulary import VOCABULARY

SEGMENTER = train_experts.ExpertTraining("tiny-segmenter", steps=3, batch=2, learning_rate=1e-3)
DETECTOR = train_experts.ExpertTraining("tiny-detector", steps=1, batch=1, learning_rate=1e-3)


@pytest.fixture
def every_step_is_saved(monkeypatch):
    monkeypatch.setattr(train_experts, "SAVE_EVERY", 1)


class Stopped(Exception):
    pass


class Stopping:
    """A data set whose row ``at`` stops the process."""

    def __init__(self, dataset, at):
        self.dataset, self.at = dataset, at

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, row):
        if row == self.at:
            raise Stopped
        return self.dataset[row]

    def picture(self, sample):
        return self.dataset.picture(sample)


@pytest.mark.parametrize("plans", [train_experts.PLAIN_PLANS, train_experts.FINE_PLANS], ids=["plain", "fine"])
def test_every_expert_has_a_plan_and_begins_after_those_that_it_borrows_from(plans):
    assert {plan.component for plan in plans} == {"tiny-detector", "tiny-segmenter", "tiny-tagger", "tiny-vit"}
    names = [plan.name for plan in plans]
    assert len(names) == len(set(names))
    assert all(plan.after in (None, *names[:place]) for place, plan in enumerate(plans))
    assert {plan.fine for plan in plans} == {plans is train_experts.FINE_PLANS}


@pytest.mark.parametrize("fine", [True, False], ids=["fine", "plain"])
@pytest.mark.parametrize("component", train_experts.PLAIN_OPTIONS)
def test_experts_for_either_scenes_are_trained_exported_and_built(component, fine, tmp_path):
    plan = train_experts.ExpertTraining(component, steps=1, batch=1, learning_rate=1e-3, fine=fine)
    module = train_experts.train_expert(plan, tmp_path, train_experts.scenes_for(plan), lambda line: None)
    assert train_experts.export(component, tmp_path, tmp_path / "weights") == 1
    found = train_experts.build_expert(component, tmp_path / "weights", fine=fine)
    own = train_experts.expert_of(module).state_dict()
    assert all(torch.equal(tensor, own[name].half().float()) for name, tensor in found.state_dict().items())
    with pytest.raises(WeightsError, match=f"^{component}: .* does not fit the trained weights"):
        train_experts.build_expert(component, tmp_path / "weights", fine=not fine)


def test_a_stopped_training_goes_on(tmp_path, every_step_is_saved):
    dataset = train_experts.scenes("train", 6, fine=False)
    whole = train_experts.train_expert(SEGMENTER, tmp_path / "whole", dataset, lambda line: None)
    lines = []
    with pytest.raises(Stopped):
        train_experts.train_expert(SEGMENTER, tmp_path / "halves", Stopping(dataset, 4), lines.append)
    assert train_experts.trained("tiny-segmenter", tmp_path / "halves")[1] == 2
    halves = train_experts.train_expert(SEGMENTER, tmp_path / "halves", Stopping(dataset, 3), lines.append)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))
    assert lines[-1].startswith("tiny-segmenter: step 3 of 3, loss ")
    with pytest.raises(WeightsError, match=r"another plan, .*'steps': 3"):
        train_experts.train_expert(replace(SEGMENTER, steps=4), tmp_path / "halves", dataset)


def test_layers_are_borrowed_and_the_rest_is_as_ever(tmp_path):
    plan = replace(SEGMENTER, after="tiny-detector", steps=1)
    with pytest.raises(WeightsError, match="holds no training of tiny-detector"):
        train_experts.train_expert(plan, tmp_path / "empty", train_experts.scenes("train", 2, fine=False))
    detector = train_experts.train_expert(
        DETECTOR, tmp_path, train_experts.scenes("train", 1, fine=False), lambda line: None
    )
    lines = []
    with pytest.raises(Stopped):
        train_experts.train_expert(
            plan, tmp_path, Stopping(train_experts.scenes("train", 2, fine=False), 0), lines.append
        )
    # 4 tensors of each of two downsamplings, 8 of each of two blocks
    assert lines == ["tiny-segmenter: 24 of 54 tensors begin as those of tiny-detector"]
    segmenter = train_experts.build_expert("tiny-segmenter", fine=False)
    train_experts._borrow(dict(segmenter.named_parameters()), detector.state_dict())
    assert torch.equal(segmenter.trunk.stages[1][0].depthwise.weight, detector.trunk.stages[1][0].depthwise.weight)
    assert torch.equal(segmenter.trunk.norm.weight, torch.ones(64))


def test_export_is_what_was_trained(tmp_path):
    module = train_experts.train_expert(
        DETECTOR, tmp_path, train_experts.scenes("train", 1, fine=False), lambda line: None
    )
    assert train_experts.export("tiny-detector", tmp_path, tmp_path / "weights") == 1
    (file,) = (tmp_path / "weights").glob("*.safetensors")
    stored = load_file(file)
    assert stored.keys() == module.state_dict().keys()
    assert all(torch.equal(stored[name], tensor.half()) for name, tensor in module.state_dict().items())
    listed = json.loads((tmp_path / "weights" / "sha256.json").read_text())
    assert listed == {"tiny-detector.safetensors": hashlib.sha256(file.read_bytes()).hexdigest()}
    loaded = train_experts.build_expert("tiny-detector", tmp_path / "weights", fine=False)
    assert torch.equal(loaded.objectness.weight, module.objectness.weight.half().float())


def test_the_encoder_is_kept_without_its_heads(tmp_path):
    plan = train_experts.ExpertTraining("tiny-vit", steps=1, batch=1, learning_rate=1e-3)
    module = train_experts.train_expert(plan, tmp_path, train_experts.scenes("train", 1, fine=False), lambda line: None)
    train_experts.export("tiny-vit", tmp_path, tmp_path / "weights")
    assert load_file(tmp_path / "weights" / "tiny-vit.safetensors").keys() == module.encoder.state_dict().keys()


def test_words_are_objects_whose_mask_is_their_box():
    dataset = train_experts.scenes("train", 40, fine=False)
    pictures, objects = train_experts.drawn(dataset, range(40))
    tags = {obj.tag for found in objects for obj in found}
    assert tags <= set(VOCABULARY)
    words = [
        (picture, obj)
        for picture, found in zip(pictures, objects, strict=True)
        for obj in found
        if obj.tag.startswith("word ")
    ]
    assert 10 < len(words) < 30
    for picture, obj in words:
        mask = obj.mask.to_array()
        x1, y1, x2, y2 = map(round, obj.box_norm.to_px(picture.size))
        assert mask[y1:y2, x1:x2].all()
        assert mask.sum() == (x2 - x1) * (y2 - y1)


def test_batches_depend_on_their_number_alone():
    dataset = train_experts.scenes("train", 8, fine=False)
    preprocessing = train_experts.build_expert("tiny-segmenter", fine=False).preprocessing
    third, last = islice(train_experts.batches(dataset, SEGMENTER, preprocessing, first=2), 2)
    *_, again, _ = train_experts.batches(dataset, SEGMENTER, preprocessing)
    assert torch.equal(third[0].pixels_BCHW, again[0].pixels_BCHW)
    assert third[1] == again[1] != last[1]


def test_the_segmenter_is_asked_with_boxes_that_are_a_little_off():
    dataset = train_experts.scenes("train", 2, fine=False)
    _, true = train_experts.drawn(dataset, range(2))
    for component, moves in (("tiny-segmenter", True), ("tiny-detector", False)):
        plan = replace(SEGMENTER, component=component)
        ((_, objects),) = train_experts.batches(
            dataset, plan, train_experts.build_expert(component, fine=False).preprocessing
        )
        for found, there in zip(objects, true, strict=True):
            for ours, theirs in zip(found, there, strict=True):
                assert (ours.tag, ours.mask) == (theirs.tag, theirs.mask)
                a, b = np.array(ours.box_norm.as_tuple()), np.array(theirs.box_norm.as_tuple())
                side = np.tile(b[2:] - b[:2], 2)
                assert (np.abs(a - b) <= train_experts.BOX_JITTER * side + 1e-9).all()
                assert (a != b).any() == moves
