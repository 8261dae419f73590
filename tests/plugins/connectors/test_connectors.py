"""LLaVA's and Flamingo's connectors: what they compute, and a model around them that answers and learns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import lyrics
from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError, SpecError, WiringError
from lyrics.core.runs.config import load_config
from lyrics.core.stage1.streams import Features, Stream, full
from lyrics.core.training.assemble import run
from lyrics.plugins.connectors import MlpProjectorOptions, PerceiverResamplerOptions
from lyrics.plugins.connectors.mlp import MlpProjector
from lyrics.plugins.connectors.resampler import PerceiverResampler
from tests.core.training.runs import losses

CONTEXT = BuildContext("random", image_dim=12, image_tokens=5)
SMALL = {"hidden_size": 8, "num_queries": 3, "num_layers": 2, "num_heads": 2}


def stream(*images: int) -> Stream:
    rows = torch.tensor(images)
    return Stream("queries", full("V"), sample_R=rows, image_index_R=rows, wanted={"V": "all"})


def features(images: int = 2, tokens: int = 5, seed: int = 0) -> Features:
    return Features(torch.randn(images, tokens, 12, generator=torch.Generator().manual_seed(seed)))


def test_each_image_token_becomes_a_soft_token() -> None:
    projector = MlpProjector(MlpProjectorOptions(hidden_size=8, skip_tokens=1), CONTEXT)
    assert (projector.num_queries, projector.hidden_size) == (4, 8)
    given = features()
    layer = projector.mlp[0]
    expected = F.gelu(given.image_tokens_BND[:, 1:] @ layer.weight.T + layer.bias)
    found = projector([stream(1, 0, 1)], given)("queries", "V")
    torch.testing.assert_close(found, expected[[1, 0, 1]])
    assert MlpProjector(MlpProjectorOptions(), CONTEXT).hidden_size == 12


def test_the_number_of_tokens_must_be_known_and_right() -> None:
    with pytest.raises(SpecError, match=r"set query_transformer\.options\.num_tokens"):
        MlpProjector(MlpProjectorOptions(), BuildContext("random", image_dim=12))
    with pytest.raises(SpecError, match="skip_tokens 5 leaves nothing of 5"):
        MlpProjector(MlpProjectorOptions(skip_tokens=5), CONTEXT)
    projector = MlpProjector(MlpProjectorOptions(num_tokens=4), BuildContext("random", image_dim=12))
    with pytest.raises(ContractError, match="of each of 4 image tokens, and is given 5"):
        projector([stream(0)], features())
    for options in ({"num_heads": 3}, {"hidden_size": 9}):
        with pytest.raises(ValueError, match="is not a multiple of num_heads"):
            PerceiverResamplerOptions(**{**SMALL, **options})
    with pytest.raises(SpecError, match="the width 12 of image tokens is not a multiple of num_heads 8"):
        PerceiverResampler(PerceiverResamplerOptions(), CONTEXT)


@torch.no_grad()
def test_masked_image_tokens_are_not_read() -> None:
    torch.manual_seed(0)
    resampler = PerceiverResampler(PerceiverResamplerOptions(**SMALL), CONTEXT)
    short, longer = features(tokens=3), features(tokens=5, seed=1)
    longer.image_tokens_BND[:, :3] = short.image_tokens_BND
    masked = Features(longer.image_tokens_BND, image_mask_BN=torch.arange(5).expand(2, 5) < 3)
    expected = resampler([stream(0, 1)], short)("queries", "V")
    assert expected.shape == (2, 3, 8)
    torch.testing.assert_close(resampler([stream(0, 1)], masked)("queries", "V"), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(resampler([stream(0, 1)], longer)("queries", "V"), expected, atol=1e-3)
    assert not torch.allclose(expected[:, 0], expected[:, 1], atol=1e-3), "queries are alike"


def test_a_layer_is_attention_over_the_image_and_the_queries() -> None:
    """Against torch's own module with the same weights."""
    torch.manual_seed(0)
    layer = PerceiverResampler(PerceiverResamplerOptions(**SMALL), CONTEXT).layers[0]
    theirs = torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key_value.weight]))
        theirs.out_proj.weight.copy_(layer.out.weight)
    queries, image = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    normed = layer.query_norm(queries)
    seen = torch.cat([layer.image_norm(image), normed], dim=1)
    attended = queries + theirs(normed, seen, seen, need_weights=False)[0]
    expected = attended + layer.feed_forward(attended)
    torch.testing.assert_close(layer(queries, image, None), expected, rtol=1e-5, atol=1e-6)


PARTS: Mapping[str, Mapping[str, Any]] = {
    "mlp-projector": {},
    "perceiver-resampler": {"hidden_size": 32, "num_queries": 4, "num_layers": 1, "num_heads": 4},
}


@pytest.mark.parametrize("name", PARTS)
def test_a_model_answers_and_learns_with_it(name: str, tmp_path: Any) -> None:
    overrides = {"query_transformer": {"use": name, "options": dict(PARTS[name])}, "objectives": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = lyrics.build_model("lyrics-tiny", overrides=overrides, weights="random")
    picture = Image.new("RGB", (60, 60), "red")
    answer = model.generate(picture, "what is it?", max_new_tokens=3)
    assert answer.text is not None
    trained = model.trainable_parameters("instruct")
    assert any(one.startswith("query_transformer.") for one in trained)
    batch = model.processor(images=[picture], text=["what is it?"], answers=["a red square"])
    model(**batch).loss.backward()
    assert all(parameter.grad is not None for parameter in trained.values())
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = lyrics.LyricsModel.from_pretrained(tmp_path)
    assert again.generate(picture, "what is it?", max_new_tokens=3).text == answer.text


@pytest.mark.parametrize("name", PARTS)
def test_stage_1_is_refused_with_the_command_that_removes_it(name: str) -> None:
    with pytest.raises(WiringError, match=r"reads visual queries and nothing else.*--set objectives=\{\}"):
        lyrics.build_model("lyrics-tiny", overrides={"query_transformer": name}, weights="random")


@pytest.mark.parametrize("name", PARTS)
def test_stage_2_trains_it_on_scenes_and_stage_1_has_nothing_for_it(name: str, tmp_path: Path) -> None:
    """By the recipes of lyrics-tiny, with the overrides that docs/training.md gives."""
    changed = {"model.spec.query_transformer": {"use": name, "options": dict(PARTS[name])}, "model.spec.objectives": {}}
    small = {"optimization.steps": 3, "optimization.global_batch": 2, "data.workers": 0, "checkpoint.every_steps": 3}
    more = {"out": str(tmp_path / "run"), "evaluation.every_steps": None, "logging.trackers": []}
    config = load_config("tiny-stage2", {**changed, **small, **more})
    torch.manual_seed(config.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = lyrics.build_model(config.model.spec, weights=config.model.weights).state_dict()
        assert run(config).step == 3
        after = lyrics.load_model(config.out)
    trained = [key for key in before if key.startswith(("query_transformer.", "projection."))]
    assert trained
    assert all(not torch.equal(before[key], after.state_dict()[key]) for key in trained), "some part was not trained"
    assert all(isinstance(line[1]["answer"], str) for line in losses(tmp_path / "run"))
    assert isinstance(after.generate(Image.new("RGB", (60, 60)), "what is it?", max_new_tokens=2).text, str)
    with pytest.raises(SpecError, match=f"{name!r} reads no text, so it has no stage 1; begin with stage 2"):
        run(load_config("tiny-stage1", {**changed, "out": str(tmp_path / "none")}))
