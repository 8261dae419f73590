"""What a model reads of a call: images prepared for its experts, and texts with the number of images of each.

Shapes: B images.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch

from lyrics.core.errors import PromptError
from lyrics.core.pictures.images import ImageLike
from lyrics.core.pictures.inputs import Pictures, entry_list, instruction_list, picture_list
from lyrics.core.pictures.normalizing import normalized
from lyrics.core.types import DetectedObject, ImageBatch, SeenBefore, Tag
from lyrics.kernels.host_work import host_work


@dataclass(frozen=True)
class ModelImages:
    """The same images as each expert of a model reads them, by the expert's name (``image_encoder``, ``tagger``,
    ...); those of a loader's batch once they are ``normalized``, which ``to`` does.

    ``seen`` is what a refiner saw in them before, where that was kept: it is not looked for again.
    """

    names: tuple[str, ...]
    sizes_px: tuple[tuple[int, int], ...]
    by_expert: Mapping[str, ImageBatch]
    seen: SeenTogether | None = None

    def __len__(self) -> int:
        return len(self.sizes_px)

    @host_work("transfer")
    def to(self, device: torch.device | str | None, dtype: torch.dtype | None = None) -> ModelImages:
        """The same images with their pixels on ``device``, normalized, and of ``dtype``.

        Nobody waits for copies to a GPU; those from pinned memory go on beside what it computes.
        """
        soon = device is not None and torch.device(device).type != "cpu"
        moved = self._with_tensors(lambda tensor: tensor.to(device=device, non_blocking=soon)).normalized()
        if dtype is None:
            return moved
        return moved._with_tensors(lambda tensor: tensor.to(dtype=dtype) if tensor.is_floating_point() else tensor)

    def normalized(self) -> ModelImages:
        """The same images as experts read them, where a loader left their pixels as bytes."""
        return replace(self, by_expert={expert: normalized(batch) for expert, batch in self.by_expert.items()})

    def pin_memory(self) -> ModelImages:
        """The same images in memory that a GPU reads by itself."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def tensors(self) -> list[torch.Tensor]:
        """Pixels, and local tokens with their masks where they were seen before."""
        seen = [] if self.seen is None else [one for pair in self.seen.local.values() for one in pair]
        return [*(batch.pixels_BCHW for batch in self.by_expert.values()), *seen]

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> ModelImages:
        changed = {
            expert: replace(batch, pixels_BCHW=change(batch.pixels_BCHW)) for expert, batch in self.by_expert.items()
        }
        seen = self.seen
        if seen is not None:
            local = {source: (change(tokens), change(mask)) for source, (tokens, mask) in seen.local.items()}
            seen = replace(seen, local=local)
        return replace(self, by_expert=changed, seen=seen)


@dataclass(frozen=True, eq=False)
class SeenTogether:
    """What a refiner saw in the images of a batch before: tags and objects of each, and local tokens per source.

    ``local`` has tokens [B,M,D], padded with zeros, and their mask [B,M], as the experts give them.
    """

    tags: tuple[tuple[Tag, ...], ...]
    objects: tuple[tuple[DetectedObject, ...], ...]
    local: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, seen: Sequence[SeenBefore]) -> SeenTogether:
        """Bring what was seen in single images together."""
        local = {}
        for source in seen[0].tokens if seen else ():
            tokens = [one.tokens[source] for one in seen]
            padded_BMD = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
            lengths_B1 = torch.tensor([len(own) for own in tokens])[:, None]
            local[source] = (padded_BMD, torch.arange(padded_BMD.shape[1]) < lengths_B1)
        return cls(tuple(one.tags for one in seen), tuple(one.objects for one in seen), local)


def joined(images: Sequence[ModelImages]) -> ModelImages:
    """Return images that were prepared one by one as the batch that preparing them together gives."""
    batches: dict[str, ImageBatch] = {}
    for expert in images[0].by_expert:
        parts = [one.by_expert[expert] for one in images]
        high = max(part.pixels_BCHW.shape[2] for part in parts)
        wide = max(part.pixels_BCHW.shape[3] for part in parts)
        pixels_BCHW = parts[0].pixels_BCHW.new_zeros(sum(map(len, parts)), 3, high, wide)
        row = 0
        for part in parts:
            _, _, height, width = part.pixels_BCHW.shape
            pixels_BCHW[row : row + len(part), :, :height, :width] = part.pixels_BCHW
            row += len(part)
        frames = tuple(frame for part in parts for frame in part.frames)
        batches[expert] = ImageBatch(pixels_BCHW, frames, tuple(name for part in parts for name in part.names))
    names = tuple(name for one in images for name in one.names)
    return ModelImages(names, tuple(size for one in images for size in one.sizes_px), batches)


class ModelInputs(UserDict[str, Any]):
    """What ``model.processor(...)`` returns, for ``model.generate(**inputs)`` or ``model(**inputs)``.

    A mapping whose entries are attributes, too, as in transformers' ``BatchFeature``: ``images`` (``ModelImages``),
    ``text``, ``images_per_text``, and ``answers`` or ``captions`` where they were given.
    """

    def __getattr__(self, name: str) -> Any:
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(f"the inputs have no {name!r}; they have {', '.join(self.__dict__.get('data', {}))}")

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Return the same inputs with their pixels on ``device`` and of ``dtype``."""
        return type(self)({**self.data, "images": self.data["images"].to(device, dtype)})


@dataclass(frozen=True)
class Asked:
    """Texts and the images of all of them, one after the other.

    Args:
        images: of all texts: as they were given, or prepared.
        text: what is asked.
        images_per_text: how many of the images belong to each text.
    """

    images: list[ImageLike] | ModelImages
    text: list[str]
    images_per_text: tuple[int, ...]

    @property
    def numbers(self) -> list[tuple[int, ...]]:
        """For each text the numbers of its images, counted from 0 over all texts."""
        found, start = [], 0
        for count in self.images_per_text:
            found.append(tuple(range(start, start + count)))
            start += count
        return found

    @property
    def by_image(self) -> list[str]:
        """For each image the text that it belongs to."""
        return [text for text, count in zip(self.text, self.images_per_text, strict=True) for _ in range(count)]


def asked(
    images: Pictures | Sequence[Pictures] | ModelImages,
    text: str | Sequence[str] | None,
    images_per_text: Sequence[int] | None = None,
) -> Asked:
    """Bring images and texts into one form.

    Args:
        images: of one text an image, a list of images, or None; of a list of texts one of these for each; or prepared
            images, with ``images_per_text``.
        text: one text, or a list of them.
        images_per_text: for prepared images, how many belong to each text; one each unless given.

    Raises:
        ImageError: something else stands for an image.
        PromptError: a text is none, or numbers do not fit.
    """
    texts = [text] if isinstance(text, str) else instruction_list(text)
    if isinstance(images, ModelImages):
        counts = tuple(images_per_text) if images_per_text is not None else (1,) * len(texts)
        if len(counts) != len(texts) or sum(counts) != len(images) or min(counts, default=0) < 0:
            raise PromptError(
                f"{len(images)} prepared images do not fit {len(texts)} texts with images_per_text={list(counts)}; "
                "give model.processor images and texts together."
            )
        return Asked(images, texts, counts)
    if images_per_text is not None:
        raise PromptError(
            "images_per_text: is for images that model.processor prepared; of other images give a list for each text."
        )
    entries = [cast(Pictures, images)] if isinstance(text, str) else entry_list(cast(Pictures, images), len(texts))
    own = [picture_list(entry) for entry in entries]
    return Asked([one for entry in own for one in entry], texts, tuple(map(len, own)))
