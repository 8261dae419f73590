"""Records that plugins give and take, and what answers consist of.

Each is imported from where it is defined when it is first used; most need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lyrics.core.answers import Answer as Answer
    from lyrics.core.answers import AnswerObject as AnswerObject
    from lyrics.core.contracts import BuildContext as BuildContext
    from lyrics.core.conversion.plan import Beside as Beside
    from lyrics.core.conversion.plan import ConversionPlan as ConversionPlan
    from lyrics.core.errors import ImageError as ImageError
    from lyrics.core.geometry import Box as Box
    from lyrics.core.geometry import Frame as Frame
    from lyrics.core.language.chat_templates import ChatTemplate as ChatTemplate
    from lyrics.core.language.prompts import Exchange as Exchange
    from lyrics.core.language.prompts import Special as Special
    from lyrics.core.language.prompts import Words as Words
    from lyrics.core.language.tokenizers import builtin_tokenizer as builtin_tokenizer
    from lyrics.core.masks import Mask as Mask
    from lyrics.core.public_models import PublicCheckpoint as PublicCheckpoint
    from lyrics.core.public_models import PublicPlan as PublicPlan
    from lyrics.core.public_models import renamed_pieces as renamed_pieces
    from lyrics.core.public_models import wrapped_names as wrapped_names
    from lyrics.core.refining.refinement import Refinement as Refinement
    from lyrics.core.spec import RefinerSpec as RefinerSpec
    from lyrics.core.stage1.batch import PretrainBatch as PretrainBatch
    from lyrics.core.stage1.batch import Spatial as Spatial
    from lyrics.core.stage1.state import Loss as Loss
    from lyrics.core.stage1.state import StepState as StepState
    from lyrics.core.stage1.streams import Features as Features
    from lyrics.core.stage1.streams import SpecialTokens as SpecialTokens
    from lyrics.core.stage1.streams import Stream as Stream
    from lyrics.core.stage1.streams import StreamOutputs as StreamOutputs
    from lyrics.core.stage1.streams import Text as Text
    from lyrics.core.stage1.streams import full as full
    from lyrics.core.stage1.streams import merge as merge
    from lyrics.core.types import DetectedObject as DetectedObject
    from lyrics.core.types import Detection as Detection
    from lyrics.core.types import DetectorOutput as DetectorOutput
    from lyrics.core.types import ImageBatch as ImageBatch
    from lyrics.core.types import Preprocessing as Preprocessing
    from lyrics.core.types import Sample as Sample
    from lyrics.core.types import SegmenterOutput as SegmenterOutput
    from lyrics.core.types import Tag as Tag
    from lyrics.core.types import Turn as Turn
    from lyrics.core.weights.pieces import Piece as Piece
    from lyrics.core.weights.pieces import SourceCheckpoint as SourceCheckpoint

# Public name -> the module that defines it.
_HOMES = {
    "Answer": "lyrics.core.answers",
    "AnswerObject": "lyrics.core.answers",
    "Beside": "lyrics.core.conversion.plan",
    "Box": "lyrics.core.geometry",
    "BuildContext": "lyrics.core.contracts",
    "ChatTemplate": "lyrics.core.language.chat_templates",
    "ConversionPlan": "lyrics.core.conversion.plan",
    "DetectedObject": "lyrics.core.types",
    "Detection": "lyrics.core.types",
    "DetectorOutput": "lyrics.core.types",
    "Exchange": "lyrics.core.language.prompts",
    "Features": "lyrics.core.stage1.streams",
    "Frame": "lyrics.core.geometry",
    "ImageBatch": "lyrics.core.types",
    "ImageError": "lyrics.core.errors",
    "Loss": "lyrics.core.stage1.state",
    "Mask": "lyrics.core.masks",
    "Piece": "lyrics.core.weights.pieces",
    "Preprocessing": "lyrics.core.types",
    "PretrainBatch": "lyrics.core.stage1.batch",
    "PublicCheckpoint": "lyrics.core.public_models",
    "PublicPlan": "lyrics.core.public_models",
    "Refinement": "lyrics.core.refining.refinement",
    "RefinerSpec": "lyrics.core.spec",
    "Sample": "lyrics.core.types",
    "SegmenterOutput": "lyrics.core.types",
    "SourceCheckpoint": "lyrics.core.weights.pieces",
    "Spatial": "lyrics.core.stage1.batch",
    "Special": "lyrics.core.language.prompts",
    "SpecialTokens": "lyrics.core.stage1.streams",
    "StepState": "lyrics.core.stage1.state",
    "Stream": "lyrics.core.stage1.streams",
    "StreamOutputs": "lyrics.core.stage1.streams",
    "Tag": "lyrics.core.types",
    "Text": "lyrics.core.stage1.streams",
    "Turn": "lyrics.core.types",
    "Words": "lyrics.core.language.prompts",
    "builtin_tokenizer": "lyrics.core.language.tokenizers",
    "full": "lyrics.core.stage1.streams",
    "merge": "lyrics.core.stage1.streams",
    "renamed_pieces": "lyrics.core.public_models",
    "wrapped_names": "lyrics.core.public_models",
}

__all__ = [
    "Answer",
    "AnswerObject",
    "Beside",
    "Box",
    "BuildContext",
    "ChatTemplate",
    "ConversionPlan",
    "DetectedObject",
    "Detection",
    "DetectorOutput",
    "Exchange",
    "Features",
    "Frame",
    "ImageBatch",
    "ImageError",
    "Loss",
    "Mask",
    "Piece",
    "Preprocessing",
    "PretrainBatch",
    "PublicCheckpoint",
    "PublicPlan",
    "Refinement",
    "RefinerSpec",
    "Sample",
    "SegmenterOutput",
    "SourceCheckpoint",
    "Spatial",
    "Special",
    "SpecialTokens",
    "StepState",
    "Stream",
    "StreamOutputs",
    "Tag",
    "Text",
    "Turn",
    "Words",
    "builtin_tokenizer",
    "full",
    "merge",
    "renamed_pieces",
    "wrapped_names",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lyrics.types' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
