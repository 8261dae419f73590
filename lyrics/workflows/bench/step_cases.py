"""Models and batches of ``lyrics bench step``: the paper's stage 1 and BLIP-2's at full size, texts of given lengths.

Letters: B samples.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lyrics.core.build import build_part
from lyrics.core.contracts import BuildContext
from lyrics.core.registry.registry import default_registry
from lyrics.core.resolve import Part
from lyrics.core.stage1.batch import PretrainBatch, Spatial
from lyrics.core.stage1.negatives import Negatives
from lyrics.core.stage1.streams import Features, Text

#: The paper's sizes: CLIP ViT-L/14 gives 257 tokens of 1024, Grounding DINO 900 query states of 256 with their boxes.
IMAGE_TOKENS, IMAGE_DIM, LOCAL_TOKENS, LOCAL_DIM = 257, 1024, 900, 260
#: Padded and true lengths of spatial text and caption, special tokens included.
PADDED, TRUE = (128, 32), (64, 16)
#: Of BLIP-2's captions: LAVIS pads to 32 tokens; COCO's captions have about 13 with [CLS] and [SEP].
BLIP2_PADDED, BLIP2_TRUE = (0, 32), (0, 13)
_OBJECT_TOKENS = 12
#: ``drawn`` lengths: objects of an image, evenly; words of a caption, normally, as COCO's (``captions_val2017``) have
#: them on average, a token each.
_OBJECTS, _WORDS, _SHORTEST = (1, 20), (10.5, 2.4), 6

#: Tiny sizes, as keywords of ``compare``; heads as wide as the kernels take them.
TOY: Mapping[str, Any] = {
    "sizes": {
        "num_visual": 4,
        "num_grounding": 4,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 300,
        "max_positions": 300,
    },
    "image": (5, 16),
    "local": (7, 12),
    "true": (16, 6),
    "padded": (32, 12),
}

#: Tokens of spatial text and caption: of every sample, or of each.
Lengths = tuple[int, int] | Sequence[tuple[int, int]]


def drawn_lengths(batch_size: int, seed: int = 0) -> list[tuple[int, int]]:
    """Lengths of spatial text and caption, special tokens included, as images with 1 to 20 objects and COCO's captions
    have them.
    """
    draw = random.Random(seed)
    found = []
    for _ in range(batch_size):
        spatial = 1 + _OBJECT_TOKENS * draw.randint(*_OBJECTS)
        found.append((spatial, 2 + max(_SHORTEST, round(draw.gauss(*_WORDS)))))
    return found


def longest(lengths: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """What a batch is padded to that is padded to its longest texts."""
    return max(spatial for spatial, _ in lengths), max(caption for _, caption in lengths)


def build_case(
    batch_size: int,
    lengths: Lengths,
    *,
    sizes: Mapping[str, Any] | None = None,
    image: tuple[int, int] = (IMAGE_TOKENS, IMAGE_DIM),
    local: tuple[int, int] = (LOCAL_TOKENS, LOCAL_DIM),
    padded: tuple[int, int] = PADDED,
    model: tuple[nn.Module, nn.ModuleDict] | None = None,
) -> tuple[nn.Module, nn.ModuleDict, Features, PretrainBatch, Negatives]:
    """Return a model and its objectives (random weights, no dropout), and a batch whose texts have the given lengths.

    Without ``model`` it is the paper's, of the given ``sizes``. Ids are padded to ``padded`` whatever the lengths, so
    that the baselines run padded. A spatial length of 0 is that of a model which reads no spatial text.
    """
    torch.manual_seed(0)
    query_transformer: Any
    query_transformer, objectives = model or paper_model(sizes or {}, image[1], local[1])
    pairs = [lengths] * batch_size if isinstance(lengths[0], int) else lengths
    spatial_B, caption_B = torch.tensor(pairs, dtype=torch.int64).T.contiguous()
    generator = torch.Generator().manual_seed(1)
    width = max(0, padded[0] - 1)
    ids = torch.randint(7, 200, (batch_size, width), generator=generator)
    numbers = (torch.arange(width) // _OBJECT_TOKENS).expand(batch_size, -1)
    exists = torch.arange(width) < spatial_B[:, None] - 1
    numbers = numbers.masked_fill(~exists, -1)
    spatial = Spatial(Text(ids, exists.sum(1)), numbers, numbers)
    words = torch.randint(7, 200, (batch_size, padded[1] - 2), generator=generator)
    batch = PretrainBatch(spatial, Text(words, caption_B - 2), torch.arange(batch_size), query_transformer.special)
    features = Features(torch.randn(batch_size, *image, generator=generator), {})
    if "S" in query_transformer.segments:
        tokens = torch.randn(batch_size, *local, generator=generator)
        features.local["detector"] = (tokens, torch.ones(batch_size, local[0], dtype=torch.bool))  # type: ignore[index]
    shifted = (torch.arange(batch_size) + 1) % batch_size
    return query_transformer, objectives, features, batch, Negatives(shifted, shifted.flip(0))


def paper_model(sizes: Mapping[str, Any], image_dim: int, local_dim: int) -> tuple[nn.Module, nn.ModuleDict]:
    """``mqformer`` and the four objectives of recipe ``paper``."""
    context = BuildContext("random", image_dim, {"detector": local_dim})
    return _model("mqformer", sizes, context, dict.fromkeys(("itc", "itm", "icg", "msp"), "paper"))


def blip2_model(sizes: Mapping[str, Any], image_dim: int) -> tuple[nn.Module, nn.ModuleDict]:
    """BLIP-2's ``qformer`` and its three objectives."""
    return _model("qformer", sizes, BuildContext("random", image_dim), dict.fromkeys(("itc", "itm", "icg"), "released"))


def _model(
    name: str, sizes: Mapping[str, Any], context: BuildContext, recipes: Mapping[str, str]
) -> tuple[nn.Module, nn.ModuleDict]:
    registry = default_registry()
    # BLIP-2's trainable ln_vision, which the paper's model continues from.
    options = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "normalize_image_tokens": True, **sizes}

    def build(kind: str, name: str, options: Mapping[str, Any], context: BuildContext) -> Any:
        entry = registry.component(kind, name)
        return build_part(Part(f"bench.{name}", entry, entry.component.options(**options)), context)

    query_transformer = build("query-transformer", name, options, context)
    context = BuildContext(
        "random", query_dim=query_transformer.hidden_size, query_segments=tuple(query_transformer.segments)
    )
    objectives = nn.ModuleDict(
        {name: build("objective", name, {"recipe": recipe}, context) for name, recipe in recipes.items()}
    )
    return query_transformer.eval(), objectives.eval()
