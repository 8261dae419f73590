"""RAM and RAM++: upstream's numbers at every step, the contract, and checkpoints with every tensor accounted for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError, WeightsError
from lyrics.core.geometry import Frame
from lyrics.core.types import ImageBatch
from lyrics.plugins.ram_plus import RamOptions, RamPlusOptions, SwinOptions
from lyrics.plugins.ram_plus.checkpoint import IGNORED, _lines, from_upstream, upstream_name
from lyrics.plugins.ram_plus.tagger import RamTagger, build_ram, build_ram_plus

RANDOM, PRETRAINED, META = BuildContext("random"), BuildContext("pretrained"), BuildContext("meta")
SMALL = {
    "backbone": {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)},
    "image_size": 32,
    "window_size": 2,
    "num_tags": 6,
    "head_width": 16,
    "head_heads": 2,
    "head_mlp_width": 32,
}


def small(threshold: float = 0.5) -> RamTagger:
    """A RAM++ whose scores differ from picture to picture and from tag to tag, around one half."""
    torch.manual_seed(0)
    tagger = build_ram_plus(RamPlusOptions(**SMALL, num_descriptions=3, threshold=threshold), RANDOM)
    with torch.no_grad():
        for parameter in tagger.parameters():
            if parameter.ndim > 1:  # matrices as large as keeps variance; random weights alone score every tag the same
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
        tagger.label_embed.mul_(10)
    return tagger


def batch(pixels_BCHW: torch.Tensor) -> ImageBatch:
    size = pixels_BCHW.shape[-1]
    return ImageBatch(pixels_BCHW, tuple(Frame.of(size, size) for _ in pixels_BCHW))


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# --- upstream's numbers


@dataclass(frozen=True)
class Fixture:
    """One parity file: upstream's tensors, inputs and outputs, and what describes them."""

    tensors: dict[str, torch.Tensor]
    about: dict[str, str]
    options: RamOptions

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return {name.removeprefix("state."): t for name, t in self.tensors.items() if name.startswith("state.")}

    @property
    def tags(self) -> list[str]:
        return json.loads(self.about["tag_list"])

    def written_to(self, folder: Path, state: dict[str, torch.Tensor] | None = None) -> RamOptions:
        """A checkpoint folder of this fixture, with other tensors if given; returns options that name it."""
        save_file(self.state if state is None else state, folder / "model.safetensors")
        (folder / "tags.txt").write_text("\n".join(self.tags) + "\n", encoding="utf-8")
        thresholds = [str(threshold) for threshold in json.loads(self.about["thresholds"])]
        (folder / "thresholds.txt").write_text("\n".join(thresholds) + "\n", encoding="utf-8")
        return self.options.model_copy(update={"checkpoint": str(folder)})

    def build(self, folder: Path, state: dict[str, torch.Tensor] | None = None) -> RamTagger:
        options = self.written_to(folder, state)
        if isinstance(options, RamPlusOptions):
            return build_ram_plus(options, PRETRAINED)
        return build_ram(options, PRETRAINED)


@pytest.fixture(params=["ram_plus", "ram"])
def fixture(request: pytest.FixtureRequest, parity: Callable[[str], Path]) -> Fixture:
    path = parity(f"{request.param}.safetensors")
    with safe_open(path, "pt") as file:
        about = file.metadata()
    swin, head = json.loads(about["swin"]), json.loads(about["tagging_head"])
    options = {
        "backbone": {name: swin[name] for name in ("embed_dim", "depths", "num_heads")},
        "image_size": swin["image_res"],
        "window_size": swin["window_size"],
        "num_tags": len(json.loads(about["tag_list"])),
        "head_width": head["hidden_size"],
        "head_layers": head["num_hidden_layers"],
        "head_heads": head["num_attention_heads"],
        "head_mlp_width": head["intermediate_size"],
    }
    descriptions = int(about["descriptions_per_tag"])
    if request.param == "ram_plus":
        return Fixture(load_file(path), about, RamPlusOptions(**options, num_descriptions=descriptions))
    assert descriptions == 1
    return Fixture(load_file(path), about, RamOptions(**options))


