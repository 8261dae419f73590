"""Probes find what is there and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lyrics.plugins.tiny import probe_experts, train_experts
from lyrics.plugins.tiny.expert_vocabulary import NOUNS
from tests.plugins.tiny import builders

EXPERTS = (
    builders.vit(image_size=32, width=16, blocks=1, layers=1, heads=2),
    builders.detector(**builders.SMALL, vocabulary=NOUNS, queries=4, query_threshold=0.0),
    builders.segmenter(**builders.SMALL, roi_size=8),
)


@pytest.fixture(scope="module")
def described():
    return probe_experts.describe(*EXPERTS, train_experts.scenes("test", 40, fine=True), 60)


def test_a_thing_is_described_by_its_own_part_and_the_whole(described):
    found, things = described
    assert list(found) == list(probe_experts.DESCRIBERS)
    assert len(things) == 60
    assert all(one.fill for one in things)
    widths = {name: values_ND.shape for name, values_ND in found.items()}
    assert widths == {
        "text": (60, len(NOUNS) + 4),
        "image encoder": (60, 32),
        "detector": (60, 2 * EXPERTS[1].feature_dim),
        "segmenter": (60, 2 * EXPERTS[2].feature_dim),
    }
    for one, text, part in zip(things, found["text"], found["segmenter"], strict=True):
        assert NOUNS[int(text[: len(NOUNS)].argmax())] == one.tag
        x1, y1, x2, y2 = one.box_norm.as_tuple()
        torch.testing.assert_close(text[-4:], torch.tensor([x1, y1, x2, y2]))
        own = part[: EXPERTS[2].feature_dim]
        torch.testing.assert_close(own[-4:], torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]))


def test_too_few_things_are_an_error():
    with pytest.raises(ValueError, match=r"2 scenes have \d+ things, not 60; give more scenes"):
        probe_experts.describe(*EXPERTS, train_experts.scenes("test", 2, fine=True), 60)


def test_what_is_there_is_found_and_what_is_not_is_not(described):
    """A describer that is the attribute itself has it right, noise has it at chance."""
    _, things = described
    many = [replace(one) for one in things] * 10
    generator = torch.Generator().manual_seed(0)
    columns = [[probe_experts.ATTRIBUTES["color"].index(one.color)] for one in many]
    told = torch.zeros(len(many), 8).scatter_(1, torch.tensor(columns), 1.0)
    noise = torch.randn(len(many), 8, generator=generator)
    found = probe_experts.probe({"told": told, "noise": noise}, many)
    assert (found.fitted, found.scored) == (400, 200)
    assert found.shares["color"]["told"] == 1.0
    assert found.shares["outline"]["noise"] < 0.65
    assert found.shares["color"]["noise"] < 0.35


def test_boxes_have_the_tokens_inside_or_the_nearest():
    tokens_ND = torch.arange(16.0)[:, None]
    boxes_K4 = torch.tensor([[0.0, 0.0, 0.5, 0.25], [0.5, 0.5, 1.0, 1.0], [0.4, 0.4, 0.45, 0.45]])
    assert probe_experts._over_boxes(tokens_ND, boxes_K4).flatten().tolist() == [0.5, 12.5, 5.0]


def test_boxes_have_the_query_that_fits_or_nothing():
    queries_QD = torch.tensor([[1.0, 0.25, 0.25, 0.5, 0.5], [2.0, 0.3, 0.3, 0.5, 0.5]])
    boxes_K4 = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.8, 0.8, 1.0, 1.0]])
    assert probe_experts._fitting(queries_QD, boxes_K4)[:, 0].tolist() == [1.0, 0.0]
    assert not probe_experts._fitting(queries_QD[:0], boxes_K4).any()


def test_what_is_not_as_meant_is_said():
    shares = {name: dict.fromkeys(probe_experts.DESCRIBERS, 0.7) for name in probe_experts.ATTRIBUTES}
    found = probe_experts.Probes(2, 1, dict.fromkeys(probe_experts.ATTRIBUTES, 0.5), shares)
    assert found.otherwise() == [
        "fill, image encoder: 0.700, meant is at most 0.45",
        "fill, segmenter: 0.700, meant is at least 0.85",
        "ground, image encoder: 0.700, meant is at least 0.95",
    ]
    assert found.to_json()["not as meant"] == found.otherwise()
    lines = probe_experts.table(found).splitlines()
    assert len(lines) == 2 + len(probe_experts.ATTRIBUTES)
    assert lines[2] == "| shape | 0.50 | 0.70 | 0.70 | 0.70 | 0.70 |"


def test_what_hardly_any_thing_has_is_left_out(described):
    found, things = described
    apart = [replace(one, hidden="") for one in things]
    probes = probe_experts.probe(found, apart)
    assert set(probes.shares) == set(probes.chance) == set(probe_experts.ATTRIBUTES) - {"hidden"}
    assert "hidden" not in probe_experts.table(probes)
    few = probe_experts.probe({name: values_ND[:2] for name, values_ND in found.items()}, things[:2])
    assert (few.shares, few.otherwise()) == ({}, [])
