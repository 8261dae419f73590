"""Hard negatives of image-text matching: who is paired with whom, as a function of similarities, seed, step and sample.

Letters: B samples of this rank, N samples of all ranks (rank after rank).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lyrics.core.stage1.batch import PretrainBatch
from lyrics.core.stage1.distributed import gather, gather_text, rank, world_size
from lyrics.core.stage1.streams import Text
from lyrics.kernels.hashing import keyed_uniform, mix
from lyrics.kernels.host_work import host_work
from lyrics.kernels.upload import to_device_soon

#: Added to every softmax weight, as BLIP-2 does, so that no admissible candidate is impossible.
_FLOOR = 1e-4


@dataclass(frozen=True, eq=False)
class Similarity:
    """Logits of this rank's images against all texts, and of its texts against all images.

    Each is [B, N], on any device; no gradient is needed.
    """

    image_to_text_BN: torch.Tensor
    text_to_image_BN: torch.Tensor


@dataclass(frozen=True, eq=False)
class Negatives:
    """Global sample numbers 0 ..

    N-1 (host): for each text an image, for each image a text; -1 where no candidate is left.
    """

    image_B: torch.Tensor
    text_B: torch.Tensor


@host_work("negatives")
def draw_negatives(batch: PretrainBatch, similarity: Similarity | None, device: torch.device) -> Negatives:
    """Return one image per text and one text per image, drawn with probability softmax(similarity) + 1e-4.

    A sample's own pair is excluded, and so are samples with the same image or with the same words, which would be no
    negatives. Without similarities (no contrastive objective) the draw is uniform.
    """
    allowed = _allowed(batch, device)
    logits_2BN = None
    if similarity is not None:  # the one place where the host waits for the device in the middle of a step
        both = (similarity.text_to_image_BN, similarity.image_to_text_BN)
        logits_2BN = torch.stack([logits.detach() for logits in both]).double().cpu()
    draws = []
    for direction in range(2):
        if logits_2BN is None:
            weights = torch.ones(allowed.shape, dtype=torch.float64)
        else:
            weights = torch.softmax(logits_2BN[direction], dim=1) + _FLOOR
        cumulative = torch.cumsum(weights * allowed, dim=1)
        total = cumulative[:, -1]
        point = keyed_uniform(batch.seed, batch.step, batch.sample_B, direction) * total
        chosen = torch.searchsorted(cumulative, point[:, None], right=True)[:, 0]
        draws.append(torch.where(total > 0, chosen, -1))
    return Negatives(draws[0], draws[1])


def _allowed(batch: PretrainBatch, device: torch.device) -> torch.Tensor:
    """bool [B, N]: who may be whose negative."""
    size = len(batch)
    words = mix(_words(batch.caption), _words(batch.spatial.text))
    all_words = _of_all_ranks(words, device)
    own = torch.arange(size) + rank() * size
    allowed = words[:, None] != all_words[None, :]
    if batch.image_B is not None:
        allowed &= batch.image_B[:, None] != _of_all_ranks(batch.image_B, device)[None, :]
    allowed[torch.arange(size), own] = False
    return allowed


def _of_all_ranks(values_B: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Numbers on the host, of all ranks; collectives run on ``device``."""
    return values_B if world_size() == 1 else gather(to_device_soon(values_B, device)).cpu()


def _words(text: Text) -> torch.Tensor:
    """Return a hash of each row's tokens, whatever the padding: int64 [B]."""
    hashed = torch.where(text.mask_RL, mix(text.ids_RL, torch.arange(text.ids_RL.shape[1])), 0)
    return mix(hashed.sum(1), text.lengths_R)


@dataclass(frozen=True, eq=False)
class NegativePairs:
    """What the second pass runs: rows that have a negative, by kind.

    Images are numbered as in the features given to that pass.
    """

    row_image: torch.Tensor
    """Samples of this rank whose text is paired with ``image``."""
    image: torch.Tensor
    row_text: torch.Tensor
    """Samples of this rank whose image is paired with the texts below."""
    spatial: Text
    caption: Text


@host_work("negatives")
def negative_pairs(
    batch: PretrainBatch, negatives: Negatives, image_number_N: torch.Tensor, device: torch.device
) -> NegativePairs:
    """Look the negatives up. ``image_number_N`` is each global sample's number in the second pass's features."""
    row_image = (negatives.image_B >= 0).nonzero()[:, 0]
    row_text = (negatives.text_B >= 0).nonzero()[:, 0]
    wanted = negatives.text_B[row_text]
    return NegativePairs(
        row_image=row_image,
        image=image_number_N[negatives.image_B[row_image]],
        row_text=row_text,
        spatial=gather_text(batch.spatial.text, device).rows(wanted),
        caption=gather_text(batch.caption, device).rows(wanted),
    )
