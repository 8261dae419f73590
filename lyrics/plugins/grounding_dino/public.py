"""Converters of Grounding DINO.

They read the authors' ``.pth`` files (IDEA-Research/GroundingDINO) and the detector inside the released Lyrics.

The detector reads the authors' names, so they stay, but for the ``module.`` of a data-parallel wrapper. Its tokenizer
is BERT's and in no checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import GroundingDinoForObjectDetection

from lyrics.core.contracts import BuildContext
from lyrics.core.conversion.plan import Beside, ConversionPlan, Piece, SourceCheckpoint, fewer_tokens, read_tokenizer
from lyrics.core.errors import WeightsError
from lyrics.core.weights.pretrained import load_transformers
from lyrics.plugins.grounding_dino import GroundingDinoOptions
from lyrics.plugins.grounding_dino.detector import GroundingDino, network_config, prompt_writer
from lyrics.plugins.grounding_dino.weights import UNUSED, from_original

_TOKENIZER = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")
#: The released Lyrics keeps its detector under the first name, and the backbone in it, by the authors ``backbone.0``,
#: under the second (Fengshenbang-LM 1867d84, models/Lyrics/backbone/backbone.py).
_RELEASED = "grounding_dino."
_BACKBONE = "backbone.swintransformer."


def convert(source: SourceCheckpoint, options: GroundingDinoOptions, context: BuildContext) -> ConversionPlan:
    """Return every tensor that something reads.

    Raises ``WeightsError`` when one is unknown, missing, or not of the shape that the options say.
    """
    load_transformers(  # to see that it does
        GroundingDinoForObjectDetection, network_config(options.numbers), from_original(source), source.path
    )
    names = {key: key.removeprefix("module.") for key in source}
    files = {name: source.folder / name for name in _TOKENIZER if (source.folder / name).is_file()}
    notes = ["set the detector's option checkpoint to this folder"]
    if not files:
        notes.append("set its option tokenizer to a folder with BERT's, or to the hub id google-bert/bert-base-uncased")
    return ConversionPlan(
        {name: Piece((key,)) for key, name in names.items() if not re.fullmatch(UNUSED, name)},
        files=files,
        notes=tuple(notes),
    )


def convert_released(
    source: Mapping[str, torch.Tensor], options: GroundingDinoOptions, context: BuildContext
) -> ConversionPlan:
    """Return the detector of the released Lyrics, in the names of our own state dict."""
    keys = {}
    for full in source:
        if full.startswith(_RELEASED):
            key = full.removeprefix(_RELEASED).replace(_BACKBONE, "backbone.0.", 1)
            if not re.fullmatch(UNUSED, key):
                keys[key] = full
    if not keys:
        raise WeightsError(
            f"the released Lyrics has no tensor under {_RELEASED} for refiner.detector; give a --model with "
            "another detector, such as "
            "cached, or with refiner.detector: null."
        )
    original = {key: source[full] for key, full in keys.items()}
    pieces = _pieces(original)
    names = _hub_names(original, options)
    return ConversionPlan(
        {f"network.{own}": Piece((keys[pieces[hub][0]],), _Part(*pieces[hub])) for own, hub in names.items() if hub},
        # A norm that transformers has after the last stage, which nothing reads (``weights.py``).
        new=tuple(f"network.{own}" for own, hub in names.items() if not hub),
        beside=Beside(
            "the text encoder's tokenizer (BERT's)", "bytes as tokens, with which no phrase is found", _read_tokenizer
        ),
    )


def _read_tokenizer(folder: Path, detector: GroundingDino) -> tuple[str, ...]:
    """Puts the tokenizer of a folder into a detector."""
    words = detector.num_words
    read_tokenizer(folder, words)
    options = detector.options.model_copy(update={"tokenizer": str(folder)})
    detector.writer = prompt_writer(options, detector.config, BuildContext("pretrained"))
    return fewer_tokens(folder, detector.writer.tokenizer, words)


def _pieces(original: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, str]]:
    """Return the hub's name -> (the authors' key that it comes from, the hub's name)."""
    from_original(original)  # unknown keys, and copies of the box head that differ
    return {name: (key, name) for key, tensor in original.items() for name in from_original({key: tensor})}


class _Part:
    """The hub's tensor ``name`` of the authors' tensor ``key``: the whole, or a part of a stacked projection."""

    def __init__(self, key: str, name: str) -> None:
        self.key, self.name = key, name

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return from_original({self.key: tensor})[self.name]


def _hub_names(original: Mapping[str, torch.Tensor], options: GroundingDinoOptions) -> dict[str, str | None]:
    """Return each tensor of transformers' network -> the hub's name of it, which transformers translates as it loads.

    None where there is none.

    It has no function that says how, so every tensor is marked with a number that no fresh one holds, loaded, and read.
    """
    state = from_original(original)
    numbered = dict(enumerate(state, start=1000))
    marked = {name: torch.tensor(float(number)).expand(state[name].shape) for number, name in numbered.items()}
    network = load_transformers(
        GroundingDinoForObjectDetection, network_config(options.numbers), marked, "the released Lyrics"
    )
    return {name: numbered.get(round(float(tensor.flatten()[0]))) for name, tensor in network.state_dict().items()}
