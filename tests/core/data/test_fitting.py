"""What a stage has no use for is a bad sample: it goes to the ledger, and the run goes on."""

from __future__ import annotations

import pytest
from PIL import Image

from lyrics.core.data.fitting import Fitting, check_fits
from lyrics.core.errors import SampleError
from lyrics.core.types import Sample, Turn

CHOICE = {"task": "multi-choice", "options": ("a", "b")}


@pytest.mark.parametrize(
    ("sample", "pretrain", "instruct"),
    [
        (Sample("x", ("a",), extra={"task": "caption"}), "", ""),
        (Sample(None, turns=(Turn("?", "a"),)), "no image", ""),
        (Sample("x", extra={"task": "caption"}), "", "nothing to ask"),
        (Sample("x", extra={"task": "rec"}), "", "nothing to ask"),
        (Sample("x", turns=(Turn("?", "a"), Turn("?", "")), extra={"task": "vqa"}), "", "has none"),
        (Sample("x", turns=(Turn("?", "a"),), extra=CHOICE), "", ""),
        (Sample("x", turns=(Turn("?", "c"),), extra=CHOICE), "", "none of the options"),
        (Sample("x", turns=(Turn("?", "a"),), extra={**CHOICE, "options": ("a",)}), "", "with 1 options"),
        (Sample("x", turns=(Turn("?", "a"),), extra={"task": "vaq"}), "", "there is no task 'vaq'"),
    ],
)
def test_what_each_stage_can_use(sample: Sample, pretrain: str, instruct: str) -> None:
    for stage, message in (("pretrain", pretrain), ("instruct", instruct)):
        if not message:
            check_fits(sample, stage)
            continue
        with pytest.raises(SampleError, match=message) as raised:
            check_fits(sample, stage)
        assert raised.value.kind == "record"


def test_the_data_set_is_otherwise_the_same() -> None:
    class Two:
        shard_sizes = (1, 1)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Sample:
            return Sample("x" if index else None, ("a",), source=f"two {index}")

        def picture(self, sample: Sample) -> Image.Image:
            return Image.new("RGB", (2, 3))

    data = Fitting(Two(), "pretrain")
    assert (len(data), data.shard_sizes, data.picture(data[1]).size) == (2, (1, 1), (2, 3))
    with pytest.raises(SampleError, match="two 0: stage 1 aligns images with text, and this sample has no image"):
        data[0]
