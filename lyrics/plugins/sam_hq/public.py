"""Converter of SAM-HQ: the authors' ``.pth`` files (SysCV/sam-hq). The segmenter reads their names, so they stay."""

from __future__ import annotations

from transformers import SamHQModel

from lyrics.core.contracts import BuildContext
from lyrics.core.conversion.plan import ConversionPlan, Piece, SourceCheckpoint
from lyrics.core.weights.pretrained import load_transformers
from lyrics.plugins.sam_hq import SamHqOptions
from lyrics.plugins.sam_hq.segmenter import network_config
from lyrics.plugins.sam_hq.weights import from_original


def convert(source: SourceCheckpoint, options: SamHqOptions, context: BuildContext) -> ConversionPlan:
    """Keep every tensor.

    Raises ``WeightsError`` when one is unknown, missing, or of another shape than the options say.
    """
    load_transformers(
        SamHQModel, network_config(options.numbers), from_original(source), source.path
    )  # to see that it does
    return ConversionPlan(
        {key: Piece((key,)) for key in source}, notes=("set the segmenter's option checkpoint to this folder",)
    )
