"""Stored refinements are found by the name that a data set has for an image."""

from __future__ import annotations

import pytest

from lyrics.core.errors import DatasetError
from lyrics.core.refining.refinement import Refinement
from lyrics.core.refining.stored import StoredRefinements


def test_an_image_is_found_by_the_end_of_its_path() -> None:
    names = ("/data/coco/train/1.jpg", "/data/coco/val/1.jpg", "images/2.jpg", "3.jpg")
    found = StoredRefinements([Refinement((4, 4), name=name) for name in names], "objects.jsonl")
    assert list(found) == list(names)
    assert found["/data/coco/val/1.jpg"].name == "/data/coco/val/1.jpg"
    assert found["coco/train/1.jpg"].name == "/data/coco/train/1.jpg"  # the data set's folder is /data
    assert found["2.jpg"].name == "images/2.jpg"
    assert found["/moved/to/3.jpg"].name == "3.jpg"
    # Another folder, the end of a file's name, nothing at all.
    assert all(found.get(name) is None for name in ("other/2.jpg", "11.jpg", ""))
    with pytest.raises(
        DatasetError, match=r"1\.jpg may be any of /data/coco/train/1\.jpg, /data/coco/val/1\.jpg in objects\.jsonl"
    ):
        found["1.jpg"]
