"""From scores of queries for phrases to detections: thresholds, non-maximum suppression per phrase, the best few.

Shapes: Q queries, P phrases, T tokens, N detections.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch


def phrase_scores(token_logits_QT: torch.Tensor, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Score of each query for each phrase [Q, P]: the greatest probability among the phrase's tokens.

    Args:
        token_logits_QT: logits, -inf for tokens that are not there.
        spans: per phrase, its first token and the one after its last.
    """
    columns = [token for first, end in spans for token in range(first, end)]
    owners = [phrase for phrase, (first, end) in enumerate(spans) for _ in range(first, end)]
    probability_QK = token_logits_QT[:, columns].float().sigmoid()
    scores_QP = probability_QK.new_zeros(len(probability_QK), len(spans))
    index_QK = torch.tensor(owners, dtype=torch.long, device=scores_QP.device).expand_as(probability_QK)
    return scores_QP.scatter_reduce(1, index_QK, probability_QK, "amax")


def select(
    scores_QP: npt.NDArray[np.float32],
    boxes_Q4: npt.NDArray[np.float32],
    *,
    box_threshold: float,
    text_threshold: float,
    nms_iou: float,
    limit: int,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], int]:
    """Return (query, phrase) of each detection, both [N], in descending score.

    Beside them stands how many more there were than ``limit``.

    A query is a box when its best score is above ``box_threshold``, and then a detection of every phrase for which its
    score is above ``text_threshold``: the two thresholds of the original code, which writes such phrases as one string
    where we report each by itself. Non-maximum suppression is per phrase, so no phrase takes another's box.

    Args:
        scores_QP: probabilities.
        boxes_Q4: xyxy in any one frame.
        nms_iou: of two boxes for one phrase with a greater overlap, the better one stays.
        limit: most detections.
    """
    box_Q = (scores_QP > box_threshold).any(axis=1) & np.isfinite(boxes_Q4).all(axis=1)
    queries: list[npt.NDArray[np.intp]] = [np.zeros(0, dtype=np.intp)]
    for scores_Q in scores_QP.T:
        candidates_N = np.flatnonzero(box_Q & (scores_Q > text_threshold))
        queries.append(candidates_N[suppress(scores_Q[candidates_N], boxes_Q4[candidates_N], nms_iou)])
    query_N = np.concatenate(queries)
    phrase_N = np.repeat(np.arange(-1, len(queries) - 1), [len(kept) for kept in queries])
    best_first_N = np.argsort(-scores_QP[query_N, phrase_N], kind="stable")[:limit]
    return query_N[best_first_N], phrase_N[best_first_N], len(query_N) - len(best_first_N)


def suppress(
    scores_N: npt.NDArray[np.float32], boxes_N4: npt.NDArray[np.float32], nms_iou: float
) -> npt.NDArray[np.intp]:
    """Return rows that greedy non-maximum suppression leaves, best first. Memory grows with N, not with its square."""
    order_N = np.argsort(-scores_N, kind="stable")
    x1, y1, x2, y2 = boxes_N4[order_N].T
    area_N = (x2 - x1).clip(0) * (y2 - y1).clip(0)
    alive_N = np.ones(len(order_N), dtype=np.bool_)
    for best in range(len(order_N)):
        if alive_N[best]:
            after = slice(best + 1, None)
            width = np.minimum(x2[best], x2[after]) - np.maximum(x1[best], x1[after])
            height = np.minimum(y2[best], y2[after]) - np.maximum(y1[best], y1[after])
            shared = width.clip(0) * height.clip(0)
            # shared / union > nms_iou, without a division by the union of two boxes of no area
            alive_N[after] &= shared <= nms_iou * (area_N[best] + area_N[after] - shared)
    return order_N[alive_N]
