"""Small parts that keep their contracts: what stands around the component that is checked.

Shapes as in ``lyrics.core.contracts``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.geometry import Box
from lyrics.core.language.tokenizers import byte_tokenizer
from lyrics.core.masks import Mask
from lyrics.core.registry.component import NoOptions
from lyrics.core.stage1.streams import Features, Stream, StreamOutputs
from lyrics.core.types import Detection, DetectorOutput, ImageBatch, Preprocessing, SegmenterOutput, Tag

_PREPROCESSING = Preprocessing("squash", 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_TAGS = (Tag("red star", 0.9), Tag("blue box", 0.8), Tag("gray ring", 0.7))


class Encoder(nn.Module):
    """One token for each quarter of the image."""

    preprocessing = _PREPROCESSING
    feature_dim, num_tokens = 6, 4

    def __init__(self, options: NoOptions, context: BuildContext) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, self.feature_dim, 4, stride=4)

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return self.patches(pixels_BCHW).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class FixedTagger(nn.Module):
    """The same tags for every image."""

    preprocessing = _PREPROCESSING

    def __init__(self, options: NoOptions, context: BuildContext) -> None:
        super().__init__()

    def forward(self, images: ImageBatch) -> list[list[Tag]]:
        return [list(_TAGS) for _ in range(len(images))]


class FixedDetector(Encoder):
    """Finds every phrase; the boxes of different phrases differ."""

    feature_dim = 5

    def forward(self, images: ImageBatch, phrases: Sequence[Sequence[str]]) -> DetectorOutput:  # type: ignore[override]
        found = tuple(
            tuple(
                Detection(phrase, Box(0.1 * index, 0.05, 0.1 * index + 0.3, 0.6), 0.9 - 0.1 * index)
                for index, phrase in enumerate(row[:6])
            )
            for row in phrases
        )
        tokens_BMD = super().forward(images.pixels_BCHW)
        return DetectorOutput(found, tokens_BMD, torch.ones_like(tokens_BMD[..., 0], dtype=torch.bool))


class FixedSegmenter(Encoder):
    """An object's mask is its box, and its token that of the image and the number of the box."""

    feature_dim = 4

    def forward(self, images: ImageBatch, boxes: Sequence[Sequence[Box]]) -> SegmenterOutput:  # type: ignore[override]
        masks = tuple(
            tuple(Mask.from_box(box, frame.original_size) for box in row)
            for row, frame in zip(boxes, images.frames, strict=True)
        )
        most = max((len(row) for row in boxes), default=0)
        image_B1D = super().forward(images.pixels_BCHW).mean(dim=1, keepdim=True)
        tokens_BKD = image_B1D + torch.arange(most, device=image_B1D.device)[None, :, None]
        exists = [[index < len(row) for index in range(most)] for row in boxes]
        mask_BK = torch.tensor(exists, dtype=torch.bool, device=image_B1D.device).view(len(boxes), most)
        return SegmenterOutput(masks, tokens_BKD, mask_BK)


class Resampler(nn.Module):
    """A query transformer that reads no text: each query takes what it attends to of the image."""

    hidden_size, num_queries = 8, 2
    segments = ("V",)

    def __init__(self, options: NoOptions, context: BuildContext) -> None:
        super().__init__()
        self.queries_QD = nn.Parameter(torch.randn(self.num_queries, self.hidden_size))
        self.read = nn.Linear(context.image_dim, self.hidden_size)

    def project(self, features: Features) -> Features:
        return features

    def forward(self, streams: Sequence[Stream], features: Features) -> StreamOutputs:
        image_BND = self.read(features.image_tokens_BND)
        attention_BQN = (self.queries_QD @ image_BND.transpose(1, 2)).softmax(dim=-1)
        found_BQD = self.queries_QD + attention_BQN @ image_BND
        outputs = {}
        for stream in streams:
            assert stream.image_index_R is not None
            assert not stream.text, "text for a part that reads none"
            outputs[stream.name, "V"] = found_BQD[stream.image_index_R.to(found_BQD.device)]
        return StreamOutputs.of(outputs)


class WordModel(nn.Module):
    """A language model in which every token sees the mean of those before it. All of it is trained."""

    hidden_size, max_positions = 16, 512
    adaptation, chat_template = "full", "plain"

    def __init__(self, options: NoOptions, context: BuildContext) -> None:
        super().__init__()
        self.tokenizer = byte_tokenizer(("<pad>", "<s>", "</s>"))
        self.words = nn.Embedding(len(self.tokenizer), self.hidden_size)
        self.mix = nn.Linear(2 * self.hidden_size, self.hidden_size)

    def embed(self, input_ids_BL: torch.Tensor) -> torch.Tensor:
        return self.words(input_ids_BL)  # type: ignore[no-any-return]

    def forward(self, embeddings_BLD: torch.Tensor, attention_mask_BL: torch.Tensor) -> torch.Tensor:
        mask_BL1 = attention_mask_BL[..., None].to(embeddings_BLD.dtype)
        before_BLD = (embeddings_BLD * mask_BL1).cumsum(dim=1) / mask_BL1.cumsum(dim=1).clamp(min=1)
        hidden_BLD = torch.tanh(self.mix(torch.cat([embeddings_BLD, before_BLD], dim=-1)))
        return hidden_BLD @ self.words.weight.T

    @torch.no_grad()
    def generate(
        self,
        embeddings_BLD: torch.Tensor,
        attention_mask_BL: torch.Tensor,
        *,
        max_new_tokens: int,
        on_token: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        new: list[torch.Tensor] = []
        for _ in range(max_new_tokens):
            new.append(self(embeddings_BLD, attention_mask_BL)[:, -1:].argmax(-1))
            if on_token is not None:
                on_token(int(new[-1]))
            embeddings_BLD = torch.cat([embeddings_BLD, self.embed(new[-1])], dim=1)
            attention_mask_BL = torch.cat([attention_mask_BL, torch.ones_like(new[-1])], dim=1)
        return torch.cat(new, dim=1)
