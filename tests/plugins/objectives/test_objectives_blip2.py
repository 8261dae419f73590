"""The Q-Former baseline against BLIP-2 stage 1 in LAVIS and in transformers: both namings, outputs,
losses, gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lyrics.core.stage1.batch import PretrainBatch, Spatial
from lyrics.core.stage1.negatives import Negatives
from lyrics.core.stage1.reduction import total_loss
from lyrics.core.stage1.step import pretrain_losses
from lyrics.core.stage1.streams import Features, SpecialTokens, Stream, Text, full
from lyrics.plugins.mqformer.convert import from_upstream
from lyrics.plugins.objectives import ICGOptions, ITCOptions, ITMOptions
from lyrics.plugins.objectives.icg import ICG
from lyrics.plugins.objectives.itc import ITC
from lyrics.plugins.objectives.itm import ITM
from tests.plugins.mqformer.helpers import blip2_model, fixture_state, load, metadata, read

SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, mask=-1, bos=-1, dec=5, mlm=-1)
ROWS = torch.arange(4)


def heads_for(model: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "itc": ITC(ITCOptions(recipe="released", projection_dim=24), 64, model.segments),
            "itm": ITM(ITMOptions(recipe="released"), 64, model.segments),
            "icg": ICG(ICGOptions(recipe="released"), model.segments),
        }
    )


def batch_of(tensors: dict[str, torch.Tensor]) -> PretrainBatch:
    """Captions without their [CLS]; the last token of every row must be [SEP], which the objectives put back."""
    ids, exists = tensors["in.input_ids"], tensors["in.attention_mask"].bool()
    rows = [row[keep].tolist() for row, keep in zip(ids, exists, strict=True)]
    assert all(row[0] == SPECIAL.cls for row in rows)
    return PretrainBatch(Spatial.from_objects([[]] * 4), Text.from_lists([row[1:] for row in rows]), ROWS, SPECIAL)


def check(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["blip2_lavis", "blip2_hf"])
def test_both_namings_give_the_same_trunk(parity: Callable[[str], Path], name: str) -> None:
    path = parity(f"{name}.safetensors")
    tensors, info = read(path), metadata(path)
    model = blip2_model(info["config"]).eval()
    model.image_norm.eps = 1e-5
    converted = load(model, fixture_state(tensors))
    assert converted.naming == {"blip2_lavis": "lavis", "blip2_hf": "transformers"}[name]
    assert all(key.startswith("vision_model.") for key in converted.rest)
    assert set(converted.heads) == {"itc", "itm"}
    before_norm = tensors["in.image_features" if name == "blip2_lavis" else "in.image_features_pre_ln"]
    ids, exists = tensors["in.input_ids"], tensors["in.attention_mask"].bool()
    text = {"C": Text(ids, exists.sum(1))}
    streams = [
        Stream("queries", full("VG"), ROWS, ROWS, wanted={"V": "all"}),
        Stream("text", full("C"), ROWS, None, text, wanted={"C": "all"}),
        Stream("itm", full("VGC"), ROWS, ROWS, text, wanted={"V": "all", "C": "all"}),
    ]
    outputs = model(streams, Features(before_norm))
    check(outputs("queries", "V"), tensors["query.last_hidden_state"])
    check(outputs("text", "C"), tensors["text.last_hidden_state"][exists])
    joint = tensors["itm.last_hidden_state"][:4] if name == "blip2_lavis" else tensors["itm.matched.last_hidden_state"]
    check(outputs("itm", "V"), joint[:, :8])
    check(outputs("itm", "C"), joint[:, 8:][exists])
    check(model.image_norm(before_norm), tensors["image_embeds"])


def test_transformers_contrastive_and_matching_heads(parity: Callable[[str], Path]) -> None:
    path = parity("blip2_hf.safetensors")
    tensors, info = read(path), metadata(path)
    model = blip2_model(info["config"]).eval()
    converted = load(model, fixture_state(tensors))
    heads = heads_for(model)
    with torch.no_grad():
        heads["itc"].temperature.fill_(1.0)  # the fixture's logits are not divided by it, and the naming has none
    for name in ("itc", "itm"):
        heads[name].load_state_dict(converted.heads[name], strict=name == "itm")
    ids, exists = tensors["in.input_ids"], tensors["in.attention_mask"].bool()
    text = {"C": Text(ids, exists.sum(1))}
    index = tensors["itm.rolled_image.index"]
    wanted = {"V": "all", "G": "all"}
    streams = [
        Stream("queries", full("VG"), ROWS, ROWS, wanted=wanted),
        Stream("itc.text", full("C"), ROWS, None, text, wanted={"C": "first"}),
        Stream("matched", full("VGC"), ROWS, ROWS, text, wanted=wanted),
        Stream("rolled", full("VGC"), ROWS, index, text, wanted=wanted),
    ]
    outputs = model(streams, Features(tensors["in.image_features_pre_ln"]))
    images, texts = heads["itc"].features(outputs)
    check(images, tensors["itc.image_embeds"])
    check(texts, tensors["itc.text_embeds"])
    check(heads["itc"].similarity(outputs, batch_of(tensors)).image_to_text_BN, tensors["itc.logits_per_image"])
    check(heads["itm"].logits(outputs, "matched")[0], tensors["itm.matched.logits"])
    check(heads["itm"].logits(outputs, "rolled")[0], tensors["itm.rolled_image.logits"])


class AsGiven:
    """The fixture's texts are as they are (random ids, no [SEP] at the end), so the objectives must add [CLS] or [DEC]
    only.
    """

    @staticmethod
    def end(text: Text, token: int) -> Text:
        return text


def test_lavis_losses_and_gradients(parity: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("texts", "icg"):
        monkeypatch.setattr(f"lyrics.plugins.objectives.{module}.end", AsGiven.end)
    path = parity("blip2_lavis.safetensors")
    tensors, info = read(path), metadata(path)
    model = blip2_model(info["config"]).eval()
    converted = load(model, fixture_state(tensors))
    assert not converted.rest
    assert set(converted.trunk) == {name for name, _ in model.named_parameters()}
    heads = heads_for(model)
    for name in ("itc", "itm"):
        heads[name].load_state_dict(converted.heads[name])
    negatives = Negatives(tensors["neg.image_index"], tensors["neg.text_index"])
    features = Features(tensors["in.image_features"])
    losses = pretrain_losses(model, heads, features, batch_of(tensors), negatives)
    total, means = total_loss(losses)
    for ours, theirs in (("itc", "itc"), ("itm", "itm"), ("icg", "lm")):
        assert float(means[ours]) == pytest.approx(float(tensors[f"out.loss_{theirs}"]), rel=1e-5), ours
    assert float(total.detach()) == pytest.approx(float(tensors["out.loss"]), rel=1e-5)
    total.backward()
    want = from_upstream(fixture_state(tensors, "grad."), model)
    for name, parameter in model.named_parameters():
        assert name in want.trunk, name
        assert parameter.grad is not None, name
        rows = len(want.trunk[name])
        torch.testing.assert_close(
            parameter.grad[:rows], want.trunk[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    for objective, state in want.heads.items():
        for name, expected in state.items():
            torch.testing.assert_close(heads[objective].get_parameter(name).grad, expected, rtol=1e-4, atol=1e-5)
