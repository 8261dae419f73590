"""Image encoders, detectors and segmenters of transformers' Auto classes, by checkpoint.

This file is the manifest: it imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from lyrics.core.registry.component import Component, NamesWeights, Options, Preset, hookimpl
from lyrics.plugins.hf import small
from lyrics.plugins.hf.presets import modern, photo, photo_open


class HfOptions(Options):
    """What all of them have: a checkpoint, and where none is read, its configuration."""

    checkpoint: Annotated[str | None, NamesWeights(required=True)] = Field(
        None, min_length=1, description="hub id or folder in transformers' format, with safetensors"
    )
    config: dict[str, Any] | None = Field(
        None,
        description="entries of its config.json, model_type among them: what random weights are made from; null: those "
        "of the checkpoint, which must then be a local folder",
    )
    preprocessor: dict[str, Any] = Field(
        default_factory=dict,
        description="entries of preprocessor_config.json that take the place of the checkpoint's, such as "
        "size: {height: 480, width: 480}",
    )


def _stated(config: Mapping[str, Any] | None, *names: str) -> int | None:
    """The first of these entries that a stated configuration has as a whole number."""
    found = ((config or {}).get(name) for name in names)
    return next((value for value in found if isinstance(value, int)), None)


class HfImageEncoderOptions(HfOptions):
    """Options of ``hf-image-encoder``: CLIP, SigLIP and SigLIP 2, DINOv2 and DINOv3, AIMv2, ViT and others.

    Of a whole model (CLIP, SigLIP) the vision tower is taken.
    """

    skip_layers: int = Field(
        0,
        ge=0,
        description="last layers left out, neither built nor loaded; with 0 tokens have passed the last norm, else not",
    )
    last_norm: bool = Field(
        True,
        description="whether tokens of the last layer pass the tower's last norm; some models were trained without",
    )

    @property
    def feature_dim(self) -> int | None:
        """Width of an image token, where the configuration is stated and says it."""
        return _stated((self.config or {}).get("vision_config", self.config), "hidden_size")


class HfDetectorOptions(HfOptions):
    """Options of ``hf-detector``: D-FINE, RT-DETR and RT-DETRv2, DEIMv2, RF-DETR, YOLOS, DETR and others.

    It finds what it was trained for: phrases that are none of its class names (case and spaces apart) are not looked
    for, and without a tagger and phrases it is asked for all of them.
    """

    score_threshold: float = Field(0.5, ge=0, le=1, description="a query is a box of a class above this probability")
    max_detections: int = Field(300, ge=1, description="most detections per image; the best are kept")

    @property
    def feature_dim(self) -> int | None:
        """Width of a local token: a query's state, and its box as (center x, center y, width, height)."""
        width = _stated(self.config, "d_model", "hidden_size")
        return None if width is None else width + 4


class HfZeroShotDetectorOptions(HfOptions):
    """Options of ``hf-zero-shot-detector``: Grounding DINO and MM-Grounding-DINO, OWL-ViT and OWLv2, OmDet-Turbo."""

    tokenizer: Annotated[str | None, NamesWeights()] = Field(
        None, description="hub id or folder of the text encoder's tokenizer; without one, that beside the checkpoint"
    )
    score_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="a query is a detection of each phrase above this; null: what transformers takes (Grounding DINO "
        "0.25, OWL 0.1, OmDet-Turbo 0.3)",
    )
    nms_iou: float = Field(
        0.6, ge=0, le=1, description="of two boxes for one phrase that overlap more, the better stays; 1 keeps all"
    )
    max_detections: int = Field(300, ge=1, description="most detections per image; the best are kept")
    max_tokens: int = Field(900, ge=1, description="most local tokens; OWL has a query for each patch, up to 5,184")

    @property
    def feature_dim(self) -> int | None:
        """Width of a local token: a query's state, and its box as (center x, center y, width, height)."""
        config = self.config or {}
        width = _stated(config, "d_model", "decoder_hidden_dim") or _stated(config.get("vision_config"), "hidden_size")
        return None if width is None else width + 4


class HfSegmenterOptions(HfOptions):
    """Options of ``hf-segmenter``: SAM, SAM 2 and 2.1, EdgeTAM, SAM-HQ."""

    boxes_per_pass: int = Field(
        64, ge=1, description="boxes that go through the mask decoder together; fewer need less memory"
    )

    @property
    def feature_dim(self) -> int | None:
        """Width of a local token: the image embedding pooled over the mask, and the box."""
        width = _stated((self.config or {}).get("prompt_encoder_config"), "hidden_size")
        return None if width is None else width + 4


