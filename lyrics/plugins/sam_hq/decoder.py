"""From image embedding and prompts to mask logits, through the modules of transformers' SAM-HQ.

``SamHQModel.forward`` is not used: it upscales the image embedding as it was before the two-way transformer and drops
what that made of it (transformers 5.17 to 5.23; its plain SAM does not), so its masks are not those of the published
weights. The steps here are the authors' (Ke et al. 2023, figure 2), for the one mask that a box gives.

Shapes: K prompts, T tokens of a prompt, D prompt width, C = D / 8, h and w cells of the image embedding; masks are 4h x
4w.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import SamHQConfig, SamHQModel
from transformers.models.sam_hq.modeling_sam_hq import SamHQPositionalEmbedding


@dataclass(frozen=True)
class Embedding:
    """What the decoder reads of one image.

    ``image_Dhw``, and ``fine_CHW``, the features that sharpen the high-quality mask.
    """

    image_Dhw: torch.Tensor
    fine_CHW: torch.Tensor


def embed(network: SamHQModel, pixels_CHW: torch.Tensor) -> Embedding:
    """Return one image's embedding. One, because attention over its 4,096 tokens needs gigabytes by itself."""
    image_1Dhw, layers = network.get_image_embeddings(pixels_CHW[None])  # type: ignore[no-untyped-call]
    decoder = network.mask_decoder
    early_1Dhw = layers[0].permute(0, 3, 1, 2)  # of the first layer that attends everywhere
    fine_1CHW = _through(decoder.encoder_conv1, decoder.encoder_norm, decoder.encoder_conv2, image_1Dhw) + _through(
        decoder.compress_vit_conv1, decoder.compress_vit_norm, decoder.compress_vit_conv2, early_1Dhw
    )
    return Embedding(image_1Dhw[0], fine_1CHW[0])


def box_prompts(network: SamHQModel, boxes_px_K4: torch.Tensor) -> torch.Tensor:
    """Map boxes (xyxy, pixels of the canvas) -> prompt tokens [K, 2, D]."""
    sparse_1KTD, _ = network.prompt_encoder(None, None, boxes_px_K4[None], None)
    tokens_KTD: torch.Tensor = sparse_1KTD[0]
    return tokens_KTD


def decode(network: SamHQModel, embedding: Embedding, prompts_KTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask logits [K, 4h, 4w] of the first mask of SAM and of the high-quality mask.

    The authors' default output is their sum.
    """
    decoder = network.mask_decoder
    own_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, decoder.hq_token.weight])
    tokens_KTD = torch.cat([own_tokens.expand(len(prompts_KTD), -1, -1), prompts_KTD], dim=1)
    no_mask_D11 = network.prompt_encoder.no_mask_embed.weight[0][:, None, None]
    image_KDhw = (embedding.image_Dhw + no_mask_D11).expand(len(prompts_KTD), -1, -1, -1)
    position_1Dhw = network.get_image_wide_positional_embeddings()  # type: ignore[no-untyped-call]
    states_1KTD, cells_K1ND = decoder.transformer(
        point_embeddings=tokens_KTD[None],
        image_embeddings=image_KDhw,
        image_positional_embeddings=position_1Dhw.expand_as(image_KDhw),
        attention_similarity=None,
    )
    cells_KDhw = cells_K1ND[:, 0].transpose(1, 2).unflatten(2, image_KDhw.shape[2:])
    large_KCHW = decoder.activation(
        _through(decoder.upscale_conv1, decoder.upscale_layer_norm, decoder.upscale_conv2, cells_KDhw)
    )
    fine_KCHW = _through(decoder.mask_conv1, decoder.mask_norm, decoder.mask_conv2, large_KCHW) + embedding.fine_CHW
    first, quality = 1, len(own_tokens) - 1  # token 0 predicts the masks' IoU
    weights_KC = decoder.output_hypernetworks_mlps[0](states_1KTD[0, :, first])
    quality_weights_KC = decoder.hq_mask_mlp(states_1KTD[0, :, quality])
    return (
        torch.einsum("kc,kchw->khw", weights_KC, large_KCHW),
        torch.einsum("kc,kchw->khw", quality_weights_KC, fine_KCHW),
    )


def _through(first: nn.Module, norm: nn.Module, second: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Convolution, LayerNorm over channels, GELU, convolution: the block that the decoder is made of."""
    result: torch.Tensor = second(nn.functional.gelu(norm(first(features))))
    return result


class _Float32Positions(SamHQPositionalEmbedding):
    """Sines of places in the image, computed in float32 whatever the precision of the rest.

    bfloat16 has 8 bits for the phase.
    """

    def forward(self, input_coords: torch.Tensor, input_shape: tuple[int, int] | None = None) -> torch.Tensor:
        coords = input_coords.float()
        if input_shape is not None:
            coords = coords / coords.new_tensor([input_shape[1], input_shape[0]])
        phases = 2 * torch.pi * ((2 * coords - 1) @ self.positional_embedding.float())
        return torch.cat([phases.sin(), phases.cos()], dim=-1).to(self.positional_embedding.dtype)


def encode_positions_in_float32(network: SamHQModel, config: SamHQConfig) -> None:
    """Exchange the module that encodes places, of which the network has one under two names; its weight stays."""
    positions = _Float32Positions(config.vision_config)  # type: ignore[no-untyped-call]
    positions.positional_embedding = network.shared_image_embedding.positional_embedding
    network.shared_image_embedding = network.prompt_encoder.shared_embedding = positions
