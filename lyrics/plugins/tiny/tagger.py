"""``tiny-tagger``: which names of a fixed vocabulary an image shows.

Shapes: B images, D width, P names of the vocabulary, h and w cells.
"""

from __future__ import annotations

import torch
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.types import ImageBatch, Preprocessing, Tag
from lyrics.plugins.tiny import TinyTaggerOptions
from lyrics.plugins.tiny.backbone import ConvTrunk
from lyrics.plugins.tiny.knows_scenes import KnowsScenes
from lyrics.plugins.tiny.phrases import PhraseHead
from lyrics.plugins.tiny.trained_weights import materialize


class TinyTagger(KnowsScenes, nn.Module):
    """Every cell of 8 x 8 pixels votes for every name; the image's logit is the smooth maximum of its cells' logits.

    Votes are cast where the thing is, so that colour and shape of one object stay together.
    """

    def __init__(self, options: TinyTaggerOptions) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(
            resize="longest",
            size=options.image_size,
            pad_to=options.image_size,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        )
        self.vocabulary = options.vocabulary
        self.threshold = options.threshold
        width = options.width
        self.trunk = ConvTrunk((width // 3, 2 * width // 3, width), (0, 2, options.blocks))
        # The sum over some 200 cells adds about 5 to the common logit: begin near a probability of 0.1 for each name.
        self.phrases = PhraseHead(width, options.vocabulary, prior_logit=-7.0)

    def logits(self, images: ImageBatch) -> torch.Tensor:
        """Images -> logits [B,P]."""
        features_BDhw, mask_Bhw = self.trunk(images.pixels_BCHW, images.pixel_mask_BHW)
        votes_BhwP = self.phrases(features_BDhw.permute(0, 2, 3, 1))
        votes_BhwP = votes_BhwP.masked_fill(~mask_Bhw[..., None], -torch.inf)
        return votes_BhwP.flatten(1, 2).logsumexp(dim=1)

    def forward(self, images: ImageBatch) -> list[list[Tag]]:
        """Per image the names whose probability reaches the threshold, best first."""
        tags: list[list[Tag]] = []
        for scores in self.logits(images).sigmoid().tolist():
            found = [
                Tag(name, score) for name, score in zip(self.vocabulary, scores, strict=True) if score >= self.threshold
            ]
            tags.append(sorted(found, key=lambda tag: -tag.score))
        return tags


def build(options: TinyTaggerOptions, context: BuildContext) -> TinyTagger:
    """The component. Raises ``WeightsError`` where trained weights are asked for and do not fit the options."""
    module = TinyTagger(options)
    materialize(module, "tiny-tagger", options, context)
    return module
