"""Pictures and comparisons that the checks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lyrics.core.types import ImageBatch

#: How far apart two float32 results may be that should be the same: summing in another order moves them by less.
TOLERANCE = 1e-4
SIZES_PX = ((96, 64), (48, 80))


def batch(preprocessing: Any, count: int, first: int = 0) -> ImageBatch:
    """``count`` pictures of different sizes and content, from number ``first`` on, as the expert reads them."""
    import numpy as np
    from PIL import Image

    from lyrics.core.processor import prepare

    pictures = []
    for index in range(first, first + count):
        width, height = SIZES_PX[index]
        noise = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        pictures.append(Image.fromarray(noise))
    return prepare(pictures, preprocessing)


def close(found: Any, expected: Any, what: str, *, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape, f"{what} differ in shape: {tuple(found.shape)} and {tuple(expected.shape)}"
    if found.numel():
        worst = float((found - expected).abs().max())
        assert worst <= tolerance, f"{what} differ by {worst:.2g}"


def objective_loss(objective: Any, width: int, objects: Sequence[int], caption_lengths: Sequence[int]) -> Any:
    """One objective's loss over query and text outputs that are random but depend on nothing else.

    Args:
        objective: keeps the ``objective`` contract.
        width: of hidden states.
        objects: number of objects of each sample.
        caption_lengths: caption tokens of each sample.
    """
    import torch

    from lyrics.core.streams import Features, ProjectedFeatures, SpecialTokens, Stream, StreamOutputs, Text
    from lyrics.core.training.batch import PretrainBatch, Spatial
    from lyrics.core.training.step import pretrain_losses

    vocabulary, num_queries = 40, 3
    generator = torch.Generator().manual_seed(0)
    output_weight = torch.randn(vocabulary, width, generator=generator)

    class RandomTransformer:
        """Answers every stream with noise of the right shape."""

        def project(self, features: Features) -> ProjectedFeatures:
            return ProjectedFeatures(features.num_images, {}, {}, None, None)

        def token_logits(self, hidden_nD: torch.Tensor) -> torch.Tensor:
            return hidden_nD @ output_weight.T

        def __call__(self, streams: Sequence[Stream], features: ProjectedFeatures) -> StreamOutputs:
            where, taken = {}, 0
            for stream in streams:
                for segment, wanted in stream.wanted.items():
                    if segment in "VG":
                        shape: tuple[int, ...] = (stream.num_rows, num_queries)
                    elif isinstance(wanted, torch.Tensor):
                        shape = (int((wanted & stream.text[segment].mask_RL).sum()),)
                    else:
                        shape = (stream.num_rows if wanted == "first" else int(stream.text[segment].lengths_R.sum()),)
                    count = int(torch.tensor(shape).prod())
                    where[stream.name, segment] = (torch.arange(taken, taken + count), shape)
                    taken += count
            return StreamOutputs(torch.randn(taken, width, generator=generator, requires_grad=True), where)

    size = len(objects)
    texts = PretrainBatch(
        spatial=Spatial.from_objects([[[[20, 21], [22], [23]]] * count for count in objects]),
        caption=Text.from_lists([list(range(10, 10 + length)) for length in caption_lengths]),
        sample_B=torch.arange(size),
        special=SpecialTokens(pad=0, cls=1, sep=2, mask=3, bos=4, dec=5, mlm=6),
    )
    features = Features(torch.zeros(size, 1, width))
    return pretrain_losses(RandomTransformer(), {"objective": objective}, features, texts)["objective"]
