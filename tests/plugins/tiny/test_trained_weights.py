"""The weights in the package: whole, of the default options, and good at what they are for."""

from __future__ import annotations

import hashlib
import json
import shutil
from pkgutil import resolve_name

import pytest
import torch
from safetensors.torch import load_file, save_file

from lyrics.core.build import build_refiner
from lyrics.core.contracts import BuildContext
from lyrics.core.data.build import build_dataset
from lyrics.core.errors import WeightsError
from lyrics.core.evaluation.alignment import alignment
from lyrics.core.loading import build_model, load_model
from lyrics.plugins import tiny
from lyrics.plugins.tiny import TinyDetectorOptions, measure_experts, train_experts, trained_weights
from lyrics.plugins.tiny.expert_vocabulary import NOUNS, VOCABULARY
from lyrics.workflows.parity import ParityQuestion, parity

COMPONENTS = {component.name: component for component in tiny.lyrics_components()}
PRETRAINED = BuildContext("pretrained")


def build(name, **options):
    component = COMPONENTS[name]
    return resolve_name(component.build)(component.options(**options), PRETRAINED)


def test_the_files_are_those_of_the_list():
    listed = json.loads((trained_weights.WEIGHTS / trained_weights.HASHES_FILE).read_text(encoding="utf-8"))
    assert {trained_weights.weights_file(name) for name in COMPONENTS} <= set(listed)
    files = [path for path in trained_weights.WEIGHTS.rglob("*") if path.is_file()]
    assert {path.relative_to(trained_weights.WEIGHTS).as_posix() for path in files} == {
        *listed,
        trained_weights.HASHES_FILE,
    }
    for name, sha256 in listed.items():
        assert hashlib.sha256((trained_weights.WEIGHTS / name).read_bytes()).hexdigest() == sha256, name
    assert sum(path.stat().st_size for path in files) < 25_000_000


@pytest.mark.parametrize("name", COMPONENTS)
def test_pretrained_experts_hold_them(name):
    expert = build(name)
    stored = load_file(trained_weights.WEIGHTS / trained_weights.weights_file(name))
    own = expert.state_dict()
    assert own.keys() == stored.keys()
    assert all(tensor.dtype == torch.float16 for tensor in stored.values())
    assert all(torch.equal(own[key], tensor.float()) for key, tensor in stored.items())


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("tiny-vit", {"heads": 2}, "heads=2 does not fit the trained weights, which are of heads=4. Set heads to that"),
        ("tiny-vit", {"image_size": 224}, "image_size=224"),
        ("tiny-tagger", {"width": 48}, "width=48 .* width=96"),
        ("tiny-tagger", {"vocabulary": ("dog", "cat")}, "vocabulary of 2 names .* vocabulary of 9 names"),
        ("tiny-detector", {"blocks": 2, "score_threshold": 0.1}, "blocks=2 .* weights='random' and train your own"),
        ("tiny-segmenter", {"roi_size": 14}, "roi_size=14"),
    ],
)
def test_options_that_the_weights_were_not_trained_with_are_refused(name, options, complaint):
    with pytest.raises(WeightsError, match=f"^{name}: {complaint}"):
        build(name, **options)


def test_a_checkpoint_takes_the_place_of_what_ships(tmp_path):
    """Its file says which options it is of; one of other options is refused as what ships would be."""
    narrow = TinyDetectorOptions(vocabulary=NOUNS, query_width=16, queries=5)
    stored = resolve_name(COMPONENTS["tiny-detector"].build)(narrow, BuildContext("random")).state_dict()
    told = narrow.model_dump_json(exclude_unset=True)
    file = tmp_path / trained_weights.weights_file("tiny-detector")
    save_file(stored, file, metadata={trained_weights.OPTIONS_KEY: told})
    given = {"vocabulary": NOUNS, "query_width": 16, "queries": 5, "checkpoint": str(tmp_path)}
    found = build("tiny-detector", **given)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in found.state_dict().items())
    assert build("tiny-detector", **given, score_threshold=0.1).score_threshold == 0.1
    with pytest.raises(
        WeightsError, match="query_width=32 does not fit the trained weights, which are of query_width=16"
    ):
        build("tiny-detector", **{**given, "query_width": 32})
    with pytest.raises(WeightsError, match=r"vocabulary of 128 names does not fit .* vocabulary of 9 names"):
        build("tiny-detector", **{**given, "vocabulary": VOCABULARY})
    with pytest.raises(
        WeightsError, match=r"tiny-vit.safetensors are not there; train them first .* leave checkpoint out"
    ):
        build("tiny-vit", checkpoint=str(tmp_path))
    save_file(stored, file, metadata={trained_weights.OPTIONS_KEY: '{"depth": 3}'})
    with pytest.raises(WeightsError, match=r'options that this version does not know, {"depth": 3}; export'):
        build("tiny-detector", **given)


