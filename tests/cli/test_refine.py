"""``lyrics refine``: what it says, its exit codes, and a refiner by every name that it goes by."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from lyrics.core.lease import Lease
from lyrics.core.refining.refine_files import COCO_FILE, OBJECTS_FILE, SKIPPED_FILE
from tests.commands import Run

NAMES = "[red circle, blue ring]"
SMALL = f"""
refiner:
  tagger: {{use: tiny-tagger, options: {{threshold: 0.0, vocabulary: {NAMES}, image_size: 32}}}}
  detector: {{use: tiny-detector, options: {{score_threshold: 0.0, vocabulary: {NAMES}, image_size: 32}}}}
  max_objects: 3
"""


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """A refiner alone: a file with no other key."""
    (tmp_path / "my-refiner.yaml").write_text(SMALL)
    return str(tmp_path / "my-refiner.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One good picture, and three that are none."""
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "zero.jpg").write_bytes(b"")
    (tmp_path / "in" / "page.jpg").write_bytes(b"<html>")
    (tmp_path / "in" / "text.png").write_bytes(b"hello")
    return tmp_path / "in"


def sentences(err: str) -> int:
    """Lines on standard error but for the progress bar's."""
    return sum("images/s" not in line for line in err.splitlines())


def test_what_was_skipped_is_counted_in_the_last_line(spec: str, folder: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    done = run("refine", str(folder), "--spec", spec, "--weights", "random", "--out", str(out))
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == f"3 skipped (2 format, 1 empty): {out / SKIPPED_FILE} says why"
    assert done.err.count("skipped: ") == 3
    again = run("refine", str(folder), "--spec", spec, "--weights", "random", "--out", str(out), "--strict")
    assert (again.code, again.out.splitlines()[-1]) == (1, done.out.splitlines()[-1])
    assert "1 were done before" in again.out
    good = run("refine", str(folder / "good.png"), "--spec", spec, "--weights", "random", "--out", str(out), "--strict")
    assert good.code == 0
    assert "says why" not in good.out


def test_strict_does_all_the_rest_first(spec: str, folder: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    done = run("refine", str(folder), "--spec", spec, "--weights", "random", "--out", str(out), "--strict", "--json")
    assert done.code == 1
    assert (done.data["refined"], len(done.data["skipped"])) == (1, 3)
    assert len(json.loads((out / COCO_FILE).read_text())["images"]) == 1
    assert done.err.splitlines()[-1].startswith("3 skipped (2 format, 1 empty): ")


def test_nothing_but_bad_files_is_no_failure_but_no_file_at_all_is_a_wrong_call(
    spec: str, folder: Path, tmp_path: Path, run: Run
) -> None:
    (folder / "good.png").unlink()
    done = run("refine", str(folder), "--spec", spec, "--weights", "random", "--out", str(tmp_path / "out"))
    assert done.code == 0
    assert done.out.splitlines()[-1].startswith("3 skipped")
    (tmp_path / "nothing").mkdir()
    for path, message in (("nothing", "no images in"), ("missing", "no such file or folder")):
        done = run("refine", str(tmp_path / path), "--spec", spec, "--out", str(tmp_path / "out2"))
        assert done.code == 2
        assert message in done.err


def test_phrases_stand_in_place_of_the_tags(spec: str, folder: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    arguments = ("refine", str(folder / "good.png"), "--spec", spec, "--weights", "random", "--out", str(out))
    done = run(*arguments, "--phrases", " blue ring,blue  ring , ")
    assert done.code == 0, done.err
    row = json.loads((out / OBJECTS_FILE).read_text())
    assert {obj["tag"] for obj in row["objects"]} == {"blue ring"}
    assert row["tags"] == []
    other = run(*arguments, "--phrases", "red circle")
    assert other.code == 1
    assert sentences(other.err) == 1
    assert "other phrases" in other.err
    assert "--redo" in other.err
    assert run(*arguments, "--phrases", "red circle", "--redo").code == 0
    for nothing in ("", " , ", "\udcff"):
        assert run(*arguments, "--phrases", nothing).code == 2


def test_looking_for_nothing_is_said_loudly(folder: Path, tmp_path: Path, run: Run) -> None:
    """Grounding DINO without a tagger, as in ``grounded-sam``, at a size that runs here."""
    arguments = ("refine", str(folder / "good.png"), "--weights", "random", "--spec", "lyrics-mini", "--no-draw")
    arguments += ("--set", "refiner.tagger=null", "--set", "refiner.segmenter=null")
    done = run(*arguments, "--out", str(tmp_path / "silent"))
    assert done.code == 0
    assert "lyrics: warning: nothing is looked for: the refiner has no tagger, no phrases were given" in done.err
    asked = run(*arguments, "--out", str(tmp_path / "asked"), "--phrases", "dog, red car")
    assert "nothing is looked for" not in asked.err
    tags = {obj["tag"] for obj in json.loads((tmp_path / "asked" / OBJECTS_FILE).read_text())["objects"]}
    assert tags
    assert tags <= {"dog", "red car"}


def test_another_refiner_is_a_sentence(spec: str, folder: Path, tmp_path: Path, run: Run) -> None:
    arguments = ("refine", str(folder), "--spec", spec, "--weights", "random", "--out", str(tmp_path / "out"))
    assert run(*arguments).code == 0
    assert run(*arguments).code == 0, "random weights are the same ones every time"
    other = run(*arguments, "--set", "refiner.max_objects=2")
    assert (other.code, sentences(other.err), other.out) == (1, 1, "")
    assert "another refiner" in other.err


def test_a_folder_in_use_is_a_sentence(spec: str, folder: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "out").mkdir()
    with Lease(tmp_path / "out", "refining into"):
        done = run("refine", str(folder), "--spec", spec, "--weights", "random", "--out", str(tmp_path / "out"))
    assert (done.code, sentences(done.err)) == (1, 1)
    assert "is refining into it; wait for it, or give another folder" in done.err


@pytest.mark.parametrize("name", ["tiny-refiner", "paper-refiner", "grounded-sam"])
def test_a_refiner_alone_is_shown_and_checked_and_no_model(name: str, tmp_path: Path, run: Run) -> None:
    shown = run("show", name)
    assert shown.out.startswith("refiner:\n")
    (tmp_path / "copy.yaml").write_text(shown.out)
    checked = run("check", name, "--json")
    assert checked.code == 0, checked.err
    paths = [row["path"] for row in checked.data["parts"]]
    assert paths == [
        f"refiner.{part}" for part in ("tagger", "detector", "segmenter") if name != "grounded-sam" or part != "tagger"
    ]
    assert all(row["parameters"] > 0 and row["trainable"] == 0 for row in checked.data["parts"])
    assert checked.data["parameters"] == sum(row["parameters"] for row in checked.data["parts"])
    assert run("check", str(tmp_path / "copy.yaml"), "--json").data == checked.data
    assert "a refiner alone:" in run("check", name).out
    asked = run("ask", "a question", "--model", name)
    assert (asked.code, asked.err.count("\n")) == (2, 1)
    assert f"{name}: is a refiner alone" in asked.err
    listed = next(row for row in run("list", "preset", "--json").data if row["name"] == name)
    assert "a refiner alone" in listed["summary"]


def test_shards_are_merged_into_what_one_run_gives(spec: str, folder: Path, tmp_path: Path, run: Run) -> None:
    for number in range(4):
        Image.new("RGB", (40 + number, 30), "blue").save(folder / f"{number}.png")
    arguments = ("refine", str(folder), "--spec", spec, "--weights", "random", "--batch", "1")
    assert run(*arguments, "--out", str(tmp_path / "one"), "--no-draw").code == 0
    out = str(tmp_path / "many")
    for index in (1, 0):
        done = run(*arguments, "--out", out, "--shard", f"{index}/2")
        assert done.code == 0, done.err
        assert "images/s); 0 were done before" in done.out
        merged = run("data", "merge", out, "--format", "coco,yolo", "--json")
        assert merged.code == index
    assert (merged.data["rows"], merged.data["skipped"]) == (5, 3)
    for name in (OBJECTS_FILE, SKIPPED_FILE, COCO_FILE):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert run(*arguments, "--out", out, "--shard", "2/2").code == 2


def test_formats_and_inputs_are_named(spec: str, folder: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "list.txt").write_text(f"{folder / 'good.png'}\n")
    arguments = ("refine", str(tmp_path / "list.txt"), "--spec", spec, "--weights", "random", "--no-draw")
    done = run(*arguments, "--out", str(tmp_path / "out"), "--format", "yolo, parquet", "--json")
    assert done.code == 0, done.err
    assert [Path(path).name for path in done.data["files"]] == [OBJECTS_FILE, "yolo", "objects.parquet"]
    assert done.data["coco_file"] is None
    assert not (tmp_path / "out" / COCO_FILE).exists()
    wrong = run(*arguments, "--out", str(tmp_path / "out2"), "--format", "cocoa")
    assert (wrong.code, sentences(wrong.err)) == (2, 1)
    assert not (tmp_path / "out2").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_names_that_are_no_text_are_printed(form: tuple[str, ...], spec: str, tmp_path: Path, run: Run) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n")
    os.mkdir(name)
    Image.new("RGB", (9, 9)).save(os.path.join(name, "a.png"))
    Path(name, "zero.png").touch()
    done = run("refine", name, "--spec", spec, "--weights", "random", "--out", os.path.join(name, "out"), *form)
    assert done.code == 0, done.err
    (done.out + done.err).encode("utf-8")
    assert "caf\\xe9\\n" in done.err or form
    if form:
        assert [os.path.basename(path) for path in done.data["skipped"]] == ["zero.png"]


def test_a_full_disk_is_one_sentence_and_the_next_run_goes_on(
    spec: str, folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["refine", str(folder), "--spec", spec, "--weights", "random", "--out", str(tmp_path / "out")]

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        done = run(*command)
    assert (done.code, sentences(done.err)) == (1, 1)
    assert "out: cannot be written: No space left on device; what is finished is kept: make room, and" in done.err
    assert run(*command).code == 0
    rows = (tmp_path / "out" / OBJECTS_FILE).read_text().splitlines()
    assert [Path(json.loads(line)["image"]).name for line in rows] == ["good.png"]


def test_what_has_no_effect_with_an_engine_is_refused(spec: str, folder: Path, tmp_path: Path, run: Run) -> None:
    command = ["refine", str(folder), "--spec", spec, "--weights", "random", "--out", str(tmp_path / "out")]
    for given, expected in (
        (["--engine", "spark"], "--engine spark: is local or ray."),
        (["--address", "auto"], "--address: is of Ray; give --engine ray with it."),
        (["--cores", "2"], "--cores: is of Ray; give --engine ray with it."),
        (["--engine", "ray", "--shard", "0/2"], "--shard: has no effect with --engine ray; leave it out."),
        (["--engine", "ray", "--features", "all"], "--features: has no effect with --engine ray; leave it out."),
    ):
        done = run(*command, *given)
        assert (done.code, expected in done.err) == (2, True), done.err
    assert not (tmp_path / "out").exists()
