"""Training the tiny experts on images whose objects are known.

Each ``*_loss`` here takes a module, prepared images and their objects (tag, box and mask in the original image),
and gives the scalar that ``fit`` descends::

    fit(detector, batches, detector_loss, steps=2000)

Shapes: B images, N objects of one image, P names of a vocabulary, M cells or image tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from lyrics.core.geometry import Frame
from lyrics.core.types import DetectedObject, ImageBatch
from lyrics.plugins.tiny.boxes import areas, to_centre_size
from lyrics.plugins.tiny.detector import TinyDetector
from lyrics.plugins.tiny.phrases import PhraseHead
from lyrics.plugins.tiny.segmenter import TinySegmenter, regions, sample, sample_points
from lyrics.plugins.tiny.tagger import TinyTagger
from lyrics.plugins.tiny.tensor_losses import detection_loss, mask_loss, multilabel_loss
from lyrics.plugins.tiny.vit import TinyVit

Objects = Sequence[Sequence[DetectedObject]]
Expert = TypeVar("Expert", bound=nn.Module)
Target = TypeVar("Target")

WARMUP_SHARE = 0.05
MAX_GRADIENT_NORM = 1.0


def adamw(module: nn.Module, *, weight_decay: float = 0.05) -> torch.optim.AdamW:
    """The optimizer of ``fit``. Biases, normalisations and other vectors do not decay."""
    decaying = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )


def fit(
    module: Expert,
    batches: Iterable[tuple[ImageBatch, Target]],
    loss: Callable[[Expert, ImageBatch, Target], torch.Tensor],
    *,
    steps: int,
    learning_rate: float = 2e-3,
    optimizer: torch.optim.Optimizer | None = None,
    done: int = 0,
    after_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train ``module`` in place until ``steps`` batches were seen; returns the loss of every step and leaves the module
    in evaluation mode.

    A short linear warm-up and then a cosine to zero, gradients clipped to norm 1. Batches are on the module's device.

    Args:
        module: what ``loss`` takes.
        batches: from step ``done`` on.
        loss: scalar of a batch.
        steps: of the whole training.
        learning_rate: at its peak.
        optimizer: ``adamw(module)`` unless given; with ``done``, the one that a stopped training had.
        done: steps of a stopped training that this one goes on with.
        after_step: called with the number of finished steps and the loss of the last.

    Raises ``ValueError`` when ``batches`` ends before ``steps``.
    """
    optimizer = optimizer or adamw(module)
    warmup = max(1, round(steps * WARMUP_SHARE))
    module.train()
    history: list[float] = []
    for step, (images, objects) in zip(range(done, steps), batches, strict=False):
        rate = min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate
        optimizer.zero_grad(set_to_none=True)
        value = loss(module, images, objects)
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        history.append(value.item())
        if after_step is not None:
            after_step(step + 1, history[-1])
    module.eval()
    if done + len(history) < steps:
        raise ValueError(f"asked to train for {steps} steps, but the batches ended after {done + len(history)}")
    return history


def tagger_loss(tagger: TinyTagger, images: ImageBatch, objects: Objects) -> torch.Tensor:
    """An image's targets are the tags of its objects; tags outside the vocabulary are ignored."""
    targets_BP = [tagger.phrases.targets([obj.tag for obj in found]).sum(0).clamp(max=1) for found in objects]
    return multilabel_loss(tagger.logits(images), torch.stack(targets_BP))


def detector_loss(detector: TinyDetector, images: ImageBatch, objects: Objects) -> torch.Tensor:
    """Objects are found where the canvas shows them; one whose tag is outside the vocabulary is an object without a
    name.
    """
    device = images.pixels_BCHW.device
    boxes_px: list[torch.Tensor] = []
    names: list[torch.Tensor] = []
    for frame, found in zip(images.frames, objects, strict=True):
        shown = [obj for obj in found if frame.visible_fraction(obj.box_norm) > 0]
        boxes_px.append(boxes_on_canvas(frame, shown).to(device))
        names.append(detector.phrases.targets([obj.tag for obj in shown]))
    return detection_loss(detector.predict(images), boxes_px, names, detector.trunk.stride)


def segmenter_loss(segmenter: TinySegmenter, images: ImageBatch, objects: Objects) -> torch.Tensor:
    """Every object that has a mask is asked for by its box, which may be off its mask by as much as a detector's would
    be.
    """
    return segmenter_loss_and_looks(segmenter, images, objects)[0]


