"""Images and comparisons that the checks share."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lyrics.core.types import ImageBatch

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from lyrics.core.contracts import QueryTransformer
    from lyrics.core.stage1.batch import PretrainBatch

#: How far apart two float32 results may be that should be the same: summing in another order moves them by less.
TOLERANCE = 1e-4
SIZES_PX = ((96, 64), (48, 80))


def batch(preprocessing: Any, count: int, first: int = 0) -> ImageBatch:
    """Return ``count`` images of different sizes and content, from number ``first`` on, as the expert reads them."""
    from lyrics.core.pictures.processor import prepare

    return prepare([noise(index) for index in range(first, first + count)], preprocessing)


def noise(index: int) -> PILImage:
    """Return an image of noise; its number decides its size and its content."""
    import numpy as np
    from PIL import Image

    width, height = SIZES_PX[index % len(SIZES_PX)]
    return Image.fromarray(np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8))


def close(found: Any, expected: Any, what: str, *, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape, f"{what} differ in shape: {tuple(found.shape)} and {tuple(expected.shape)}"
    if found.numel():
        worst = float((found - expected).detach().abs().max())
        assert worst <= tolerance, f"{what} differ by {worst:.2g}"


def objective_loss(
    objective: Any,
    width: int,
    objects: Sequence[int],
    caption_lengths: Sequence[int],
    *,
    segments: tuple[str, ...] = ("V", "G", "S", "C"),
    first: int = 0,
) -> Any:
    """Return one objective's loss over query and text outputs that are noise.

    The noise is a function of the sample, the stream and the segment.

    Args:
        objective: keeps the ``objective`` contract.
        width: of hidden states.
        objects: number of objects of each sample.
        caption_lengths: caption tokens of each sample.
        segments: of the query transformer.
        first: number of the first sample in the order of the data.
    """
    import torch

    from lyrics.core.stage1.step import pretrain_losses
    from lyrics.core.stage1.streams import Features

    batch = pretrain_batch(objects, caption_lengths, first=first)
    features = Features(torch.zeros(len(objects), 1, width))
    return pretrain_losses(_noise_transformer(width, segments), {"objective": objective}, features, batch)["objective"]


def pretrain_batch(objects: Sequence[int], caption_lengths: Sequence[int], *, first: int = 0) -> PretrainBatch:
    """Texts of one sample per entry: so many objects, so many caption tokens; ids are below 40."""
    import torch

    from lyrics.core.stage1.batch import PretrainBatch, Spatial
    from lyrics.core.stage1.streams import SpecialTokens, Text

    return PretrainBatch(
        spatial=Spatial.from_objects([[[[20, 21], [22], [23]]] * count for count in objects]),
        caption=Text.from_lists([list(range(10, 10 + length)) for length in caption_lengths]),
        sample_B=torch.arange(first, first + len(objects)),
        special=SpecialTokens(pad=0, cls=1, sep=2, mask=3, bos=4, dec=5, mlm=6),
    )


def _noise_transformer(width: int, segments: tuple[str, ...]) -> QueryTransformer:
    import torch

    from lyrics.core.language.tokenizers import byte_tokenizer
    from lyrics.core.stage1.streams import Features, Stream, StreamOutputs

    class NoiseTransformer(torch.nn.Module):
        """Hidden states of the right shape, whatever the features and the texts."""

        def __init__(self) -> None:
            super().__init__()
            self.hidden_size, self.num_queries, self.segments, self.max_positions = width, 6, segments, 512
            self.tokenizer = byte_tokenizer(())
            self.output_weight = torch.randn(40, width, generator=torch.Generator().manual_seed(0))

        def project(self, features: Features) -> Features:
            return features

        def token_logits(self, hidden_nD: torch.Tensor) -> torch.Tensor:
            return hidden_nD @ self.output_weight.T

        def forward(self, streams: Sequence[Stream], features: Features) -> StreamOutputs:
            return StreamOutputs.of(
                {
                    (stream.name, segment): self.hidden(stream, segment)
                    for stream in streams
                    for segment in stream.wanted
                }
            )

        def hidden(self, stream: Stream, segment: str) -> torch.Tensor:
            rows = []
            for row, sample in enumerate(stream.sample_R.tolist()):
                seed = zlib.crc32(f"{sample} {stream.name} {segment}".encode())
                length = 3 if segment in "VG" else int(stream.text[segment].lengths_R[row])
                hidden_LD = torch.randn(length, width, generator=torch.Generator().manual_seed(seed))
                wanted = stream.wanted[segment]
                if isinstance(wanted, torch.Tensor):
                    hidden_LD = hidden_LD[wanted[row, :length]]
                rows.append(hidden_LD[0] if isinstance(wanted, str) and wanted == "first" else hidden_LD)
            if segment in "VG" or (isinstance(stream.wanted[segment], str) and stream.wanted[segment] == "first"):
                return torch.stack(rows).requires_grad_()
            return torch.cat(rows).requires_grad_()

    return NoiseTransformer()