def test_the_model_of_plain_scenes_says_how_it_is_trained():
    with pytest.raises(
        WeightsError, match=r"^tiny-vit: .* do not ship; train them .*all --plain .*docs/tiny-story\.md"
    ):
        build_model("lyrics-tiny-plain")
    with pytest.raises(WeightsError, match="'package:lyrics/nowhere'"):
        build("tiny-vit", checkpoint="package:lyrics/nowhere")


def test_thresholds_are_free():
    assert build("tiny-tagger", threshold=0.9).threshold == 0.9
    detector = build("tiny-detector", score_threshold=0.01, nms_iou=0.9, max_detections=3)
    assert (detector.score_threshold, detector.nms_iou, detector.max_detections) == (0.01, 0.9, 3)


def test_files_that_do_not_fit_are_named(tmp_path):
    name = "tiny-segmenter"
    file = tmp_path / trained_weights.weights_file(name)
    with pytest.raises(WeightsError, match=r"tiny-segmenter\.safetensors are not there"):
        train_experts.build_expert(name, tmp_path)
    shutil.copy(trained_weights.WEIGHTS / file.name, file)
    stored = load_file(file)
    save_file({**stored, "exit.bias": torch.zeros(2)}, file)
    with pytest.raises(WeightsError, match=r"exit.bias is \[2\], but the options need \[1\]"):
        train_experts.build_expert(name, tmp_path)
    del stored["exit.bias"]
    save_file({**stored, "exist.bias": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match=r"exit.bias is missing; exist.bias is not part of the model"):
        train_experts.build_expert(name, tmp_path)
    file.write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        train_experts.build_expert(name, tmp_path)


def test_they_see_scenes_that_they_were_not_trained_on():
    experts = (build(name) for name in ("tiny-tagger", "tiny-detector", "tiny-segmenter"))
    figures = measure_experts.measure(*experts, train_experts.scenes("test", 48))
    assert figures["tags mAP, things"] > 0.98
    assert figures["AP50, true tags, things"] > 0.97
    assert figures["AP50, tagger's tags"] > 0.97
    assert figures["mIoU, detected boxes"] > 0.93


def test_the_refiner_of_lyrics_tiny_is_built_of_them():
    refiner = build_refiner("lyrics-tiny")
    dataset = train_experts.scenes("test", 1)
    sample = dataset[0]
    (found,) = refiner([dataset.picture(sample)])
    assert {obj.tag for obj in found.objects} & {obj.tag for obj in sample.objects}
    assert all(obj.mask is not None for obj in found.objects)


def test_in_bfloat16_it_says_the_same_every_time_and_as_in_float32():
    """torch's sampling of bfloat16 on a CPU gave other values from call to call, and now and then not numbers."""
    scenes = build_dataset("scenes", {"split": "test"})
    picture = scenes.picture(scenes[1])
    half = load_model("lyrics-tiny", dtype="bf16")
    looks = [half.look([picture], ["Where is the ring?"]) for _ in range(3)]
    assert all(look.soft_tokens_PQD.isfinite().all() for look in looks)
    assert all(torch.equal(look.soft_tokens_PQD, looks[0].soft_tokens_PQD) for look in looks)
    assert len({look.spatial_texts for look in looks}) == 1
    full = load_model("lyrics-tiny").refiner(picture)
    found = looks[0].refinements[0].objects
    assert sorted(one.tag for one in found) == sorted(one.tag for one in full.objects)
    for one in found:
        assert max(one.box_norm.iou(other.box_norm) for other in full.objects if other.tag == one.tag) > 0.95

    def load(dtype, overrides):
        return load_model("lyrics-tiny", dtype=dtype, overrides=overrides)

    assert parity(load, [ParityQuestion("ring", picture, "Where is the ring?")], compare=["bfloat16"]).within


def test_stage_1_ships_and_finds_the_text_of_a_picture():
    model = build_model("lyrics-tiny-stage1")
    captioned = build_dataset("scenes", {"split": "validation", "task": "caption"})
    shares = alignment(model, captioned, samples=40, batch=20).shares
    # Twins have the same tags and boxes, so that captions alone tell them apart.
    assert shares["image to text R@1 of 40"][0] > 0.8
    assert shares["text to image R@1 of 40"][0] > 0.8
    assert shares["image to text R@1 of 40, captions alone"][0] > 0.7
    assert shares["masked names accuracy"][0] > 0.6
    assert shares["ITM accuracy"][0] > 0.8
