"""Workers that share one list and know nothing of each other give the rows of one, whichever of them die."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lyrics.core.errors import LyricsError, SpecError
from lyrics.core.lease import Lease
from lyrics.core.refining import shards
from lyrics.core.refining.inputs import find_images
from lyrics.core.refining.refine_files import COCO_FILE, OBJECTS_FILE, SKIPPED_FILE, refine_files
from lyrics.core.refining.shards import DONE_FILE, Shard, merge_shards
from tests.core.refining.scale import AtOnce, Numbers


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Forty in folders, three of which are none."""
    for number in range(40):
        folder = tmp_path / "in" / f"{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 16)).save(folder / f"{number}.png")
    for name in ("0/bad.jpg", "1/bad.jpg", "2/none.png"):
        (tmp_path / "in" / name).write_bytes(b"" if "none" in name else b"hello")
    return find_images([tmp_path / "in"])


def merged_files(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in (OBJECTS_FILE, SKIPPED_FILE, COCO_FILE)}


def test_every_picture_is_of_one_shard() -> None:
    names = [one.name for one in Numbers(600)]
    for count in (1, 3, 64):
        counts = [sum(Shard(index, count).holds(name) for name in names) for index in range(count)]
        assert sum(counts) == 600
        assert min(counts) > 600 / count * 0.1
    assert [Shard(3, 8).holds(name) for name in ("a", "b")] == [Shard(3, 8).holds(name) for name in ("a", "b")]


