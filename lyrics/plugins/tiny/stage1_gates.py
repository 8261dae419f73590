"""What stage 1 must have taught on fine scenes before stage 2 is worth training: its gates, measured by one command.

Probes are linear and read the pooled queries (the mean visual and the mean grounding query, side by side; the query
transformer reads no text) of scenes of one thing, where what a query says needs no name. Beside them stand the same
probes of what each expert has of the thing (``lyrics.plugins.tiny.probe_experts``).

Shapes: N scenes, D width of the query transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from lyrics.core.contracts import Dataset
from lyrics.core.evaluation.alignment import NEAR, alignment
from lyrics.core.model import LyricsModel
from lyrics.core.stage1.streams import QUERY_SEGMENTS, Stream, full
from lyrics.plugins.tiny import probe_experts, train_experts
from lyrics.plugins.tiny.detector import TinyDetector
from lyrics.plugins.tiny.looks import OF_SCENES, OF_THINGS
from lyrics.plugins.tiny.segmenter import TinySegmenter
from lyrics.plugins.tiny.vit import TinyVit

#: Attributes that the queries must carry, and the least share of what the best expert's probe has. For one thing to be
#: hidden by another it takes two, and scenes have one here.
ATTRIBUTES = tuple(name for name in (*OF_THINGS, *OF_SCENES) if name != "hidden")
PROBE_SHARE = 0.9
#: Measurement -> the least share.
LEAST: Mapping[str, float] = {
    "ITM accuracy on twins": 0.9,
    "image to text R@1, captions alone": 0.6,
    "text to image R@1, captions alone": 0.6,
    f"masked coordinates within {NEAR:.0%} of the side": 0.5,
}
_BATCH = 50


@dataclass(frozen=True)
class Gate:
    """A measurement, what it must be at least, and whether it is."""

    name: str
    share: float
    least: float

    @property
    def passed(self) -> bool:
        return self.share >= self.least

    def to_json(self) -> dict[str, Any]:
        return {"share": round(self.share, 4), "least": round(self.least, 4), "passed": self.passed}


@torch.no_grad()
def pooled_queries(model: LyricsModel, dataset: Dataset, scenes: int) -> torch.Tensor:
    """The mean visual and the mean grounding query of the first scenes, side by side: [N,2D] on the host."""
    pooled = []
    for start in range(0, scenes, _BATCH):
        images, _ = train_experts.drawn(dataset, range(start, min(start + _BATCH, scenes)))
        features, _ = model.features(model.processor.images(images, model.device, dtype=model.dtype))
        rows = torch.arange(len(images))
        segments = [name for name in QUERY_SEGMENTS if name in model.query_transformer.segments]
        stream = Stream("probe", full("".join(segments)), rows, rows, wanted=dict.fromkeys(segments, "all"))
        outputs = model.query_transformer([stream], features)
        pooled.append(torch.cat([outputs("probe", name).mean(1) for name in segments], dim=1).float().cpu())
    return torch.cat(pooled)


def probed(model: LyricsModel, split: str, scenes: int) -> dict[str, dict[str, float]]:
    """Share right by attribute: of each describer of ``lyrics.plugins.tiny.probe_experts`` and of the pooled
    ``queries``; ``chance`` beside.

    Two thirds of the scenes, which have one thing each, are what probes are fitted to.
    """
    assert model.refiner is not None
    experts = model.refiner.experts
    dataset = train_experts.scenes(split, scenes, max_objects=1, fine=True)
    described, things = probe_experts.describe(
        cast(TinyVit, model.encoder),
        cast(TinyDetector, experts["detector"]),
        cast(TinySegmenter, experts["segmenter"]),
        dataset,
        scenes,
    )
    found = probe_experts.probe({**described, "queries": pooled_queries(model, dataset, scenes)}, things)
    return {name: {"chance": found.chance[name], **found.shares[name]} for name in ATTRIBUTES}


def measure_gates(
    model: LyricsModel, split: str, *, scenes: int, probes: int, say: Callable[[str], None] = lambda line: None
) -> tuple[dict[str, Any], list[Gate]]:
    """All figures of stage 1 on fine scenes, and its gates.

    Args:
        model: after stage 1; its experts are the tiny ones for fine scenes.
        split: of ``scenes``.
        scenes: that captions and boxes are measured on.
        probes: scenes of one thing that probes are fitted and scored on.
        say: told of the progress.
    """
    model.eval()
    dataset = train_experts.scenes(split, scenes, fine=True)
    found = alignment(model, dataset, samples=scenes, twins=True, say=say)
    shares = {name.replace(f" of {found.samples}", ""): share for name, (share, _) in found.shares.items()}
    gates = [Gate(name, shares[name], least) for name, least in LEAST.items()]
    of_probes = probed(model, split, probes)
    for name, row in of_probes.items():
        best = max(row[expert] for expert in probe_experts.DESCRIBERS)
        gates.append(Gate(f"probe of pooled queries: {name}", row["queries"], PROBE_SHARE * best))
    figures = {
        "split": split,
        "samples": found.samples,
        **{name: {"share": round(share, 4), "of": count} for name, (share, count) in sorted(found.shares.items())},
        "captions": {name: round(score, 4) for name, score in found.caption_scores.items()},
        "probes": {name: {of: round(share, 4) for of, share in row.items()} for name, row in of_probes.items()},
        "gates": {gate.name: gate.to_json() for gate in gates},
    }
    return {**figures, "notes": found.notes} if found.notes else figures, gates
