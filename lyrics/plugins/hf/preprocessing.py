"""A checkpoint's ``preprocessor_config.json`` as ``Preprocessing``: what transformers' image processor of it would do.

Entries that the file leaves out are those of the class that it names (``image_processor_type``); a checkpoint without
the file is prepared as transformers prepares its model type. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.json_reading import read_json
from lyrics.core.types import Preprocessing

PREPROCESSOR_FILE = "preprocessor_config.json"
#: Newer checkpoints keep the same entries under ``image_processor`` of this file.
PROCESSOR_FILE = "processor_config.json"
PROCESSOR_FILES = (PREPROCESSOR_FILE, PROCESSOR_FILE)

_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_BILINEAR, _BICUBIC = 2, 3


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


_CROPPED: Mapping[str, Any] = {
    **_CLIP,
    "resample": _BICUBIC,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": _square(224),
}
_DETR: Mapping[str, Any] = {
    **_IMAGENET,
    "resample": _BILINEAR,
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    "do_pad": True,
}
_SAM2: Mapping[str, Any] = {**_IMAGENET, "resample": _BILINEAR, "size": _square(1024)}

#: What transformers' classes do where a file does not say otherwise (5.23).
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "CLIPImageProcessor": _CROPPED,
    "ChineseCLIPImageProcessor": _CROPPED,
    "BitImageProcessor": _CROPPED,
    "SiglipImageProcessor": {**_HALF, "resample": _BICUBIC, "size": _square(224)},
    "Siglip2ImageProcessor": {**_HALF, "resample": _BILINEAR, "patch_size": 16, "max_num_patches": 256},
    "ViTImageProcessor": {**_HALF, "resample": _BILINEAR, "size": _square(224)},
    "DINOv3ViTImageProcessor": {**_IMAGENET, "resample": _BILINEAR, "size": _square(224)},
    "DetrImageProcessor": _DETR,
    "YolosImageProcessor": _DETR,
    "ConditionalDetrImageProcessor": _DETR,
    "DeformableDetrImageProcessor": _DETR,
    "GroundingDinoImageProcessor": _DETR,
    "RfDetrImageProcessor": _DETR,
    "RTDetrImageProcessor": {**_IMAGENET, "resample": _BILINEAR, "size": _square(640), "do_normalize": False},
    "OwlViTImageProcessor": {**_CLIP, "resample": _BICUBIC, "size": _square(768)},
    "Owlv2ImageProcessor": {**_CLIP, "resample": _BILINEAR, "size": _square(960), "do_pad": True},
    "SamImageProcessor": {
        **_IMAGENET,
        "resample": _BILINEAR,
        "size": {"longest_edge": 1024},
        "do_pad": True,
        "pad_size": _square(1024),
    },
    "Sam2ImageProcessor": _SAM2,
    "Sam3ImageProcessor": {**_HALF, "resample": _BILINEAR, "size": _square(1008)},
}

#: The class that transformers prepares images of a model type with.
PROCESSORS: Mapping[str, str] = {
    **dict.fromkeys(("clip", "clip_vision_model", "aimv2", "aimv2_vision_model"), "CLIPImageProcessor"),
    **dict.fromkeys(("chinese_clip", "chinese_clip_vision_model"), "ChineseCLIPImageProcessor"),
    **dict.fromkeys(("siglip", "siglip_vision_model"), "SiglipImageProcessor"),
    **dict.fromkeys(("siglip2", "siglip2_vision_model"), "Siglip2ImageProcessor"),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), "BitImageProcessor"),
    **dict.fromkeys(("dinov3_vit", "dinov3_convnext"), "DINOv3ViTImageProcessor"),
    **dict.fromkeys(("vit", "deit", "ijepa", "swin", "swinv2", "vit_msn"), "ViTImageProcessor"),
    **dict.fromkeys(("detr", "dab-detr", "table-transformer", "omdet-turbo"), "DetrImageProcessor"),
    **dict.fromkeys(("deformable_detr", "lw_detr"), "DeformableDetrImageProcessor"),
    "yolos": "YolosImageProcessor",
    "conditional_detr": "ConditionalDetrImageProcessor",
    "rf_detr": "RfDetrImageProcessor",
    **dict.fromkeys(("rt_detr", "rt_detr_v2", "d_fine", "deimv2"), "RTDetrImageProcessor"),
    **dict.fromkeys(("grounding-dino", "mm-grounding-dino"), "GroundingDinoImageProcessor"),
    "owlvit": "OwlViTImageProcessor",
    "owlv2": "Owlv2ImageProcessor",
    **dict.fromkeys(("sam", "sam_hq"), "SamImageProcessor"),
    **dict.fromkeys(("sam2", "sam2_video", "edgetam", "edgetam_video"), "Sam2ImageProcessor"),
    **dict.fromkeys(("sam3", "sam3_video", "sam3_tracker"), "Sam3ImageProcessor"),
}

_RESAMPLING: Mapping[int, Literal["nearest", "lanczos", "bilinear", "bicubic"]] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}
#: Gray, which OWLv2 pads images with before it resizes them.
_OWL_FILL = (0.5, 0.5, 0.5)


def read_entries(folder: Path | None) -> dict[str, Any] | None:
    """Return the entries that a checkpoint's folder states; None where it has neither file.

    Raises ``WeightsError`` for a file that is broken.
    """
    if folder is None:
        return None
    for name in PROCESSOR_FILES:
        file = folder / name
        if not file.is_file():
            continue
        data = read_json(file, WeightsError)
        if isinstance(data, dict) and name == PROCESSOR_FILE:
            data = data.get("image_processor")
            if data is None:
                continue
        if not isinstance(data, dict):
            raise WeightsError(f"{file}: holds no entries of an image processor; fetch it again.")
        return data
    return None


def entries_of(stated: Mapping[str, Any] | None, model_type: str, changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return all entries: those that were ``changed``, those ``stated`` by the checkpoint, and the defaults of its
    class.

    Raises ``SpecError`` for a model type of which no defaults are known, where a checkpoint states nothing.
    """
    named = (stated or {}).get("image_processor_type") or (stated or {}).get("feature_extractor_type") or ""
    kind = str(named).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if kind not in DEFAULTS:
        kind = PROCESSORS.get(model_type, "")
    if not kind and not stated and not changed.keys() & {"image_mean", "do_normalize"}:
        raise SpecError(
            f"it is not known how images are prepared for a {model_type!r} without a {PREPROCESSOR_FILE}; state its "
            "entries in the option preprocessor."
        )
    return {**DEFAULTS.get(kind, {}), **(stated or {}), **changed, "image_processor_type": kind or named}


