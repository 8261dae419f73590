"""Reads a RAM or RAM++ checkpoint in upstream's naming, every tensor accounted for, with its tag list and thresholds.

Names were read from recognize-anything 7cb804a (Apache-2.0).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from lyrics.core.errors import WeightsError
from lyrics.core.weights.pretrained import load_module, locate_checkpoint, read_tensors

Tags = tuple[str, ...]
Thresholds = tuple[float, ...]

TAGS, THRESHOLDS = "tags.txt", "thresholds.txt"

# In upstream's files and of no use here: RAM's captioning half, and buffers that follow from the configuration.
IGNORED = re.compile(r"(tag_encoder|text_decoder)\..*|visual_encoder\..*\.(relative_position_index|attn_mask)")

ADVICE = (
    "Set backbone, window_size, num_tags, head_* and, for ram-plus, num_descriptions to the checkpoint's; "
    "ram reads RAM and ram-plus reads RAM++."
)

# One of transformers' three projections, which upstream stores as one.
PROJECTION = re.compile(r"\.([qkv])_proj\.")

# Our name -> upstream's. The first pattern that matches the whole name is applied; other names are the same in both.
RENAMES = [
    (r"visual_encoder\.embeddings\.patch_embeddings\.projection\.(\w+)", r"visual_encoder.patch_embed.proj.\1"),
    (r"visual_encoder\.embeddings\.norm\.(\w+)", r"visual_encoder.patch_embed.norm.\1"),
    (r"visual_encoder\.layernorm\.(\w+)", r"visual_encoder.norm.\1"),
    (r"visual_encoder\.encoder\.(layers\.\d+\.downsample\..+)", r"visual_encoder.\1"),
    (r"visual_encoder\.encoder\.(layers\.\d+\.blocks\.\d+)\.layernorm_before\.(\w+)", r"visual_encoder.\1.norm1.\2"),
    (r"visual_encoder\.encoder\.(layers\.\d+\.blocks\.\d+)\.layernorm_after\.(\w+)", r"visual_encoder.\1.norm2.\2"),
    (r"visual_encoder\.encoder\.(layers\.\d+\.blocks\.\d+\.mlp\..+)", r"visual_encoder.\1"),
    (
        r"visual_encoder\.encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.[qkv]_proj\.(\w+)",
        r"visual_encoder.\1.attn.qkv.\2",
    ),
    (
        r"visual_encoder\.encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.o_proj\.(\w+)",
        r"visual_encoder.\1.attn.proj.\2",
    ),
    (
        r"visual_encoder\.encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.relative_position_bias\.(\w+)",
        r"visual_encoder.\1.attn.\2",
    ),
    (r"tagging_head\.(\d+)\.(query|key|value)\.(\w+)", r"tagging_head.encoder.layer.\1.crossattention.self.\2.\3"),
    (r"tagging_head\.(\d+)\.attention_output\.(\w+)", r"tagging_head.encoder.layer.\1.crossattention.output.dense.\2"),
    (
        r"tagging_head\.(\d+)\.attention_norm\.(\w+)",
        r"tagging_head.encoder.layer.\1.crossattention.output.LayerNorm.\2",
    ),
    (r"tagging_head\.(\d+)\.mlp_in\.(\w+)", r"tagging_head.encoder.layer.\1.intermediate.dense.\2"),
    (r"tagging_head\.(\d+)\.mlp_out\.(\w+)", r"tagging_head.encoder.layer.\1.output.dense.\2"),
    (r"tagging_head\.(\d+)\.mlp_norm\.(\w+)", r"tagging_head.encoder.layer.\1.output.LayerNorm.\2"),
]


def find_checkpoint(checkpoint: str | None, *, downloads: bool = True) -> Path:
    """Return the folder of ``checkpoint``: a local one, or a hub repository's.

    Raises ``WeightsError`` where there is none.
    """
    if checkpoint is None:
        raise WeightsError(
            "this tagger has no default checkpoint, because upstream publishes .pth files only. Convert one with "
            "`lyrics convert FILE.pth FOLDER --from ram-plus` (or ram), and set the option checkpoint to the folder; "
            "or build with weights='random'"
        )
    return locate_checkpoint(checkpoint, also=(TAGS, THRESHOLDS), downloads=downloads)


def load_checkpoint(tagger: nn.Module, folder: Path, num_tags: int) -> tuple[Tags, Thresholds]:
    """Fill ``tagger`` from a folder that ``find_checkpoint`` found; returns its tags and thresholds, in class order.

    Raises:
        WeightsError: a file is missing or malformed, the numbers of lines and of classes differ, or the tensors are
            not those of ``tagger`` (see ``from_upstream``).
    """
    tags = _read_tags(folder / TAGS, num_tags)
    thresholds = _read_thresholds(folder / THRESHOLDS, num_tags)
    source = repr(str(folder))
    load_module(tagger, from_upstream(read_tensors(folder), tagger.state_dict(), source=source), source)
    return tags, thresholds


def from_upstream(
    upstream: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *, source: str
) -> dict[str, torch.Tensor]:
    """Upstream's state dict -> ours, with exactly the names and shapes of ``expected``.

    Left out on purpose is what ``IGNORED`` matches. Older files spell ``tagging_head`` as ``vision_multi``; both are
    read. Upstream's joint ``qkv`` projection is split into transformers' three. ``source`` names the file in errors.

    Raises:
        WeightsError: a tensor is missing, unexpected or of another shape, named as upstream names it.
    """
    found = {_modern(name, upstream): tensor for name, tensor in upstream.items() if not IGNORED.fullmatch(name)}
    _match(
        {upstream_name(name): _upstream_shape(name, tensor) for name, tensor in expected.items()},
        {name: tensor.shape for name, tensor in found.items()},
        source,
    )
    return {name: _own(name, found[upstream_name(name)]) for name in expected}


def upstream_name(name: str) -> str:
    """Return what upstream calls our tensor ``name``."""
    for pattern, theirs in RENAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(theirs)
    return name


def _modern(name: str, upstream: Mapping[str, torch.Tensor]) -> str:
    """The newer spelling of ``name``, unless the file has that too: then one of both is left over and is reported."""
    newer = name.replace("vision_multi.", "tagging_head.")
    return name if newer in upstream else newer


def _upstream_shape(name: str, tensor: torch.Tensor) -> torch.Size:
    return torch.Size((3 * tensor.shape[0], *tensor.shape[1:])) if PROJECTION.search(name) else tensor.shape


def _own(name: str, upstream: torch.Tensor) -> torch.Tensor:
    """Our part of upstream's tensor."""
    projection = PROJECTION.search(name)
    return upstream.chunk(3)["qkv".index(projection[1])] if projection else upstream


