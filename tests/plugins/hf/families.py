"""Small configurations of the families that the plugins are named for, and checkpoints of them with random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from lyrics.plugins.hf import small

TOWER = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {**TOWER, "image_size": 32, "patch_size": 8}
_DINO2 = {**{name: value for name, value in VIT.items() if name != "intermediate_size"}, "mlp_ratio": 2}
CLIP_TEXT = {**TOWER, "vocab_size": 300, "max_position_embeddings": 16, "bos_token_id": 257, "eos_token_id": 258}

ENCODERS: Mapping[str, Mapping[str, Any]] = {
    "clip": {"vision_config": VIT, "text_config": CLIP_TEXT, "projection_dim": 16},
    "clip_vision_model": VIT,
    "siglip": {"vision_config": VIT, "text_config": {**CLIP_TEXT, "pad_token_id": 0}},
    "siglip_vision_model": VIT,
    "aimv2": {"vision_config": VIT, "text_config": {**TOWER, "vocab_size": 300}},
    "dinov2": _DINO2,
    "dinov2_with_registers": {**_DINO2, "num_register_tokens": 2},
    "dinov3_vit": {**VIT, "num_register_tokens": 2},
    "vit": VIT,
    "deit": VIT,
}

_NAMES = {"0": "cat", "1": "Traffic Light", "2": "N/A", "3": "dog", "4": "red car"}
_RT = {
    "id2label": _NAMES,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [16, 16, 16],
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "num_queries": 10,
    "decoder_in_channels": [16, 16, 16],
    "decoder_ffn_dim": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "num_denoising": 0,
    "hidden_expansion": 0.5,
}
_HGNET = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 8, 8],
    "hidden_sizes": [8, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "embedding_size": 8,
    "stage_in_channels": [8, 8, 16, 16],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [8, 16, 16, 16],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, False, False],
    "stage_kernel_size": [3, 3, 3, 3],
    "stage_numb_of_layers": [1, 1, 1, 1],
    "out_indices": [2, 3, 4],
}
_RESNET = {
    "model_type": "rt_detr_resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
    "out_indices": [2, 3, 4],
}

DETECTORS: Mapping[str, Mapping[str, Any]] = {
    "d_fine": {**_RT, "backbone_config": _HGNET},
    "rt_detr": {**_RT, "backbone_config": _RESNET},
    "rt_detr_v2": {**_RT, "backbone_config": _RESNET},
    "deimv2": {**_RT, "backbone_config": _HGNET},
    "rf_detr": {
        "id2label": _NAMES,
        "d_model": 16,
        "num_queries": 10,
        "decoder_layers": 2,
        "decoder_self_attention_heads": 2,
        "decoder_cross_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "group_detr": 2,
        "backbone_config": {
            "model_type": "rf_detr_dinov2",
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "num_windows": 2,
            "out_features": ["stage2", "stage4"],
        },
    },
    "yolos": {
        "id2label": _NAMES,
        **TOWER,
        "image_size": [64, 64],
        "patch_size": 16,
        "num_detection_tokens": 10,
    },
    "detr": {**{name: value for name, value in small.DETR.items() if name != "model_type"}, "id2label": _NAMES},
}

_SWIN = {
    "model_type": "swin",
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "out_features": ["stage2", "stage3", "stage4"],
    "out_indices": [2, 3, 4],
}
_OWL = {
    "text_config": CLIP_TEXT,
    "vision_config": {**TOWER, "image_size": 64, "patch_size": 16},
    "projection_dim": 16,
    "initializer_factor": 0.3,
}

ZERO_SHOT: Mapping[str, Mapping[str, Any]] = {
    "mm-grounding-dino": {
        "backbone_config": _SWIN,
        "text_config": {
            "model_type": "bert",
            "vocab_size": 1300,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 64,
        },
        "d_model": 64,
        "num_queries": 20,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "max_text_len": 32,
    },
    "owlvit": _OWL,
    "owlv2": _OWL,
    "omdet-turbo": {
        "text_config": {"model_type": "clip_text_model", **CLIP_TEXT, "max_position_embeddings": 40},
        "backbone_config": _SWIN,
        "apply_layernorm_after_vision_backbone": False,
        "image_size": 64,
        "encoder_in_channels": [16, 32, 64],
        "encoder_hidden_dim": 32,
        "encoder_dim_feedforward": 32,
        "num_queries": 10,
        "decoder_hidden_dim": 32,
        "decoder_num_heads": 2,
        "decoder_num_layers": 2,
        "decoder_dim_feedforward": 32,
        "vision_features_channels": [32, 32, 32],
        "class_embed_dim": 16,
        "task_encoder_hidden_dim": 16,
        "text_projection_in_dim": 16,
        "text_projection_out_dim": 16,
        "encoder_attention_heads": 2,
        "decoder_num_points": 2,
    },
}

_SAM_DECODER = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_SAM = {
    "vision_config": {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 3,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
        "mlp_ratio": 2.0,
        "initializer_range": 0.02,
    },
    "prompt_encoder_config": {"hidden_size": 16, "image_size": 64, "patch_size": 8},
    "mask_decoder_config": {**_SAM_DECODER, "iou_head_hidden_dim": 16},
}
SEGMENTERS: Mapping[str, Mapping[str, Any]] = {
    "sam": _SAM,
    "sam_hq": {**_SAM, "mask_decoder_config": {**_SAM["mask_decoder_config"], "vit_dim": 16}},
    "sam2": {name: value for name, value in small.SAM2.items() if name != "model_type"},
}


def checkpoint(auto_class: Any, model_type: str, config: Mapping[str, Any], folder: Path, **preprocessor: Any) -> Any:
    """Write a checkpoint of random weights, none of them 0, as transformers saves it; return its model.

    ``preprocessor`` are the entries of its ``preprocessor_config.json``; without any it has no such file.
    """
    torch.manual_seed(0)
    made = CONFIG_MAPPING[model_type](**config)
    model = auto_class.from_config(made) if hasattr(auto_class, "from_config") else auto_class(made)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any() or "bbox" in name:  # fresh heads and embeddings are 0, trained ones are not
                parameter.normal_(std=0.2)
    model.eval().save_pretrained(folder)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
    return model
