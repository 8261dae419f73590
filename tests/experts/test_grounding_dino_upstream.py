"""The original Grounding DINO: what transformers 5 took from it and we give back, and that it agrees with the default
backend.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BatchEncoding, BertConfig, BertModel

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.language.phrase_prompts import stand_in_tokenizer
from lyrics.core.pictures.processor import prepare
from lyrics.core.types import ImageBatch
from lyrics.plugins.grounding_dino import GroundingDinoUpstreamOptions, detector, lyrics_components
from lyrics.plugins.grounding_dino.detector import GroundingDino
from tests.experts.conftest import needs

needs("groundingdino")

from groundingdino.models.GroundingDINO.bertwarper import BertModelWarper
from groundingdino.util import get_tokenlizer
from groundingdino.util.misc import NestedTensor

from lyrics.plugins.grounding_dino import upstream

RANDOM, PRETRAINED, META = BuildContext("random"), BuildContext("pretrained"), BuildContext("meta")
TEST_OPTIONS = next(dict(c.test_options) for c in lyrics_components() if c.name == "grounding-dino-upstream")
# Two layers in every Swin stage, so that each has shifted windows; thresholds that let detections through; several
# prompts.
OPTIONS = {
    **TEST_OPTIONS,
    "swin_depths": (2, 2, 2, 2),
    "encoder_layers": 2,
    "max_text_tokens": 40,
    "box_threshold": 0.4,
    "text_threshold": 0.3,
}
SIZES = [(80, 60), (70, 100), (80, 60), (300, 20), (200, 200)]
PHRASES = [
    ["dog", "a red car and four"],
    ["a man", "a hat"],
    ["tree"],
    [],
    ["x", "a long phrase of its own", "cat and so on"],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the original code's naming, every tensor random, with a vocabulary."""
    path = tmp_path_factory.mktemp("original")
    torch.manual_seed(0)
    component = upstream.build(GroundingDinoUpstreamOptions(**OPTIONS), RANDOM)
    for parameter in component.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.3)
    state = {key: tensor.clone() for key, tensor in component.network.model.state_dict().items()}
    save_file(state, path / "model.safetensors")
    write_vocabulary(path)
    return path