def _read_tags(path: Path, num_tags: int) -> tuple[str, ...]:
    line_of: dict[str, int] = {}
    for number, line in enumerate(_lines(path, num_tags), start=1):
        tag = line.strip()
        if not tag:
            raise WeightsError(f"{path}, line {number}: the tag is empty")
        if tag in line_of:
            raise WeightsError(f"{path}, line {number}: {tag!r} is also on line {line_of[tag]}; tags must differ")
        line_of[tag] = number
    return tuple(line_of)


def _read_thresholds(path: Path, num_tags: int) -> tuple[float, ...]:
    thresholds = []
    for number, line in enumerate(_lines(path, num_tags), start=1):
        try:
            threshold = float(line)
        except ValueError:
            threshold = math.nan
        if not 0 <= threshold <= 1:
            raise WeightsError(f"{path}, line {number}: {line!r} is not a probability between 0 and 1")
        thresholds.append(threshold)
    return tuple(thresholds)


def _lines(path: Path, num_tags: int) -> list[str]:
    try:
        # People edit these lists, and some editors put a mark at the beginning.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: a tagger needs it, one line per class, and it cannot be read: {error}") from error
    if len(lines) != num_tags:
        raise WeightsError(f"{path} has {len(lines)} lines, but num_tags is {num_tags}; one line per class is expected")
    return lines


def _match(wanted: Mapping[str, torch.Size], found: Mapping[str, torch.Size], source: str) -> None:
    """Raises ``WeightsError`` unless both have the same names and shapes.

    It lists the first of each kind of difference.
    """
    misshapen = [
        f"{name} (it is {list(found[name])}, the options ask for {list(wanted[name])})"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name] != found[name]
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in (
            ("missing", sorted(wanted.keys() - found.keys())),
            ("unexpected", sorted(found.keys() - wanted.keys())),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise WeightsError(f"{source} does not fit the options; tensors {'; '.join(problems)}. {ADVICE}")
