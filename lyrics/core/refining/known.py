"""Images of a kind that a model's experts were not trained on: said once, with what to use instead."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial

from PIL.Image import Image

from lyrics.core.contracts import Expert, KnowsOneWorld
from lyrics.core.errors import ImageError
from lyrics.core.pictures.images import ImageLike, open_image, picture_name
from lyrics.core.refining.inputs import InputPicture

#: Images that are looked at; a folder is mostly of one kind.
MOST = 16


def warn_of_unknown(experts: Iterable[Expert], images: Iterable[ImageLike]) -> bool:
    """Warn of the first image of a kind that an expert does not know (``lyrics.core.contracts.KnowsOneWorld``).

    Return whether any was.

    Files that cannot be opened are passed over: whoever uses them says what is wrong.
    """
    return _warn(experts, ((partial(open_image, image), picture_name(image)) for image in images))


def warn_of_unknown_pictures(experts: Iterable[Expert], pictures: Iterable[InputPicture]) -> bool:
    """The same of images wherever they are kept."""
    return _warn(experts, ((one.open, one.name) for one in pictures))


def _warn(experts: Iterable[Expert], images: Iterable[tuple[Callable[[], Image], str]]) -> bool:
    limited = {expert.world: expert for expert in experts if isinstance(expert, KnowsOneWorld)}
    if not limited:
        return False
    for (opening, name), _ in zip(images, range(MOST), strict=False):
        try:
            opened = opening()
        except ImageError:
            continue
        for world, expert in limited.items():
            if not expert.is_of_world(opened):
                warnings.warn(
                    f"{name or 'the image'} is no image of the kind that this model was trained on, "
                    f"{world}: what it finds there means nothing. {expert.otherwise}",
                    stacklevel=3,
                )
                return True
    return False
