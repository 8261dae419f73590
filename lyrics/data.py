"""Data sets, the order and the batches of a run, and images: for loops, benchmarks and data sets of your own.

Names are loaded when they are first used; importing this module imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lyrics.core.renaming import moved_names

if TYPE_CHECKING:
    from lyrics.core.contracts import Dataset as Dataset
    from lyrics.core.data.augmentation import Augmentation as Augmentation
    from lyrics.core.data.build import build_dataset as build_dataset
    from lyrics.core.data.collate import Collator as Collator
    from lyrics.core.data.collate import InstructionExamples as InstructionExamples
    from lyrics.core.data.collate import PretrainExamples as PretrainExamples
    from lyrics.core.data.conversation import converse as converse
    from lyrics.core.data.mixture import Mixture as Mixture
    from lyrics.core.data.mixture import Source as Source
    from lyrics.core.data.readers import RecordDataset as RecordDataset
    from lyrics.core.data.readers import TarRecords as TarRecords
    from lyrics.core.data.readers import tar_sample as tar_sample
    from lyrics.core.data.readers import write_index as write_index
    from lyrics.core.data.sampler import StepSampler as StepSampler
    from lyrics.core.data.stream import Example as Example
    from lyrics.core.data.stream import SampleStream as SampleStream
    from lyrics.core.pictures.drawing import draw_objects as draw_objects
    from lyrics.core.pictures.images import open_image as open_image
    from lyrics.core.pictures.model_inputs import ModelImages as ModelImages
    from lyrics.core.pictures.model_inputs import ModelInputs as ModelInputs
    from lyrics.core.pictures.processor import Processor as Processor
    from lyrics.core.pictures.processor import prepare as prepare
    from lyrics.core.refining.refine_files import find_images as find_images
    from lyrics.tasks import data_collator as data_collator
    from lyrics.tasks import training_data as training_data

# Public name -> the module that defines it.
_HOMES = {
    "Augmentation": "lyrics.core.data.augmentation",
    "Collator": "lyrics.core.data.collate",
    "Dataset": "lyrics.core.contracts",
    "Example": "lyrics.core.data.stream",
    "InstructionExamples": "lyrics.core.data.collate",
    "Mixture": "lyrics.core.data.mixture",
    "ModelImages": "lyrics.core.pictures.model_inputs",
    "ModelInputs": "lyrics.core.pictures.model_inputs",
    "PretrainExamples": "lyrics.core.data.collate",
    "Processor": "lyrics.core.pictures.processor",
    "RecordDataset": "lyrics.core.data.readers",
    "SampleStream": "lyrics.core.data.stream",
    "Source": "lyrics.core.data.mixture",
    "StepSampler": "lyrics.core.data.sampler",
    "TarRecords": "lyrics.core.data.readers",
    "build_dataset": "lyrics.core.data.build",
    "converse": "lyrics.core.data.conversation",
    "data_collator": "lyrics.tasks",
    "draw_objects": "lyrics.core.pictures.drawing",
    "find_images": "lyrics.core.refining.refine_files",
    "open_image": "lyrics.core.pictures.images",
    "prepare": "lyrics.core.pictures.processor",
    "tar_sample": "lyrics.core.data.readers",
    "training_data": "lyrics.tasks",
    "write_index": "lyrics.core.data.readers",
}

__all__ = [
    "Augmentation",
    "Collator",
    "Dataset",
    "Example",
    "InstructionExamples",
    "Mixture",
    "ModelImages",
    "ModelInputs",
    "PretrainExamples",
    "Processor",
    "RecordDataset",
    "SampleStream",
    "Source",
    "StepSampler",
    "TarRecords",
    "build_dataset",
    "converse",
    "data_collator",
    "draw_objects",
    "find_images",
    "open_image",
    "prepare",
    "tar_sample",
    "training_data",
    "write_index",
]

_former = moved_names(__name__, {"find_pictures": "lyrics.data.find_images"})


def __getattr__(name: str) -> Any:
    if name == "find_pictures":
        return _former(name)
    if name not in _HOMES:
        raise AttributeError(f"module 'lyrics.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
