"""Training on what the refiner saw before: the losses of the refiner itself, without its experts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lyrics.core.data.augmentation import Augmentation, moved_objects
from lyrics.core.data.build import build_dataset
from lyrics.core.data.collate import Collator
from lyrics.core.data.known import Stage
from lyrics.core.data.mixture import Mixture, Source
from lyrics.core.data.moved_features import moved_seen
from lyrics.core.data.stream import Example, SampleStream
from lyrics.core.errors import DatasetError, SpecError
from lyrics.core.geometry import Frame
from lyrics.core.loading import build_model, load_model
from lyrics.core.model import LyricsModel
from lyrics.core.refining.features import ABOUT_FILE, FEATURES_FILE, FeatureOptions, StoredFeatures, nearest
from lyrics.core.refining.refine_files import OBJECTS_FILE, refine_files
from lyrics.core.refining.shards import Shard, merge_shards
from lyrics.core.runs.config import TrainConfig, load_config
from lyrics.core.spec import ModelSpec
from lyrics.core.training.assemble import read_features, run
from lyrics.core.training.loop import Outcome
from tests.core.small import small

SCENES = 16
NAMES = ["red circle", "blue ring", "gray square"]


def spec() -> ModelSpec:
    """Experts with random weights that find something in every picture."""
    return small(
        objectives={name: name for name in ("itc", "itm", "icg", "msp")},
        refiner__max_objects=4,
        refiner__tagger__options__threshold=0.0,
        refiner__tagger__options__vocabulary=NAMES,
        refiner__detector__options__score_threshold=0.0,
        refiner__detector__options__vocabulary=NAMES,
        refiner__detector__options__queries=None,
        refiner__detector__options__query_width=None,
        query_transformer__options__hidden_dropout=0.0,
        query_transformer__options__attention_dropout=0.0,
        query_transformer__options__max_positions=256,
        language_model__options__lora__dropout=0.0,
    )


def scenes(stage: Stage) -> Any:
    return build_dataset("scenes", {"task": "caption" if stage == "pretrain" else "mixed", "scenes": SCENES})


@dataclass(frozen=True)
class Drawn:
    """A picture of a data set, under the name that it has there."""

    data: Any
    sample: Any

    @property
    def name(self) -> str:
        return str(self.sample.image)

    key = name

    def open(self) -> Image.Image:
        return self.data.picture(self.sample)


@dataclass(frozen=True)
class Pictures:
    data: Any

    def __iter__(self) -> Iterator[Drawn]:
        return (Drawn(self.data, self.data[row]) for row in range(len(self.data)))


@pytest.fixture(scope="module")
def online() -> LyricsModel:
    torch.manual_seed(0)
    return build_model(spec(), weights="random")


@pytest.fixture(scope="module")
def stored(online: LyricsModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the online refiner saw in the scenes of both stages."""
    out = tmp_path_factory.mktemp("features")
    assert online.refiner is not None
    for stage in ("pretrain", "instruct"):
        pictures = Pictures(scenes(stage))  # type: ignore[arg-type]
        refine_files(online.refiner, pictures, out, draw=False, features=FeatureOptions(), batch_size=1)
    return out


def blind(model: LyricsModel) -> LyricsModel:
    """The same model without experts."""
    found = build_model(spec(), weights="random", without_experts=True)
    assert found.refiner is not None
    assert found.refiner.experts == {}
    assert set(found.processor.preprocessing) == {"image_encoder"}
    wanted = {name for name in model.state_dict() if not name.startswith("refiner.")}
    assert found.state_dict().keys() == wanted
    found.load_state_dict({name: one for name, one in model.state_dict().items() if name in wanted})
    return found.eval()


def examples(stage: Stage) -> list[Example]:
    data = scenes(stage)
    stream = SampleStream(Mixture([Source("scenes", len(data), 1.0, None)], 0), {"scenes": data})
    return [stream[position] for position in range(8)]


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_losses_are_those_of_the_refiner_itself(stage: Stage, online: LyricsModel, stored: Path) -> None:
    found = {}
    for name, model, features in (("online", online, None), ("stored", blind(online), StoredFeatures(stored))):
        batch = Collator(stage, model.processor, seed=0, features=features)(examples(stage))
        with torch.no_grad():
            step = model.pretraining_step(batch, seed=0, step=0) if stage == "pretrain" else None
            found[name] = step if step is not None else model.instruction_step(batch)  # type: ignore[arg-type]
    assert found["online"].keys() == found["stored"].keys()
    for name, loss in found["online"].items():
        other = found["stored"][name]
        assert loss.count == other.count > 0
        assert math.isclose(loss.sum / loss.count, other.sum / other.count, rel_tol=1e-3), name


