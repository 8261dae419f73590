"""A folder that nobody cleaned: 325 entries, each done or skipped for the right reason, by every way that images come
in.

The zoo is drawn here. An entry's name says how it is made; what is expected of it is beside it.
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lyrics.core.data.build import build_dataset
from lyrics.core.errors import ImageError
from lyrics.core.loading import build_model
from lyrics.core.refining.refine_files import COCO_FILE, DRAWN_FOLDER, OBJECTS_FILE, SKIPPED_FILE
from lyrics.core.refining.refinement import name_from_json
from tests.core.small import small

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes, FIFOs, /dev and /proc")

#: The zoo under the command line, with a refiner of a few thousand weights, may use so much more than a run over one
#: image.
MEMORY_BOUND = 256 * 2**20
AS_ROOT = os.geteuid() == 0


@dataclass(frozen=True)
class Animal:
    """One entry.

    ``make`` writes it; ``kinds`` are the right reasons to skip it, none if it must be done, at this size.
    """

    name: bytes
    make: Callable[[bytes], None]
    kinds: frozenset[str] = frozenset()
    size_px: tuple[int, int] = (24, 16)


def encoded(format: str, mode: str = "RGB", size: tuple[int, int] = (24, 16), seed: int = 0, **options: Any) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA").convert("RGB" if mode == "PX" else mode)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def holding(data: bytes) -> Callable[[bytes], None]:
    def make(path: bytes) -> None:
        with open(path, "wb") as file:
            file.write(data)

    return make


def header(width: int, height: int, depth: int = 8, color: int = 2) -> bytes:
    """A PNG that promises a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def text_bomb() -> bytes:
    """A PNG whose comment unpacks to 5 MB, more than Pillow reads."""
    packed = zlib.compress(bytes(5_000_000))
    body = b"zTXtComment\0\0" + packed
    data = encoded("PNG")
    return data[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


def exif(orientation: int) -> bytes:
    made = Image.Exif()
    made[0x0112] = orientation
    return made.tobytes()


def bound_socket(path: bytes) -> None:
    folder, _, name = path.rpartition(b"/")
    before = os.getcwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.fsdecode(name))
    finally:
        os.chdir(before)


def unreadable(path: bytes) -> None:
    holding(encoded("PNG"))(path)
    os.chmod(path, 0)


