"""One rank's batch of stage 1 as the objectives read it: texts as token ids, and what fixes every random draw.

Letters: B samples of this rank, L tokens (padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lyrics.core.stage1.streams import SpecialTokens, Text, rows_of
from lyrics.kernels.host_work import host_work

#: An object's spatial representation as units of token ids: its tag, each coordinate, the brackets around them.
Units = Sequence[Sequence[int]]


@dataclass(frozen=True, eq=False)
class ObjectTokens:
    """Objects of B images as token ids, image after image, best first.

    ``object_T`` is the number of the object that a token belongs to and ``unit_T`` that of its unit, both 0, 1, ...
    within the image; ``lengths_B`` and ``objects_B`` count the tokens and the objects of each image. All int64.
    """

    ids_T: np.ndarray
    object_T: np.ndarray
    unit_T: np.ndarray
    lengths_B: np.ndarray
    objects_B: np.ndarray

    @classmethod
    def none(cls, images: int) -> ObjectTokens:
        """Of images without objects."""
        nothing, zeros = np.zeros(0, np.int64), np.zeros(images, np.int64)
        return cls(nothing, nothing, nothing, zeros, zeros)

    def rows(self) -> list[list[int]]:
        """Return the ids of each image."""
        ends = np.cumsum(self.lengths_B)
        ids = self.ids_T.tolist()
        return [ids[end - length : end] for end, length in zip(ends.tolist(), self.lengths_B.tolist(), strict=True)]


@dataclass(frozen=True, eq=False)
class Spatial:
    """The objects of each sample as text, without any special token around them.

    ``object_BL`` is the number of the object that a token belongs to (0, 1, ... within the sample), ``unit_BL`` the
    number of its unit (0, 1, ... within the sample), and ``kind_BL``, which measurements set, its number in
    ``lyrics.core.language.spatial_tokens.KINDS``; all -1 on padding.
    """

    text: Text
    object_BL: torch.Tensor
    unit_BL: torch.Tensor
    kind_BL: torch.Tensor | None = None

    @classmethod
    @host_work("tokenize objects")
    def from_objects(
        cls, samples: Sequence[Sequence[Units]], kinds: Sequence[Sequence[Sequence[int]]] | None = None
    ) -> Spatial:
        """``samples[b]`` are sample b's objects; each is a list of units; each unit is a list of token ids.

        ``kinds[b]`` are, for the same objects, the kinds of their tokens.
        """
        ids: list[int] = []
        objects: list[int] = []
        units: list[int] = []
        lengths: list[int] = []
        for sample in samples:
            before, unit = len(ids), 0
            for number, parts in enumerate(sample):
                for part in parts:
                    ids += part
                    objects += [number] * len(part)
                    units += [unit] * len(part)
                    unit += len(part) > 0
            lengths.append(len(ids) - before)
        counts = [len(sample) for sample in samples]
        found = (np.array(values, np.int64) for values in (ids, objects, units, lengths, counts))
        return cls.from_tokens(ObjectTokens(*found), kinds)

    @classmethod
    @host_work("tokenize objects")
    def from_tokens(cls, tokens: ObjectTokens, kinds: Sequence[Sequence[Sequence[int]]] | None = None) -> Spatial:
        """Return the same from tokens; ``kinds`` as for ``from_objects``."""
        lengths_B, kind_T = tokens.lengths_B, None
        if kinds is not None:
            kind_T = np.array([kind for sample in kinds for one in sample for kind in one], np.int64)
        return cls(
            Text(torch.from_numpy(rows_of(tokens.ids_T, lengths_B, 0)), torch.from_numpy(lengths_B)),
            torch.from_numpy(rows_of(tokens.object_T, lengths_B, -1)),
            torch.from_numpy(rows_of(tokens.unit_T, lengths_B, -1)),
            None if kind_T is None else torch.from_numpy(rows_of(kind_T, lengths_B, -1)),
        )


@dataclass(frozen=True, eq=False)
class Regions:
    """The R boxes that a batch's captions give, and the words that they say of each.

    ``sample_R`` is the row of the caption (int64) and ``sides_norm_R4`` x1, y1, x2, y2 (float32).
    """

    sample_R: torch.Tensor
    sides_norm_R4: torch.Tensor
    words: Text


@dataclass(frozen=True, eq=False)
class PretrainBatch:
    """Texts of B samples; host tensors throughout.

    Args:
        spatial: objects as text.
        caption: caption tokens, without special tokens.
        sample_B: int64, each sample's number in the data order: random draws are functions of (seed, step, sample).
        special: ids of the tokens put around texts.
        seed, step: see ``sample_B``.
        image_B: int64 identity of each image, so that two samples of one image are not each other's negatives;
            None means that every sample has its own image.
        regions: the boxes in the captions; None: the tokenizer does not write a box in whole numbers.
    """

    spatial: Spatial
    caption: Text
    sample_B: torch.Tensor
    special: SpecialTokens
    seed: int = 0
    step: int = 0
    image_B: torch.Tensor | None = None
    regions: Regions | None = None

    def __len__(self) -> int:
        return int(self.sample_B.shape[0])
