"""What things and scenes look like, as the experts for fine scenes are trained to tell it.

The image encoder learns the ground, its texture, and roughly which colors and nouns are where; the segmenter learns, of
each box, the mask and what is inside of it: color, fill, lean and outline of a thing, whether another lies on it, the
letters of a word. Linear heads read all
this off the tokens, and are dropped afterwards.

Shapes: B images, N objects of one image, K objects of a batch, M image tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from lyrics.core.types import DetectedObject, ImageBatch, Sample
from lyrics.plugins.tiny.expert_losses import boxes_on_canvas, segmenter_loss_and_looks
from lyrics.plugins.tiny.expert_vocabulary import (
    COLOURS,
    FILLS,
    GROUNDS,
    HIDDEN,
    LEANS,
    NOUNS,
    OUTLINES,
    SHAPES,
    TEXTURES,
    WORDS,
    word_tag,
)
from lyrics.plugins.tiny.phrases import PhraseHead
from lyrics.plugins.tiny.segmenter import TinySegmenter
from lyrics.plugins.tiny.tensor_losses import multilabel_loss
from lyrics.plugins.tiny.vit import TinyVit

#: Of a thing, and of a scene: attribute -> its values.
OF_THINGS: Mapping[str, tuple[str, ...]] = {
    "color": COLOURS,
    "fill": FILLS,
    "lean": LEANS,
    "outline": OUTLINES,
    "hidden": HIDDEN,
}
OF_SCENES: Mapping[str, tuple[str, ...]] = {"ground": GROUNDS, "texture": TEXTURES}
#: What the segmenter's token tells of a thing: with its look goes its shape, which is the mask's. So whoever reads a
#: look there need not search the detector's tokens for whose it is.
TOLD_BY_SEGMENTER: Mapping[str, tuple[str, ...]] = {"shape": SHAPES, **OF_THINGS}


@dataclass(frozen=True)
class SeenObject(DetectedObject):
    """An object of a fine scene and what it looks like: the attributes of a thing, or the text of a word; and of the
    scene.

    ``hidden`` is ``yes`` where another thing clearly lies on it, ``no`` where it only lies on others itself, and
    otherwise empty: then nothing is to be told.
    """

    color: str = ""
    fill: str = ""
    lean: str = ""
    outline: str = ""
    hidden: str = ""
    text: str = ""
    ground: str = ""
    texture: str = ""

    @property
    def shape(self) -> str:
        """What a thing is; empty of a word."""
        return self.tag if self.tag in SHAPES else ""


def seen_objects(sample: Sample, objects: Sequence[DetectedObject]) -> tuple[SeenObject, ...]:
    """Return a fine scene's ``objects`` with their looks.

    Args:
        sample: a row of ``scenes`` with its truth in ``extra``.
        objects: its things and words in any order; boxes tell which is which.
    """
    upper, lower = ({pair[place] for pair in sample.extra["overlaps"]} for place in (0, 1))
    things = [
        {**one, "color": one["colour"], "hidden": "yes" if index in lower else "no" if index in upper else ""}
        for index, one in enumerate(sample.extra["things"])
    ]
    of_boxes = {one["box_norm"]: one for one in (*things, *sample.extra["words"])}
    scene = {name: sample.extra[name] for name in OF_SCENES}
    seen = []
    for found in objects:
        truth = of_boxes[found.box_norm.as_tuple()]
        looks = {name: truth.get(name, "") for name in (*OF_THINGS, "text")} | scene
        seen.append(SeenObject(found.tag, found.box_norm, found.score, found.mask, **looks))
    return tuple(seen)


#: The objects of each image; every scene has one at least.
Scenes = Sequence[Sequence[SeenObject]]


class EncoderWithLooks(nn.Module):
    """An image encoder and, for its training only, heads: of the whole the looks, of each token which colors and nouns
    it lies on.
    """

    def __init__(self, encoder: TinyVit) -> None:
        super().__init__()
        self.encoder = encoder
        self.whole = nn.ModuleDict({name: nn.Linear(encoder.feature_dim, len(of)) for name, of in OF_SCENES.items()})
        self.lying = nn.Linear(encoder.feature_dim, len(COLOURS) + len(NOUNS))
        nn.init.constant_(self.lying.bias, -4.0)


def encoder_looks_loss(module: EncoderWithLooks, images: ImageBatch, objects: Scenes) -> torch.Tensor:
    """Cross-entropy of the looks of each scene, read off the mean token, and of what each token lies on."""
    tokens_BMD = module.encoder(images.pixels_BCHW)
    loss = multilabel_loss(module.lying(tokens_BMD), lying_targets(module.encoder, images, objects))
    for name, values in OF_SCENES.items():
        wanted_B = _indices([getattr(seen[0], name) for seen in objects], values, tokens_BMD.device)
        loss = loss + F.cross_entropy(module.whole[name](tokens_BMD.mean(1)), wanted_B)
    return loss


def lying_targets(encoder: TinyVit, images: ImageBatch, objects: Scenes) -> torch.Tensor:
    """Which colors and nouns have a box that holds the center of a token's patch, 0 or 1, [B,M,len(COLOURS) +
    len(NOUNS)].
    """
    device = images.pixels_BCHW.device
    side = math.isqrt(len(encoder.positions_ND))
    places = (torch.arange(side, device=device) + 0.5) * (images.pixels_BCHW.shape[-1] / side)
    centers_px_M2 = torch.cartesian_prod(places, places).flip(1)
    columns = {name: column for column, name in enumerate((*COLOURS, *NOUNS))}
    targets = []
    for frame, seen in zip(images.frames, objects, strict=True):
        boxes_px_N4 = boxes_on_canvas(frame, seen).to(device)
        names_NP = torch.zeros(len(seen), len(columns), device=device)
        for row, one in enumerate(seen):
            names_NP[row, columns[one.tag]] = 1.0
            if one.color:
                names_NP[row, columns[one.color]] = 1.0
        after_MN2 = centers_px_M2[:, None] >= boxes_px_N4[:, :2]
        before_MN2 = centers_px_M2[:, None] < boxes_px_N4[:, 2:]
        targets.append(((after_MN2 & before_MN2).all(-1).float() @ names_NP).clamp(max=1))
    return torch.stack(targets)


class SegmenterWithLooks(nn.Module):
    """A segmenter and, for its training only, heads that tell from a token what a thing looks like and which word is
    written.
    """

    def __init__(self, segmenter: TinySegmenter) -> None:
        super().__init__()
        self.segmenter = segmenter
        width = segmenter.feature_dim - 4
        self.things = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in TOLD_BY_SEGMENTER.items()})
        self.words = PhraseHead(width, tuple(map(word_tag, WORDS)), prior_logit=0.0)


def segmenter_looks_loss(module: SegmenterWithLooks, images: ImageBatch, objects: Scenes) -> torch.Tensor:
    """The masks' loss, and the cross-entropy of each attribute of the things and of the words, each averaged over its
    objects.
    """
    loss, looks_KD = segmenter_loss_and_looks(module.segmenter, images, objects)
    seen = [one for found in objects for one in found]
    for name, values in TOLD_BY_SEGMENTER.items():
        rows = [row for row, one in enumerate(seen) if getattr(one, name)]
        wanted = _indices([getattr(seen[row], name) for row in rows], values, looks_KD.device)
        loss = loss + F.cross_entropy(module.things[name](looks_KD[rows]), wanted) if rows else loss
    if rows := [row for row, one in enumerate(seen) if one.text]:
        wanted = _indices([seen[row].text for row in rows], WORDS, looks_KD.device)
        loss = loss + F.cross_entropy(module.words(looks_KD[rows]), wanted)
    return loss


def _indices(values: Sequence[str], of: Sequence[str], device: torch.device) -> torch.Tensor:
    return torch.tensor([of.index(value) for value in values], device=device)
