"""Images of a kind that a model's experts were not trained on: said once, with what to use instead."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from lyrics.core.contracts import Expert, KnowsOneWorld
from lyrics.core.errors import ImageError
from lyrics.core.pictures.images import ImageLike, open_image, picture_name

#: Images that are looked at; a folder is mostly of one kind.
MOST = 16


def warn_of_unknown(experts: Iterable[Expert], images: Iterable[ImageLike]) -> bool:
    """Warn of the first image of a kind that an expert does not know (``lyrics.core.contracts.KnowsOneWorld``).

    Return whether any was.

    Files that cannot be opened are passed over: whoever uses them says what is wrong.
    """
    limited = {expert.world: expert for expert in experts if isinstance(expert, KnowsOneWorld)}
    if not limited:
        return False
    for image, _ in zip(images, range(MOST), strict=False):
        try:
            opened = open_image(image)
        except ImageError:
            continue
        for world, expert in limited.items():
            if not expert.is_of_world(opened):
                warnings.warn(
                    f"{picture_name(image) or 'the image'} is no image of the kind that this model was trained on, "
                    f"{world}: what it finds there means nothing. {expert.otherwise}",
                    stacklevel=2,
                )
                return True
    return False
