"""Boxes of a picture that is not the one that was annotated: refused, whatever was done to the file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from lyrics.core.data.pictures import check_frame, decode_picture, read_picture, same_shape
from lyrics.core.data.readers import PictureFolder, RecordDataset
from lyrics.core.errors import ImageError, SampleError
from lyrics.core.geometry import Box
from lyrics.core.language.codecs import SpatialObject, format_objects
from lyrics.core.types import DetectedObject, Sample, Turn

RED = (220, 20, 20)
ORIENTATION = 0x0112


def scene(size: tuple[int, int]) -> tuple[Image.Image, Box]:
    """A picture of one red rectangle, and where it is."""
    picture = Image.new("RGB", size, (20, 160, 20))
    box = Box(0.1, 0.5, 0.3, 0.9)
    x1, y1, x2, y2 = (round(each) for each in box.to_px(size))
    picture.paste(RED, (x1, y1, x2, y2))
    return picture, box


def encoded(picture: Image.Image, form: str = "PNG", orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    out = io.BytesIO()
    picture.save(out, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))
    return out.getvalue()


def moved_box(picture: Image.Image, size: tuple[int, int]) -> Box:
    """Where the red of a picture is."""
    red = picture.convert("RGB").getchannel("R").point(lambda value: 255 * (value > 120))
    box = Box.from_px(red.getbbox(), size)
    assert box is not None
    return box


def refused(sample: Sample, read: Image.Image) -> bool:
    try:
        check_frame(sample, read)
    except SampleError:
        return True
    return False


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(48, 32), (40, 40)])
@pytest.mark.parametrize("orientation", [None, *range(10)])
def test_the_box_is_on_the_object_or_the_sample_is_refused(
    orientation: int | None, size: tuple[int, int], form: str
) -> None:
    """Of both conventions: boxes of the upright picture, and boxes of the pixels as they are stored."""
    stored, _ = scene(size)
    data = encoded(stored, form, orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    read = decode_picture(data, "x")
    assert read.size == upright.size
    outcomes = {}
    for convention, annotated in (("upright", upright), ("stored", stored)):
        box = moved_box(annotated, annotated.size)
        sample = Sample("x", objects=(DetectedObject("red", box, 1.0),), annotated_size=annotated.size)
        if refused(sample, read):
            outcomes[convention] = "refused"
            continue
        inside = read.crop(tuple(round(each) for each in box.to_px(read.size))).resize((1, 1)).getpixel((0, 0))
        outcomes[convention] = "right" if inside[0] > 150 > 90 > inside[1] else "ELSEWHERE"
    turned = orientation in range(2, 9)
    certain = orientation in range(5, 9) and size[0] != size[1]
    assert outcomes == {
        "upright": "right" if certain or not turned else "refused",
        "stored": "refused" if turned else "right",
    }
    # What states no size says nothing of the frame; what has no boxes has no frame.
    check_frame(Sample("x", ("a caption",), annotated_size=(7, 300)), read)
    nothing_said = Sample("x", objects=(DetectedObject("red", Box(0, 0, 1, 1), 1.0),))
    if turned:
        with pytest.raises(SampleError, match="do not say whether their boxes are of the upright"):
            check_frame(nothing_said, read)
    else:
        check_frame(nothing_said, read)


@pytest.mark.parametrize(
    ("annotated", "message"),
    [
        ((640, 480), None),
        ((64, 48), None),
        ((1279, 961), None),  # rounded by another program
        ((480, 640), "the annotations are of 480 x 640 pixels, but the image has 640 x 480: it was turned since"),
        ((640, 400), "it was cropped, padded or stretched since"),
        ((640, 640), "it was cropped, padded or stretched since"),
    ],
)
def test_a_picture_without_exif_may_have_another_scale_and_no_other_shape(
    annotated: tuple[int, int], message: str | None
) -> None:
    read = decode_picture(encoded(Image.new("RGB", (640, 480))), "x")
    sample = Sample("x", objects=(DetectedObject("a", Box(0, 0, 1, 1), 1.0),), source="set 3", annotated_size=annotated)
    if message is None:
        check_frame(sample, read)
    else:
        with pytest.raises(SampleError, match=f"set 3: x: .*{message}"):
            check_frame(sample, read)


def test_boxes_in_texts_are_boxes() -> None:
    read = decode_picture(encoded(Image.new("RGB", (64, 48))), "x")
    markup = format_objects([SpatialObject("dog", Box(0, 0, 0.5, 0.5))])
    for sample in (
        Sample("x", (markup,), annotated_size=(48, 64)),
        Sample("x", turns=(Turn("Where?", markup),), annotated_size=(48, 64)),
        Sample("x", turns=(Turn(markup, "A dog."),), annotated_size=(48, 64)),
    ):
        with pytest.raises(SampleError, match="it was turned since"):
            check_frame(sample, read)


@pytest.mark.parametrize("damage", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_damaged_exif_turns_nothing(damage: bytes) -> None:
    data = encoded(Image.new("RGB", (64, 48)), "JPEG")
    block = b"\xff\xe1" + (len(damage) + 2).to_bytes(2, "big") + damage
    sample = Sample("x", objects=(DetectedObject("a", Box(0, 0, 1, 1), 1.0),), annotated_size=(64, 48))
    check_frame(sample, decode_picture(data[:2] + block + data[2:], "x"))


def test_shapes_are_compared_to_within_a_pixel() -> None:
    for width, height in ((640, 427), (500, 333), (333, 500), (3, 2)):
        for longest in (224, 336, 512, 1024):
            scale = longest / max(width, height)
            for read in ((round(width * scale), round(height * scale)), (int(width * scale), int(height * scale))):
                assert same_shape((width, height), read)
    assert not same_shape((640, 639), (639, 640))


def test_a_data_set_refuses_the_picture(tmp_path: Path) -> None:
    class Records:
        def __len__(self) -> int:
            return 1

        def where(self, index: int) -> tuple[Path, str]:
            return tmp_path / "a.json", f"record {index}"

        def __getitem__(self, index: int) -> str:
            return "x.png"

    def sample(name: str) -> Sample:
        return Sample(name, objects=(DetectedObject("a", Box(0, 0, 1, 1), 1.0),), annotated_size=(48, 64))

    (tmp_path / "x.png").write_bytes(encoded(Image.new("RGB", (64, 48))))
    data = RecordDataset("toy", Records(), sample, PictureFolder(tmp_path))
    data.find_picture(data[0])
    with pytest.raises(SampleError, match=r"toy a.json, record 0: x.png: .*48 x 64.*64 x 48"):
        data.picture(data[0])


@pytest.mark.parametrize("key", ["a\0b.png", "\ud800.png", "k" * 300 + ".png", "k/" * 5000])
def test_names_that_no_file_can_have_are_bad_samples(tmp_path: Path, key: str) -> None:
    """They are not the disk's fault: a run does not stop."""
    for use in (PictureFolder(tmp_path).read, PictureFolder(tmp_path).find, PictureFolder(tmp_path).size):
        with pytest.raises(SampleError, match="cannot be the name of a file") as raised:
            use(key)
        assert len(str(raised.value)) < 300


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "link.png").symlink_to("nowhere.png")
    folder = PictureFolder(tmp_path)
    for name, kinds in (
        ("pipe.png", ("unreadable", "special")),
        ("folder.png", ("folder",)),
        ("folder.png/x.png", ("missing", "unreadable")),
        ("link.png", ("missing",)),
        ("loop.png", ("unreadable",)),
    ):
        with pytest.raises(ImageError) as raised:
            read_picture(tmp_path / name)
        assert raised.value.kind in kinds
        for use in (folder.find, folder.size):
            with pytest.raises(ImageError, match="no such file"):
                use(name)
