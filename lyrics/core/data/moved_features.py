"""Stored features after a crop: boxes move with the image, and what leaves it is dropped.

A token's state is what the expert saw in the whole image; only where it is can change. A mirrored object has another
state, so that flips are refused before a run begins (``lyrics.core.runs.config``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from lyrics.core.data.augmentation import moved_objects
from lyrics.core.geometry import Frame
from lyrics.core.types import SeenBefore


def moved_seen(seen: SeenBefore, frame: Frame, min_visible: float) -> SeenBefore:
    """Return what was seen in the original image as shares of the canvas.

    Objects are moved as ``moved_objects`` does it, and the segmenter's tokens go with them; a token of the detector is
    dropped where less than ``min_visible`` of its box is left. The last four numbers of a token are its box
    (``lyrics.core.contracts.TokensWithBoxes``).
    """
    if not frame.steps:
        return seen
    kept, objects = [], []
    for index, one in enumerate(seen.objects):
        if moved := moved_objects((one,), frame, min_visible):
            kept.append(index)
            objects.append(moved[0])
    tokens = {}
    for source, tokens_MD in seen.tokens.items():
        # Boxes of objects are known more exactly than half precision has them.
        if source == "segmenter" and len(tokens_MD) == len(seen.objects):
            old_M4 = np.array([one.box_norm.as_tuple() for one in seen.objects]).reshape(-1, 4)
            rows = np.array(kept, dtype=np.int64)
        else:
            center_M2, half_M2 = tokens_MD[:, -4:-2].double().numpy(), tokens_MD[:, -2:].double().numpy() / 2
            old_M4 = np.concatenate([center_M2 - half_M2, center_M2 + half_M2], axis=1)
            rows = np.flatnonzero(_visible(old_M4, frame) >= max(min_visible, 1e-9))
        new_M4 = _shares(old_M4[rows], frame)
        moved_MD = tokens_MD[torch.from_numpy(rows)].clone()
        centers_M4 = np.concatenate([(new_M4[:, :2] + new_M4[:, 2:]) / 2, new_M4[:, 2:] - new_M4[:, :2]], axis=1)
        moved_MD[:, -4:] = torch.from_numpy(centers_M4).to(moved_MD.dtype)
        tokens[source] = moved_MD
    return replace(seen, objects=tuple(objects), tokens=tokens)


def _shares(boxes_M4: np.ndarray, frame: Frame) -> np.ndarray:
    """Boxes of the original image as shares of the canvas, cut at its border."""
    width, height = frame.size
    return np.clip(frame.boxes_to_canvas(boxes_M4) / np.array([width, height, width, height]), 0.0, 1.0)


def _visible(boxes_M4: np.ndarray, frame: Frame) -> np.ndarray:
    """Which share of each box's area the canvas shows. Where a box leaves the original image, that is out of sight,
    too.
    """
    width, height = frame.size
    whole_M4 = frame.boxes_to_canvas(boxes_M4)
    inside_M4 = np.clip(whole_M4, 0, np.array([width, height, width, height]))
    sides_M2, shown_M2 = whole_M4[:, 2:] - whole_M4[:, :2], inside_M4[:, 2:] - inside_M4[:, :2]
    return (shown_M2 / np.maximum(sides_M2, 1e-9)).prod(axis=1)