def preprocessing_of(entries: Mapping[str, Any], source: object) -> Preprocessing:
    """Return what the entries ask for.

    Raises ``SpecError`` for what cannot be done here: canvases that are not square, images of their own size, a filter
    that Pillow has no name for.
    """
    if not entries.get("do_resize", True):
        raise SpecError(f"{source}: leaves images at their own size (do_resize: false), which is not supported.")
    resize, size, longest = _resize(entries, source)
    crop = _side(entries.get("crop_size"), "crop_size", source) if entries.get("do_center_crop") else None
    pad_to = _side(entries.get("pad_size"), "pad_size", source) if entries.get("do_pad") else None
    resample = entries.get("resample", _BICUBIC)
    if resample not in _RESAMPLING:
        raise SpecError(f"{source}: resample {resample!r} is none of {', '.join(map(str, _RESAMPLING))}.")
    mean, std = _statistics(entries, source)
    # OWLv2 pads to a square and resizes that; the other way round gives the same without a huge square in between.
    is_owlv2 = entries.get("image_processor_type") == "Owlv2ImageProcessor" and entries.get("do_pad", True)
    return Preprocessing(
        resize="longest" if is_owlv2 else resize,
        size=size,
        mean=mean,
        std=std,
        resampling=_RESAMPLING[resample],
        max_size=longest,
        crop=crop,
        pad_to=pad_to,
        square="corner" if is_owlv2 else None,
        square_fill=_OWL_FILL if is_owlv2 else (0.0, 0.0, 0.0),
    )


def _resize(
    entries: Mapping[str, Any], source: object
) -> tuple[Literal["squash", "shortest", "longest"], int, int | None]:
    """The way of resizing, its size, and the most pixels of the longest side."""
    size = entries.get("size")
    if isinstance(size, int) and not isinstance(size, bool):  # older files; what it means was the class's affair
        longest = entries.get("max_size")
        return ("shortest" if longest or entries.get("do_center_crop") else "squash"), size, longest
    if isinstance(size, Mapping):
        if "height" in size and "width" in size:
            side = _side(size, "size", source)
            assert side is not None
            return "squash", side, None
        if "shortest_edge" in size:
            return "shortest", int(size["shortest_edge"]), size.get("longest_edge") or entries.get("max_size")
        if "longest_edge" in size:
            return "longest", int(size["longest_edge"]), None
    raise SpecError(
        f"{source}: size {size!r} is none of {{height, width}}, {{shortest_edge, longest_edge}} and {{longest_edge}}; "
        "state another in the option preprocessor."
    )


def _side(value: Any, name: str, source: object) -> int | None:
    if isinstance(value, Mapping):
        height, width = value.get("height"), value.get("width")
        if height != width or not isinstance(height, int):
            raise SpecError(
                f"{source}: {name} {dict(value)!r} is no square; only square canvases are made. State another in the "
                "option preprocessor."
            )
        return height
    return None if value is None else int(value)


def _statistics(
    entries: Mapping[str, Any], source: object
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of pixels scaled to [0, 1], whatever the file scales them to."""
    scale = 255.0 * float(entries.get("rescale_factor", 1 / 255)) if entries.get("do_rescale", True) else 255.0
    means, deviations = [0.0] * 3, [1.0] * 3
    if entries.get("do_normalize", True):
        means, deviations = list(entries.get("image_mean") or ()), list(entries.get("image_std") or ())
    if len(means) != 3 or len(deviations) != 3:
        raise SpecError(f"{source}: image_mean and image_std must be of three channels, not {means} and {deviations}.")
    red, green, blue = (float(value) / scale for value in means)
    of_red, of_green, of_blue = (float(value) / scale for value in deviations)
    return (red, green, blue), (of_red, of_green, of_blue)
