"""The pass in a real Ray on two cores: the rows of one process, whatever dies, and no work done twice.

Run by ``make test-ray``; skipped where Ray is not installed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lyrics.core.data.refine_inputs import RefineInputs
from lyrics.core.errors import LyricsError, MissingRequirementError
from lyrics.core.pictures.model_inputs import joined
from lyrics.core.refining.refine_files import COCO_FILE, OBJECTS_FILE, SKIPPED_FILE, refine_files
from lyrics.workflows import refine_ray
from lyrics.workflows.refine_ray import RayOptions, RefinerRecipe, refine_on_ray
from tests.core.data.tars import write_tar

NAMES = ["red circle", "blue ring"]
RECIPE = RefinerRecipe(
    {
        "refiner": {
            "tagger": {"use": "tiny-tagger", "options": {"threshold": 0.0, "vocabulary": NAMES, "image_size": 32}},
            "detector": {
                "use": "tiny-detector",
                "options": {"score_threshold": 0.0, "vocabulary": NAMES, "image_size": 32},
            },
            "max_objects": 3,
        }
    },
    weights="random",
)


def images(folder: Path, numbers: range) -> Path:
    """Of different sizes; and one that is none."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.new("RGB", (30 + number, 20 + number % 7), (number * 5 % 256, 40, 90)).save(folder / f"{number:03}.png")
    (folder / "bad.jpg").write_bytes(b"hello")
    return folder


def test_pictures_joined_are_pictures_prepared_together(tmp_path: Path) -> None:
    refiner = RECIPE.build()
    opened = [Image.open(path) for path in sorted(images(tmp_path / "in", range(4)).glob("*.png"))]
    together = refiner.prepare(opened, ["a", "b", "c", "d"])
    one_by_one = joined([refiner.prepare([image], [name]) for image, name in zip(opened, "abcd", strict=True)])
    assert one_by_one.names == together.names
    assert one_by_one.sizes_px == together.sizes_px
    for expert, batch in together.by_expert.items():
        assert one_by_one.by_expert[expert].frames == batch.frames
        assert one_by_one.by_expert[expert].pixels_BCHW.equal(batch.pixels_BCHW)


def test_a_ray_that_is_not_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingRequirementError, match=r"needs Ray, which is not installed.*lyrics-vl\[scale\]"):
        refine_on_ray(RECIPE, RefineInputs([str(images(tmp_path / "in", range(2)))]), tmp_path / "out")


def test_what_no_worker_could_open_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lyrics.core.data.readers import write_index

    monkeypatch.setattr(refine_ray, "import_ray", lambda: None)
    data = next(images(tmp_path / "in", range(1)).glob("*.png")).read_bytes()
    write_index(write_tar(tmp_path / "a.tar", [("a.png", data)]))
    with pytest.raises(LyricsError, match="reads files and addresses alone; use --shard for tar shards"):
        refine_on_ray(RECIPE, RefineInputs([str(tmp_path / "a.tar")]), tmp_path / "out")
    refine_files(RECIPE.build(), RefineInputs([str(tmp_path / "in")]), tmp_path / "plain", draw=False)
    with pytest.raises(LyricsError, match="was made without --engine ray"):
        refine_on_ray(RECIPE, RefineInputs([str(tmp_path / "in")]), tmp_path / "plain")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="ray is not installed; make test-ray has it")
    pytest.importorskip("ray.data", reason="ray[data] is not installed; make test-ray has it")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


def merged(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in (OBJECTS_FILE, SKIPPED_FILE, COCO_FILE)}


def holders(session: str) -> Iterator[int]:
    """Processes of our own Ray that hold experts."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and b"MapBatches(Seer)" in (entry / "cmdline").read_bytes():
                parent = next(
                    line.split()[1] for line in (entry / "status").read_text().splitlines() if line.startswith("PPid")
                )
                if session.encode() in Path("/proc", parent, "cmdline").read_bytes():
                    yield int(entry.name)
        except (OSError, StopIteration):
            continue


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_rows_are_those_of_one_process_though_an_actor_dies_and_a_second_start_does_only_the_rest(
    ray: Any, tmp_path: Path
) -> None:
    folder, out, options = images(tmp_path / "in", range(24)), tmp_path / "ray", RayOptions(batch_size=4)
    session = ray._private.worker._global_node.get_session_dir_path()
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + 300
        while not killed and time.monotonic() < end:
            for pid in holders(session):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    done = refine_on_ray(RECIPE, RefineInputs([str(folder)]), out, options=options)
    thread.join(1)
    assert killed, "no actor was there to be killed"
    assert (done.rows, done.skipped) == (24, 1)
    refine_files(RECIPE.build(), RefineInputs([str(folder)]), tmp_path / "one", draw=False, batch_size=4)
    assert merged(out) == merged(tmp_path / "one")

    before = {path: path.stat().st_mtime_ns for path in (out / "ray" / "rows").rglob("*.parquet")}
    images(folder, range(24, 28))
    done = refine_on_ray(RECIPE, RefineInputs([str(folder)]), out, options=options)
    after = {path: path.stat().st_mtime_ns for path in (out / "ray" / "rows").rglob("*.parquet")}
    assert before.items() <= after.items()
    import pyarrow.parquet

    new = sum(pyarrow.parquet.read_metadata(path).num_rows for path in after.keys() - before.keys())
    assert new == 4, "what was finished is not done again"
    refine_files(RECIPE.build(), RefineInputs([str(folder)]), tmp_path / "one", draw=False, batch_size=4)
    assert (done.rows, done.skipped) == (28, 1)
    assert sorted(merged(out)[OBJECTS_FILE].splitlines()) == sorted(merged(tmp_path / "one")[OBJECTS_FILE].splitlines())

    other = RefinerRecipe(RECIPE.spec, "random", phrases=("red circle",))
    with pytest.raises(LyricsError, match="holds rows of another refiner or of other phrases"):
        refine_on_ray(other, RefineInputs([str(folder)]), out, options=options)
