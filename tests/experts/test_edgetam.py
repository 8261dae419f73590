"""EdgeTAM as a segmenter: its backbone is timm's."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForMaskGeneration

from lyrics.core.contracts import BuildContext
from lyrics.core.geometry import Box
from lyrics.plugins.hf import HfSegmenterOptions
from lyrics.plugins.hf.segmenter import build
from tests.experts.conftest import needs
from tests.plugins.hf.families import checkpoint
from tests.plugins.hf.test_segmenter import pictures

needs("timm")

BOXES = [Box(0.1, 0.2, 0.6, 0.7), Box(0.0, 0.0, 1.0, 1.0)]
#: The backbone as it is published (5 million parameters), everything behind it small.
EDGETAM = {
    "vision_config": {
        "backbone_config": {
            "model_type": "timm_wrapper",
            "architecture": "repvit_m1.dist_in1k",
            "num_classes": 0,
            "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
        },
        "backbone_channel_list": [384, 192, 96, 48],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 32,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 128, "patch_size": 16},
    "mask_decoder_config": {
        "hidden_size": 32,
        "mlp_dim": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "iou_head_hidden_dim": 32,
    },
}


@torch.no_grad()
def test_edgetam_from_a_checkpoint_to_masks_and_back(tmp_path: Path) -> None:
    model = checkpoint(AutoModelForMaskGeneration, "edgetam", EDGETAM, tmp_path)
    segmenter = build(HfSegmenterOptions(checkpoint=str(tmp_path)), BuildContext("pretrained"))
    images = pictures(segmenter, (160, 100))
    width, height = images.frames[0].size
    boxes = torch.tensor([[[b.x1 * width, b.y1 * height, b.x2 * width, b.y2 * height] for b in BOXES]])
    expected = model(pixel_values=images.pixels_BCHW, input_boxes=boxes, multimask_output=False).pred_masks[0, :, 0]
    found = segmenter.mask_logits(segmenter.embed(images.pixels_BCHW[0]), boxes[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    output = segmenter(images, [BOXES])
    assert output.tokens_BKD.shape == (1, 2, segmenter.feature_dim)
    assert output.mask_BK.all()

    files = tmp_path / "files"
    files.mkdir()
    segmenter.save_files(files)
    again = build(HfSegmenterOptions(checkpoint="owner/name"), BuildContext("random", files=files))
    again.load_state_dict(segmenter.state_dict())
    torch.testing.assert_close(again(images, [BOXES]).tokens_BKD, output.tokens_BKD)


def test_edgetam_is_stated_by_its_numbers() -> None:
    config = {"model_type": "edgetam", **EDGETAM}
    assert build(HfSegmenterOptions(config=config), BuildContext("random")).feature_dim == 36
