"""The four experts with random weights, small or as their options say by default, but for tokens: of every cell, and
of features averaged over a mask, unless a test asks for others.
"""

from __future__ import annotations

import torch

from lyrics.core.contracts import BuildContext
from lyrics.plugins.tiny import TinyDetectorOptions, TinySegmenterOptions, TinyTaggerOptions, TinyVitOptions
from lyrics.plugins.tiny import detector as detector_file
from lyrics.plugins.tiny import segmenter as segmenter_file
from lyrics.plugins.tiny import tagger as tagger_file
from lyrics.plugins.tiny import vit as vit_file
from lyrics.plugins.tiny.detector import TinyDetector
from lyrics.plugins.tiny.segmenter import TinySegmenter
from lyrics.plugins.tiny.tagger import TinyTagger
from lyrics.plugins.tiny.vit import TinyVit

RANDOM = BuildContext("random")
SMALL = {"image_size": 64, "width": 24, "blocks": 1}
NAMES = ("red circle", "blue square")


def vit(**options: object) -> TinyVit:
    torch.manual_seed(0)
    return vit_file.build(TinyVitOptions(**options), RANDOM).eval()


def tagger(**options: object) -> TinyTagger:
    torch.manual_seed(0)
    return tagger_file.build(TinyTaggerOptions(**options), RANDOM).eval()


def detector(**options: object) -> TinyDetector:
    torch.manual_seed(0)
    return detector_file.build(TinyDetectorOptions(**{"queries": None, "query_width": None, **options}), RANDOM).eval()


def segmenter(**options: object) -> TinySegmenter:
    torch.manual_seed(0)
    return segmenter_file.build(TinySegmenterOptions(**{"look_width": None, **options}), RANDOM).eval()