def test_boxes_of_objects_come_back_to_the_bit_and_tokens_to_half_precision(online: LyricsModel, stored: Path) -> None:
    features = StoredFeatures(stored)
    names = {one.name for data in map(scenes, ("pretrain", "instruct")) for one in Pictures(data)}  # type: ignore[arg-type]
    assert len(features) == len(names)
    one = next(iter(Pictures(scenes("pretrain"))))
    assert online.refiner is not None
    seen = online.refiner.refine(online.refiner.prepare([one.open()], [one.name]))
    kept = features.get(one.name)
    assert kept is not None
    assert [found.box_norm for found in kept.objects] == [found.box_norm for found in seen.refinements[0].objects]
    assert [found.mask for found in kept.objects] == [found.mask for found in seen.refinements[0].objects]
    assert len(kept.objects) > 1
    for source, (tokens_BMD, mask_BM) in seen.local.items():
        assert torch.equal(kept.tokens[source], tokens_BMD[0][mask_BM[0]].half())
    assert features.get("unknown") is None
    assert features.bytes_per_image == (stored / FEATURES_FILE).stat().st_size / len(features)


def test_a_crop_moves_boxes_and_drops_what_leaves_it(stored: Path) -> None:
    features = StoredFeatures(stored)
    dropped = 0
    for one in Pictures(scenes("pretrain")):
        seen = features.get(one.name)
        assert seen is not None
        frame = Frame.of(*seen.size_px).crop(seen.size_px[0] // 3, 5, seen.size_px[0] // 2, seen.size_px[1] - 9)
        moved = moved_seen(seen, frame.resize(97, 64), 0.3)
        assert moved.objects == moved_objects(seen.objects, frame.resize(97, 64), 0.3)
        assert len(moved.tokens["segmenter"]) == len(moved.objects)
        dropped += len(seen.objects) - len(moved.objects)
        for found, token in zip(moved.objects, moved.tokens["segmenter"].double(), strict=True):
            x1, y1, x2, y2 = found.box_norm.as_tuple()
            expected = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dtype=torch.float64)
            assert torch.allclose(token[-4:], expected, atol=1e-3)
        states = {bytes(row[:-4].numpy().tobytes()) for row in seen.tokens["detector"]}
        after = moved.tokens["detector"]
        assert 0 < len(after) < len(seen.tokens["detector"])
        assert {bytes(row[:-4].numpy().tobytes()) for row in after} <= states, "what was seen does not change"
        corners = torch.cat([after[:, -4:-2] - after[:, -2:] / 2, after[:, -4:-2] + after[:, -2:] / 2], 1)
        assert float(corners.min()) > -2e-3
        assert float(corners.max()) < 1 + 2e-3
    assert dropped > 0
    assert moved_seen(seen, Frame.of(*seen.size_px), 0.3) is seen


def test_a_collator_with_crops_gives_the_moved_objects(online: LyricsModel, stored: Path) -> None:
    collator = Collator(
        "pretrain",
        blind(online).processor,
        seed=3,
        features=StoredFeatures(stored),
        augmentation=Augmentation(scale=(0.3, 0.6), flip=0.0),
    )
    batch = collator(examples("pretrain"))
    seen = batch.images.seen
    assert seen is not None
    for name, size, objects in zip(batch.images.names, batch.images.sizes_px, seen.objects, strict=True):
        assert size[0] * size[1] > 0
        assert len(objects) <= len(StoredFeatures(stored).get(name).objects)  # type: ignore[union-attr]
    assert seen.local["detector"][0].shape[0] == len(batch) == seen.local["segmenter"][1].shape[0]
    again = collator(examples("pretrain")).images.seen
    assert again is not None
    assert again.objects == seen.objects


def settings(out: Path, features: Path, stage: str, **changes: Any) -> TrainConfig:
    base = {
        "stage": stage,
        "out": str(out),
        "device": "cpu",
        "model": {"spec": spec().model_dump(mode="json"), "weights": "random"},
        "data": {
            "sets": {
                "scenes": {
                    "use": "scenes",
                    "options": {"task": "caption" if stage == "pretrain" else "mixed", "scenes": SCENES},
                }
            },
            "features": str(features),
            "augmentation": {"flip": 0.0},
            "workers": 0,
        },
        "optimization": {"steps": 2, "global_batch": 4, "learning_rate": 1e-3},
        "checkpoint": {"every_steps": 2},
        "logging": {"trackers": []},
    }
    return load_config(base, {path.replace("__", "."): value for path, value in changes.items()})


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_both_stages_train_without_experts_and_the_model_has_them_again(
    stage: str, stored: Path, tmp_path: Path
) -> None:
    assert run(settings(tmp_path / "run", stored, stage, data__workers=1)) == Outcome(2, stopped=False)
    model = load_model(str(tmp_path / "run"))
    assert model.refiner is not None
    assert set(model.refiner.experts) == {"tagger", "detector", "segmenter"}
    assert model.generate(Image.new("RGB", (40, 30), "red"), "what?", max_new_tokens=1) is not None


# --- what is refused ---


def test_what_cannot_be_carried_through_is_refused(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"a mirrored object looks different: set data\.augmentation\.flip=0"):
        settings(tmp_path, stored, "pretrain", data__augmentation__flip=0.5)
    with pytest.raises(SpecError, match=r"data\.features and data\.refined both say"):
        settings(tmp_path, stored, "pretrain", data__refined="objects.jsonl")
    with pytest.raises(SpecError, match=r"made by another refiner: refiner\.max_objects differ"):
        read_features(settings(tmp_path, stored, "pretrain", model__spec__refiner__max_objects=5))
    with pytest.raises(DatasetError, match=r"holds no features; 'lyrics refine \.\.\. --features all --out"):
        read_features(settings(tmp_path, tmp_path, "pretrain"))