@torch.no_grad()
def run(tagger: RamTagger, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The logits, and what passes on the way to them, under the fixtures' names."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    swin = tagger.visual_encoder
    named = {
        "swin.patch_embed": swin.embeddings,
        "image_embeds": tagger.image_proj,
        "wordvec_proj": tagger.wordvec_proj,
    }
    named |= {f"swin.stage.{index}": stage for index, stage in enumerate(swin.encoder.layers)}
    named |= {f"tagging_head.layer.{index}": layer for index, layer in enumerate(tagger.tagging_head)}
    hooks = [module.register_forward_hook(keep(name)) for name, module in named.items()]
    seen["logits"] = tagger.logits(pixels)
    for hook in hooks:
        hook.remove()
    seen["visual_encoder"] = tagger.encode(pixels)
    seen["tagging_head"] = seen[f"tagging_head.layer.{len(tagger.tagging_head) - 1}"]
    return seen


def test_every_step_equals_upstreams(fixture: Fixture, tmp_path: Path) -> None:
    seen = run(fixture.build(tmp_path), fixture.tensors["in.image"])
    expected = {
        name: tensor
        for name, tensor in fixture.tensors.items()
        if not name.startswith(("state.", "in.", "loss", "train.")) and name not in ("class_threshold", "decision")
    }
    assert expected.keys() == seen.keys()
    for name, tensor in expected.items():
        step = seen[name]
        # RAM's label embeddings do not depend on the picture, so upstream has them once
        tensor = tensor.expand_as(step) if step.ndim > tensor.ndim else tensor
        assert step.shape == tensor.shape, name
        torch.testing.assert_close(step, tensor, rtol=1e-5, atol=1e-5, msg=f"{name} differs from upstream's")


def test_the_same_tags_are_decided(fixture: Fixture, tmp_path: Path) -> None:
    tagger = fixture.build(tmp_path)
    found = tagger(batch(fixture.tensors["in.image"]))
    probabilities = fixture.tensors["logits"].sigmoid()
    assert tagger.tags == tuple(fixture.tags)
    torch.testing.assert_close(torch.tensor(tagger.thresholds), fixture.tensors["class_threshold"])
    for tags, decided, scores, text in zip(
        found, fixture.tensors["decision"], probabilities, json.loads(fixture.about["tags"]), strict=True
    ):
        names = [tag.name for tag in tags]
        assert set(names) == set(text.split(" | ")) == {fixture.tags[index] for index in decided.nonzero().flatten()}
        assert names == sorted(names, key=lambda name: -scores[fixture.tags.index(name)])
        for tag in tags:
            assert tag.score == pytest.approx(float(scores[fixture.tags.index(tag.name)]), abs=1e-5)


def test_every_upstream_tensor_is_read_or_ignored_on_purpose(fixture: Fixture) -> None:
    torch.manual_seed(0)
    tagger = RamTagger(fixture.options, getattr(fixture.options, "num_descriptions", None))
    used = {upstream_name(name) for name in tagger.state_dict()}
    ignored = {name for name in fixture.state if IGNORED.fullmatch(name)}
    assert used | ignored == fixture.state.keys()
    assert not used & ignored
    assert all(
        name.startswith(("tag_encoder.", "text_decoder.")) or name.endswith(("_index", "_mask")) for name in ignored
    )


def test_the_older_spelling_and_files_without_what_is_ignored_are_read(fixture: Fixture, tmp_path: Path) -> None:
    older = {
        name.replace("tagging_head.", "vision_multi."): tensor
        for name, tensor in fixture.state.items()
        if not IGNORED.fullmatch(name)
    }
    assert older.keys() != fixture.state.keys()
    with torch.no_grad():
        logits = fixture.build(tmp_path, older).logits(fixture.tensors["in.image"])
    torch.testing.assert_close(logits, fixture.tensors["logits"], rtol=1e-5, atol=1e-5)


# --- contract


def test_tags_come_best_first_and_only_above_the_threshold() -> None:
    tagger = small()
    pixels = pictures(4)
    with torch.no_grad():
        scores = tagger.logits(pixels).sigmoid()
    assert 0 < (scores > 0.5).sum() < scores.numel()
    for tags, row in zip(tagger(batch(pixels)), scores, strict=True):
        kept = sorted((index for index in range(6) if row[index] > 0.5), key=lambda index: -row[index])
        assert [tag.name for tag in tags] == [f"tag {index}" for index in kept]
        assert [tag.score for tag in tags] == pytest.approx([float(row[index]) for index in kept])


def test_a_score_equal_to_its_threshold_is_not_above_it_and_ties_keep_their_order() -> None:
    tagger = small()
    nn.init.zeros_(tagger.fc.weight)
    nn.init.zeros_(tagger.fc.bias)  # every probability is exactly one half
    assert tagger(batch(pictures(1))) == [[]]
    tagger.thresholds = (0.5, 0.4, 0.4, 0.5, 0.6, 0.4)
    assert [[tag.name for tag in tags] for tags in tagger(batch(pictures(1)))] == [["tag 1", "tag 2", "tag 5"]]


def test_pictures_do_not_depend_on_their_batch() -> None:
    tagger, pixels = small(), pictures(3)
    together = tagger(batch(pixels))
    alone = [tagger(batch(pixels[index : index + 1]))[0] for index in range(3)]
    assert together[0] != together[1]
    for ours, theirs in zip(together, alone, strict=True):
        assert [tag.name for tag in ours] == [tag.name for tag in theirs]
        assert [tag.score for tag in ours] == pytest.approx([tag.score for tag in theirs], abs=1e-6)


@torch.no_grad()
def test_a_cpu_takes_few_large_pictures_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tagger, pixels = small(), pictures(5)
    expected = tagger.logits(pixels)
    passes: list[int] = []
    encode = tagger.encode

    def noted(some: torch.Tensor) -> torch.Tensor:
        passes.append(len(some))
        return encode(some)

    monkeypatch.setattr(tagger, "encode", noted)
    for room, lengths in ((2.9, [2, 2, 1]), (0.5, [1] * 5), (5, [5])):
        monkeypatch.setattr("lyrics.plugins.ram_plus.tagger._CPU_PIXELS", int(room * tagger.image_size**2))
        passes.clear()
        torch.testing.assert_close(tagger.logits(pixels), expected, atol=1e-5, rtol=0)
        assert passes == lengths


def test_an_empty_batch_and_a_batch_without_tags() -> None:
    assert small()(batch(pictures(0))) == []
    assert small().logits(pictures(0)).shape == (0, 6)
    assert small(threshold=1.0)(batch(pictures(2))) == [[], []]


def test_half_precision_decides_in_single_precision() -> None:
    tagger = small(threshold=0.65).to(torch.bfloat16)
    with torch.no_grad():
        scores = tagger.logits(pictures(4)).float().sigmoid()
    found = tagger(batch(pictures(4)))
    assert [len(tags) for tags in found] == (scores > torch.tensor(0.65)).sum(dim=1).tolist()
    nn.init.zeros_(tagger.fc.weight)
    nn.init.constant_(
        tagger.fc.bias, 0.62109375
    )  # exact in bfloat16; its sigmoid is 0.65046, which bfloat16 rounds to 0.65234
    tagger.thresholds = (0.6504, 0.6505, 0.652, 0.65, 0.66, 0.7)
    assert {tag.name for tag in tagger(batch(pictures(1)))[0]} == {"tag 0", "tag 3"}


def test_random_weights_name_tags_and_use_upstreams_threshold() -> None:
    tagger = build_ram(RamOptions(**SMALL), RANDOM)
    assert tagger.tags == ("tag 0", "tag 1", "tag 2", "tag 3", "tag 4", "tag 5")
    assert tagger.thresholds == (0.68,) * 6
    assert not tagger.training
    assert tagger.reweight_scale is None


def test_preprocessing_is_upstreams() -> None:
    preprocessing = small().preprocessing
    assert (preprocessing.resize, preprocessing.size, preprocessing.resampling) == ("squash", 32, "bilinear")
    assert (preprocessing.mean, preprocessing.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ContractError, match=r"\[B, 3, 32, 32\]"):
        small()(batch(torch.zeros(1, 3, 64, 64)))


def test_descriptions_are_weighed_by_the_picture() -> None:
    """The formula, written out for one tag: weights are a softmax of the scaled cosine-like similarity."""
    tagger = small()
    image = torch.randn(1, 512, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        labels = tagger.labels(image)[0]
        descriptions = tagger.label_embed.reshape(6, 3, 512)[4]
        similarity = [
            math.exp(tagger.reweight_scale) * float(d @ image[0]) / float(image[0].norm()) for d in descriptions
        ]
        weights = [math.exp(s) / sum(math.exp(t) for t in similarity) for s in similarity]
        expected = sum(weight * description for weight, description in zip(weights, descriptions, strict=True))
    torch.testing.assert_close(labels[4], expected, rtol=1e-4, atol=1e-5)


# --- checkpoints


def test_a_missing_unexpected_or_misshapen_tensor_is_named(fixture: Fixture, tmp_path: Path) -> None:
    state = fixture.state
    gone = "visual_encoder.layers.2.blocks.1.attn.qkv.weight"
    with pytest.raises(WeightsError, match=rf"tensors 1 missing: {gone}\. Set"):
        fixture.build(tmp_path, {name: tensor for name, tensor in state.items() if name != gone})
    with pytest.raises(WeightsError, match=r"tensors 1 unexpected: visual_encoder\.head\.weight\. Set"):
        fixture.build(tmp_path, {**state, "visual_encoder.head.weight": torch.zeros(1)})
    both = {**state, "vision_multi.encoder.layer.0.output.dense.bias": torch.zeros(64)}
    with pytest.raises(
        WeightsError, match=r"tensors 1 unexpected: vision_multi\.encoder\.layer\.0\.output\.dense\.bias"
    ):
        fixture.build(tmp_path, both)
    table = "visual_encoder.layers.0.blocks.0.attn.relative_position_bias_table"
    with pytest.raises(WeightsError, match=rf"{table} \(it is \[49, 1\], the options ask for \[25, 1\]\)"):
        fixture.build(tmp_path, {**state, table: torch.zeros(49, 1)})
    with pytest.raises(WeightsError, match=str(tmp_path)):
        fixture.build(tmp_path, {})


def test_ram_and_ram_plus_do_not_read_each_others_files(fixture: Fixture, tmp_path: Path) -> None:
    options = fixture.written_to(tmp_path)
    numbers = {name: getattr(options, name) for name in RamOptions.model_fields}
    message = r"reweight_scale.*ram reads RAM and ram-plus reads"
    if isinstance(options, RamPlusOptions):
        with pytest.raises(WeightsError, match=message):
            build_ram(RamOptions(**numbers), PRETRAINED)
    else:
        with pytest.raises(WeightsError, match=message):
            build_ram_plus(RamPlusOptions(**numbers, num_descriptions=1), PRETRAINED)


def test_one_threshold_may_replace_the_checkpoints(fixture: Fixture, tmp_path: Path) -> None:
    options = fixture.written_to(tmp_path).model_copy(update={"threshold": 0.25})
    build = build_ram_plus if isinstance(options, RamPlusOptions) else build_ram
    assert build(options, PRETRAINED).thresholds == (0.25,) * 7


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lists_that_an_editor_has_saved_are_read_the_same(tmp_path: Path, mark: str, end: str) -> None:
    path = tmp_path / "tags.txt"
    path.write_bytes((mark + end.join(["3D glasses", "abacus", ""])).encode())
    assert _lines(path, 2) == ["3D glasses", "abacus"]


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("tags.txt", "a\nb\nc\nd\ne\n", "tags.txt has 5 lines, but num_tags is 6"),
        ("tags.txt", "a\nb\n\nd\ne\nf\n", "tags.txt, line 3: the tag is empty"),
        ("tags.txt", "a\nb\nc\nd\na\nf\n", "tags.txt, line 5: 'a' is also on line 1"),
        ("thresholds.txt", "0.5\n" * 7, "thresholds.txt has 7 lines"),
        ("thresholds.txt", "0.5\n" * 5 + "high\n", "thresholds.txt, line 6: 'high' is not a probability"),
        ("thresholds.txt", "0.5\n" * 5 + "nan\n", "thresholds.txt, line 6: 'nan' is not a probability"),
        ("thresholds.txt", "1.5\n" + "0.5\n" * 5, "thresholds.txt, line 1: '1.5' is not a probability"),
        ("thresholds.txt", None, "thresholds.txt: a tagger needs it"),
        ("tags.txt", None, "tags.txt: a tagger needs it"),
        ("model.safetensors", None, "no safetensors file"),
        ("model.safetensors", "not tensors", "not a readable safetensors file"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, file: str, text: str | None, message: str) -> None:
    save_file({"fc.bias": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "tags.txt").write_text("a\nb\nc\nd\ne\nf\n", encoding="utf-8")
    (tmp_path / "thresholds.txt").write_text("0.5\n" * 6, encoding="utf-8")
    if text is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match=message):
        build_ram(RamOptions(**SMALL, checkpoint=str(tmp_path)), PRETRAINED)


def test_where_the_checkpoint_is_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no default checkpoint"):
        build_ram(RamOptions(**SMALL), PRETRAINED)
    with pytest.raises(WeightsError, match="absent"):
        build_ram(RamOptions(**SMALL, checkpoint=str(tmp_path / "absent")), PRETRAINED)


def test_joint_projections_are_split_in_the_order_query_key_value() -> None:
    name = "visual_encoder.encoder.layers.0.blocks.0.attention.{}_proj.bias"
    expected = {name.format(part): torch.zeros(2) for part in "vkq"}
    joint = {"visual_encoder.layers.0.blocks.0.attn.qkv.bias": torch.arange(6.0)}
    ours = from_upstream(joint, expected, source="here")
    assert {part: ours[name.format(part)].tolist() for part in "qkv"} == {"q": [0, 1], "k": [2, 3], "v": [4, 5]}


# --- sizes


@pytest.mark.parametrize("backbone, width", [("swin-b", 128), ("swin-l", 192)])
def test_full_size_parameters(backbone: str, width: int) -> None:
    """Counted by hand from the layers: a Swin at 384 pixels, 4,585 tags with 51 descriptions each, two
    tagging layers.
    """
    swin, stage_width = 3 * 4 * 4 * width + width + 2 * width, width
    for stage, (depth, heads) in enumerate(zip((2, 2, 18, 2), (1, 2, 4, 8), strict=True)):
        attention = 4 * (stage_width * stage_width + stage_width) + 23 * 23 * heads * (width // 32)
        mlp = 2 * stage_width * 4 * stage_width + 5 * stage_width
        swin += depth * (attention + mlp + 2 * 2 * stage_width)
        if stage < 3:
            swin += 4 * stage_width * 2 * stage_width + 2 * 4 * stage_width
            stage_width *= 2
    swin += 2 * stage_width
    # timm's swin_{base,large}_patch4_window12_384 without the classifier
    assert swin == {"swin-b": 86_878_584, "swin-l": 195_198_516}[backbone]

    layer = (768 * 768 + 768) + 2 * (512 * 768 + 768) + (768 * 768 + 768) + 2 * 768
    layer += 768 * 3072 + 3072 + 3072 * 768 + 768 + 2 * 768
    head = (stage_width * 512 + 512) + (512 * 768 + 768) + 2 * layer + (768 + 1)

    with torch.device("meta"):
        ram_plus = build_ram_plus(RamPlusOptions(backbone=backbone), META)
        ram = build_ram(RamOptions(backbone=backbone), META)
    assert all(parameter.is_meta for parameter in ram_plus.parameters())
    assert sum(p.numel() for p in ram_plus.visual_encoder.parameters()) == swin
    assert sum(p.numel() for p in ram_plus.parameters()) == swin + head + 4585 * 51 * 512 + 1
    assert sum(p.numel() for p in ram.parameters()) == swin + head + 4585 * 512
    assert len(ram.tags) == len(ram.thresholds) == 4585


def test_the_defaults_are_the_public_checkpoints() -> None:
    options = RamPlusOptions()
    assert options.swin == SwinOptions(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))
    assert (options.image_size, options.window_size, options.num_tags, options.num_descriptions) == (384, 12, 4585, 51)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 40}, "image_size 40 must be a multiple of 16"),
        ({"head_heads": 3}, "not a multiple of head_heads"),
        ({"backbone": {"embed_dim": 8, "depths": (1,), "num_heads": (1, 2)}}, "depths has 1 stages"),
        ({"backbone": {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 3)}}, "width 16 of stage 1"),
        ({"backbone": "swin-t"}, "swin-b"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RamOptions(**{**SMALL, **options})


def test_a_stated_threshold_stands_above_saved_ones(tmp_path: Path) -> None:
    saved = small(0.5)
    saved.tags = ("a", "b", "c", "d", "e", "f")
    saved.save_files(tmp_path)
    one, none = (build_ram_plus(RamPlusOptions(**SMALL, num_descriptions=3, threshold=t), RANDOM) for t in (0.3, None))
    for tagger in (one, none):
        tagger.load_files(tmp_path)
        assert tagger.tags == saved.tags
    assert one.thresholds == (0.3,) * 6
    assert none.thresholds == (0.5,) * 6
