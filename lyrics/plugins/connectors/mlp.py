"""``mlp-projector``: LLaVA's connector.

Shapes: B images, N image tokens, Q soft tokens, R rows of a stream, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError, SpecError
from lyrics.core.stage1.streams import Features, Stream, StreamOutputs
from lyrics.plugins.connectors import MlpProjectorOptions


class MlpProjector(nn.Module):
    """Image tokens [B,N,image_dim] -> soft tokens [B,Q,hidden_size], one for each, whatever is asked about the image.

    Raises ``SpecError`` where the width or the number of image tokens is not known, or none is left.
    """

    segments = ("V",)

    def __init__(self, options: MlpProjectorOptions, context: BuildContext) -> None:
        super().__init__()
        if not context.image_dim:
            raise SpecError("mlp-projector: the width of image tokens is not known; name an image encoder.")
        count = options.num_tokens or context.image_tokens
        if not count:
            raise SpecError(
                "mlp-projector: the image encoder does not say how many tokens it gives; set "
                "query_transformer.options.num_tokens."
            )
        if count <= options.skip_tokens:
            raise SpecError(f"mlp-projector: skip_tokens {options.skip_tokens} leaves nothing of {count} image tokens.")
        self.image_tokens, self.skip_tokens = count, options.skip_tokens
        self.num_queries = count - options.skip_tokens
        self.hidden_size = options.hidden_size or context.image_dim
        self.mlp = nn.Sequential(nn.Linear(context.image_dim, self.hidden_size), nn.GELU())

    def project(self, features: Features) -> Features:
        """Nothing is prepared: what ``forward`` reads are the features themselves."""
        return features

    def forward(self, streams: Sequence[Stream], features: Features) -> StreamOutputs:
        """The soft tokens [R,Q,D] of each stream; its rows name images.

        Raises ``ContractError`` for another number of image tokens than it was built for.
        """
        tokens_BND = features.image_tokens_BND
        if tokens_BND.shape[1] != self.image_tokens or features.image_mask_BN is not None:
            raise ContractError(
                f"mlp-projector makes one soft token of each of {self.image_tokens} image tokens, and is given "
                f"{tokens_BND.shape[1]}{', some of them masked' if features.image_mask_BN is not None else ''}; set "
                "query_transformer.options.num_tokens, or take perceiver-resampler."
            )
        found_BQD = self.mlp(tokens_BND[:, self.skip_tokens :])
        return rows_of_streams(found_BQD, streams)


def rows_of_streams(found_BQD: torch.Tensor, streams: Sequence[Stream]) -> StreamOutputs:
    """For each stream the outputs of the images that its rows name."""
    outputs = {}
    for stream in streams:
        if stream.image_index_R is None or stream.text:
            raise ContractError(
                f"stream {stream.name!r} has text or no image, and this query transformer reads no text."
            )
        outputs[stream.name, "V"] = found_BQD[stream.image_index_R.to(found_BQD.device)]
    return StreamOutputs.of(outputs)