def write_vocabulary(folder: Path) -> None:
    """BERT's ids for the delimiters; one piece for each letter."""
    names = [f"[unused{index}]" for index in range(1030)]
    names[0] = "[PAD]"
    special = {100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    for index, name in special.items():
        names[index] = name
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    (folder / "vocab.txt").write_text("\n".join([*names, *letters, *(f"##{letter}" for letter in letters)]))


def options(folder: Path, **changed: object) -> GroundingDinoUpstreamOptions:
    return GroundingDinoUpstreamOptions(**{**OPTIONS, "checkpoint": str(folder), **changed})


def pictures(component: GroundingDino, sizes: list[tuple[int, int]]) -> ImageBatch:
    noise = [np.random.default_rng(i).integers(0, 256, (h, w, 3), dtype=np.uint8) for i, (w, h) in enumerate(sizes)]
    return prepare([Image.fromarray(array) for array in noise], component.preprocessing)


@torch.no_grad()
def same(ours: GroundingDino, theirs: GroundingDino) -> None:
    """Both give the same tokens, and the same phrases with the same scores and boxes, to 1e-4."""
    images = pictures(ours, SIZES)
    found, expected = ours(images, PHRASES), theirs(images, PHRASES)
    torch.testing.assert_close(found.tokens_BMD, expected.tokens_BMD, atol=1e-4, rtol=0)
    assert [len(detections) > 0 for detections in expected.detections] == [True, True, True, False, True]
    for mine, other in zip(found.detections, expected.detections, strict=True):
        assert [d.phrase for d in mine] == [d.phrase for d in other]
        np.testing.assert_allclose([d.score for d in mine], [d.score for d in other], atol=1e-4)
        boxes = [np.array([d.box_norm.as_tuple() for d in found]).reshape(-1, 4) for found in (mine, other)]
        np.testing.assert_allclose(*boxes, atol=1e-4)


# --- agreement


def test_both_backends_give_the_same_detections_for_the_same_weights(folder: Path) -> None:
    same(upstream.build(options(folder), PRETRAINED), detector.build(options(folder), PRETRAINED))


def test_the_hubs_naming_gives_the_same_too(folder: Path, tmp_path: Path) -> None:
    default = detector.build(options(folder), PRETRAINED)
    default.network.save_pretrained(tmp_path)
    write_vocabulary(tmp_path)
    assert "transformer.level_embed" not in load_file(tmp_path / "model.safetensors")
    same(upstream.build(options(tmp_path), PRETRAINED), default)


@torch.no_grad()
def test_phrases_of_a_neighbor_change_nothing(folder: Path) -> None:
    """In a batch the original code would mix the text masks of pictures whose phrases lie differently."""
    component = upstream.build(options(folder), PRETRAINED)
    images = pictures(component, [(80, 60), (80, 60)])
    together = component(images, [["a", "b", "c d e f"], ["a long phrase", "x"]])
    alone = component(pictures(component, [(80, 60)]), [["a", "b", "c d e f"]])
    torch.testing.assert_close(together.tokens_BMD[0], alone.tokens_BMD[0], atol=1e-6, rtol=0)


@torch.no_grad()
def test_numbers_of_transformers_4(parity: Callable[[str], Path], tmp_path: Path) -> None:
    """The fixture was made with transformers 4.57.6: the two images as one batch, as the original code runs it."""
    tensors = load_file(parity("grounding_dino_upstream.safetensors"))
    with safe_open(parity("grounding_dino_upstream.safetensors"), "pt") as file:
        metadata = file.metadata()
    state = {key.removeprefix("state."): tensor.float() for key, tensor in tensors.items() if key.startswith("state.")}
    state |= {alias: state[key].clone() for alias, key in json.loads(metadata["aliases"]).items()}
    save_file({f"module.{key}": tensor for key, tensor in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "vocab.txt").write_text("\n".join(json.loads(metadata["vocab"])))
    sizes = {
        "swin_width": 12, "swin_depths": (1, 1, 2, 1), "swin_heads": (1, 2, 3, 4), "swin_window": 4,
        "text_width": 64, "text_layers": 2, "text_heads": 2, "text_ffn": 128, "text_vocabulary": 16,
        "text_positions": 32, "max_text_tokens": 32, "queries": 20, "encoder_layers": 1, "decoder_layers": 2,
        "heads": 4, "ffn": 64,
    }  # fmt: skip
    model = upstream.build(GroundingDinoUpstreamOptions(checkpoint=str(tmp_path), **sizes), PRETRAINED).network.model
    words = {name: tensors[f"in.{name}"] for name in ("input_ids", "attention_mask", "token_type_ids")}
    model.tokenizer = lambda captions, **_: BatchEncoding(words)
    output = model(NestedTensor(tensors["in.image_padded"], tensors["in.image_mask"] != 0), captions=["", ""])
    found, expected = output["pred_logits"][..., :9], tensors["pred_logits"]
    finite = expected.isfinite()
    assert torch.equal(found.isfinite(), finite)
    torch.testing.assert_close(found[finite], expected[finite], rtol=1e-5, atol=3e-5)
    torch.testing.assert_close(output["pred_boxes"], tensors["pred_boxes"], rtol=1e-5, atol=3e-5)


# --- compatibility with transformers 5


@pytest.fixture
def bert() -> upstream.BertWithMasks:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    return upstream.BertWithMasks(config).eval()


def test_extended_mask_hides_what_is_not_set(bert: upstream.BertWithMasks) -> None:
    least = torch.finfo(torch.float32).min
    one = torch.tensor([[1, 1, 0]])
    assert bert.get_extended_attention_mask(one, (1, 3)).tolist() == [[[[0.0, 0.0, least]]]]
    assert bert.invert_attention_mask(one).tolist() == [[[[0.0, 0.0, least]]]]
    each = torch.tensor([[[True, False], [True, True]]])
    assert bert.get_extended_attention_mask(each, (1, 2), each.device).tolist() == [[[[0.0, least], [0.0, 0.0]]]]
    assert bert.to(torch.bfloat16).get_extended_attention_mask(each, (1, 2)).dtype == torch.bfloat16
    assert bert.get_head_mask(None, 2) == [None, None]


@torch.no_grad()
def test_groundingdinos_wrapper_computes_what_bert_computes(bert: upstream.BertWithMasks) -> None:
    words = torch.tensor([[1, 2, 3, 4]])
    places = torch.tensor([[0, 0, 1, 0]])
    sees = torch.tensor([[[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]], dtype=torch.bool)
    found = BertModelWarper(bert)(input_ids=words, attention_mask=sees, position_ids=places)["last_hidden_state"]
    expected = bert(words, attention_mask=sees[:, None], position_ids=places).last_hidden_state
    torch.testing.assert_close(found, expected)
    assert (found - bert(words, position_ids=places).last_hidden_state).abs().max() > 1e-3


def test_nothing_is_changed_for_others() -> None:
    before = get_tokenlizer.get_tokenlizer, get_tokenlizer.get_pretrained_language_model
    upstream.build(GroundingDinoUpstreamOptions(**OPTIONS), RANDOM)
    assert before == (get_tokenlizer.get_tokenlizer, get_tokenlizer.get_pretrained_language_model)
    with contextlib.suppress(ZeroDivisionError), upstream._text_encoder(None, None):  # type: ignore[arg-type]
        assert get_tokenlizer.get_tokenlizer("bert-base-uncased") is None
        raise ZeroDivisionError
    assert before == (get_tokenlizer.get_tokenlizer, get_tokenlizer.get_pretrained_language_model)
    assert not {"get_head_mask", "get_extended_attention_mask", "invert_attention_mask"} & vars(BertModel).keys()


# --- sizes and errors


def test_true_size_on_the_meta_device() -> None:
    with torch.device("meta"):
        component = upstream.build(GroundingDinoUpstreamOptions(), META)
    held = {id(tensor): tensor for tensor in component.state_dict(keep_vars=True).values()}
    assert {tensor.device.type for tensor in held.values()} == {"meta"}
    # What nothing reads: here BERT's pooler, there the norm after the backbone's last stage.
    with torch.device("meta"):
        default = detector.build(GroundingDinoUpstreamOptions(), META)
    count, expected = (sum(p.numel() for p in module.parameters()) for module in (component, default))
    assert count - 768 * 769 == expected - 2 * 768
    assert 172e6 < count < 173e6
    assert component.feature_dim == GroundingDinoUpstreamOptions().feature_dim == 260


@pytest.mark.parametrize(("name", "value"), [("width", 128), ("width", 512), ("max_text_tokens", 257)])
def test_what_the_original_code_takes_for_granted_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValidationError, match=name):
        GroundingDinoUpstreamOptions(**{name: value})


def test_a_vocabulary_without_room_for_the_stand_in_is_an_error() -> None:
    with pytest.raises(SpecError, match=f"text_vocabulary to {len(stand_in_tokenizer())} or more"):
        upstream.build(GroundingDinoUpstreamOptions(**{**OPTIONS, "text_vocabulary": 100}), RANDOM)


def test_other_precisions_are_refused() -> None:
    component = upstream.build(GroundingDinoUpstreamOptions(**OPTIONS), RANDOM).to(torch.bfloat16)
    with pytest.raises(SpecError, match=r"runs in float32 only.*bfloat16.*use grounding-dino"):
        component(pictures(component, [(80, 60)]), [["dog"]])


@pytest.mark.parametrize("naming", ["original", "hub"])
@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ({"transformer.level_embed", "model.level_embed"}, "transformer.level_embed is missing"),
        ({"bbox_embed", "model.decoder.bbox_embed"}, "bbox_embed.0.layers.0.bias is missing"),
    ],
)
def test_a_missing_tensor_is_an_error(folder: Path, tmp_path: Path, naming: str, lost: set[str], message: str) -> None:
    source = folder
    if naming == "hub":
        detector.build(options(folder), PRETRAINED).network.save_pretrained(tmp_path)
        source = tmp_path
    state = load_file(source / "model.safetensors")
    prefixes = tuple({*lost, *(f"transformer.decoder.{name}" for name in lost)})
    kept = {key: tensor for key, tensor in state.items() if not key.startswith(prefixes)}
    assert len(kept) < len(state)
    save_file(kept, tmp_path / "model.safetensors")
    write_vocabulary(tmp_path)
    with pytest.raises(WeightsError, match=message):
        upstream.build(options(tmp_path), PRETRAINED)


def test_half_of_a_stacked_projection_is_an_error(folder: Path, tmp_path: Path) -> None:
    detector.build(options(folder), PRETRAINED).network.save_pretrained(tmp_path)
    write_vocabulary(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.decoder.layers.0.self_attn.key.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"'model.decoder.layers.0.self_attn.key.weight' is missing"):
        upstream.build(options(tmp_path), PRETRAINED)


def test_a_tensor_too_many_is_an_error(folder: Path, tmp_path: Path) -> None:
    save_file(
        {**load_file(folder / "model.safetensors"), "transformer.more": torch.ones(1)}, tmp_path / "model.safetensors"
    )
    write_vocabulary(tmp_path)
    with pytest.raises(WeightsError, match=r"transformer\.more is not part of the model"):
        upstream.build(options(tmp_path), PRETRAINED)
