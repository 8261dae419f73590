"""Converters of RAM and RAM++: recognize-anything's ``.pth`` files, and RAM inside the released Lyrics.

The tagger reads upstream's names (``checkpoint.py``), so they stay. The tag list and the thresholds are in no
checkpoint; upstream has them as ``ram_tag_list.txt`` and ``ram_tag_list_threshold.txt`` in its source
(recognize-anything 7cb804a, ``ram/data``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from lyrics.core.contracts import BuildContext
from lyrics.core.conversion.plan import Beside, ConversionPlan, Piece, SourceCheckpoint
from lyrics.core.errors import WeightsError
from lyrics.plugins.ram_plus import RamOptions, RamPlusOptions
from lyrics.plugins.ram_plus.checkpoint import (
    IGNORED,
    PROJECTION,
    TAGS,
    THRESHOLDS,
    _read_tags,
    _read_thresholds,
    from_upstream,
    upstream_name,
)
from lyrics.plugins.ram_plus.tagger import RamTagger, build_ram, build_ram_plus

#: Our file -> upstream's name of it.
_LISTS = {TAGS: "ram_tag_list.txt", THRESHOLDS: "ram_tag_list_threshold.txt"}
_SOURCE = "https://github.com/xinyu1205/recognize-anything/tree/main/ram/data"
#: The released Lyrics keeps its tagger under this name.
_RELEASED = "ram."


def convert(source: SourceCheckpoint, options: RamOptions, context: BuildContext) -> ConversionPlan:
    """Return ``ram`` or ``ram-plus``, by the options.

    Raises ``WeightsError`` as ``from_upstream`` does, or for a list that is not there.
    """
    from_upstream(source.shapes(), _on_meta(options).state_dict(), source=str(source.path))
    kept = {key: Piece((key,)) for key in source if not IGNORED.fullmatch(key)}
    files = {name: _list(source.folder, name, options.num_tags) for name in _LISTS}
    return ConversionPlan(kept, files=files, notes=("set the tagger's option checkpoint to this folder",))


def convert_released(source: Mapping[str, torch.Tensor], options: RamOptions, context: BuildContext) -> ConversionPlan:
    """Return the tagger of the released Lyrics, in the names of our own state dict."""
    prefixed = {key.removeprefix(_RELEASED): key for key in source if key.startswith(_RELEASED)}
    names = {key.replace("vision_multi.", "tagging_head."): full for key, full in prefixed.items()}
    own = _on_meta(options).state_dict()
    missing = [upstream_name(name) for name in own if upstream_name(name) not in names]
    if missing:
        raise WeightsError(
            f"the released Lyrics has no tensor {_RELEASED}{missing[0]} ({len(missing)} are missing) for "
            "refiner.tagger; give a --model "
            "with another tagger, such as cached, or with refiner.tagger: null."
        )
    return ConversionPlan(
        {name: Piece((names[upstream_name(name)],), _Part(name)) for name in own},
        beside=Beside(
            f"the tag list ({_LISTS[TAGS]}) with the thresholds ({_LISTS[THRESHOLDS]})",
            f'tags named "tag 0" to "tag {options.num_tags - 1}", one threshold for all',
            _Lists(options),
        ),
    )


class _Lists:
    """Puts the two lists of a folder into a tagger."""

    def __init__(self, options: RamOptions) -> None:
        self.options = options

    def __call__(self, folder: Path, tagger: RamTagger) -> tuple[str, ...]:
        tags, thresholds = (_list(folder, name, self.options.num_tags) for name in _LISTS)
        tagger.tags = _read_tags(tags, self.options.num_tags)
        if self.options.threshold is None:
            tagger.thresholds = _read_thresholds(thresholds, self.options.num_tags)
        return ()


class _Part:
    """Our part of upstream's tensor: one of three projections that upstream stores as one."""

    def __init__(self, name: str) -> None:
        found = PROJECTION.search(name)
        self.index = None if found is None else "qkv".index(found[1])

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.index is None else tensor.chunk(3)[self.index]


def _on_meta(options: RamOptions) -> RamTagger:
    with torch.device("meta"):
        if isinstance(options, RamPlusOptions):
            return build_ram_plus(options, BuildContext("meta"))
        return build_ram(options, BuildContext("meta"))


def _list(folder: Path, name: str, num_tags: int) -> Path:
    """Return the list of that name in a folder, under ours or upstream's name."""
    found = next((folder / n for n in (name, _LISTS[name]) if (folder / n).is_file()), None)
    if found is None:
        raise WeightsError(
            f"{folder}: has no {_LISTS[name]} (or {name}), which the tagger needs and no checkpoint holds. Put it "
            f"there; upstream has it at {_SOURCE}."
        )
    lines = len(found.read_bytes().splitlines())
    if lines != num_tags:
        raise WeightsError(
            f"{found}: has {lines} lines, but the tagger knows {num_tags} tags; one line each is expected."
        )
    return found
