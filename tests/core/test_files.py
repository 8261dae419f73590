"""Opening what strangers named: no FIFO is waited for, and names of any bytes can be shown and written down."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from lyrics.core.files import SpecialFileError, name_as_text, name_for_messages, open_file
from lyrics.core.refining.refinement import name_from_json, name_to_json

posix = pytest.mark.skipif(sys.platform == "win32", reason="names there are text, and folders hold no FIFOs")


@posix
@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
def test_what_is_no_file_is_named_and_not_waited_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket may have a hundred bytes
    path = Path("special.png")
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(SpecialFileError, match=f"is a {kind}, not a file"):
        open_file(path)


@posix
def test_a_file_that_becomes_a_fifo_between_look_and_open_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "file").write_bytes(b"x")
    looked_at = os.stat(tmp_path / "file")
    monkeypatch.setattr("lyrics.core.files.os.stat", lambda path: looked_at)
    with pytest.raises(SpecialFileError):
        open_file(tmp_path / "a.png")


def test_a_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with open_file(tmp_path / "a") as file:
        assert file.read() == b"abc"


@posix
@pytest.mark.parametrize("name", [b"plain.png", "é東.png".encode(), b"caf\xe9.png", b"\xff\xfe\x80", b"a\nb\xff.png"])
def test_a_name_of_any_bytes_comes_back_from_json(name: bytes) -> None:
    text = os.fsdecode(name)
    written = name_to_json(text)
    for value in written.values():
        value.encode("utf-8")
    assert os.fsencode(name_from_json(written)) == name
    assert ("image_hex" in written) == (name_as_text(text) != text)


@posix
def test_names_in_messages_stay_on_their_line_and_send_nothing_to_the_terminal() -> None:
    assert name_for_messages(os.fsdecode(b"a\nb\x1b[31m caf\xe9 \xc3\xa9.png")) == "a\\nb\\x1b[31m caf\\xe9 é.png"
    assert name_for_messages("plain é 東.png") == "plain é 東.png"
