"""Refiners for photographs, and a model of today's parts. Imports no torch.

The numbers are those of the checkpoints' own configurations; with pretrained weights they are compared with them.
"""

from __future__ import annotations

from lyrics.core.spec import RefinerSpec, Slot

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
