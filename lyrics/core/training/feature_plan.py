"""The refiner in training, or before it: what ``data.features`` would cost and save, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lyrics.core.inspection.memory import OBJECTS, features_like
from lyrics.core.model import LyricsModel

_HALF, _BOX = 2, 32


@dataclass(frozen=True)
class FeaturePlan:
    """A run with the refiner's experts in it (online), and one that reads what they saw before (stored).

    ``bytes_per_image`` are features in half precision of all local tokens. Seconds and speeds are of all devices
    together, None where the speeds that they follow from are not known; ``reads_per_s`` are images whose features a
    stored run reads.
    """

    images: int
    bytes_per_image: int
    online_seconds: float | None
    refine_seconds: float | None
    train_seconds: float | None
    reads_per_s: float | None

    @property
    def stored_bytes(self) -> int:
        return self.images * self.bytes_per_image

    @property
    def read_bytes_per_s(self) -> float | None:
        return None if self.reads_per_s is None else self.reads_per_s * self.bytes_per_image


def plan_features(
    model: LyricsModel, samples: int, speeds: Mapping[str, float], gpus: int, images: int | None = None
) -> FeaturePlan | None:
    """Compare both ways for a model on the meta device; None for one whose refiner gives no local tokens.

    Experts and step take turns on a device, so that their times add up; host and loader work beside them.

    Args:
        model: with its experts.
        samples: of the whole run.
        speeds: samples a second of one device by part (``RunPlan.speeds``); ``step`` is that of the step alone.
        gpus: devices.
        images: how many different ones there are; every sample is another image unless given.
    """
    if model.refiner is None or not model.refiner.local_sources:
        return None
    tokens = (tokens_BMD.shape[1] * tokens_BMD.shape[2] for tokens_BMD, _ in features_like(model, 1).local.values())
    size = _HALF * sum(tokens) + _BOX * OBJECTS
    images = min(images or samples, samples)
    beside = dict(speeds)
    refiner, step = beside.pop("refiner", None), beside.get("step")
    online = refine = train = reads = None
    if step is not None:
        reads = min(beside.values()) * gpus
        train = samples / reads
    if refiner is not None:
        refine = images / (refiner * gpus)
        if step is not None:
            online = samples / (min(1 / (1 / refiner + 1 / step), *beside.values()) * gpus)
    return FeaturePlan(images, size, online, refine, train, reads)
