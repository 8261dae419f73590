"""Configurations of small networks: what the conformance suite builds. Imports no torch."""

from __future__ import annotations

from typing import Any

_TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}

SIGLIP: dict[str, Any] = {"model_type": "siglip_vision_model", **_TOWER, "image_size": 32, "patch_size": 8}

DETR: dict[str, Any] = {
    "model_type": "detr",
    "id2label": {"0": "red circle", "1": "dog", "2": "a man with a hat"},
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage4"],
    },
    "d_model": 16,
    "num_queries": 10,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "init_std": 0.3,  # with less, all boxes are nearly the same
}
#: Entries of its preprocessor_config.json.
SQUARE: dict[str, Any] = {"size": {"height": 64, "width": 64}}

OWLV2: dict[str, Any] = {
    "model_type": "owlv2",
    "text_config": {
        **_TOWER,
        "vocab_size": 300,
        "max_position_embeddings": 16,
        "bos_token_id": 257,
        "eos_token_id": 258,
    },
    "vision_config": {**_TOWER, "image_size": 64, "patch_size": 16},
    "projection_dim": 16,
    "initializer_factor": 0.3,  # with more, boxes have no area
}

_HIERA: dict[str, Any] = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "image_size": [64, 64],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [4, 2, 4, 2],
    "global_attention_blocks": [3],
    "window_positional_embedding_background_size": [4, 4],
}

_MASK_DECODER: dict[str, Any] = {
    "hidden_size": 32,
    "mlp_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 32,
}

SAM2: dict[str, Any] = {
    "model_type": "sam2",
    "vision_config": {
        "backbone_config": _HIERA,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 16},
    "mask_decoder_config": _MASK_DECODER,
}

_DETR3: dict[str, Any] = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}

SAM3: dict[str, Any] = {
    "model_type": "sam3",
    "vision_config": {
        "backbone_config": {
            "model_type": "sam3_vit_model",
            **_TOWER,
            "image_size": 56,
            "patch_size": 14,
            "window_size": 2,
            "global_attn_indexes": [1],
            "pretrain_image_size": 28,
        },
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "scale_factors": [4.0, 2.0, 1.0, 0.5],
    },
    "text_config": {
        **_TOWER,
        "vocab_size": 300,
        "max_position_embeddings": 32,
        "bos_token_id": 257,
        "eos_token_id": 258,
    },
    "geometry_encoder_config": _DETR3,
    "detr_encoder_config": _DETR3,
    "detr_decoder_config": {**_DETR3, "num_queries": 10},
    "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
}

SIGLIP_PAIR: dict[str, Any] = {
    "model_type": "siglip",
    "vision_config": {**_TOWER, "image_size": 32, "patch_size": 8},
    "text_config": {**_TOWER, "vocab_size": 300, "max_position_embeddings": 40, "projection_size": 16},
}
