"""Recipe ``released`` against the authors' code: every pass, the four losses and all gradients of a whole
stage-1 step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.stage1.batch import PretrainBatch, Spatial
from lyrics.core.stage1.negatives import Negatives
from lyrics.core.stage1.reduction import total_loss
from lyrics.core.stage1.step import pretrain_losses
from lyrics.core.stage1.streams import Features, SpecialTokens, Text
from lyrics.plugins.mqformer.convert import from_upstream
from lyrics.plugins.objectives import ICGOptions, ITCOptions, ITMOptions, MSPOptions
from lyrics.plugins.objectives.icg import ICG
from lyrics.plugins.objectives.itc import ITC
from lyrics.plugins.objectives.itm import ITM
from lyrics.plugins.objectives.msp import MSP
from tests.plugins.mqformer.helpers import fixture_state, load, metadata, read, released_model

SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, mask=4, bos=-1, dec=5, mlm=-1)


class GivenMask(MSP):
    """Masked units were drawn upstream, so the fixture's are taken."""

    def masked(self, batch: PretrainBatch) -> torch.Tensor:
        return self.given_BL


def rows_where(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]


def build(tensors: dict[str, torch.Tensor], config: dict) -> tuple[nn.Module, nn.ModuleDict, Features, PretrainBatch]:
    model = released_model(config).eval()
    context = BuildContext("random", query_dim=64, query_segments=model.segments)
    heads = nn.ModuleDict(
        {
            "itc": ITC(ITCOptions(recipe="released", projection_dim=24), 64, context.query_segments),
            "itm": ITM(ITMOptions(recipe="released"), 64, context.query_segments),
            "icg": ICG(ICGOptions(recipe="released"), context.query_segments),
            "msp": GivenMask(MSPOptions(recipe="released"), context.query_segments),
        }
    )
    converted = load(model, fixture_state(tensors))
    assert all(key.startswith("vision_model.") for key in converted.rest)
    for name, state in converted.heads.items():
        heads[name].load_state_dict(state)

    ids, labels = tensors["text.text_input_tokens_ids"], tensors["text.text_input_labels"]
    real = tensors["text.text_input_attentions"].bool()
    is_caption = (labels != -100) & real
    is_spatial = real & ~is_caption
    is_spatial[:, 0] = is_caption[:, 0] = False  # [CLS], which the objectives put there themselves
    spatial_ids = rows_where(ids, is_spatial)
    batch = PretrainBatch(
        Spatial.from_objects([[[row]] if row else [] for row in spatial_ids]),
        Text.from_lists(rows_where(ids, is_caption)),
        torch.arange(3),
        SPECIAL,
    )
    masked = Text.from_lists(
        [
            row[keep].int().tolist()
            for row, keep in zip(tensors["text.text_input_labels_with_mask"] != -100, is_spatial, strict=True)
        ]
    )
    heads["msp"].given_BL = masked.ids_RL.bool()
    features = Features(
        tensors["out.image_embeds"], {"detector": (tensors["in.hidden_state"], torch.ones(3, 9, dtype=torch.bool))}
    )
    return model, heads, features, batch


def test_losses_gradients_and_hidden_states(parity: Callable[[str], Path]) -> None:
    path = parity("released_stage1.safetensors")
    tensors = read(path)
    model, heads, features, batch = build(tensors, metadata(path)["qformer_config"])
    negatives = Negatives(tensors["neg.image_index"], tensors["neg.text_index"])
    losses = pretrain_losses(model, heads, features, batch, negatives)
    total, means = total_loss(losses)
    for ours, theirs in (("itc", "itc"), ("itm", "itm"), ("icg", "lm"), ("msp", "mlm")):
        assert float(means[ours]) == pytest.approx(float(tensors[f"out.loss_{theirs}"]), rel=1e-5), ours
    assert float(total.detach()) == pytest.approx(12.493837, rel=1e-5)

    total.backward()
    want = from_upstream(fixture_state(tensors, "grad."), model)
    assert set(want.trunk) == {name for name, _ in model.named_parameters()}, (
        "every parameter has a gradient to compare"
    )
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        rows = len(want.trunk[name])
        torch.testing.assert_close(
            parameter.grad[:rows], want.trunk[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert not parameter.grad[rows:].any(), "padding rows of the vocabulary get no gradient"
    for objective, state in want.heads.items():
        for name, expected in state.items():
            torch.testing.assert_close(heads[objective].get_parameter(name).grad, expected, rtol=1e-4, atol=1e-5)


def test_text_building_is_theirs(parity: Callable[[str], Path]) -> None:
    """What the objectives put around the texts gives the fixture's ids and positions."""
    path = parity("released_stage1.safetensors")
    tensors = read(path)
    _, heads, _, batch = build(tensors, metadata(path)["qformer_config"])
    itc_text = heads["itc"].streams(batch)[1].text
    msp_text = heads["msp"].streams(batch)[1].text
    for text, suffix in ((itc_text, ""), (msp_text, "_with_mask")):
        for row in range(3):
            real = tensors[f"text.text_input_attentions{suffix}"][row].bool()
            ids, positions = [], []
            for segment in (text["S"], text["C"]):
                length = int(segment.lengths_R[row])
                ids += segment.ids_RL[row, :length].tolist()
                positions += range(segment.first_position, segment.first_position + length)
            assert ids == tensors[f"text.text_input_tokens_ids{suffix}"][row][real].tolist()
            assert positions == tensors[f"text.text_input_position_ids{suffix}"][row][real].tolist()


def test_similarities_are_the_best_querys(parity: Callable[[str], Path]) -> None:
    path = parity("released_stage1.safetensors")
    tensors = read(path)
    model, heads, features, batch = build(tensors, metadata(path)["qformer_config"])
    outputs = model(heads["itc"].streams(batch), features)

    def project(hidden: torch.Tensor, name: str) -> torch.Tensor:
        linear = nn.functional.linear(hidden, tensors[f"state.{name}.weight"], tensors[f"state.{name}.bias"])
        return nn.functional.normalize(linear, dim=-1)

    images = project(tensors["bert.query.last_hidden_state"], "vision_proj")
    texts = project(tensors["bert.text.last_hidden_state"][:, 0], "text_proj")
    want = (
        torch.stack([torch.stack([(image @ text).max() for text in texts]) for image in images]) / tensors["state.temp"]
    )
    got = heads["itc"].similarity(outputs, batch)
    torch.testing.assert_close(got.image_to_text_BN, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.text_to_image_BN, want.T, rtol=1e-5, atol=1e-5)
