"""POPE's probe over any data set whose samples have objects: ``scenes``, COCO, ..."""

from __future__ import annotations

from lyrics.core.contracts import BuildContext
from lyrics.core.data.build import build_dataset
from lyrics.core.evaluation.pope import PopeBenchmark, PopeBoxesBenchmark, Probe
from lyrics.plugins.benchmarks import PopeOptions


def pope(options: PopeOptions, context: BuildContext) -> PopeBenchmark:
    """Yes or no. See ``PopeOptions``."""
    return PopeBenchmark(_probe(options))


def pope_boxes(options: PopeOptions, context: BuildContext) -> PopeBoxesBenchmark:
    """Return boxes. See ``PopeOptions``."""
    return PopeBoxesBenchmark(_probe(options))


def _probe(options: PopeOptions) -> Probe:
    given = {"root": options.root, "images": options.images, "split": options.part}
    data = build_dataset(options.data, {key: value for key, value in given.items() if value is not None})
    return Probe(data, options.split, options.num_images, options.per_image, options.counted, options.seed)
