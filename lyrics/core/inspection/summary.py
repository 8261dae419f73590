"""What a model consists of: its parts with output shapes, parameters, trainable parameters and bytes.

For ``lyrics check``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lyrics.core.contracts import Expert, ImageEncoder, WithNumTokens
from lyrics.core.resolve import Part, Resolved, ResolvedRefiner

if TYPE_CHECKING:
    from torch import nn

    from lyrics.core.model import LyricsModel
    from lyrics.core.refining.refiner import VisualRefiner


@dataclass(frozen=True)
class PartRow:
    """One part. ``output`` is its shape per image; ``trainable`` counts parameters that ask for a gradient."""

    path: str
    component: str
    distribution: str
    output: str
    parameters: int
    trainable: int
    num_bytes: int
    license: str


@dataclass(frozen=True)
class Summary:
    """A model's parts, and where its trainable parameters are, by stage.

    Stage 1 trains the query transformer and the objectives (section 3.2); stage 2 the query transformer, the
    projection, and what the language model's adaptation leaves trainable (section 3.3); both the image encoder where
    the specification says so.
    """

    parts: tuple[PartRow, ...]
    stage1_trainable: int
    stage2_trainable: int
    stage2_breakdown: Mapping[str, int]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.parts)

    @property
    def num_bytes(self) -> int:
        return sum(row.num_bytes for row in self.parts)


def summarize(model: LyricsModel, resolved: Resolved) -> Summary:
    """Count a model, which may be on the meta device."""
    modules: dict[str, Any] = {"image_encoder": model.encoder}
    if model.refiner is not None:
        for name in ("tagger", "detector", "segmenter"):
            modules[f"refiner.{name}"] = getattr(model.refiner, name)
    modules["query_transformer"] = model.query_transformer
    modules["projection"] = model.projection
    modules["language_model"] = model.language_model
    modules |= {f"objectives.{name}": objective for name, objective in model.objectives.items()}
    rows = [_row(path, module, resolved.parts.get(path)) for path, module in modules.items() if module is not None]
    trainable = {row.path: row.trainable for row in rows}
    objectives = sum(count for path, count in trainable.items() if path.startswith("objectives."))
    stage1 = model.abilities.stage1
    head = 0 if stage1 is None else sum(parameter.numel() for parameter in stage1.stage1_parameters())
    encoder = trainable["image_encoder"]
    stage2 = {
        **({"image encoder": encoder} if encoder else {}),
        "query transformer": trainable["query_transformer"] - head,
        "projection": trainable["projection"],
        "language model": trainable["language_model"],
    }
    return Summary(
        parts=tuple(rows),
        stage1_trainable=encoder + trainable["query_transformer"] + objectives,
        stage2_trainable=sum(stage2.values()),
        stage2_breakdown=stage2,
    )


def summarize_refiner(refiner: VisualRefiner, resolved: ResolvedRefiner) -> tuple[PartRow, ...]:
    """Count a refiner alone, which may be on the meta device."""
    return tuple(
        _row(f"refiner.{name}", expert, resolved.parts[f"refiner.{name}"]) for name, expert in refiner.experts.items()
    )


def _row(path: str, module: nn.Module | Expert, part: Part | None) -> PartRow:
    parameters = list(module.parameters())
    return PartRow(
        path=path,
        component=part.entry.component.name if part else "linear",
        distribution=f"{part.entry.source.distribution} {part.entry.source.version}" if part else "",
        output=_output(path, module, part),
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        num_bytes=sum(tensor.numel() * tensor.element_size() for tensor in (*parameters, *module.buffers())),
        license=part.entry.component.license if part else "",
    )


def _output(path: str, module: Any, part: Part | None) -> str:
    """Return the shape of what a part gives for one image."""
    if path == "image_encoder":
        return f"{_image_tokens(module)} x {module.feature_dim}"
    if path == "refiner.tagger":
        return "tags"
    if path == "refiner.detector":
        # A detector may say how many tokens it always gives.
        return f"{module.num_tokens if isinstance(module, WithNumTokens) else 'M'} x {module.feature_dim}"
    if path == "refiner.segmenter":
        return f"objects x {module.feature_dim}"
    if path == "query_transformer":
        return f"{module.num_queries} x {module.hidden_size}"
    if path == "projection":
        return f"{module.in_features} -> {module.out_features}"
    return "text" if path == "language_model" else "loss"


def _image_tokens(encoder: ImageEncoder) -> int:
    """Counted by a forward pass on the device of the weights: on the meta device it costs nothing."""
    import torch

    weight = next(encoder.parameters())
    preprocessing = encoder.preprocessing
    side = preprocessing.crop or preprocessing.size
    with torch.no_grad():
        tokens = encoder(torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype))
    return int(tokens.shape[1])
