"""The detector. Shapes: B images, C channels, H and W pixels, M local tokens, D feature width."""

import torch
from PIL import ImageColor
from torch import nn

from lyrics.types import Detection, DetectorOutput, Preprocessing

NEAR = 0.45  # distance in RGB up to which two colors count as the same, with channels in [0, 1]


class AcmeBoxes(nn.Module):
    """For each phrase with the name of a color in it: the smallest box around the pixels of about that color."""

    preprocessing = Preprocessing(resize="squash", size=128, mean=(0, 0, 0), std=(1, 1, 1))

    def __init__(self, options, context):
        super().__init__()
        self.score_threshold, self.feature_dim = options.score_threshold, options.feature_dim
        self.embed = nn.Linear(3, options.feature_dim)

    def forward(self, images, phrases):
        """Detections, and one token for the mean color of each cell of a 4 x 4 grid: [B,16,D]."""
        pictures = zip(images.pixels_BCHW, images.frames, phrases, strict=True)
        found = tuple(tuple(sorted(self.find(*picture), key=lambda box: -box.score)) for picture in pictures)
        tokens_BMD = self.embed(nn.functional.adaptive_avg_pool2d(images.pixels_BCHW, 4).flatten(2).transpose(1, 2))
        return DetectorOutput(found, tokens_BMD, torch.ones_like(tokens_BMD[..., 0], dtype=torch.bool))

    def find(self, pixels_CHW, frame, phrases):
        """The detections in one image; ``frame`` leads from its canvas back to the image."""
        for phrase in phrases:
            for name in [word for word in phrase.lower().split() if word in ImageColor.colormap][:1]:
                color_C = pixels_CHW.new_tensor(ImageColor.getrgb(name)) / 255
                distance_HW = (pixels_CHW - color_C[:, None, None]).norm(dim=0)
                ys, xs = (distance_HW < NEAR).nonzero(as_tuple=True)
                if len(xs) and (score := 1 - float(distance_HW[ys, xs].mean())) >= self.score_threshold:
                    box_norm = frame.box_from_canvas((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
                    yield Detection(phrase, box_norm, score)