def animals() -> Iterator[Animal]:
    # Of every format and mode that it can hold.
    modes = {
        "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
        "JPEG": ("RGB", "L", "CMYK"),
        "WEBP": ("RGB", "RGBA"),
        "BMP": ("RGB", "L", "1", "P"),
        "GIF": ("RGB", "P", "L"),
    }
    for format, of_format in modes.items():
        for mode in of_format:
            for seed in range(7):
                name = f"{format}-{mode.replace(';', '')}-{seed}.{format.lower()}".encode()
                if mode == "I;16":
                    file = io.BytesIO()
                    values = np.random.default_rng(seed).integers(0, 65536, (16, 24), dtype=np.uint16)
                    Image.fromarray(values).save(file, "PNG")
                    yield Animal(name, holding(file.getvalue()))
                else:
                    yield Animal(name, holding(encoded(format, mode, seed=seed)))
    for seed in range(7):
        alpha = encoded("PNG", "P", seed=seed, transparency=bytes(range(256)))
        yield Animal(f"palette-with-alpha-{seed}.png".encode(), holding(alpha))
        yield Animal(f"progressive-{seed}.jpg".encode(), holding(encoded("JPEG", seed=seed, progressive=True)))
        frames = [Image.new("RGB", (24, 16), color) for color in ("red", "lime", "blue")]
        for suffix in ("gif", "webp", "png"):
            file = io.BytesIO()
            frames[0].save(file, suffix.upper(), save_all=True, append_images=frames[1:])
            yield Animal(f"animated-{seed}.{suffix}".encode(), holding(file.getvalue()))
    # Turned, by every format that says so.
    for orientation in range(1, 9):
        size = (24, 16) if orientation < 5 else (16, 24)
        for format in ("JPEG", "PNG", "WEBP"):
            data = encoded(format, exif=exif(orientation))
            yield Animal(f"turned-{orientation}.{format.lower()}".encode(), holding(data), size_px=size)
    for number, block in enumerate(
        (b"", b"II", b"XXXX*\0", bytes(range(100)), exif(6)[:-14], b"MM\0*\xff\xff\xff\xff")
    ):
        for format in ("JPEG", "PNG", "WEBP"):
            data = encoded(format, exif=b"Exif\0\0" + block)
            yield Animal(f"exif-damaged-{number}.{format.lower()}".encode(), holding(data))
    # Shapes.
    for size in ((1, 1), (1, 5000), (5000, 1), (1, 70_000), (2, 3000)):
        for format in ("PNG", "GIF") if max(size) < 65_000 else ("PNG",):
            name = f"{size[0]}x{size[1]}.{format.lower()}".encode()
            yield Animal(name, holding(encoded(format, "L", size)), size_px=size)
    yield Animal(b"large.png", holding(encoded("PNG", "1", (4200, 4200))), size_px=(4200, 4200))
    # Names.
    for number, name in enumerate(
        (
            *(b"line\nbreak.png", b"\r\t.png", b"\x1b[31mred.png", b"-rf.png", b"--out.png", b"a b  c.png", b"'\".png"),
            *("é東😀.png".encode(), "e\u0301.png".encode(), "\u202eexe.png".encode(), b"%s{}.png", b"back\\slash.png"),
            *(b"UPPER.PNG", b"two.dots.png", b"..png", b".hidden.png", b"#$&;|.png", b"*.png"),
            *(b"caf\xe9.png", b"caf\xe8.png", b"\xff\xfe.png", b"\xed\xa0\x80.png", b"x\xffy\nz.png"),
        )
    ):
        yield Animal(name, holding(encoded("PNG", seed=number)))
    for letter in (b"n", b"\xe4", "ä".encode()):
        yield Animal(letter * (251 // len(letter)) + b".png", holding(encoded("PNG")))
    # Namesakes: one drawing each.
    for suffix, format in (
        ("jpg", "JPEG"),
        ("png", "PNG"),
        ("webp", "WEBP"),
        ("bmp", "BMP"),
        ("gif", "GIF"),
        ("JPG", "JPEG"),
    ):
        yield Animal(f"same.{suffix}".encode(), holding(encoded(format)))
    # Called what they are not.
    yield Animal(b"gif-called.jpg", holding(encoded("GIF")))
    yield Animal(b"png-called.heic", holding(encoded("PNG")))
    # --- to be skipped ---
    for format in ("PNG", "JPEG", "WEBP", "BMP", "GIF"):
        whole = encoded(format, size=(64, 48))
        for share in (1, 5, 40, 80):
            name = f"cut-{share}.{format.lower()}".encode()
            cut = holding(whole[: max(3, len(whole) * share // 100)])
            yield Animal(name, cut, frozenset({"truncated", "corrupt", "format"}), (64, 48))
        yield Animal(f"zero.{format.lower()}".encode(), holding(b""), frozenset({"empty"}))
    for width, height in ((60_000, 60_000), (2**31 - 1, 1), (9_000, 9_000), (20_000, 5_000)):
        for depth, color in ((8, 2), (8, 6), (16, 6), (1, 0)):
            name = f"bomb-{width}x{height}-{depth}-{color}.png".encode()
            yield Animal(name, holding(header(width, height, depth, color)), frozenset({"large"}))
    yield Animal(b"bomb-of-text.png", holding(text_bomb()), frozenset({"corrupt"}))
    yield Animal(b"no-pixels.png", holding(header(0, 5)), frozenset({"corrupt", "empty", "format", "truncated"}))
    others = {
        "web-page.jpg": b"<!DOCTYPE html><title>404</title>",
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "paper.jpg": b"%PDF-1.7",
        "camera.tiff": encoded("TIFF"),
        "called.png": encoded("TIFF"),
        "phone.heic": b"\0\0\0\x18ftypheic" + bytes(50),
        "new.avif": b"\0\0\0\x1cftypavif" + bytes(50),
        "._mac.jpg": b"\0\x05\x16\x07\0\x02\0\0Mac OS X" + bytes(60),
        "noise.webp": np.random.default_rng(0).bytes(300),
        "text.bmp": b"not an image",
    }
    for other, data in others.items():
        yield Animal(other.encode(), holding(data), frozenset({"format"}))
    for number in range(3):
        yield Animal(f"fifo-{number}.png".encode(), os.mkfifo, frozenset({"special"}))
        yield Animal(f"folder-{number}.jpg".encode(), os.mkdir, frozenset({"folder"}))
        target = b"gone-%d" % number
        yield Animal(
            f"dangling-{number}.png".encode(), lambda path, to=target: os.symlink(to, path), frozenset({"missing"})
        )
    yield Animal(b"socket.png", bound_socket, frozenset({"special"}))
    for device in (b"/dev/zero", b"/dev/null"):
        name = b"device" + device.replace(b"/", b"-") + b".png"
        yield Animal(name, lambda path, to=device: os.symlink(to, path), frozenset({"special"}))
    yield Animal(b"loop.png", lambda path: os.symlink(b"loop.png", path), frozenset({"unreadable"}))
    yield Animal(b"round-a.png", lambda path: os.symlink(b"round-b.png", path), frozenset({"unreadable"}))
    yield Animal(b"round-b.png", lambda path: os.symlink(b"round-a.png", path), frozenset({"unreadable"}))
    yield Animal(b"link-to-folder", lambda path: os.symlink(b".", path), frozenset({"folder"}))
    yield Animal(b"link-to-image.png", lambda path: os.symlink(b"PNG-RGB-0.png", path))
    yield Animal(b"locked.png", unreadable, frozenset() if AS_ROOT else frozenset({"unreadable"}))


ZOO = list(animals())


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    for animal in ZOO:
        animal.make(os.fsencode(folder) + b"/" + animal.name)
    (folder / "notes.txt").write_text("not named like an image")
    return folder


def test_three_hundred_entries_of_different_names() -> None:
    assert len(ZOO) >= 300
    assert len({animal.name for animal in ZOO}) == len(ZOO)
    assert sum(bool(animal.kinds) for animal in ZOO) > 60


#: The command in a process of its own, which says at the end how much memory it had needed at most.
COMMAND = """
import re, sys
from lyrics.cli import main
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))
try:
    main()
finally:
    print("peak", peak(), file=sys.stderr)
"""
REFINER = {
    "refiner": {
        "tagger": {"use": "tiny-tagger", "options": {"vocabulary": ["red circle", "blue ring"], "image_size": 32}},
        "detector": {"use": "tiny-detector", "options": {"vocabulary": ["red circle", "blue ring"], "image_size": 32}},
    }
}


def refine(*arguments: str | Path) -> tuple[subprocess.CompletedProcess[bytes], int]:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "refine", *map(str, arguments), "--weights", "random"],
        capture_output=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    match = re.search(rb"peak (\d+)", done.stderr)
    assert match is not None, done.stderr
    return done, int(match.group(1))


def rows(file: Path) -> dict[bytes, dict[str, Any]]:
    """By the name's bytes, within the zoo."""
    found: dict[bytes, dict[str, Any]] = {}
    for line in file.read_bytes().decode("utf-8").splitlines():
        row = json.loads(line)
        name = os.fsencode(name_from_json(row)).rpartition(b"/")[2]
        assert name not in found, name
        found[name] = row
    return found


@pytest.fixture(scope="module")
def refined(
    zoo: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[bytes], int]:
    out = tmp_path_factory.mktemp("refined")
    spec = out / "refiner.json"
    spec.write_text(json.dumps(REFINER))
    done, peak = refine(zoo, "--spec", spec, "--out", out / "zoo")
    return out / "zoo", done, peak


def test_refine_does_or_skips_every_entry_for_the_right_reason(
    refined: tuple[Path, subprocess.CompletedProcess[bytes], int],
) -> None:
    out, done, _ = refined
    assert done.returncode == 0, done.stderr
    finished, skipped = rows(out / OBJECTS_FILE), rows(out / SKIPPED_FILE)
    assert not finished.keys() & skipped.keys()
    assert finished.keys() | skipped.keys() == {animal.name for animal in ZOO}
    for animal in ZOO:
        if animal.kinds:
            assert animal.name in skipped, f"{animal.name!r} was done"
            assert skipped[animal.name]["kind"] in animal.kinds, skipped[animal.name]
            assert "\n" not in skipped[animal.name]["reason"]
        else:
            assert animal.name in finished, skipped.get(animal.name)
            assert (finished[animal.name]["width"], finished[animal.name]["height"]) == animal.size_px, animal.name
    drawings = [row["drawn"] for row in finished.values()]
    assert len(set(drawings)) == len(drawings)
    assert set(drawings) == set(os.listdir(out / DRAWN_FOLDER))
    coco = json.loads((out / COCO_FILE).read_text(encoding="utf-8"))
    assert len(coco["images"]) == len(finished)
    last = done.stdout.decode().splitlines()[-1]
    counted = {kind: int(number) for number, kind in re.findall(r"(\d+) (\w+)(?=[,)])", last)}
    assert last.startswith(f"{len(skipped)} skipped (")
    assert str(out / SKIPPED_FILE) in last
    assert sum(counted.values()) == len(skipped)
    assert counted["special"] == 6


def test_the_zoo_takes_no_more_memory_than_its_largest_image_may(
    refined: tuple[Path, subprocess.CompletedProcess[bytes], int], zoo: Path, tmp_path: Path
) -> None:
    spec = tmp_path / "refiner.json"
    spec.write_text(json.dumps(REFINER))
    _, least = refine(zoo / "1x1.png", "--spec", spec, "--out", tmp_path / "out")
    assert refined[2] - least < 4 * 4200 * 4200 + MEMORY_BOUND


@pytest.fixture(scope="module")
def reader(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The zoo as a data set of conversations, as far as its names can stand in JSON."""
    root = tmp_path_factory.mktemp("llava")
    records = [
        {
            "id": str(number),
            "image": name,
            "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "this"}],
        }
        for number, name in enumerate(_text_names())
    ]
    (root / "llava_instruct_150k.json").write_text(json.dumps(records))
    return build_dataset("llava", {"root": str(root), "images": str(zoo)})


def _text_names() -> list[str]:
    found = []
    for animal in ZOO:
        try:
            found.append(animal.name.decode())
        except UnicodeDecodeError:
            continue
    return found


def test_a_training_reader_reads_what_refine_reads(
    refined: tuple[Path, subprocess.CompletedProcess[bytes], int], reader: Any
) -> None:
    finished, skipped = rows(refined[0] / OBJECTS_FILE), rows(refined[0] / SKIPPED_FILE)
    assert len(reader) > 280
    for index, name in enumerate(_text_names()):
        written = skipped.get(name.encode())
        kind = "done" if written is None else written["kind"]
        try:
            image = reader.picture(reader[index])
            found = "done"
        except ImageError as error:
            found = error.kind
        assert found == kind, name
        if found == "done":
            row = finished[name.encode()]
            assert (image.mode, image.size) == ("RGB", (row["width"], row["height"])), name


def test_a_model_is_asked_about_what_refine_reads(
    refined: tuple[Path, subprocess.CompletedProcess[bytes], int], zoo: Path
) -> None:
    """Every ninth entry, through the library's own way of asking."""
    model = build_model(small(refiner=None), weights="random").eval()
    skipped = rows(refined[0] / SKIPPED_FILE)
    asked = 0
    for animal in ZOO[::9]:
        path = os.fsdecode(os.fsencode(zoo) + b"/" + animal.name)
        if animal.name in skipped:
            with pytest.raises(ImageError) as caught:
                model.chat(path).ask("what?", max_new_tokens=1)
            assert caught.value.kind == skipped[animal.name]["kind"]
        else:
            assert model.chat(path).ask("what?", max_new_tokens=1) is not None
        asked += 1
    assert asked > 30
