"""Refiners for photographs, and a model of today's parts. Imports no torch.

The numbers are those of the checkpoints' own configurations; with pretrained weights they are compared with them.
"""

from __future__ import annotations

from lyrics.core.spec import ModelSpec, ObjectiveSlot, RefinerSpec, Slot

#: D-FINE-S (Peng et al. 2024): 10.3M parameters, 41.5 MB, Apache-2.0; COCO's 80 classes, trained on Objects365 before.
_D_FINE_SMALL = {
    "model_type": "d_fine",
    "num_labels": 80,
    "backbone_config": {
        "model_type": "hgnet_v2",  # B0
        "hidden_sizes": [128, 256, 512, 1024],
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 64, 256, 512],
        "stage_mid_channels": [16, 32, 64, 128],
        "stage_out_channels": [64, 256, 512, 1024],
        "stage_num_blocks": [1, 1, 2, 1],
        "stage_numb_of_layers": [3, 3, 3, 3],
        "use_learnable_affine_block": True,
        "out_indices": [2, 3, 4],
    },
    "encoder_in_channels": [256, 512, 1024],
    "decoder_layers": 3,
    "decoder_n_points": [3, 6, 3],
    "hidden_expansion": 0.5,
    "depth_mult": 0.34,
}


def _sam21_tiny() -> Slot:
    """SAM 2.1 with Hiera-T (Ravi et al. 2024): 39M parameters, 156 MB, Apache-2.0."""
    return Slot(
        use="hf-segmenter",
        options={
            "checkpoint": "facebook/sam2.1-hiera-tiny",
            "config": {"model_type": "sam2"},  # transformers' defaults are Hiera-T's
        },
    )


def photo() -> RefinerSpec:
    """Return a small refiner for photographs, of Apache-2.0 weights alone: COCO's 80 classes and their masks."""
    return RefinerSpec(
        tagger=None,  # the detector knows its classes
        detector=Slot(
            use="hf-detector",
            options={"checkpoint": "ustc-community/dfine-small-obj2coco", "config": _D_FINE_SMALL},
        ),
        segmenter=_sam21_tiny(),
    )


def photo_open() -> RefinerSpec:
    """Return a refiner for the caller's own phrases: MM-Grounding-DINO with Swin-T (Zhao et al. 2024) and SAM 2.1."""
    return RefinerSpec(
        tagger=None,
        detector=Slot(
            use="hf-zero-shot-detector",
            options={
                "checkpoint": "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
                # transformers' defaults are Swin-T's and BERT-base's
                "config": {"model_type": "mm-grounding-dino"},
            },
        ),
        segmenter=_sam21_tiny(),
    )


def modern() -> ModelSpec:
    """Return the paper's model with today's parts: SigLIP 2, the refiner ``photo``, MQ-Former, Qwen3-4B.

    Not in the paper, and nothing has been trained of it: its query transformer begins with random weights.
    """
    return ModelSpec(
        image_encoder=Slot(
            use="hf-image-encoder",
            options={
                "checkpoint": "google/siglip2-so400m-patch14-384",  # 729 tokens of width 1152; Apache-2.0
                "config": {
                    "model_type": "siglip",  # as its configuration says of fixed resolutions
                    "vision_config": {
                        "hidden_size": 1152,
                        "intermediate_size": 4304,
                        "num_hidden_layers": 27,
                        "num_attention_heads": 16,
                        "image_size": 384,
                        "patch_size": 14,
                    },
                },
            },
        ),
        refiner=photo(),
        query_transformer=Slot(use="mqformer", options={"num_visual": 32, "num_grounding": 32}),
        language_model=Slot(
            use="causal-lm",
            options={
                "architecture": "qwen3",
                "checkpoint": "Qwen/Qwen3-4B",  # 4.0B parameters; Apache-2.0
                "vocab_size": 151_936,
                "hidden_size": 2560,
                "num_layers": 36,
                "num_heads": 32,
                "num_key_value_heads": 8,
                "intermediate_size": 9728,
                "tie_word_embeddings": True,
                "config": {"head_dim": 128},
                "lora": {"rank": 64, "alpha": 128.0},
            },
        ),
        objectives={
            name: ObjectiveSlot(use=name, options={"recipe": "paper"}) for name in ("itc", "itm", "icg", "msp")
        },
    )
