"""What the refiner saw in one image.

It can be a JSON line, COCO annotations, supervision's detections, or a drawing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from lyrics.core.errors import GeometryError, LyricsError, MissingRequirementError
from lyrics.core.files import is_text, name_as_text
from lyrics.core.geometry import Box
from lyrics.core.masks import Mask
from lyrics.core.renaming import renamed
from lyrics.core.types import DetectedObject, Tag

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Refinement:
    """One image's size in pixels (width, height), its tags and its objects, each best first.

    ``name`` is the image's path as the caller wrote it, or an empty string.
    """

    size_px: tuple[int, int]
    tags: tuple[Tag, ...] = ()
    objects: tuple[DetectedObject, ...] = ()
    name: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain data: one line of ``objects.jsonl``.

        Boxes are xyxy in pixels of the original image, masks COCO's compressed runs.
        """
        return {
            **name_to_json(self.name),
            "width": self.size_px[0],
            "height": self.size_px[1],
            "tags": [{"name": tag.name, "score": round(tag.score, 5)} for tag in self.tags],
            "objects": [
                {
                    "tag": found.tag,
                    "score": round(found.score, 5),
                    "box_px": [round(value, 3) for value in found.box_norm.to_px(self.size_px)],
                    "mask": found.mask.to_coco() if found.mask is not None else None,
                }
                for found in self.objects
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Refinement:
        """Return the inverse of ``to_json``, to three decimals of a pixel.

        Raises ``LyricsError`` saying which field is wrong.

        An object whose box has no area inside the image is left out.
        """
        try:
            size_px = (int(data["width"]), int(data["height"]))
            tags = tuple(Tag(str(tag["name"]), float(tag["score"])) for tag in data.get("tags", ()))
            objects = []
            for found in data["objects"]:
                box = Box.from_px(found["box_px"], size_px)
                mask = Mask.from_coco(found["mask"]) if found.get("mask") else None
                if box is not None:
                    objects.append(DetectedObject(str(found["tag"]), box, float(found.get("score", 1.0)), mask))
            return cls(size_px, tags, tuple(objects), name_from_json(data))
        except GeometryError as error:
            raise LyricsError(f"objects of {data.get('image', 'an image')!r}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LyricsError(f"not a line of objects.jsonl: {type(error).__name__}: {error}") from None

    def to_supervision(self) -> Any:
        """As ``supervision.Detections``; ``class_id`` counts the different tags in alphabetical order.

        Boxes are xyxy in pixels, masks bool [objects, height, width], given when every object has one. The tags
        themselves are ``data["class_name"]``, where this version of supervision has a place for them (0.16 and later;
        groundingdino-py wants 0.6.0).

        Raises ``MissingRequirementError`` where supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingRequirementError(
                "to_supervision needs supervision (not installed). Run: pip install supervision"
            ) from error
        import numpy as np

        width, height = self.size_px
        boxes_px = np.array([found.box_norm.to_px(self.size_px) for found in self.objects], dtype=np.float32).reshape(
            -1, 4
        )
        names = sorted({found.tag for found in self.objects})
        masks = None
        if self.objects and all(found.mask is not None for found in self.objects):
            masks = np.stack([found.mask.to_array() for found in self.objects if found.mask is not None])
            assert masks.shape[1:] == (height, width)
        has_data = any(field.name == "data" for field in fields(supervision.Detections))
        return supervision.Detections(
            xyxy=boxes_px,
            mask=masks,
            confidence=np.array([found.score for found in self.objects], dtype=np.float32),
            class_id=np.array([names.index(found.tag) for found in self.objects], dtype=int),
            **(
                {"data": {"class_name": np.array([found.tag for found in self.objects], dtype=str)}} if has_data else {}
            ),
        )

    @renamed(picture="image")
    def draw(self, image: Image.Image) -> Image.Image:
        """Return a copy of ``image`` with boxes, masks and labels.

        Raises ``ValueError`` for an image of another size.
        """
        from lyrics.core.pictures.drawing import draw_objects

        if image.size != self.size_px:
            raise ValueError(f"this refinement is of an image of {self.size_px} pixels, not {image.size}")
        return draw_objects(image, self.objects)


def name_to_json(name: str) -> dict[str, str]:
    r"""Return a file's name for a row. One that is no UTF-8 is shown with ``\xff``, and ``image_hex`` has its bytes."""
    return {"image": name} if is_text(name) else {"image": name_as_text(name), "image_hex": os.fsencode(name).hex()}


def name_from_json(row: Mapping[str, Any]) -> str:
    """Return the name that ``name_to_json`` wrote. Raises ``ValueError`` for a damaged ``image_hex``."""
    return os.fsdecode(bytes.fromhex(row["image_hex"])) if "image_hex" in row else str(row.get("image", ""))


def to_coco(refinements: Sequence[Refinement]) -> dict[str, Any]:
    """COCO annotations of several images, as pycocotools loads them.

    Boxes are [x, y, width, height] in pixels, ids count from 1.
    """
    category = numbered({found.tag for refinement in refinements for found in refinement.objects})
    annotations: list[dict[str, Any]] = []
    for image_id, refinement in enumerate(refinements, 1):
        annotations += coco_annotations(refinement, image_id, len(annotations) + 1, category)
    return {
        "images": [coco_image(refinement, image_id) for image_id, refinement in enumerate(refinements, 1)],
        "annotations": annotations,
        "categories": coco_categories(category),
    }


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Number names in alphabetical order, from 1."""
    return {name: index for index, name in enumerate(sorted(names), 1)}


def coco_image(refinement: Refinement, image_id: int) -> dict[str, Any]:
    """Return an image of COCO annotations."""
    width, height = refinement.size_px
    written = name_to_json(refinement.name)
    image: dict[str, Any] = {"id": image_id, "file_name": written["image"], "width": width, "height": height}
    return image | ({"file_name_hex": written["image_hex"]} if "image_hex" in written else {})


def coco_annotations(
    refinement: Refinement, image_id: int, first_id: int, category: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Return the annotations of an image, with ids from ``first_id`` on; ``category`` numbers the tags."""
    annotations = []
    for annotation_id, found in enumerate(refinement.objects, first_id):
        x1, y1, x2, y2 = found.box_norm.to_px(refinement.size_px)
        annotation: dict[str, Any] = {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": category[found.tag],
            "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
            "area": found.mask.area_px if found.mask is not None else round((x2 - x1) * (y2 - y1), 3),
            "iscrowd": 0,
            "score": round(found.score, 5),
        }
        if found.mask is not None:
            annotation["segmentation"] = found.mask.to_coco()
        annotations.append(annotation)
    return annotations


def coco_categories(category: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the categories of COCO annotations."""
    return [{"id": index, "name": name} for name, index in category.items()]