def test_damage_and_gaps_are_named(online: LyricsModel, stored: Path, tmp_path: Path) -> None:
    for name in (ABOUT_FILE, FEATURES_FILE, OBJECTS_FILE):
        (tmp_path / name).write_bytes((stored / name).read_bytes())
    about = json.loads((tmp_path / ABOUT_FILE).read_text())
    (tmp_path / ABOUT_FILE).write_text(json.dumps(about | {"boxes": {"detector": False, "segmenter": True}}))
    with pytest.raises(SpecError, match=r"tokens of the detector do not say where they are.*augmentation=null"):
        read_features(settings(tmp_path, tmp_path, "pretrain"))
    assert read_features(settings(tmp_path, tmp_path, "pretrain", data__augmentation=None)) is not None
    data = bytearray((tmp_path / FEATURES_FILE).read_bytes())
    data[100] ^= 1
    (tmp_path / FEATURES_FILE).write_bytes(data)
    first = next(iter(Pictures(scenes("pretrain")))).name
    with pytest.raises(DatasetError, match="are damaged; drop its line"):
        StoredFeatures(tmp_path).get(first)
    rows = (tmp_path / OBJECTS_FILE).read_text().splitlines(keepends=True)
    (tmp_path / OBJECTS_FILE).write_text("".join(rows[-1:]))
    collator = Collator("pretrain", blind(online).processor, seed=0, features=StoredFeatures(tmp_path))
    with pytest.raises(DatasetError, match="is not among the stored features; refine the whole data set"):
        collator(examples("pretrain"))


# --- keeping them ---


def test_a_killed_run_goes_on_to_the_same_features(online: LyricsModel, tmp_path: Path) -> None:
    """Half a row, and features that no row speaks of, are cut off."""
    refiner = online.refiner
    assert refiner is not None
    pictures = list(Pictures(scenes("pretrain")))[:5]
    refine_files(refiner, pictures, tmp_path, draw=False, features=FeatureOptions(), batch_size=1)
    whole = {name: (tmp_path / name).read_bytes() for name in (OBJECTS_FILE, FEATURES_FILE, ABOUT_FILE)}
    rows = whole[OBJECTS_FILE].splitlines(keepends=True)
    (tmp_path / OBJECTS_FILE).write_bytes(b"".join(rows[:3]) + rows[3][:50])
    (tmp_path / FEATURES_FILE).write_bytes(whole[FEATURES_FILE][:-30] + b"x" * 99)
    done = refine_files(refiner, pictures, tmp_path, draw=False, features=FeatureOptions(), batch_size=1)
    assert (done.refined, done.done_before) == (2, 3)
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole
    assert done.features_bytes == len(whole[FEATURES_FILE])
    with pytest.raises(Exception, match="another refiner"):
        refine_files(refiner, pictures, tmp_path, draw=False)


def test_features_of_shards_are_read_where_they_lie(online: LyricsModel, stored: Path, tmp_path: Path) -> None:
    refiner = online.refiner
    assert refiner is not None
    for index in range(2):
        shard, pictures = Shard(index, 2), Pictures(scenes("pretrain"))
        refine_files(refiner, pictures, tmp_path, draw=False, features=FeatureOptions(), shard=shard, batch_size=1)
    merge_shards(tmp_path, ["jsonl"])
    one, many = StoredFeatures(stored), StoredFeatures(tmp_path)
    for picture in Pictures(scenes("pretrain")):
        first, second = one.get(picture.name), many.get(picture.name)
        assert first is not None
        assert second is not None
        assert first.objects == second.objects
        assert all(torch.equal(first.tokens[source], second.tokens[source]) for source in first.tokens)
    assert "features" not in json.loads((tmp_path / OBJECTS_FILE).read_text().splitlines()[0])


def test_the_nearest_tokens_are_kept(online: LyricsModel, tmp_path: Path) -> None:
    refiner = online.refiner
    assert refiner is not None
    pictures = list(Pictures(scenes("pretrain")))[:2]
    refine_files(refiner, pictures, tmp_path, draw=False, features=FeatureOptions(3))
    seen = StoredFeatures(tmp_path).get(pictures[0].name)
    assert seen is not None
    assert len(seen.tokens["detector"]) == 3
    assert len(seen.tokens["segmenter"]) == len(seen.objects)
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.3, 0.3], [0.9, 0.9, 0.2, 0.2]])
    objects = torch.tensor([[0.4, 0.4, 0.6, 0.6], [0.85, 0.85, 1.0, 1.0]])
    assert nearest(boxes.numpy(), objects.numpy(), 2) == [0, 3]
    assert nearest(boxes.numpy(), objects.numpy()[:0], 2) == [0, 1], "without objects the first"
    for text in ("0", "-1", "some", "1.5", ""):
        with pytest.raises(SpecError, match="is all, or how many"):
            FeatureOptions.parse(text)
