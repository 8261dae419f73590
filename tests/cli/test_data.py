"""``lyrics data``: index, import-refs, check and peek."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from lyrics.cli import data as command
from lyrics.core.data import build
from lyrics.core.data.sheet import TILE_PX
from lyrics.core.errors import SpecError, UnknownNameError
from tests.core.data.tars import sample_members, write_special, write_tar
from tests.plugins.datasets.conftest import REGISTRY
from tests.plugins.datasets.files import MAKERS, write


@pytest.fixture(autouse=True)
def _sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "default_registry", lambda: REGISTRY)


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(command.app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def test_index_goes_on_after_a_bad_tar_and_says_so(tmp_path: Path) -> None:
    good = write_tar(tmp_path / "b.tar", [*sample_members("0", "a"), *sample_members("1", "b")])
    bad = write_special(tmp_path / "a.tar", b"2", linkname="/etc/passwd")
    out, err = run("index", bad, good, tmp_path / "no.tar", code=1)
    assert f"{good}: 2 samples" in out
    assert "'000000001.jpg' is a symbolic link" in err
    assert f"{tmp_path / 'no.tar'}: no such file" in err
    assert "2 of 3 tars were not indexed" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar", "b.tar.index"]


def test_import_refs(tmp_path: Path) -> None:
    MAKERS["refcoco"](tmp_path)
    expected = json.loads((tmp_path / "refs(unc).json").read_text())
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(expected, 2))
    (tmp_path / "refs(unc).json").unlink()
    out, _ = run("import-refs", tmp_path / "refs(unc).p", tmp_path / "refs(unc).json")
    assert "3 refs" in out
    assert json.loads((tmp_path / "refs(unc).json").read_text()) == expected


def test_check_counts(tmp_path: Path) -> None:
    root = MAKERS["coco"](tmp_path)["root"]
    out, _ = run("check", "coco", "--root", root, "--set", "split=val2017", "--images", "--json")
    assert json.loads(out) == {
        "samples": 2,
        "looked_at": 2,
        "images": 2,
        "images_missing": 0,
        "captions": 3,
        "turns": 0,
        "boxes": 1,
        "boxes_without_area": 1,
        "expected": None,
        "problems": [],
    }


@pytest.mark.parametrize("opened", [(), ("--images",), ("--pictures",)])
def test_check_finds_missing_pictures_bad_records_and_a_wrong_size(tmp_path: Path, opened: tuple[str, ...]) -> None:
    root = MAKERS["coco"](tmp_path / "coco")["root"]
    (tmp_path / "coco/val2017/000000000004.jpg").unlink()
    out, _ = run("check", "coco", "--root", root, "--set", "split=val2017", *opened, code=1)
    assert "images: 2\nimages missing: 1\n" in out
    assert f"problem: {root}/val2017/000000000004.jpg: no such file" in out

    write(tmp_path / "alpaca_data.json", [{"instruction": "a", "input": "", "output": "b"}, {"instruction": "c"}])
    out, _ = run("check", "alpaca", "--root", tmp_path, *opened, code=1)
    assert "alpaca_data.json, record 1: there is no key 'input'; it has instruction." in out

    root = MAKERS["refcoco"](tmp_path / "refs")["root"]
    out, _ = run("check", "refcoco", "--root", root, "--set", "split=val", *opened, code=1)
    assert "refcoco has 10,834 samples as published; here are 4" in out


def test_check_says_that_no_image_is_there(tmp_path: Path) -> None:
    """Annotations are often fetched first: to check them alone is no fault, but nothing is claimed of the images."""
    root = MAKERS["coco"](tmp_path)["root"]
    for path in (tmp_path / "val2017").iterdir():
        path.unlink()
    arguments = ("check", "coco", "--root", root, "--set", "split=val2017")
    out, _ = run(*arguments)
    assert "images: 2\nimages missing: 2\n" in out
    assert f"none of the 2 images is there, so only the records were checked: {root}/val2017/000000000009.jpg" in out
    assert "boxes: 1\n" in out
    out, _ = run(*arguments, "--images", code=1)
    assert out.count("problem: ") == 2


def test_check_opens_no_image_unless_told_to(tmp_path: Path) -> None:
    root = MAKERS["coco"](tmp_path)["root"]
    (tmp_path / "val2017/000000000004.jpg").write_bytes(b"GIF89")
    run("check", "coco", "--root", root, "--set", "split=val2017")
    out, _ = run("check", "coco", "--root", root, "--set", "split=val2017", "--images", code=1)
    assert "000000000004.jpg" in out


def test_check_looks_at_a_part(tmp_path: Path) -> None:
    rows = [{"instruction": str(n), "input": "", "output": "b"} for n in range(10)]
    write(tmp_path / "alpaca_data.json", [*rows[:9], {}])
    out, _ = run("check", "alpaca", "--root", tmp_path, "--limit", 3)
    assert "samples: 10\nlooked at: 3\n" in out


def test_peek_draws_the_boxes_where_they_are(tmp_path: Path) -> None:
    root = MAKERS["dvqa"](tmp_path)["root"]
    sheet = tmp_path / "sheet.png"
    out, _ = run("peek", "dvqa", "--root", root, "--set", "split=val_easy", "--out", sheet)
    assert "box: camp  (0.100,0.100),(0.300,0.600)" in out
    assert "asked: What label?" in out
    assert f"2 images on {sheet}" in out
    with Image.open(sheet) as image:
        assert image.width == 2 * TILE_PX
        # Both samples are of one picture, and only the first has a box.
        first, second = (image.crop((left, 0, left + TILE_PX, TILE_PX)).convert("RGB") for left in (0, TILE_PX))
        changed = [
            (x, y) for x in range(TILE_PX) for y in range(TILE_PX) if first.getpixel((x, y)) != second.getpixel((x, y))
        ]
    assert changed
    # The picture of 100 x 50 px fills its place from (2, 2) on, unscaled: left edge at 10, lower edge at 30, label
    # included.
    assert min(x for x, _ in changed) in range(10, 14)
    assert max(y for _, y in changed) in range(30, 36)


def test_peek_at_text_and_at_bad_samples(tmp_path: Path) -> None:
    write(tmp_path / "alpaca_data.json", [{"instruction": "Say hi.", "input": "", "output": "hi"}, {}])
    out, _ = run("peek", "alpaca", "--root", tmp_path, "--out", tmp_path / "sheet.png")
    assert "asked: Say hi.\n  answer: hi" in out
    assert "1: cannot be read: " in out
    assert not (tmp_path / "sheet.png").exists()


def test_peek_at_a_shard(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", sample_members("0", "a red square"))
    run("index", tar)
    out, _ = run("peek", tar, "--start", 0, "--count", 1)
    assert "caption: a red square" in out


def test_a_root_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"coco: say where its files are: root=FOLDER"):
        run("check", "coco")
    with pytest.raises(UnknownNameError, match="Did you mean 'coco'"):
        run("check", "cocoa", "--root", tmp_path)


def test_the_commands_import_nothing_heavy() -> None:
    from tests.fresh import fresh

    assert fresh("import lyrics.cli.data").returncode == 0


def test_filter_writes_the_similarity_that_shards_bring(tmp_path: Path) -> None:
    """LAION's column in the json of its shards: from the tar to the rows that training reads."""
    from lyrics.core.data.relevance import read_scores

    root = tmp_path / "laion"
    root.mkdir()
    pairs = [("0", 0.35), ("1", 0.12), ("2", 0.31)]
    members = [one for key, score in pairs for one in sample_members(key, f"a {key}", similarity=score)]
    write_tar(root / "00000.tar", members)
    run("index", root / "00000.tar")
    file = tmp_path / "scores.safetensors"
    arguments = ("filter", "laion", "--root", root, "--out", file)
    out, _ = run(*arguments, "--at-least", "similarity=0.3")
    assert f"{file}: 3 rows" in out
    assert "2 rows reach similarity >= 0.3" in out
    assert read_scores(file)["similarity"].tolist() == pytest.approx([0.35, 0.12, 0.31])
    out, _ = run(*arguments, "--at-least", "similarity=0.3", "--json")
    assert json.loads(out)["kept"] == 2
    with pytest.raises(SpecError, match="no record has a number 'clip'"):
        run(*arguments, "--column", "clip")
    with pytest.raises(SpecError, match="write NAME=NUMBER"):
        run(*arguments, "--at-least", "similarity")
    with pytest.raises(SpecError, match="there is no folder"):
        run("filter", "laion", "--root", root, "--out", tmp_path / "no" / "scores.safetensors")
