"""Tars for the tests, also such as no honest program writes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image


def jpeg(size: tuple[int, int] = (8, 6), color: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "JPEG", quality=95)
    return out.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_special(path: Path, kind: bytes, name: str = "000000001.jpg", **fields: str | int) -> Path:
    """A tar with one ordinary sample, and one member of another kind."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("000000000.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"a"))
        special = tarfile.TarInfo(name)
        special.type = kind
        for field, value in fields.items():
            setattr(special, field, value)
        tar.addfile(special)
    return path


def sample_members(key: str, caption: str, **about: object) -> list[tuple[str, bytes]]:
    """What img2dataset writes for one picture."""
    record: Mapping[str, object] = {
        "caption": caption,
        "url": f"http://x/{key}",
        "key": key,
        "status": "success",
        **about,
    }
    return [(f"{key}.jpg", jpeg()), (f"{key}.json", json.dumps(record).encode()), (f"{key}.txt", caption.encode())]
