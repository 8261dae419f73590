"""What a model saw in images, kept for the requests that show them again.

Each turn of a conversation brings its images in once more, since a request holds the whole conversation. What image
encoder, refiner and query transformer make of the same pixels under the same question is the same, so it is kept until
``max_bytes`` are full; what was used longest ago goes first. Shapes: P images, Q queries, D width.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from lyrics.core.finite import is_finite
from lyrics.core.language.prompting import NOTHING_DROPPED, Encoded
from lyrics.core.model import LyricsModel
from lyrics.core.refining.refinement import Refinement
from lyrics.core.stage1.streams import Features

#: Python's own, of a number in a mask's runs, and of an object or a tag.
_RUN_BYTES, _OBJECT_BYTES = 40, 1000


@dataclass(frozen=True)
class _Looked:
    """What encoder and refiner make of one image."""

    features: Features
    refinement: Refinement

    @property
    def bytes(self) -> int:
        local = [tensor for pair in self.features.local.values() for tensor in pair]
        return _size_of(self.features.image_tokens_BND, *local) + _size_in_words(self.refinement)


class SeenImages:
    """Looks at images as ``model.look`` does, but at none twice.

    Args:
        model: in evaluation mode; nothing else may change it.
        max_bytes: of everything that is kept; 0 keeps nothing beyond one call.
    """

    def __init__(self, model: LyricsModel, max_bytes: int) -> None:
        self.model, self.max_bytes = model.eval(), max_bytes
        self.bytes = 0
        self.looked = 0
        self._kept: OrderedDict[tuple[str, str | None], tuple[_Looked | Encoded, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @torch.no_grad()
    def look(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Encoded:
        """Return the images as the language model receives them, each under its question.

        ``looked`` counts the images that encoder and refiner were given. Raises as ``model.look``.
        """
        if not images:
            return self.model.look(images, questions)
        asked = list(zip(map(_digest, images), questions, strict=True))
        # What is found is held here, so that what is kept meanwhile cannot push it out.
        known = {key: encoded for key in asked if isinstance(encoded := self._get(key), Encoded)}
        unread = [key for key in dict.fromkeys(asked) if key not in known]
        if unread:
            found = self._read(unread, dict(zip((digest for digest, _ in asked), images, strict=True)))
            if found is None:  # not finite: which part it was is found out by looking at all of them
                return self.model.look(images, questions)
            known |= found
        rows = [known[key] for key in asked]
        return Encoded(
            torch.cat([row.soft_tokens_PQD for row in rows]),
            tuple(refinement for row in rows for refinement in row.refinements),
            tuple(text for row in rows for text in row.spatial_texts),
        )

    def recall(self, image: Image.Image) -> Refinement | None:
        """Return what the refiner saw in an image, where that is still known."""
        found = self._get((_digest(image), None))
        return found.refinement if isinstance(found, _Looked) else None

    def _read(
        self, unread: Sequence[tuple[str, str]], images: dict[str, Image.Image]
    ) -> dict[tuple[str, str], Encoded] | None:
        """Have the query transformer read images that it has not read under these questions; None: not finite."""
        looked = {digest: one for digest, _ in unread if isinstance(one := self._get((digest, None)), _Looked)}
        new = [digest for digest in dict.fromkeys(digest for digest, _ in unread) if digest not in looked]
        self.looked += len(new)
        if new:
            model = self.model
            prepared = model.processor.prepared([images[digest] for digest in new]).to(model.device, model.dtype)
            features, refinements = model.features(prepared)
            looked |= {digest: _Looked(features.row(row), refinements[row]) for row, digest in enumerate(new)}
        each = [looked[digest] for digest, _ in unread]
        features = each[0].features
        for one in each[1:]:
            features = features.followed_by(one.features)
        refinements = tuple(one.refinement for one in each)
        questions = [question for _, question in unread]
        encoded = self.model.encode_features(features, refinements, questions, NOTHING_DROPPED)
        if not is_finite(encoded.soft_tokens_PQD):
            return None
        for digest in new:
            self._keep((digest, None), looked[digest], looked[digest].bytes)
        found = {}
        for row, key in enumerate(unread):
            own = encoded.rows(row, row + 1)
            found[key] = Encoded(own.soft_tokens_PQD.clone(), own.refinements, own.spatial_texts)
            self._keep(key, found[key], _size_of(found[key].soft_tokens_PQD) + _OBJECT_BYTES)
        return found

    def _get(self, key: tuple[str, str | None]) -> _Looked | Encoded | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def _keep(self, key: tuple[str, str | None], found: _Looked | Encoded, size: int) -> None:
        if size > self.max_bytes:
            return
        if key in self._kept:
            self.bytes -= self._kept.pop(key)[1]
        self._kept[key] = (found, size)
        self.bytes += size
        while self.bytes > self.max_bytes:
            self.bytes -= self._kept.popitem(last=False)[1][1]


def _digest(image: Image.Image) -> str:
    seen = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
    seen.update(image.tobytes())
    return seen.hexdigest()


def _size_of(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _size_in_words(refinement: Refinement) -> int:
    runs = sum(len(found.mask.runs) for found in refinement.objects if found.mask is not None)
    return _RUN_BYTES * runs + _OBJECT_BYTES * (1 + len(refinement.objects) + len(refinement.tags))