def segmenter_loss_and_looks(
    segmenter: TinySegmenter, images: ImageBatch, objects: Objects
) -> tuple[torch.Tensor, torch.Tensor]:
    """``segmenter_loss``, and the tokens [K,C] (without their boxes) of the objects that have masks, image by image."""
    masked = [[obj for obj in found if obj.mask is not None] for found in objects]
    logits_KRR, looks_KC = segmenter.predict(images, [[obj.box_norm for obj in found] for found in masked])
    targets = [logits_KRR.new_zeros(0, *logits_KRR.shape[1:])]
    for frame, found in zip(images.frames, masked, strict=True):
        targets.extend(_mask_samples(frame, obj, segmenter.roi_size).to(logits_KRR) for obj in found)
    return mask_loss(logits_KRR, torch.cat(targets)), looks_KC


class EncoderWithNames(nn.Module):
    """An image encoder and, for its training only, heads that say what each image token lies on, and where that begins
    and ends.
    """

    def __init__(self, encoder: TinyVit, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.encoder = encoder
        self.phrases = PhraseHead(encoder.feature_dim, vocabulary, prior_logit=-4.0)
        self.boxes = nn.Linear(encoder.feature_dim, 4)

    def predict(self, images: ImageBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the names [B,M,P], and boxes [B,M,4]: (centre x, centre y, width, height) as shares of
        the canvas.
        """
        tokens_BMD = self.encoder(images.pixels_BCHW)
        return self.phrases(tokens_BMD), self.boxes(tokens_BMD)


def token_targets(
    module: EncoderWithNames, images: ImageBatch, objects: Objects
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What each image token lies on: the names of all objects whose box holds the centre of its patch, 0 or 1, [B,M,P];
    the smallest of these boxes [B,M,4], as ``EncoderWithNames.predict`` gives it; and whether there is any, bool
    [B,M].
    """
    device = images.pixels_BCHW.device
    side = math.isqrt(len(module.encoder.positions_ND))
    size = images.pixels_BCHW.shape[-1]
    places = (torch.arange(side, device=device) + 0.5) * (size / side)
    centres_px_M2 = torch.cartesian_prod(places, places).flip(1)
    names, boxes, lying = [], [], []
    for frame, found in zip(images.frames, objects, strict=True):
        boxes_px_N4 = boxes_on_canvas(frame, found).to(device)
        after_MN2 = centres_px_M2[:, None] >= boxes_px_N4[:, :2]
        before_MN2 = centres_px_M2[:, None] < boxes_px_N4[:, 2:]
        inside_MN = (after_MN2 & before_MN2).all(-1)
        names.append((inside_MN.float() @ module.phrases.targets([obj.tag for obj in found])).clamp(max=1))
        lying.append(inside_MN.any(1))
        if found:
            smallest_M = torch.where(inside_MN, areas(boxes_px_N4), torch.inf).argmin(1)
            boxes.append(to_centre_size(boxes_px_N4)[smallest_M] / size)
        else:
            boxes.append(torch.zeros(len(centres_px_M2), 4, device=device))
    return torch.stack(names), torch.stack(boxes), torch.stack(lying)


def encoder_loss(module: EncoderWithNames, images: ImageBatch, objects: Objects) -> torch.Tensor:
    """Names of every token, and the L1 distance of the box of those tokens that lie on something, in quarters of the
    canvas.
    """
    logits_BMP, boxes_BM4 = module.predict(images)
    names_BMP, wanted_BM4, lying_BM = token_targets(module, images, objects)
    naming = multilabel_loss(logits_BMP, names_BMP)
    if not lying_BM.any():
        return naming
    return naming + 4 * (boxes_BM4 - wanted_BM4)[lying_BM].abs().mean()


def boxes_on_canvas(frame: Frame, objects: Sequence[DetectedObject]) -> torch.Tensor:
    """The objects' boxes in pixels of the canvas, clipped to it, float32 [N,4]."""
    boxes_px_N4 = frame.boxes_to_canvas([obj.box_norm.as_tuple() for obj in objects])
    return torch.from_numpy(boxes_px_N4.clip(0, np.tile(frame.size, 2))).float()


def _mask_samples(frame: Frame, obj: DetectedObject, size: int) -> torch.Tensor:
    """The object's mask at the points that the segmenter samples for its box, [1,R,R], 0 to 1."""
    assert obj.mask is not None
    points_px = sample_points(regions(frame, [obj.box_norm]), size)
    points_norm = frame.boxes_from_canvas(np.tile(points_px, 2).reshape(-1, 4))[:, :2].reshape(points_px.shape)
    mask_1HW = torch.from_numpy(obj.mask.to_array()).float()[None]
    return sample(mask_1HW, points_norm, (1.0, 1.0))[:, 0]
