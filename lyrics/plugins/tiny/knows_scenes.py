"""What the small experts know: drawn scenes, and how other images are told from them."""

from __future__ import annotations

import numpy as np
from PIL import Image

#: Scenes are drawn smaller; a photograph is hardly ever stored so small.
_LARGEST_SIDE_PX = 512
_SIDE_PX = 96
#: Colours that a scene has, after rounding: objects, outlines, and the shades of the ground.
_COLORS = 14
#: Share of the pixels that have one of them. None of 1,800 scenes has less (PNG, JPEG, enlarged); three of four
#: photographs do, once they are as small.
_LEAST = 0.6


class KnowsScenes:
    """Mixin of the experts that were trained on drawn scenes alone (``lyrics.core.contracts.KnowsOneWorld``)."""

    world = "drawn scenes of plain shapes and words"
    otherwise = (
        'For tags, boxes and masks of photographs: lyrics refine IMAGE --spec grounded-sam --phrases "dog, person" '
        "--out refined/; "
        "for answers, give --model a model that was trained on photographs (README.md)."
    )

    def is_of_world(self, image: Image.Image) -> bool:
        """Whether an RGB image may be a drawn scene: it is small, and nearly all of it has one of few colours."""
        if max(image.size) > _LARGEST_SIDE_PX:
            return False
        small = image.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BILINEAR)
        levels_HWC = np.asarray(small).astype(np.int64) >> 4
        codes = (levels_HWC[..., 0] << 8) | (levels_HWC[..., 1] << 4) | levels_HWC[..., 2]
        counts = np.sort(np.bincount(codes.ravel()))[::-1]
        return bool(counts[:_COLORS].sum() >= _LEAST * counts.sum())
