"""Files by where they are published: what is asked for, once, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lyrics.core.errors import WeightsError
from lyrics.core.weights.published import fetch, is_published
from tests.core.weights.publishing import COMMIT, addresses, hub

FILES = {
    "owner/name/weights.pth": b"tensors",
    "owner/name/deep/other.pth": b"others",
    "owner/name/deep/m.safetensors.index.json": json.dumps({"weight_map": {"a": "m-1.bin", "b": "m-2.bin"}}).encode(),
    "owner/name/deep/m-1.bin": b"one",
    "owner/name/deep/m-2.bin": b"two",
    "owner/name/bad.index.json": json.dumps({"weight_map": {"a": "../up.bin"}}).encode(),
    "owner/name/none.index.json": b"[]",
}


def quiet(line: str) -> None:
    pass


def test_what_is_a_published_name() -> None:
    assert [is_published(name) for name in ("hub:a/b/c", "https://a.b/c", "a/b", "http://a.b/c", "./hub:a")] == [
        True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("revision", ["", "@v1.0"])
def test_one_file_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str) -> None:
    said: list[str] = []
    with hub(monkeypatch, tmp_path / "cache", FILES) as served:
        found = fetch(f"hub:owner/name{revision}/weights.pth", tmp_path / "a", said.append)
        assert (found, found.read_bytes()) == (tmp_path / "a" / "weights.pth", b"tensors")
        deep = fetch(f"hub:owner/name{revision}/deep/other.pth", tmp_path / "b", said.append)
        assert (deep, deep.read_bytes()) == (tmp_path / "b" / "other.pth", b"others")
        before = len(served.asked)
        fetch(f"hub:owner/name{revision}/weights.pth", tmp_path / "c", said.append)
    named = revision.lstrip("@") or "main"
    assert {path.partition("/resolve/")[2].partition("/")[0] for path in served.asked} <= {named, COMMIT}
    assert len(served.asked) == before + 1  # it asks whether there is a newer one, and fetches nothing again
    assert said[0] == "weights.pth of owner/name, from the hub"
    assert not any("m-1" in path for path in served.asked)


def test_an_index_brings_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(monkeypatch, tmp_path / "cache", FILES):
        folder = fetch("hub:owner/name/deep/m.safetensors.index.json", tmp_path / "a", quiet)
        assert folder == tmp_path / "a"
        assert sorted(file.name for file in folder.iterdir()) == ["m-1.bin", "m-2.bin", "m.safetensors.index.json"]
        assert (folder / "m-2.bin").read_bytes() == b"two"
        with pytest.raises(WeightsError, match=r"names the shard '\.\./up\.bin', which is no file beside it"):
            fetch("hub:owner/name/bad.index.json", tmp_path / "b", quiet)
        with pytest.raises(WeightsError, match="is not an index of weights"):
            fetch("hub:owner/name/none.index.json", tmp_path / "c", quiet)


def test_what_the_hub_does_not_have_and_what_was_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(monkeypatch, tmp_path / "cache", FILES, frozenset({"weights.pth"})):
        with pytest.raises(WeightsError, match=r"^hub:owner/name/no\.pth: the hub did not give no\.pth: .*fetched by"):
            fetch("hub:owner/name/no.pth", tmp_path / "a", quiet)
        with pytest.raises(WeightsError, match=r"weights\.pth was damaged on its way: its SHA-256 is not the hub's"):
            fetch("hub:owner/name/weights.pth", tmp_path / "b", quiet)


@pytest.mark.parametrize(
    "name",
    [
        "hub:owner",
        "hub:owner/name",
        "hub:owner/name/",
        "hub:owner/name@/f",
        "hub:owner/../f",
        "hub:o/n/../../f",
        "hub:",
    ],
)
def test_a_name_of_another_form_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=r"write hub:OWNER/NAME/FILE, or hub:OWNER/NAME@REVISION/FILE\.$"):
        fetch(name, tmp_path, quiet)


def test_an_address_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = addresses(
        monkeypatch, tmp_path / "cache", {"https://a.b/c/list.txt?raw=1": b"words", "https://a.b/d/list.txt": b"x"}
    )
    for folder in ("one", "two"):
        found = fetch("https://a.b/c/list.txt?raw=1", tmp_path / folder, quiet)
        assert (found, found.read_bytes()) == (tmp_path / folder / "list.txt", b"words")
    assert fetch("https://a.b/d/list.txt", tmp_path / "three", quiet).read_bytes() == b"x"
    assert asked == ["https://a.b/c/list.txt?raw=1", "https://a.b/d/list.txt"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://a.b/no.txt", r"cannot be fetched: HTTP Error 404: Not Found\. Check the name"),
        ("https://a.b/cut", "ended after 4 of 5 bytes. Try it again"),
        ("https://a.b/moved", "leads to http://a.b/moved, which is not https"),
        ("https://a.b/", "names no file"),
    ],
)
def test_an_address_that_gives_nothing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    addresses(monkeypatch, tmp_path / "cache", {"https://a.b/cut": b"words", "https://a.b/moved": b"words"})
    with pytest.raises(WeightsError, match=message):
        fetch(address, tmp_path / "a", quiet)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
