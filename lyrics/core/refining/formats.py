"""The forms that a refined folder's rows are written in, each in passes over ``objects.jsonl`` that hold one row at a
time.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lyrics.core.arrow import import_arrow
from lyrics.core.clean_text import reason_of
from lyrics.core.errors import LyricsError, UnknownNameError, did_you_mean
from lyrics.core.files import name_for_messages
from lyrics.core.refining.index import KeySet, key_of
from lyrics.core.refining.refinement import (
    Refinement,
    coco_annotations,
    coco_categories,
    coco_image,
    name_to_json,
    numbered,
)
from lyrics.core.refining.rows import (
    OBJECTS_FILE,
    SKIPPED_FILE,
    file_name_for,
    read_refinements,
    read_rows,
    row_line,
    written_whole,
)

COCO_FILE = "annotations.coco.json"
PARQUET_FILE = "objects.parquet"
YOLO_FOLDER = "yolo"
#: What is written unless something else is asked for.
FORMATS = ("jsonl", "coco")
_ROWS_OF_A_GROUP = 2_000


def check_formats(names: Iterable[str]) -> tuple[str, ...]:
    """Return the formats, each once.

    Raises ``UnknownNameError`` for one that does not exist, and ``MissingRequirementError`` for one that needs a
    package that is not here.
    """
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if name != "jsonl" and name not in WRITERS:
            known = ("jsonl", *WRITERS)
            raise UnknownNameError(
                f"format {name!r}: there are {', '.join(known[:-1])} and {known[-1]}.{did_you_mean(name, known)}"
            )
    if "parquet" in wanted:
        import_arrow()
    return wanted


def write_formats(folder: Path, names: Iterable[str]) -> list[Path]:
    """Write what ``objects.jsonl`` in ``folder`` holds in other formats, and return the paths.

    ``objects.jsonl`` itself is always there: a second run goes on from it. Raises ``LyricsError`` for a damaged row,
    ``OSError`` where the folder cannot be written.
    """
    return [WRITERS[name](folder) for name in names if name != "jsonl"]


def write_coco(folder: Path) -> Path:
    """Write ``annotations.coco.json``: the bytes that ``json.dumps(to_coco(...))`` has of all rows at once."""

    def pieces() -> Iterator[str]:
        names: set[str] = set()
        yield '{"images": ['
        for image_id, found in enumerate(read_refinements(folder / OBJECTS_FILE), 1):
            names |= {one.tag for one in found.objects}
            yield (", " if image_id > 1 else "") + json.dumps(coco_image(found, image_id), ensure_ascii=False)
        yield '], "annotations": ['
        category, first_id = numbered(names), 1
        for image_id, found in enumerate(read_refinements(folder / OBJECTS_FILE), 1):
            for annotation in coco_annotations(found, image_id, first_id, category):
                yield (", " if first_id > 1 else "") + json.dumps(annotation, ensure_ascii=False)
                first_id += 1
        yield f'], "categories": {json.dumps(coco_categories(category), ensure_ascii=False)}}}'

    with written_whole(folder / COCO_FILE) as file:
        file.writelines(piece.encode("utf-8") for piece in pieces())
    return folder / COCO_FILE


def write_yolo(folder: Path) -> Path:
    """Write ``yolo/``: a text file of boxes for each image, links to the images, and ``data.yaml``.

    ``images.jsonl`` says which image a label file is of; images that are no files of this machine have no link.
    """
    names = {one.tag for found in read_refinements(folder / OBJECTS_FILE) for one in found.objects}
    number = {name: index - 1 for name, index in numbered(names).items()}
    target, aside = folder / YOLO_FOLDER, folder / f".{YOLO_FOLDER}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    for name in ("images", "labels"):
        (aside / name).mkdir(parents=True)
    taken = KeySet()
    with (aside / "images.jsonl").open("wb") as listed:
        for found in read_refinements(folder / OBJECTS_FILE):
            path = Path(found.name)
            label = file_name_for(found.name, ".txt", taken)
            taken.add(_drawing_key(label))
            (aside / "labels" / label).write_text("".join(_yolo_lines(found, number)), encoding="utf-8")
            if path.is_file():
                (aside / "images" / (label.removesuffix(".txt") + path.suffix)).symlink_to(os.path.abspath(path))
            listed.write(row_line({"label": label, **name_to_json(found.name)}))
    data = {"train": "images", "val": "images", "names": {index: name for name, index in number.items()}}
    (aside / "data.yaml").write_text(yaml.safe_dump(data, allow_unicode=True, sort_keys=False), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(aside, target)
    return target


def _drawing_key(label: str) -> bytes:
    return key_of(label.casefold())


def _yolo_lines(found: Refinement, number: Mapping[str, int]) -> Iterator[str]:
    for one in found.objects:
        x1, y1, x2, y2 = one.box_norm.as_tuple()
        numbers = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        yield f"{number[one.tag]} {' '.join(f'{value:.6f}' for value in numbers)}\n"


def write_parquet(folder: Path) -> Path:
    """Write ``objects.parquet``: a row for each image, those that were skipped with their ``error``."""
    rows = (row for _, row in read_rows(folder / OBJECTS_FILE))
    skipped: Iterator[Any] = iter(())
    if (folder / SKIPPED_FILE).exists():
        skipped = (row for _, row in read_rows(folder / SKIPPED_FILE))
    write_parquet_rows(folder / PARQUET_FILE, itertools.chain(rows, map(failed_row, skipped)))
    return folder / PARQUET_FILE


def failed_row(skipped: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of ``skipped.jsonl`` as a row of a table of all images."""
    name = {key: skipped[key] for key in ("image", "image_hex") if key in skipped}
    return name | {"error": skipped["reason"], "error_kind": skipped["kind"]}