class Sam3Options(HfOptions):
    """Options of ``sam3``: text to boxes and masks in one pass, so that no segmenter is needed."""

    tokenizer: Annotated[str | None, NamesWeights()] = Field(
        None, description="hub id or folder of the text encoder's tokenizer; without one, that beside the checkpoint"
    )
    score_threshold: float = Field(0.5, ge=0, le=1, description="a query is a detection of a phrase above this")
    max_detections: int = Field(100, ge=1, description="most detections per image; the best are kept")
    phrases_per_pass: int = Field(
        8, ge=1, description="phrases that go through the decoder together; fewer need less memory"
    )

    @property
    def feature_dim(self) -> int | None:
        """Width of a local token: a query's state, and its box as (center x, center y, width, height)."""
        width = _stated((self.config or {}).get("detr_decoder_config"), "hidden_size")
        return None if width is None else width + 4


class ZeroShotTaggerOptions(HfOptions):
    """Options of ``zero-shot-tagger``: SigLIP or SigLIP 2 says of each word whether it is in the image."""

    words: tuple[str, ...] = Field((), description="what may be in an image")
    words_file: str | None = Field(None, description="file with further words, one on each line, in UTF-8")
    template: str = Field(
        "This is a photo of {}.",
        pattern=r"\{\}",
        description="what is compared with the image; {} stands for the word",
    )
    threshold: float = Field(0.1, ge=0, le=1, description="a word is a tag above this probability")
    max_tags: int = Field(20, ge=1, description="most tags of an image; the best are kept")


_EACH = "code: Apache-2.0; weights: as the checkpoint's model card says"
#: Of checkpoints that presets name, as their model cards state it.
_LICENSES = {
    "ustc-community/dfine-small-obj2coco": "apache-2.0",
    "facebook/sam2.1-hiera-tiny": "apache-2.0",
    "facebook/sam3": "sam-license",
    "google/siglip2-so400m-patch14-384": "apache-2.0",
}


@hookimpl
def lyrics_components() -> Iterator[Component]:
    yield Component(
        kind="image-encoder",
        name="hf-image-encoder",
        build="lyrics.plugins.hf.encoder:build",
        options=HfImageEncoderOptions,
        summary="any vision tower of transformers: CLIP, SigLIP 2, DINOv2, DINOv3, ...",
        license=_EACH,
        weights_licenses=_LICENSES,
        test_options={"config": small.SIGLIP},
    )
    yield Component(
        kind="detector",
        name="hf-detector",
        build="lyrics.plugins.hf.detector:build",
        options=HfDetectorOptions,
        summary="any detector of transformers with classes of its own: D-FINE, RT-DETRv2, RF-DETR, YOLOS, ...",
        license=_EACH,
        weights_licenses=_LICENSES,
        test_options={"config": small.DETR, "preprocessor": small.SQUARE, "score_threshold": 0.0},
    )
    yield Component(
        kind="detector",
        name="hf-zero-shot-detector",
        build="lyrics.plugins.hf.zero_shot:build",
        options=HfZeroShotDetectorOptions,
        summary="any zero-shot detector of transformers: MM-Grounding-DINO, OWLv2, OmDet-Turbo, ...",
        license=_EACH,
        weights_licenses=_LICENSES,
        test_options={"config": small.OWLV2, "score_threshold": 0.0, "nms_iou": 1.0, "max_tokens": 8},
    )
    yield Component(
        kind="detector",
        name="sam3",
        build="lyrics.plugins.hf.sam3:build",
        options=Sam3Options,
        summary="SAM 3: boxes and masks of what phrases name, in one pass; no segmenter needed",
        license="code: Apache-2.0; weights: SAM License",
        weights_licenses=_LICENSES,
        test_options={"config": small.SAM3, "score_threshold": 0.0},
    )
    yield Component(
        kind="tagger",
        name="zero-shot-tagger",
        build="lyrics.plugins.hf.zero_shot_tagger:build",
        options=ZeroShotTaggerOptions,
        summary="SigLIP or SigLIP 2 over a list of words",
        license=_EACH,
        weights_licenses=_LICENSES,
        test_options={"config": small.SIGLIP_PAIR, "words": ["dog", "cat", "red car"], "threshold": 0.0},
    )
    yield Component(
        kind="segmenter",
        name="hf-segmenter",
        build="lyrics.plugins.hf.segmenter:build",
        options=HfSegmenterOptions,
        summary="any box-prompted segmenter of transformers: SAM, SAM 2.1, EdgeTAM, SAM-HQ",
        license=_EACH,
        weights_licenses=_LICENSES,
        test_options={"config": small.SAM2},
    )


@hookimpl
def lyrics_presets() -> Iterator[Preset]:
    yield Preset(
        "photo",
        photo,
        "a refiner alone for photographs: D-FINE-S and SAM 2.1 tiny; COCO's 80 classes, 198 MB, Apache-2.0",
    )
    yield Preset(
        "photo-open",
        photo_open,
        "a refiner alone for photographs and your own --phrases: MM-Grounding-DINO tiny and SAM 2.1 tiny",
    )
    yield Preset("modern", modern, "today's parts: SigLIP 2, the refiner photo, MQ-Former, Qwen3-4B; to be trained")
