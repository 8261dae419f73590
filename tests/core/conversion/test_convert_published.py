"""From the place where a checkpoint is published to a part that works: one command, nothing by hand."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from lyrics.cli import app
from lyrics.core.build import build_refiner
from lyrics.core.contracts import BuildContext
from lyrics.core.conversion.convert import convert
from lyrics.core.conversion.formats import find_format
from lyrics.core.errors import WeightsError
from lyrics.plugins.ram_plus import RamPlusOptions
from lyrics.plugins.ram_plus.checkpoint import upstream_name
from lyrics.plugins.ram_plus.tagger import build_ram_plus
from tests.core.conversion.converting import write_spec
from tests.core.weights.publishing import addresses, hub

SIZES: dict[str, Any] = {
    "backbone": {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)},
    "image_size": 32,
    "window_size": 2,
    "num_tags": 6,
    "head_width": 16,
    "head_layers": 2,
    "head_heads": 2,
    "head_mlp_width": 32,
    "num_descriptions": 3,
}
TAGS = ("ball", "boat", "cat", "dog", "kite", "tree")
THRESHOLDS = (0.0, 1.0, 0.0, 1.0, 0.0, 1.0)
#: As issue and documentation name them.
FILE = "hub:xinyu1205/recognize-anything-plus-model/ram_plus_swin_large_14m.pth"
DATA = (
    "https://raw.githubusercontent.com/xinyu1205/recognize-anything/7cb804a8609e9f4b1a50b7f31436d2df40bb9481/ram/data"
)


def published() -> bytes:
    """A small RAM++ as upstream publishes it: pickled, its names, one projection for three."""
    torch.manual_seed(0)
    tagger = build_ram_plus(RamPlusOptions(**SIZES), BuildContext("random"))
    state: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tagger.state_dict().items():
        state.setdefault(upstream_name(name), []).append(tensor)
    file = io.BytesIO()
    torch.save(
        {
            "model": {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in state.items()},
            "epoch": 3,
        },
        file,
    )
    return file.getvalue()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    lists = {
        f"{DATA}/ram_tag_list.txt": ("\n".join(TAGS) + "\n").encode(),
        f"{DATA}/ram_tag_list_threshold.txt": ("\n".join(map(str, THRESHOLDS)) + "\n").encode(),
    }
    addresses(monkeypatch, tmp_path / "cache", lists)
    body = published()
    with hub(monkeypatch, tmp_path / "hub", {FILE.removeprefix("hub:"): body}) as served:
        yield served, body, lists


def test_the_formats_name_their_files() -> None:
    assert find_format("ram-plus").published == (FILE,)
    assert sorted(find_format("ram-plus").beside.values()) == sorted(find_format("ram").beside.values())
    assert all(name.endswith("blip2_pretrained_vitL.pth") for name in find_format("blip2-lavis").published[:1])


def test_ram_plus_from_nothing_to_a_tagger(tmp_path: Path, places: Any) -> None:
    """The file of the hub and both lists of the source; all three with their hashes; then it tags."""
    _, body, lists = places
    spec = write_spec(tmp_path / "spec.yaml", refiner__tagger={"use": "ram-plus", "options": SIZES})
    done = CliRunner().invoke(app, ["convert", FILE, str(tmp_path / "ram"), "--from", "ram-plus", "--model", spec])
    assert done.exit_code == 0, done.output
    assert (
        "fetching ram_plus_swin_large_14m.pth of xinyu1205/recognize-anything-plus-model, from the hub" in done.stderr
    )
    assert "fetching ram_tag_list.txt from raw.githubusercontent.com" in done.stderr

    report = json.loads((tmp_path / "ram" / "conversion.json").read_text())
    assert report["source"] == [
        {"file": "ram_plus_swin_large_14m.pth", "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    ]
    assert {one["file"]: one["sha256"] for one in report["beside"]} == {
        ours: hashlib.sha256(lists[f"{DATA}/{theirs}"]).hexdigest()
        for ours, theirs in (("tags.txt", "ram_tag_list.txt"), ("thresholds.txt", "ram_tag_list_threshold.txt"))
    }
    assert report["left"] == report["new"] == []
    assert not any(path.is_symlink() for path in (tmp_path / "ram").iterdir())

    options = {**SIZES, "checkpoint": str(tmp_path / "ram")}
    refiner = build_refiner({"refiner": {"tagger": {"use": "ram-plus", "options": options}}})
    (found,) = refiner([Image.new("RGB", (48, 40), "red")])
    assert {tag.name for tag in found.tags} == {"ball", "cat", "kite"}  # those whose threshold is 0


def test_what_is_wrong_is_said_before_anything_is_fetched(tmp_path: Path, places: Any) -> None:
    served, _, _ = places
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(WeightsError, match="is there already"):
        convert(FILE, tmp_path / "there", "ram-plus")
    assert served.asked == []


def test_a_file_that_is_not_there_may_be_named_by_where_it_is_published(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no such file or folder\. hub:xinyu1205/.* may be named as SRC"):
        convert(tmp_path / "ram_plus_swin_large_14m.pth", tmp_path / "out", "ram-plus")
