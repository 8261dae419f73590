"""``sam-hq-upstream``: the original code (segment-anything-hq 0.3) in the place of transformers' network.

Importing this file imports segment_anything_hq, and with it timm and torchvision.

Shapes: C color channels, H and W pixels, K boxes, h and w cells of the image embedding.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from segment_anything_hq.modeling import ImageEncoderViT, MaskDecoderHQ, PromptEncoder, Sam, TwoWayTransformer
from torch import nn
from transformers import SamHQConfig

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError
from lyrics.core.weights.pretrained import load_module, read_headers, read_tensors
from lyrics.core.weights.tensors import bounded
from lyrics.plugins.sam_hq import SamHqOptions
from lyrics.plugins.sam_hq.decoder import Embedding
from lyrics.plugins.sam_hq.segmenter import SamHq, located, settled_config
from lyrics.plugins.sam_hq.weights import is_original, to_original


class SamHqUpstream(SamHq):
    """``SamHq`` on the authors' modules; their decoder itself adds the first mask and the high-quality one."""

    reentrant = False

    def embed(self, pixels_CHW: torch.Tensor) -> Embedding:
        """Return one image's embedding.

        The fine features are those of the first layer that attends everywhere, as the encoder gives them.

        Raises:
            SpecError: the weights are not float32.
        """
        if pixels_CHW.dtype != torch.float32:
            raise SpecError(
                f"sam-hq-upstream runs in float32 only, and its weights are {pixels_CHW.dtype}; build with "
                "dtype=torch.float32, or use sam-hq."
            )
        image_1Dhw, layers = self.network.image_encoder(pixels_CHW[None])
        return Embedding(image_1Dhw[0], layers[0][0].permute(2, 0, 1))

    def mask_logits(self, embedding: Embedding, boxes_px_K4: torch.Tensor) -> torch.Tensor:
        """Return logits [K, 4h, 4w]."""
        sparse_KTD, dense_KDhw = self.network.prompt_encoder(points=None, boxes=boxes_px_K4, masks=None)
        logits_K1HW: torch.Tensor
        logits_K1HW, _ = self.network.mask_decoder(
            image_embeddings=embedding.image_Dhw[None],
            image_pe=self.network.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse_KTD,
            dense_prompt_embeddings=dense_KDhw,
            multimask_output=False,
            hq_token_only=False,
            interm_embeddings=embedding.fine_CHW.permute(1, 2, 0)[None, None],
        )
        return logits_K1HW[:, 0]


def original_network(config: SamHQConfig) -> Sam:
    """Return a configuration as the authors' modules.

    What it does not say is the same in all their published models (``build_sam.py``).
    """
    prompts: Any = config.prompt_encoder_config
    vision: Any = config.vision_config
    decoder: Any = config.mask_decoder_config
    prompt_width = prompts.hidden_size
    cells = (vision.image_size // vision.patch_size,) * 2
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=vision.image_size,
            patch_size=vision.patch_size,
            embed_dim=vision.hidden_size,
            depth=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            mlp_ratio=vision.mlp_ratio,
            out_chans=prompt_width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=vision.window_size,
            global_attn_indexes=tuple(vision.global_attn_indexes),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=prompt_width,
            image_embedding_size=cells,
            input_image_size=(vision.image_size, vision.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoderHQ(
            transformer_dim=prompt_width,
            transformer=TwoWayTransformer(
                depth=decoder.num_hidden_layers,
                embedding_dim=prompt_width,
                num_heads=decoder.num_attention_heads,
                mlp_dim=decoder.mlp_dim,
            ),
            iou_head_hidden_dim=prompt_width,
            vit_dim=vision.hidden_size,
        ),
    )


def build(options: SamHqOptions, context: BuildContext) -> SamHqUpstream:
    """Return the component ``sam-hq-upstream``.

    Raises ``WeightsError`` when the checkpoint is not found or does not fit the options.
    """
    path = located(options, context)
    config = settled_config(options, context, path)
    with nullcontext() if path is None else bounded(read_headers(path), path):
        network = original_network(config)
    if path is not None:
        state = read_tensors(path)
        load_module(network, state if is_original(state) else to_original(state, network.state_dict()), path)
    elif context.weights == "meta":
        network.to(
            "meta"
        )  # its mean and standard deviation, which nothing reads here, do not follow the device in force
    return SamHqUpstream(options, network, config).eval()
