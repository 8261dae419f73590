"""What the refiner's experts gave beside objects, kept for training: local tokens in half precision.

``features.bin`` holds, image after image, the boxes of its objects (float64, exactly as they were found) and the
tokens of each source (float16); an image's row says where (``features``), how many there are of each, and their
CRC-32. ``features.json`` says what made them.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np
import torch

from lyrics.core.contracts import TokensWithBoxes
from lyrics.core.errors import DatasetError, ImageError, SpecError
from lyrics.core.files import name_for_messages
from lyrics.core.geometry import Box
from lyrics.core.json_reading import parse_json, read_json_object
from lyrics.core.masks import Mask
from lyrics.core.refining.index import key_of
from lyrics.core.refining.refinement import name_from_json
from lyrics.core.refining.refiner import RefinerOutput, VisualRefiner
from lyrics.core.refining.rows import OBJECTS_FILE, written_whole
from lyrics.core.refining.shards import SHARDS_FOLDER, finished_shards
from lyrics.core.refining.stored import same_end
from lyrics.core.types import DetectedObject, SeenBefore, Tag

FEATURES_FILE = "features.bin"
ABOUT_FILE = "features.json"
#: The largest number that float16 holds.
_LARGEST = 65_504.0


@dataclass(frozen=True)
class FeatureOptions:
    """Which local tokens are kept: all, or of the detector the ``top`` whose boxes lie nearest to the objects."""

    top: int | None = None

    @classmethod
    def parse(cls, text: str) -> FeatureOptions:
        """Read ``all`` or a number. Raises ``SpecError`` for anything else."""
        if text == "all":
            return cls()
        if not text.isdecimal() or not 0 < int(text) < 10**6:
            raise SpecError(f"--features {text}: is all, or how many of the detector's tokens are kept, such as 64.")
        return cls(int(text))


class FeatureWriter:
    """Appends features to ``folder``, after what belongs to finished rows.

    Raises ``SpecError`` for a choice of tokens by their boxes where the detector's tokens hold none.
    """

    def __init__(self, folder: Path, refiner: VisualRefiner, options: FeatureOptions, end: int, digest: str) -> None:
        self.refiner, self.options = refiner, options
        self.boxes = {source: isinstance(one, TokensWithBoxes) for source, one in refiner.local_sources.items()}
        if options.top is not None and not self.boxes.get("detector"):
            raise SpecError(
                f"--features {options.top}: {refiner.names['detector']} does not say where in an image its tokens "
                "are, so that none can be chosen; give --features all."
            )
        about = {
            "refiner": digest,
            "made_of": refiner.made_of,
            "top": options.top,
            "widths": {source: one.feature_dim for source, one in refiner.local_sources.items()},
            "boxes": self.boxes,
        }
        with written_whole(folder / ABOUT_FILE) as file:
            file.write(json.dumps(about, indent=1, sort_keys=True).encode() + b"\n")
        self.file: IO[bytes] = (folder / FEATURES_FILE).open("ab")
        self.file.truncate(end)
        self.end = end

    def close(self) -> None:
        self.file.close()

    def add(self, output: RefinerOutput, index: int) -> dict[str, Any]:
        """Append the features of image ``index`` of a batch, and return what its row says of them.

        Raises ``ImageError`` for tokens that float16 cannot hold.
        """
        objects = output.refinements[index].objects
        boxes_K4 = np.array([one.box_norm.as_tuple() for one in objects], dtype=np.float64).reshape(-1, 4)
        pieces = [boxes_K4.tobytes()]
        counts = {}
        for source, (tokens_BMD, mask_BM) in output.local.items():
            tokens_MD = tokens_BMD[index][mask_BM[index]].float().cpu()
            if not bool((tokens_MD.abs() <= _LARGEST).all()):
                raise ImageError(
                    f"{name_for_messages(output.refinements[index].name)}: {self.refiner.names[source]} gave tokens "
                    "beyond what half precision holds.",
                    "expert",
                )
            if source == "detector" and self.options.top is not None:
                tokens_MD = tokens_MD[nearest(tokens_MD[:, -4:].numpy(), boxes_K4, self.options.top)]
            counts[source] = len(tokens_MD)
            pieces.append(tokens_MD.half().numpy().tobytes())
        data = b"".join(pieces)
        entry = {"at": self.end, "bytes": len(data), "crc32": zlib.crc32(data), "counts": counts}
        self.file.write(data)
        self.end += len(data)
        return entry

    def sync(self) -> None:
        """Bring what was added to the disk, before the rows that speak of it."""
        self.file.flush()
        os.fsync(self.file.fileno())


def nearest(boxes_M4: np.ndarray, objects_K4: np.ndarray, count: int) -> list[int]:
    """Return the rows of the ``count`` boxes (center, size) that overlap most with an object (corners), in order.

    Shares of the image. Of those that overlap as much the first are taken.
    """
    half = boxes_M4[:, 2:] / 2
    low_M2, high_M2 = boxes_M4[:, :2] - half, boxes_M4[:, :2] + half
    best_M = np.zeros(len(boxes_M4))
    for x1, y1, x2, y2 in objects_K4:
        sides = np.minimum(high_M2, (x2, y2)) - np.maximum(low_M2, (x1, y1))
        shared = np.clip(sides, 0, None).prod(axis=1)
        union = (high_M2 - low_M2).prod(axis=1) + (x2 - x1) * (y2 - y1) - shared
        best_M = np.maximum(best_M, shared / np.maximum(union, 1e-12))
    return sorted(np.argsort(-best_M, kind="stable")[:count].tolist())


class StoredFeatures:
    """What a refiner saw, by the image's name in its data set; read from the disk image by image.

    A name that is not there as written stands for the one image whose path ends as it does, as for
    ``StoredRefinements``. Sixty bytes of memory an image.

    Args:
        folder: the ``--out`` of ``lyrics refine --features``, with or without ``--shard``.

    Raises ``DatasetError`` for a folder without features, ``LyricsError`` for shards that are not done.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._folders = feature_folders(self.folder)
        self.about = read_json_object(self._folders[0] / ABOUT_FILE, DatasetError)
        names, files = bytearray(), bytearray()
        places, homes = array("Q"), array("L")
        for home, one in enumerate(self._folders):
            at = 0
            with (one / OBJECTS_FILE).open("rb") as rows:
                for line in rows:
                    if line.strip():
                        name = name_from_json(self._row(line, one, at))
                        names += key_of(name)
                        files += key_of(PurePath(name).name)
                        places.append(at)
                        homes.append(home)
                    at += len(line)
        self._places, self._homes = np.array(places, dtype=np.uint64), np.array(homes, dtype=np.uint32)
        self._names, self._by_name = _sorted_keys(names)
        self._files, self._by_file = _sorted_keys(files)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def widths(self) -> dict[str, int]:
        """Numbers in a token of each source."""
        return dict(self.about["widths"])

    @property
    def bytes_per_image(self) -> float:
        """Bytes of features, on average."""
        total = sum((folder / FEATURES_FILE).stat().st_size for folder in self._folders)
        return total / max(1, len(self))

    def _row(self, line: bytes, folder: Path, at: int) -> dict[str, Any]:
        where = f"{folder / OBJECTS_FILE}, byte {at}"
        row = parse_json(line, where, DatasetError)
        if not isinstance(row, dict) or "features" not in row:
            raise DatasetError(f"{where}: a row without features; do this folder again with --features.")
        return row

    def get(self, name: str) -> SeenBefore | None:
        """Return what was seen in an image, or None where there is no such image.

        Raises ``DatasetError`` for a name that may be any of several images, and for damaged features.
        """
        rows = [self._read(index) for index in self._find(self._names, self._by_name, name)]
        if not rows:
            parts = PurePath(name).parts
            found = (self._read(index) for index in self._find(self._files, self._by_file, PurePath(name).name))
            rows = [one for one in found if same_end(parts, PurePath(name_from_json(one[0])).parts)]
        if len(rows) > 1:
            paths = ", ".join(name_from_json(row) for row, _ in rows[:3])
            raise DatasetError(f"{name} may be any of {paths} in {self.folder}; give images names of their own.")
        return self._seen(*rows[0]) if rows else None

    @staticmethod
    def _find(keys: np.ndarray, order: np.ndarray, name: str) -> Iterable[int]:
        key = key_of(name)
        first, last = np.searchsorted(keys, key, "left"), np.searchsorted(keys, key, "right")
        return (int(index) for index in order[first:last])

    def _read(self, index: int) -> tuple[dict[str, Any], Path]:
        folder, at = self._folders[int(self._homes[index])], int(self._places[index])
        with (folder / OBJECTS_FILE).open("rb") as file:
            file.seek(at)
            return self._row(file.readline(), folder, at), folder

    def _seen(self, row: Mapping[str, Any], folder: Path) -> SeenBefore:
        entry = row["features"]
        name = name_for_messages(name_from_json(row))
        with (folder / FEATURES_FILE).open("rb") as file:
            file.seek(entry["at"])
            data = file.read(entry["bytes"])
        if len(data) != entry["bytes"] or zlib.crc32(data) != entry["crc32"]:
            raise DatasetError(
                f"{folder / FEATURES_FILE}: the features of {name} are damaged; drop its line from "
                f"{folder / OBJECTS_FILE} and refine again."
            )
        count = len(row["objects"])
        boxes_K4 = np.frombuffer(data, np.float64, count * 4).reshape(-1, 4).tolist()
        at, tokens = count * 32, {}
        for source, rows in entry["counts"].items():
            width = self.widths[source]
            half = np.frombuffer(data, np.float16, rows * width, at).reshape(rows, width)
            tokens[source] = torch.from_numpy(half.copy())
            at += half.nbytes
        objects = tuple(
            DetectedObject(
                str(one["tag"]), Box(*box), float(one["score"]), Mask.from_coco(one["mask"]) if one["mask"] else None
            )
            for one, box in zip(row["objects"], boxes_K4, strict=True)
        )
        tags = tuple(Tag(str(one["name"]), float(one["score"])) for one in row["tags"])
        return SeenBefore((int(row["width"]), int(row["height"])), tags, objects, tokens)

    def check_made_by(self, refiner: Mapping[str, Any], where: str) -> None:
        """Raise ``SpecError`` unless features are those of a refiner with this (resolved) specification."""
        made_of = self.about.get("made_of", {}).get("refiner")
        if made_of is None or made_of == refiner:
            return
        differing = sorted(key for key in {*made_of, *refiner} if made_of.get(key) != refiner.get(key))
        raise SpecError(
            f"{where}: its features were made by another refiner: {', '.join(f'refiner.{key}' for key in differing)} "
            "differ. Set the model's refiner to that of 'lyrics refine --features', or refine again."
        )


