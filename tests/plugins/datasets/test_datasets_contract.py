"""Every data set keeps the contract, on a small file in its true format; and what all of them have in common."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from lyrics.core.errors import DatasetError
from lyrics.core.geometry import Box
from lyrics.testing import DatasetContract
from tests.fresh import fresh
from tests.plugins.datasets.conftest import REGISTRY, built
from tests.plugins.datasets.files import MAKERS

NAMES = [entry.component.name for entry in REGISTRY.entries]
ROOT = Path(__file__).parents[3]
# Table 1 of the paper, and the data sets of its evaluation that are not in it.
PAPER = """
laion cc12m cc3m sbu coco mmc4 ai-challenger refcoco refcoco-plus refcocog grit vg vqav2 gqa ok-vqa docvqa
ai2d scienceqa textvqa chartqa dvqa llava svit m3it llavar multiinstruct orca alpaca nocaps flickr30k vizwiz ocr-vqa
"""


def test_every_set_of_the_paper_is_there() -> None:
    assert sorted(NAMES) == sorted(PAPER.split()) == sorted(MAKERS)
    assert not REGISTRY.failures


class _OnSmallFiles(DatasetContract):
    registry = REGISTRY

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        if self.component == "orca":
            pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: data)")
        type(self).options = MAKERS[self.component](tmp_path)

    def test_samples_are_records_of_plain_parts(self) -> None:
        data = self.build()
        assert len(data) >= 2
        for index in range(len(data)):
            sample = data[index]
            assert sample.source.startswith(f"{self.component} ")
            assert all(isinstance(found.box_norm, Box) and found.tag for found in sample.objects)
            assert all(isinstance(text, str) and text for text in sample.captions)
            assert sample.captions or sample.turns or sample.objects or sample.extra.get("text")

    def test_pictures_open(self) -> None:
        data = self.build()
        samples = [data[index] for index in range(len(data))]
        for sample in samples:
            # A GIF is not opened; OCR-VQA has a few.
            if sample.image is not None and not sample.image.endswith(".gif"):
                assert data.picture(sample).mode == "RGB"

    def test_it_travels_to_workers(self) -> None:
        data = self.build()
        expected = [data[index] for index in range(len(data))]
        again = pickle.loads(pickle.dumps(data))
        assert [again[index] for index in range(len(again))] == expected

    def test_shards_add_up(self) -> None:
        data = self.build()
        assert data.shard_sizes is None or sum(data.shard_sizes) == len(data)


for _name in NAMES:
    _class = f"Test{''.join(word.capitalize() for word in _name.split('-'))}"
    globals()[_class] = type(_class, (_OnSmallFiles,), {"component": _name, "__module__": __name__})
del _OnSmallFiles


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_are_named_with_where_to_get_them(name: str, tmp_path: Path) -> None:
    if name == "orca":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: data)")
    for root in (tmp_path, tmp_path / "no"):
        with pytest.raises(DatasetError) as raised:
            len(built(name, root=str(root)))
        assert str(root) in str(raised.value)
        assert f"docs/datasets.md, row {name!r}" in str(raised.value)


def rows_of_the_page() -> dict[str, list[str]]:
    text = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|(.*)\|$", text, flags=re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in rows}


def test_every_set_has_a_row_in_the_page() -> None:
    """Name, where to get it, files, keys, boxes, license, what is read: no cell is empty, and the license is the
    component's.
    """
    rows = rows_of_the_page()
    assert sorted(rows) == sorted(NAMES)
    for entry in REGISTRY.entries:
        name = entry.component.name
        assert len(rows[name]) == 6, name
        assert all(rows[name]), name
        assert entry.component.license in rows[name][4], name


def test_options_name_the_splits_they_take() -> None:
    from lyrics.core.errors import SpecError

    with pytest.raises(SpecError, match=r"split.*val"):
        built("vizwiz", root=".", split="valid")


def test_the_readers_need_no_torch() -> None:
    done = fresh(
        "import lyrics.plugins.datasets.web, lyrics.plugins.datasets.captions, lyrics.plugins.datasets.grounding\n"
        "import lyrics.plugins.datasets.questions, lyrics.plugins.datasets.instructions\n"
    )
    assert done.returncode == 0, done.stderr
