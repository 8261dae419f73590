"""``lyrics refine s3://...`` over a real S3-compatible server on this machine: moto's.

Run by ``make test-scale``; skipped where s3fs and moto's server are not installed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lyrics.core.data.refine_inputs import RefineInputs
from lyrics.core.errors import ImageError, LyricsError
from lyrics.core.refining.refine_files import OBJECTS_FILE, SKIPPED_FILE, refine_files
from lyrics.core.refining.rows import read_refinements, read_skipped
from tests.core.refining.scale import AtOnce

pytest.importorskip("s3fs", reason="s3fs is not installed; make test-scale has it")
pytest.importorskip("flask", reason="moto's server is not installed; make test-scale has it")
moto_server = pytest.importorskip("moto.server", reason="moto is not installed; make test-scale has it")


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """A bucket with five images at three depths, and files that are none."""
    import fsspec
    import s3fs

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch = pytest.MonkeyPatch()
    # As anybody has it who keeps images in a store of their own: addresses stay s3://.
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    system = fsspec.filesystem("s3")
    system.mkdir("images")
    for number, name in enumerate(["b.png", "a/one.png", "a/two.png", "c/d/three.jpg", "odd name #1.png"]):
        file = io.BytesIO()
        Image.new("RGB", (20 + number, 10), "red").save(file, "PNG")
        system.pipe(f"images/in/{name}", file.getvalue())
    system.pipe("images/in/readme.txt", b"hello")
    system.pipe("images/in/broken.png", b"hello")
    yield system
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.undo()
    server.stop()


def refined(out: Path) -> list[str]:
    return [one.name for one in read_refinements(out / OBJECTS_FILE)]


FOUND = [f"s3://images/in/{name}" for name in ("a/one.png", "a/two.png", "b.png", "c/d/three.jpg", "odd name #1.png")]


def test_a_folder_of_a_bucket_is_refined_and_gone_on_with(store: Any, tmp_path: Path) -> None:
    inputs = RefineInputs(["s3://images/in"])
    first = refine_files(AtOnce(), inputs, tmp_path, draw=False, batch_size=2)
    assert first.refined == 5
    assert sorted(refined(tmp_path)) == FOUND
    assert [(name, error.kind) for name, error in read_skipped(tmp_path / SKIPPED_FILE)] == [
        ("s3://images/in/broken.png", "format")
    ]
    again = refine_files(AtOnce(), inputs, tmp_path, draw=False)
    assert (again.refined, again.done_before) == (0, 5)


def test_lists_and_tables_of_addresses_are_followed(store: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    (tmp_path / "list.txt").write_text("\n".join([FOUND[0], "s3://images/in/gone.png"]))
    pyarrow.parquet.write_table(pyarrow.table({"path": FOUND[1:3]}), tmp_path / "table.parquet")
    inputs = RefineInputs([str(tmp_path / "list.txt"), str(tmp_path / "table.parquet"), FOUND[3]])
    done = refine_files(AtOnce(), inputs, tmp_path / "out", draw=False)
    assert sorted(refined(tmp_path / "out")) == FOUND[:4]
    assert {name: error.kind for name, error in done.skipped.items()} == {"s3://images/in/gone.png": "missing"}


def test_what_is_not_there_is_a_sentence(store: Any) -> None:
    with pytest.raises(ImageError, match="s3://images/nowhere: no such file or folder"):
        RefineInputs(["s3://images/nowhere"])
    with pytest.raises(LyricsError, match="s3://no-such-bucket"):
        list(RefineInputs(["s3://no-such-bucket/in"]))
