"""What each expert for fine scenes carries: linear probes of its tokens for every attribute of 3,000 things.

A thing is described to a probe by two vectors of an expert, side by side: what the expert has of the thing (the
encoder's mean token over its box, the detector's query whose box fits best, the segmenter's token), and the expert's
mean token over the whole image. So a probe may use all that a query transformer could, and what it cannot find is not
there for a linear reader.

Shapes: N things, D width of what describes one, C values of an attribute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lyrics.core.contracts import Dataset
from lyrics.core.pictures.processor import prepare
from lyrics.plugins.tiny.boxes import pairwise_iou
from lyrics.plugins.tiny.detector import TinyDetector
from lyrics.plugins.tiny.expert_vocabulary import NOUNS, SHAPES
from lyrics.plugins.tiny.looks import OF_SCENES, OF_THINGS, SeenObject
from lyrics.plugins.tiny.segmenter import TinySegmenter
from lyrics.plugins.tiny.train_experts import drawn
from lyrics.plugins.tiny.vit import TinyVit

#: Attribute -> its values, in the order of the table.
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {"shape": SHAPES, **OF_THINGS, **OF_SCENES}
#: What can describe a thing, in the order of the table. ``text`` is its noun and its box, as the refiner writes them.
DESCRIBERS = ("text", "image encoder", "detector", "segmenter")
#: (attribute, describer) -> (low, high): the share right that the experts are meant to have.
MEANT: Mapping[tuple[str, str], tuple[float, float]] = {
    ("fill", "image encoder"): (0.0, 0.45),
    ("fill", "segmenter"): (0.85, 1.0),
    ("ground", "image encoder"): (0.95, 1.0),
    ("ground", "detector"): (0.0, 0.75),
    ("ground", "segmenter"): (0.0, 0.75),
}
#: Of the things, so many in the order of the rows are what probes are fitted to, the others what they are scored on.
FIT_SHARE = 2 / 3
#: Weight of the squared coefficients beside the mean cross-entropy, and iterations of L-BFGS.
_DECAY, _ITERATIONS = 1e-3, 300
_BATCH = 32


@dataclass(frozen=True)
class Probes:
    """Shares right by attribute and describer, on things that no probe was fitted to; ``chance`` is the most frequent
    value's share.
    """

    fitted: int
    scored: int
    chance: Mapping[str, float]
    shares: Mapping[str, Mapping[str, float]]

    def otherwise(self) -> list[str]:
        """What is not as ``MEANT``, one line each."""
        lines = []
        for (attribute, describer), (low, high) in MEANT.items():
            if attribute not in self.shares:
                continue
            share = self.shares[attribute][describer]
            if not low <= share <= high:
                meant = f"at least {low}" if high == 1.0 else f"at most {high}"
                lines.append(f"{attribute}, {describer}: {share:.3f}, meant is {meant}")
        return lines

    def to_json(self) -> dict[str, Any]:
        rounded = {name: {of: round(share, 4) for of, share in row.items()} for name, row in self.shares.items()}
        return {
            "things fitted": self.fitted,
            "things scored": self.scored,
            "attributes": {name: {"chance": round(self.chance[name], 4), **row} for name, row in rounded.items()},
            "not as meant": self.otherwise(),
        }


@torch.no_grad()
def describe(
    encoder: TinyVit, detector: TinyDetector, segmenter: TinySegmenter, dataset: Dataset, things: int
) -> tuple[dict[str, torch.Tensor], list[SeenObject]]:
    """What each of ``DESCRIBERS`` has of the first ``things`` things of a data set of fine scenes, [N,D], and the
    things.

    Raises ``ValueError`` where the data set has fewer.
    """
    found: dict[str, list[torch.Tensor]] = {name: [] for name in DESCRIBERS}
    described: list[SeenObject] = []
    for start in range(0, len(dataset), _BATCH):
        images, objects = drawn(dataset, range(start, min(start + _BATCH, len(dataset))))
        shown = [[one for one in seen if isinstance(one, SeenObject)] for seen in objects]
        boxes = [[one.box_norm for one in seen] for seen in shown]
        tokens_BND = encoder(prepare(images, encoder.preprocessing).pixels_BCHW)
        queries = detector(prepare(images, detector.preprocessing), [NOUNS] * len(images))
        parts = segmenter(prepare(images, segmenter.preprocessing), boxes)
        for place, seen in enumerate(shown):
            boxes_K4 = torch.tensor([box.as_tuple() for box in boxes[place]])
            queries_QD = queries.tokens_BMD[place, queries.mask_BM[place]]
            parts_KD = parts.tokens_BKD[place, parts.mask_BK[place]]
            nouns_KP = F.one_hot(torch.tensor([NOUNS.index(one.tag) for one in seen]), len(NOUNS)).float()
            own = {
                "text": torch.cat([nouns_KP, boxes_K4], dim=1),
                "image encoder": _with_mean(_over_boxes(tokens_BND[place], boxes_K4), tokens_BND[place]),
                "detector": _with_mean(_fitting(queries_QD, boxes_K4), queries_QD),
                "segmenter": _with_mean(parts_KD, parts_KD),
            }
            rows = [row for row, one in enumerate(seen) if one.fill]
            for name, values_KD in own.items():
                found[name].append(values_KD[rows])
            described += [seen[row] for row in rows]
        if len(described) >= things:
            return {name: torch.cat(values)[:things] for name, values in found.items()}, described[:things]
    raise ValueError(f"{len(dataset)} scenes have {len(described)} things, not {things}; give more scenes")


def _with_mean(own_KD: torch.Tensor, all_MD: torch.Tensor) -> torch.Tensor:
    mean_D = all_MD.mean(0) if len(all_MD) else own_KD.new_zeros(own_KD.shape[1])
    return torch.cat([own_KD, mean_D.expand_as(own_KD)], dim=1)


def _over_boxes(tokens_ND: torch.Tensor, boxes_K4: torch.Tensor) -> torch.Tensor:
    """The mean of the tokens whose patch has its center in a box, or of the nearest one."""
    side = math.isqrt(len(tokens_ND))
    places = (torch.arange(side) + 0.5) / side
    centers_N2 = torch.cartesian_prod(places, places).flip(1)
    inside_KN = ((centers_N2 >= boxes_K4[:, None, :2]) & (centers_N2 < boxes_K4[:, None, 2:])).all(-1)
    middles_K2 = (boxes_K4[:, :2] + boxes_K4[:, 2:]) / 2
    nearest_K = torch.cdist(middles_K2, centers_N2).argmin(1)
    inside_KN[torch.arange(len(boxes_K4)), nearest_K] |= ~inside_KN.any(1)
    weights_KN = inside_KN.to(tokens_ND)
    return weights_KN @ tokens_ND / weights_KN.sum(1, keepdim=True)


def _fitting(queries_QD: torch.Tensor, boxes_K4: torch.Tensor) -> torch.Tensor:
    """Of each box the query that overlaps it most; zeros where none does."""
    fitting_KD = queries_QD.new_zeros(len(boxes_K4), queries_QD.shape[1])
    if len(queries_QD):
        centers_Q2, sizes_Q2 = queries_QD[:, -4:-2], queries_QD[:, -2:]
        corners_Q4 = torch.cat([centers_Q2 - sizes_Q2 / 2, centers_Q2 + sizes_Q2 / 2], dim=1)
        overlaps_K, best_K = pairwise_iou(boxes_K4, corners_Q4).max(1)
        fitting_KD[overlaps_K > 0] = queries_QD[best_K[overlaps_K > 0]]
    return fitting_KD


def probe(described: Mapping[str, torch.Tensor], things: Sequence[SeenObject]) -> Probes:
    """Fit and score one linear probe for each attribute and describer (see ``describe``).

    ``hidden`` is fitted and scored on the things that overlap; an attribute that fewer than three things have is left
    out.
    """
    chance: dict[str, float] = {}
    shares: dict[str, dict[str, float]] = {}
    for attribute, values in ATTRIBUTES.items():
        rows = [row for row, one in enumerate(things) if getattr(one, attribute)]
        if len(rows) < 3:
            continue
        fitted = round(FIT_SHARE * len(rows))
        labels_N = torch.tensor([values.index(getattr(things[row], attribute)) for row in rows])
        chance[attribute] = labels_N[fitted:].bincount().max().item() / (len(rows) - fitted)
        shares[attribute] = {}
        for describer, all_ND in described.items():
            features_ND = all_ND[rows]
            mean_D, spread_D = features_ND[:fitted].mean(0), features_ND[:fitted].std(0).clamp(min=1e-6)
            scaled_ND = ((features_ND - mean_D) / spread_D).double()
            said_N = linear_probe(scaled_ND[:fitted], labels_N[:fitted], len(values), scaled_ND[fitted:])
            shares[attribute][describer] = (said_N == labels_N[fitted:]).double().mean().item()
    fitted = round(FIT_SHARE * len(things))
    return Probes(fitted, len(things) - fitted, chance, shares)


def linear_probe(
    features_ND: torch.Tensor, labels_N: torch.Tensor, classes: int, others_MD: torch.Tensor
) -> torch.Tensor:
    """What multinomial logistic regression on ``features_ND`` and ``labels_N`` says of ``others_MD``: classes [M]."""
    weights_DC = torch.zeros(features_ND.shape[1], classes, dtype=features_ND.dtype, requires_grad=True)
    bias_C = torch.zeros(classes, dtype=features_ND.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights_DC, bias_C], max_iter=_ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features_ND @ weights_DC + bias_C, labels_N) + _DECAY * weights_DC.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return (others_MD @ weights_DC + bias_C).argmax(1).detach()


def table(probes: Probes) -> str:
    """The shares as a Markdown table, an attribute a line."""
    lines = [f"| attribute | chance | {' | '.join(DESCRIBERS)} |", f"|---|{'---|' * (1 + len(DESCRIBERS))}"]
    for attribute, row in probes.shares.items():
        cells = " | ".join(f"{row[describer]:.2f}" for describer in DESCRIBERS)
        lines.append(f"| {attribute} | {probes.chance[attribute]:.2f} | {cells} |")
    return "\n".join(lines)