def features_fingerprint(folder: str | os.PathLike[str]) -> str:
    """Return a digest of what made the features of a folder and of how many there are, without reading them.

    Raises ``DatasetError`` as ``StoredFeatures`` does.
    """
    digest = hashlib.sha256()
    for one in feature_folders(Path(folder)):
        digest.update((one / ABOUT_FILE).read_bytes())
        digest.update(f"{(one / OBJECTS_FILE).stat().st_size} {(one / FEATURES_FILE).stat().st_size}".encode())
    return digest.hexdigest()


def feature_folders(folder: Path) -> list[Path]:
    """Return the folders that hold the features of a refined one: itself, or its shards. Errors as above."""
    found = [folder]
    if not (folder / ABOUT_FILE).is_file() and (folder / SHARDS_FOLDER).is_dir():
        found = finished_shards(folder)
    if not (found[0] / ABOUT_FILE).is_file():
        raise DatasetError(
            f"{name_for_messages(folder)}: holds no features; 'lyrics refine ... --features all --out "
            f"{name_for_messages(folder)}' makes them."
        )
    return found


def _sorted_keys(keys: bytearray) -> tuple[np.ndarray, np.ndarray]:
    """Keys in order, and the row that each is of."""
    found = np.frombuffer(bytes(keys), dtype="S16")
    order = np.argsort(found, kind="stable").astype(np.uint32)
    return found[order], order
