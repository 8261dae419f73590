"""``lyrics export``: what it refuses, and what it leaves in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import Run
from tests.core.test_model_steps import made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("saved")
    made().save_pretrained(path)
    return str(path)


def test_a_folder_that_holds_something_is_left_alone(run: Run, folder: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = run("export", folder, str(tmp_path))
    assert done.code == 2
    assert f"{tmp_path}: is not empty. Give another folder, or --force to write into this one." in done.err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    done = run("export", folder, str(tmp_path), "--force")
    assert done.code == 0
    assert {"mine.txt", "spec.json", "model.safetensors"} <= {file.name for file in tmp_path.iterdir()}
    assert run("export", folder, folder, "--force").code == 2
    assert "is a file; a model is written to a folder" in run("export", folder, str(tmp_path / "mine.txt")).err


def test_options(run: Run, folder: str, tmp_path: Path) -> None:
    done = run("export", folder, str(tmp_path / "a"), "--trainable-only", "--set", "codec=qwen", "--json")
    assert done.code == 0
    assert done.data["folder"] == str(tmp_path / "a")
    assert done.data["bytes"] == sum(file.stat().st_size for file in (tmp_path / "a").rglob("*") if file.is_file())
    assert (tmp_path / "a" / "frozen.json").is_file()
    assert '"codec": "qwen"' in (tmp_path / "a" / "spec.json").read_text()


def test_what_is_no_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("export", str(tmp_path / "empty"), str(tmp_path / "a"))
    assert done.code == 1
    assert "empty: is neither a model folder (it has no spec.json) nor the folder of a run" in done.err
    assert not (tmp_path / "a").exists()
