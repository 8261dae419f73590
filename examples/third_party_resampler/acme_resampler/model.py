"""The query transformer. Shapes: B images, N image tokens, R rows of a stream, Q queries, D width."""

import torch
from torch import nn

from lyrics.types import StreamOutputs


class Layer(nn.Module):
    """Queries read the image and each other, then each is transformed by itself."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, queries_BQD, image_BND):
        seen_BLD = torch.cat([image_BND, queries_BQD], dim=1)
        queries_BQD = queries_BQD + self.attention(self.norm(queries_BQD), seen_BLD, seen_BLD, need_weights=False)[0]
        return queries_BQD + self.ffn(self.ffn_norm(queries_BQD))


class AcmeResampler(nn.Module):
    """The same number of soft tokens for every image, whatever is asked about it."""

    def __init__(self, options, context):
        super().__init__()
        self.hidden_size, self.num_queries = options.hidden_size, options.num_queries
        self.segments = options.segments
        self.queries_QD = nn.Parameter(0.02 * torch.randn(options.num_queries, options.hidden_size))
        self.read = nn.Linear(context.image_dim, options.hidden_size)
        self.layers = nn.ModuleList(Layer(options.hidden_size, options.num_heads) for _ in range(options.num_layers))

    def project(self, features):
        """Nothing is prepared: what ``forward`` reads are the features themselves."""
        return features

    def forward(self, streams, features):
        """The queries' states [R,Q,D] for each stream; its rows name images."""
        image_BND = self.read(features.image_tokens_BND)
        queries_BQD = self.queries_QD.expand(len(image_BND), -1, -1)
        for layer in self.layers:
            queries_BQD = layer(queries_BQD, image_BND)
        return StreamOutputs.of({(s.name, "V"): queries_BQD[s.image_index_R.to(queries_BQD.device)] for s in streams})
