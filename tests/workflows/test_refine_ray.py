"""The pass in a real Ray on two cores: the rows of one process, whatever dies, and no work done twice.

Run by ``make test-scale``; skipped where Ray is not installed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lyrics.core.data.refine_inputs import RefineInputs
from lyrics.core.errors import LyricsError, MissingRequirementError
from lyrics.core.pictures.model_inputs import ModelImages, joined
from lyrics.core.refining.refine_files import COCO_FILE, OBJECTS_FILE, SKIPPED_FILE, refine_files
from lyrics.workflows import refine_ray
from lyrics.workflows.ray_rows import row_id
from lyrics.workflows.refine_ray import Opener, RayOptions, RefinerRecipe, Seer, actors, refine_on_ray, start_here
from tests.commands import Run
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
    with pytest.raises(LyricsError, match=r"objects\.jsonl: was made without --engine ray"):
        refine_on_ray(RECIPE, RefineInputs([str(tmp_path / "in")]), tmp_path / "plain")


@pytest.mark.parametrize(
    ("machines", "cores", "count", "each"),
    [
        ([{"CPU": 2}], None, 1, {"num_cpus": 1}),
        ([{"CPU": 16}], None, 3, {"num_cpus": 4}),
        ([{"CPU": 16}], 15, 1, {"num_cpus": 15}),
        ([{"CPU": 8}, {"CPU": 8}], None, 3, {"num_cpus": 4}),
        ([{"CPU": 9}, {"CPU": 8}], None, 4, {"num_cpus": 4}),
        ([{"CPU": 2}, {"CPU": 2}], None, 1, {"num_cpus": 2}),
        ([{"CPU": 16, "GPU": 8}], None, 8, {"num_gpus": 1, "num_cpus": 1}),
        ([{"CPU": 4, "GPU": 8}], None, 3, {"num_gpus": 1, "num_cpus": 1}),
        ([{"CPU": 4, "GPU": 1}, {"CPU": 32}], None, 1, {"num_gpus": 1, "num_cpus": 1}),
    ],
)
def test_actors_fit_on_their_machines_and_leave_a_core(
    machines: list[dict[str, float]], cores: int | None, count: int, each: dict[str, float]
) -> None:
    assert actors(machines, cores) == (count, each)


def test_too_few_cores_are_refused() -> None:
    with pytest.raises(LyricsError, match="Ray has 1 CPU core; two are needed"):
        actors([{"CPU": 1}], None)
    with pytest.raises(LyricsError, match="--cores 16: an actor can have 15 here"):
        actors([{"CPU": 16}], 16)


class SlowRay:
    """One whose processes come up in time only at its ``good``th start."""

    def __init__(self, good: int) -> None:
        self.good, self.starts, self.ended = good, 0, 0

    def init(self, **_: Any) -> None:
        self.starts += 1
        if self.starts < self.good:
            raise Exception("The current node timed out during startup.")

    def is_initialized(self) -> bool:
        return False

    def shutdown(self) -> None:
        self.ended += 1


def test_a_ray_that_comes_up_late_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in refine_ray._PATIENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_worker_niceness", "7")
    slow = SlowRay(3)
    start_here(slow)
    assert (slow.starts, slow.ended) == (3, 2)
    found = {name: os.environ.get(name) for name in refine_ray._PATIENT}
    assert found == refine_ray._PATIENT | {"RAY_worker_niceness": "7"}
    with pytest.raises(LyricsError, match="Ray cannot be used: Exception: The current node timed out"):
        refine_ray._start(SlowRay(4), RayOptions(), ExitStack())


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_a_cluster_that_is_not_there_is_said_at_once(address: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = address.format(free.getsockname()[1])
        slow = SlowRay(1)
        with pytest.raises(LyricsError, match=rf"Ray at {where} cannot be used: ConnectionRefusedError: .*refused\.$"):
            refine_ray._start(slow, RayOptions(address=where), ExitStack())
    assert slow.starts == 0


def test_experts_that_fail_on_everything_stop_the_run_and_those_of_other_weights_do_not_begin(tmp_path: Path) -> None:
    opened = Opener({name: one.preprocessing for name, one in RECIPE.build().experts.items()})
    paths = [str(path) for path in sorted(images(tmp_path, range(20)).glob("*.png"))]
    batch = opened({"id": [row_id(path, path) for path in paths]})
    seer = Seer(RECIPE, 1, False)

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    seer.refiner.refine = fail  # type: ignore[method-assign,assignment]
    with pytest.raises(LyricsError, match=r"the experts failed on each of the first 16 images.*broken"):
        seer(batch)
    with pytest.raises(LyricsError, match="were made with other weights"):
        Seer(RECIPE, 1, False, made_by="0123456789abcdef")


def test_one_image_that_an_expert_fails_on_is_a_row_of_its_own(tmp_path: Path) -> None:
    seer = Seer(RECIPE, 1, False)
    whole = seer.refiner.refine

    def fail(images: ModelImages, phrases: Any = None) -> Any:
        if any("001" in name for name in images.names):
            raise RuntimeError("broken")
        return whole(images, phrases)

    seer.refiner.refine = fail  # type: ignore[method-assign,assignment]
    paths = [str(path) for path in sorted(images(tmp_path, range(3)).glob("*.*"))]
    opened = Opener({name: one.preprocessing for name, one in seer.refiner.experts.items()})
    rows = seer(opened({"id": [row_id(path, path) for path in paths]}))
    assert list(rows["kind"]) == ["", "expert", "", "format"]
    assert [json.loads(line)["image"] for line in rows["line"]] == paths
    assert "an expert failed: RuntimeError: broken" in rows["line"][1]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="ray is not installed; make test-scale has it")
    pytest.importorskip("ray.data", reason="ray[data] is not installed; make test-scale has it")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    try:
        start_here(ray, num_cpus=2, object_store_memory=200 * 2**20)
    except Exception as error:  # a busy machine
        pytest.skip(f"Ray does not start here: {error}")
    yield ray
    ray.shutdown()
    monkeypatch.undo()


def merged(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in (OBJECTS_FILE, SKIPPED_FILE, COCO_FILE)}


def rows_of(out: Path) -> dict[str, int]:
    """Rows of each start."""
    import pyarrow.parquet

    return {
        start.name: sum(pyarrow.parquet.read_metadata(path).num_rows for path in start.rglob("*.parquet"))
        for start in sorted((out / "ray" / "rows").iterdir())
    }


def test_rows_are_those_of_one_process_though_an_actor_dies_and_a_second_start_does_only_the_rest(
    ray: Any, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out, died = images(tmp_path / "in", range(24)), tmp_path / "ray", tmp_path / "died"
    (tmp_path / "spec.yaml").write_text(json.dumps(dict(RECIPE.spec)))
    command = ["refine", str(folder), "--spec", str(tmp_path / "spec.yaml"), "--weights", "random", "--batch", "4"]

    class Dies(Seer):
        """Ends its process once, in the middle of its work."""

        batches = 0

        def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
            self.batches += 1
            if self.batches == 3 and not died.exists():
                died.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(batch)

    with monkeypatch.context() as patched:
        patched.setattr(refine_ray, "Seer", Dies)
        done = run(*command, "--engine", "ray", "--out", str(out))
    assert done.code == 0, done.err
    assert "24 images refined, 1 skipped" in done.out
    assert died.exists(), "no actor died"
    assert rows_of(out) == {"00000": 25}
    assert run(*command, "--no-draw", "--out", str(tmp_path / "one")).code == 0
    assert merged(out) == merged(tmp_path / "one")

    images(folder, range(24, 28))
    done = run(*command, "--engine", "ray", "--out", str(out))
    assert done.code == 0, done.err
    assert "28 images refined, 1 skipped" in done.out
    assert rows_of(out) == {"00000": 25, "00001": 5}, "the new ones, and the bad one again"
    assert run(*command, "--no-draw", "--out", str(tmp_path / "one")).code == 0
    assert sorted(merged(out)[OBJECTS_FILE].splitlines()) == sorted(merged(tmp_path / "one")[OBJECTS_FILE].splitlines())

    other = run(*command, "--engine", "ray", "--phrases", "red circle", "--out", str(out))
    assert other.code == 1
    assert "holds rows of another refiner or of other phrases" in other.err
