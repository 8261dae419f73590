"""The one converter that opens a pickle: plain values pass, every name is refused, and nothing runs."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
from collections import OrderedDict
from datetime import date
from pathlib import Path

import pytest

from lyrics.core.data import convert_refs
from lyrics.core.data.convert_refs import import_refs
from lyrics.core.errors import DatasetError

REFS = [
    {
        "ref_id": 1,
        "ann_id": 5,
        "image_id": 7,
        "split": "val",
        "sent_ids": (0, 1),
        "score": 0.5,
        "flag": True,
        "none": None,
        "sentences": [{"sent": "the dog", "raw": "the dog", "sent_id": 0, "tokens": ["the", "dog"]}],
    }
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(REFS, protocol))
    assert import_refs(tmp_path / "refs(unc).p", tmp_path / "refs(unc).json") == 1
    assert json.loads((tmp_path / "refs(unc).json").read_text()) == json.loads(json.dumps(REFS))


def test_text_of_python_2(tmp_path: Path) -> None:
    """Python 2 wrote its texts as bytes of no stated encoding."""
    data = b"(lp0\n(dp1\nS'sentences'\np2\n(lp3\nsS'raw'\nS'caf\\xe9'\nsa."
    assert any(op.name == "STRING" for op, _, _ in pickletools.genops(data))
    (tmp_path / "a.p").write_bytes(data)
    import_refs(tmp_path / "a.p", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == [{"sentences": [], "raw": "caf\u00e9"}]


class Trap:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    refs = [{**REFS[0], "x": Trap(tmp_path / "trap")}]
    (tmp_path / "a.p").write_bytes(pickle.dumps(refs, protocol))
    with pytest.raises(DatasetError, match=r"a.p: is refused: it asks to import (posix|nt).mkdir"):
        import_refs(tmp_path / "a.p", tmp_path / "a.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.p"]


@pytest.mark.parametrize("value", [OrderedDict(a=1), date(2020, 1, 1), {1, 2}, complex(1, 2), len, b"bytes", {1: 2}])
def test_other_values_are_refused(tmp_path: Path, value: object) -> None:
    (tmp_path / "a.p").write_bytes(pickle.dumps([{"sentences": [], "x": value}], 2))
    with pytest.raises(DatasetError, match=r"is refused|holds a"):
        import_refs(tmp_path / "a.p", tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


def test_builtins_are_refused_too() -> None:
    """Even those that build containers: refs need none of them."""
    unpickler = convert_refs._PlainUnpickler(__import__("io").BytesIO(b"c__builtin__\nset\n."))
    with pytest.raises(DatasetError, match="asks to import"):
        unpickler.load()


def test_a_few_bytes_that_hold_lists_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten levels of ten times the same list would be ten thousand million."""
    value: list[object] = []
    for _ in range(8):
        value = [value] * 10
    (tmp_path / "a.p").write_bytes(pickle.dumps([{"sentences": value}]))
    monkeypatch.setattr(convert_refs, "_MAX_VALUES", 100_000)
    with pytest.raises(DatasetError, match="holds too many values"):
        convert_refs._convert(tmp_path / "a.p", tmp_path / "a.json")


def test_a_list_within_itself(tmp_path: Path) -> None:
    value: list[object] = []
    value.append(value)
    (tmp_path / "a.p").write_bytes(pickle.dumps([{"sentences": value}]))
    with pytest.raises(DatasetError, match="too deeply nested"):
        convert_refs._convert(tmp_path / "a.p", tmp_path / "a.json")


@pytest.mark.parametrize(
    "data", [b"", b"no pickle", pickle.dumps({"a": 1}), pickle.dumps([1]), pickle.dumps(REFS)[:-20]]
)
def test_what_is_no_list_of_refs(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.p").write_bytes(data)
    with pytest.raises(DatasetError, match=r"a.p: is not"):
        convert_refs._convert(tmp_path / "a.p", tmp_path / "a.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no.p: no such file"):
        import_refs(tmp_path / "no.p", tmp_path / "a.json")


def test_the_pickle_is_opened_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was opened in this process")

    monkeypatch.setattr(convert_refs, "_convert", fail)
    monkeypatch.setattr(pickle, "Unpickler", fail)
    (tmp_path / "a.p").write_bytes(pickle.dumps(REFS))
    assert import_refs(tmp_path / "a.p", tmp_path / "a.json") == 1
