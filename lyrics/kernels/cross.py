"""Which image each query set reads, and which of the image's keys exist: the plan of cross-attention.

A *query set* is the queries of one kind (visual or grounding) of one stream. Many query sets read one image: the
streams of several objectives, and hard negatives, whose queries read another sample's image through the index, without
a copy of its keys and values.

Letters: S query sets, Q queries in a set, I images, M keys of an image.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lyrics.kernels.host_work import host_work
from lyrics.kernels.plan import PlanError


@dataclass(frozen=True, eq=False)
class CrossPlan:
    """Built once per pass and used by every layer that has cross-attention; see ``build_cross_plan``."""

    image_index_S: torch.Tensor
    num_images: int
    key_mask_IM: torch.Tensor | None
    row_id_SQ: torch.Tensor
    col_id_M: torch.Tensor
    derived: dict[Any, Any] = field(default_factory=dict, repr=False)

    def placed(self, row_id_SQ: torch.Tensor, col_id_M: torch.Tensor) -> CrossPlan:
        """The same plan with its queries and keys named by these, the same numbers elsewhere."""
        return replace(self, row_id_SQ=row_id_SQ, col_id_M=col_id_M)

    def masked(self, key_mask_IM: torch.Tensor | None) -> CrossPlan:
        """The same plan with another mask, which is for as many keys; arguments and errors as ``build_cross_plan``."""
        mask = _checked_mask(key_mask_IM, self.num_images, len(self.col_id_M))
        return self if mask is self.key_mask_IM else replace(self, key_mask_IM=mask)

    @property
    def counts_I(self) -> list[int]:
        """How many query sets read each image."""
        counts: list[int] = torch.bincount(self.image_index_S, minlength=self.num_images).tolist()
        return counts

    @property
    def keyless_I(self) -> torch.Tensor | None:
        """True for images none of whose keys exist (their readers get zeros); None where there is surely
        no such image.
        """
        if self.key_mask_IM is None:
            return None
        found: torch.Tensor | None = self.derived.get("keyless", self.key_mask_IM)
        if found is self.key_mask_IM:
            found = ~self.key_mask_IM.any(dim=1)
            if found.device.type == "cpu" and not bool(found.any()):
                found = None
            self.derived["keyless"] = found
        return found

    def key_mask_for(self, images: slice) -> torch.Tensor | None:
        """The mask with keyless images opened, so that no softmax is over nothing: bool [images, M], or None."""
        if self.key_mask_IM is None:
            return None
        mask, keyless = self.key_mask_IM[images], self.keyless_I
        return mask if keyless is None else mask | keyless[images, None]


@host_work("lay out")
def build_cross_plan(
    image_index_S: torch.Tensor,
    key_mask_IM: torch.Tensor | None,
    num_images: int,
    row_id_SQ: torch.Tensor,
    num_keys: int,
) -> CrossPlan:
    """Describe one cross-attention.

    Args:
        image_index_S: int64, host: the image that each query set reads.
        key_mask_IM: bool, True where the key exists; None when all do.
        num_images: I.
        row_id_SQ: int32 identity of each query's logical position (a slice of ``Plan.row_id_T``), for dropout.
        num_keys: M.

    Raises:
        PlanError: an index outside 0 .. num_images-1, or a mask of another shape.
    """
    index = image_index_S.to("cpu", torch.int64)
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < num_images:
        raise PlanError(f"query sets read images {int(index.min())} .. {int(index.max())}, and there are {num_images}.")
    return CrossPlan(
        image_index_S=index,
        num_images=num_images,
        key_mask_IM=_checked_mask(key_mask_IM, num_images, num_keys),
        row_id_SQ=row_id_SQ,
        col_id_M=torch.arange(num_keys, dtype=torch.int32, device=row_id_SQ.device),
    )


def _checked_mask(key_mask_IM: torch.Tensor | None, num_images: int, num_keys: int) -> torch.Tensor | None:
    """None where all keys surely exist."""
    if key_mask_IM is None:
        return None
    if key_mask_IM.shape != (num_images, num_keys) or key_mask_IM.dtype != torch.bool:
        raise PlanError(
            f"the key mask is {key_mask_IM.dtype} {tuple(key_mask_IM.shape)}, not bool ({num_images}, {num_keys})."
        )
    # Elsewhere looking would be waiting.
    return None if key_mask_IM.device.type == "cpu" and num_keys and bool(key_mask_IM.all()) else key_mask_IM