def write_parquet_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of ``objects.jsonl``, and failed ones, to a parquet file, all of it or nothing."""
    arrow, schema = import_arrow(), parquet_schema()
    with written_whole(path) as file, arrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in batched(rows, _ROWS_OF_A_GROUP):
            writer.write_table(arrow.Table.from_pylist([dict(row) for row in group], schema=schema))


def parquet_schema() -> Any:
    """Return the columns of ``objects.parquet``: those of ``objects.jsonl``, and two for what went wrong."""
    arrow = import_arrow()
    text, number = arrow.string(), arrow.float64()
    mask = arrow.struct([("size", arrow.list_(arrow.int64())), ("counts", text)])
    found = arrow.struct([("tag", text), ("score", number), ("box_px", arrow.list_(number)), ("mask", mask)])
    return arrow.schema(
        [
            *(("image", text), ("image_hex", text), ("width", arrow.int64()), ("height", arrow.int64())),
            ("tags", arrow.list_(arrow.struct([("name", text), ("score", number)]))),
            ("objects", arrow.list_(found)),
            *(("refiner", text), ("drawn", text), ("error_kind", text), ("error", text)),
        ]
    )


def rows_of_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that ``write_parquet_rows`` wrote: columns without a value are left out.

    Raises ``LyricsError`` for a file that is none, or is damaged.
    """
    arrow = import_arrow()
    try:
        with arrow.parquet.ParquetFile(path) as file:
            if missing := set(parquet_schema().names) - set(file.schema_arrow.names):
                raise LyricsError(f"{name_for_messages(path)}: has no column {', '.join(sorted(missing))}.")
            for batch in file.iter_batches(_ROWS_OF_A_GROUP, columns=parquet_schema().names):
                for row in batch.to_pylist():
                    # A mask that is not there is said; a column that is not there is not.
                    yield {key: value for key, value in row.items() if value is not None}
    except (arrow.ArrowException, OSError) as error:
        raise LyricsError(f"{name_for_messages(path)}: cannot be read as parquet: {reason_of(error)}.") from error


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of ``size`` items, the last of them perhaps shorter."""
    waiting = iter(items)
    while batch := list(itertools.islice(waiting, size)):
        yield batch


WRITERS: Mapping[str, Callable[[Path], Path]] = {"coco": write_coco, "parquet": write_parquet, "yolo": write_yolo}
#: Format -> what it is written as.
FILES: Mapping[str, str] = {"coco": COCO_FILE, "parquet": PARQUET_FILE, "yolo": YOLO_FOLDER}