@pytest.mark.parametrize("text", ["3", "3/3", "-1/3", "1/0", "a/b", "1/2/3", "0x1/2", "", "1 / 2"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(SpecError, match="counted from 0"):
        Shard.parse(text)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_shards_merged_are_the_rows_of_one_run(count: int, pictures: list[Path], tmp_path: Path) -> None:
    refine_files(AtOnce(), pictures, tmp_path / "one", draw=False)
    for index in random.Random(count).sample(range(count), count):
        refine_files(AtOnce(), pictures, tmp_path / "many", draw=False, shard=Shard(index, count), batch_size=3)
    done = merge_shards(tmp_path / "many", ["jsonl", "coco"])
    assert (done.shards, done.rows, done.skipped) == (count, 40, 3)
    assert merged_files(tmp_path / "many") == merged_files(tmp_path / "one")
    assert merge_shards(tmp_path / "many", ["jsonl"]).rows == 40, "merged again"
    # A run that is no shard goes on from what was merged.
    assert refine_files(AtOnce(), pictures, tmp_path / "many", draw=False).done_before == 40


def test_drawings_of_shards_have_names_of_their_own(pictures: list[Path], tmp_path: Path) -> None:
    for index in range(2):
        refine_files(AtOnce(), pictures, tmp_path / "out", shard=Shard(index, 2))
    merge_shards(tmp_path / "out", ["jsonl"])
    drawn = [json.loads(line)["drawn"] for line in (tmp_path / "out" / OBJECTS_FILE).read_text().splitlines()]
    assert sorted(drawn) == sorted(os.listdir(tmp_path / "out" / "drawn"))
    assert len(set(drawn)) == 40


def test_many_sorted_runs_are_one(pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if memory held two rows, and three files could be open."""
    monkeypatch.setattr(shards, "_BYTES_AT_ONCE", 600)
    monkeypatch.setattr(shards, "_FILES_AT_ONCE", 3)
    refine_files(AtOnce(), pictures, tmp_path / "one", draw=False)
    refine_files(AtOnce(), pictures[::-1], tmp_path / "many", draw=False, shard=Shard(0, 1))
    merge_shards(tmp_path / "many", ["coco"])
    assert merged_files(tmp_path / "many") == merged_files(tmp_path / "one")
    assert not list((tmp_path / "many").glob(".sorting-*"))


def _work_until(writes: int, index: int, found: list[Path], out: Path) -> int:
    """Refine shard ``index`` of 3 in a process that kills itself after so many writes. Returns its status."""
    pid = os.fork()
    if pid != 0:
        return os.waitpid(pid, 0)[1]
    try:
        left = iter(range(writes))

        def or_die(act: Callable[..., Any]) -> Callable[..., Any]:
            def write(*args: Any) -> Any:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return act(*args)

            return write

        os.replace, os.fsync = or_die(os.replace), or_die(os.fsync)
        refine_files(AtOnce(), found, out, batch_size=2, draw=False, shard=Shard(index, 3))
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_workers_that_are_killed_at_random_give_the_same_bytes(seed: int, pictures: list[Path], tmp_path: Path) -> None:
    """SIGKILL to each of three after a random number of writes, again and again until all are done."""
    refine_files(AtOnce(), pictures, tmp_path / "one", draw=False)
    draw, waiting, kills = random.Random(seed), [0, 1, 2], 0
    while waiting:
        index = draw.choice(waiting)
        status = _work_until(draw.randrange(6), index, pictures, tmp_path / "many")
        if status == 0:
            waiting.remove(index)
        else:
            assert os.WTERMSIG(status) == signal.SIGKILL
            kills += 1
            with pytest.raises(LyricsError, match="are not done"):
                merge_shards(tmp_path / "many", ["jsonl"])
    assert kills >= 3
    merge_shards(tmp_path / "many", ["jsonl", "coco"])
    assert merged_files(tmp_path / "many") == merged_files(tmp_path / "one")


# --- what is refused ---


def test_what_is_missing_is_named(pictures: list[Path], tmp_path: Path) -> None:
    with pytest.raises(LyricsError, match="has no shards"):
        merge_shards(tmp_path, ["jsonl"])
    refine_files(AtOnce(), pictures, tmp_path / "out", draw=False, shard=Shard(1, 3))
    with pytest.raises(LyricsError, match=r"of 3 shards 2 are not done \(0, 2\); run them again"):
        merge_shards(tmp_path / "out", ["jsonl"])
    with pytest.raises(LyricsError, match="is shared out in 3 shards, not in 2"):
        refine_files(AtOnce(), pictures, tmp_path / "out", draw=False, shard=Shard(1, 2))


def test_shards_of_two_refiners_are_not_merged(pictures: list[Path], tmp_path: Path) -> None:
    for index, phrases in enumerate((None, ["dog"])):
        refine_files(AtOnce(), pictures, tmp_path / "out", draw=False, shard=Shard(index, 2), phrases=phrases)
    with pytest.raises(LyricsError, match="different refiners, weights or phrases"):
        merge_shards(tmp_path / "out", ["jsonl"])
    refine_files(AtOnce(), pictures, tmp_path / "out", draw=False, shard=Shard(1, 2), redo=True)
    assert merge_shards(tmp_path / "out", ["jsonl"]).rows == 40


def test_rows_of_another_run_are_not_written_over(pictures: list[Path], tmp_path: Path) -> None:
    refine_files(AtOnce(), pictures[:2], tmp_path / "out", draw=False)
    before = (tmp_path / "out" / OBJECTS_FILE).read_bytes()
    refine_files(AtOnce(), pictures, tmp_path / "out", draw=False, shard=Shard(0, 1))
    with pytest.raises(LyricsError, match="was made by a run without --shard; move it away"):
        merge_shards(tmp_path / "out", ["jsonl"])
    assert (tmp_path / "out" / OBJECTS_FILE).read_bytes() == before


def test_rows_that_a_plain_run_added_to_merged_ones_are_not_written_over(pictures: list[Path], tmp_path: Path) -> None:
    refine_files(AtOnce(), pictures[:10], tmp_path / "out", draw=False, shard=Shard(0, 1))
    merge_shards(tmp_path / "out", ["jsonl"])
    merge_shards(tmp_path / "out", ["jsonl"])
    assert refine_files(AtOnce(), pictures, tmp_path / "out", draw=False).refined > 0
    before = (tmp_path / "out" / OBJECTS_FILE).read_bytes()
    with pytest.raises(LyricsError, match="was made by a run without --shard; move it away"):
        merge_shards(tmp_path / "out", ["jsonl"])
    assert (tmp_path / "out" / OBJECTS_FILE).read_bytes() == before


def test_one_writer_for_a_shard_and_a_run_that_goes_on_takes_the_marker_back(
    pictures: list[Path], tmp_path: Path
) -> None:
    shard = Shard(0, 2)
    refine_files(AtOnce(), pictures, tmp_path / "out", draw=False, shard=shard)
    marker = shard.folder(tmp_path / "out") / DONE_FILE
    assert json.loads(marker.read_text())["shard"] == "0/2"
    with Lease(shard.folder(tmp_path / "out"), "refining into"), pytest.raises(LyricsError, match="is refining into"):
        refine_files(AtOnce(), pictures, tmp_path / "out", draw=False, shard=shard)
    assert marker.exists()

    class Broken(AtOnce):
        def refine(self, images: Any, phrases: Any = None) -> Any:
            assert not marker.exists()
            raise KeyboardInterrupt

    for number in range(20):
        Image.new("RGB", (9, 9)).save(tmp_path / "in" / f"new-{number}.png")
    with pytest.raises(KeyboardInterrupt):
        refine_files(Broken(), find_images([tmp_path / "in"]), tmp_path / "out", draw=False, shard=shard)
    assert not marker.exists()
