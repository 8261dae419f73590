"""One rank's batch of stage 1 as the objectives read it: texts as token ids, and what fixes every random draw.

Letters: B samples of this rank, L tokens (padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lyrics.core.stage1.streams import SpecialTokens, Text
from lyrics.kernels.host_work import host_work

#: An object's spatial representation as units of token ids: its tag, each coordinate, the brackets around them.
Units = Sequence[Sequence[int]]


@dataclass(frozen=True, eq=False)
class Spatial:
    """The objects of each sample as text, without any special token around them.

    ``object_BL`` is the number of the object that a token belongs to (0, 1, ... within the sample), ``unit_BL`` the number of its unit
    (0, 1, ... within the sample), and ``kind_BL``, which measurements set, its number in
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
        ids: list[list[int]] = []
        objects: list[list[int]] = []
        units: list[list[int]] = []
        for sample in samples:
            ids.append([])
            objects.append([])
            units.append([])
            for number, parts in enumerate(sample):
                for part in parts:
                    unit = units[-1][-1] + 1 if units[-1] else 0
                    ids[-1] += part
                    objects[-1] += [number] * len(part)
                    units[-1] += [unit] * len(part)
        text = Text.from_lists(ids)
        padding = ~text.mask_RL
        return cls(
            text,
            Text.from_lists(objects).ids_RL.masked_fill(padding, -1),
            Text.from_lists(units).ids_RL.masked_fill(padding, -1),
            None
            if kinds is None
            else Text.from_lists([[kind for one in sample for kind in one] for sample in kinds]).ids_RL.masked_fill(
                padding, -1
            ),
        )


@dataclass(frozen=True, eq=False)
class PretrainBatch:
    """Texts of B samples; host tensors throughout.

    Args:
        spatial: objects as text.
        caption: caption tokens, without special tokens.
        sample_B: int64, each sample's number in the data order: random draws are functions of (seed, step, sample).
        special: ids of the tokens put around texts.
        seed, step: see ``sample_B``.
        image_B: int64 identity of each picture, so that two samples of one picture are not each other's negatives; None means that
            every sample has its own picture.
    """

    spatial: Spatial
    caption: Text
    sample_B: torch.Tensor
    special: SpecialTokens
    seed: int = 0
    step: int = 0
    image_B: torch.Tensor | None = None

    def __len__(self) -> int:
        return int(self.sample_B.shape[0])
