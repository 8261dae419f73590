"""Every way in which a small file of somebody else's can be wrong, wherever the package reads one; and that nothing
reads past it.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lyrics.core import json_reading
from lyrics.core.errors import DatasetError, LyricsError, SpecError, WeightsError
from lyrics.core.json_reading import parse_json, read_json, read_json_object, read_text
from lyrics.core.spec import load
from tests.fresh import ROOT, fresh

PACKAGE = ROOT / "lyrics"

#: What a file may hold, and a part of what is said of it.
BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is not JSON"),
    "cut short": (b'{"a": [1, 2', "line 1 column"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "deep object": (b'{"a":' * 100_000, "nested too deeply"),
    "latin": (b'{"a": "\xe9"}', "not UTF-8 text at byte 7"),
    "digits": (b"9" * 100_000, "too many digits"),
    "not json": (b"root:x:0:0:root:/root:/bin/bash\n", "is not JSON"),
    "zeros": (b"\0" * 100, "is not JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("error", [WeightsError, DatasetError])
def test_broken_file_is_one_error_that_names_it(name: str, error: type[LyricsError], tmp_path: Path) -> None:
    content, said = BROKEN[name]
    path = tmp_path / "found.json"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        read_json(path, error, advice="Fetch it again.")
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith(" Fetch it again.")
    assert said in message
    assert "root:x" not in message
    assert len(message) < len(str(path)) + 120


def test_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "bom.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json(path) == {"a": "é"}
    assert read_text(path) == '{"a": "é"}'
    assert parse_json("\ufeff[1]") == parse_json(b"\xef\xbb\xbf[1]") == [1]


def special_files(folder: Path) -> Iterator[tuple[Path, str]]:
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    (folder / "loop.json").symlink_to(folder / "loop.json")
    yield folder / "pipe.json", "a pipe"
    yield folder / "folder.json", "Is a directory"
    yield folder / "loop.json", "cannot be read"
    yield folder / "none.json", "No such file"
    yield Path("/dev/zero"), "a pipe, a socket or a device"
    yield folder / ("n" * 300), "cannot be read"
    yield Path("nu\0ll.json"), "null byte"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("read", [read_json, read_text, read_json_object])
def test_what_is_no_file_is_refused_unopened(read: Callable[..., Any], tmp_path: Path) -> None:
    for path, said in special_files(tmp_path):
        with pytest.raises(SpecError) as caught:
            read(path, SpecError)
        assert said in str(caught.value)


def test_size_is_bounded_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(json_reading.MAX_BYTES + 1)  # sparse: no bytes on the disk
    with pytest.raises(LyricsError, match="at most 268,435,456 are read"):
        read_json(path)


def test_an_object_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[1]")
    with pytest.raises(WeightsError, match=r"list\.json: should hold a JSON object"):
        read_json_object(path, WeightsError)


def test_keys_given_twice() -> None:
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(LyricsError, match="the key 'a' is given twice"):
        parse_json('{"a": 1, "a": 2}', unique_keys=True)


SECRET = "hunter2-and-more"
QUOTING = {
    "passwd": f"root:x:0:0:{SECRET}:/root:/bin/bash\n",
    "colon": f"a: {SECRET}: b\n",
    "tag": f"a: !{SECRET} b\n",
    "undefined": f"a: !x!{SECRET} b\n",
    "list": f"- {SECRET}\n",
    "int": f"a: !!int '{SECRET}'\n",
    "unfinished": f'a: "{SECRET}\n',
    "flow": f"[{SECRET}, {{{SECRET}\n",
    "anchor": f"a: *{SECRET}\n",
    "percent": f"%{SECRET} 1\na: 1\n",
    "json": f'{{"{SECRET}": {SECRET}}}',
    "tab": f"a:\n\t{SECRET}: 1\n",
    "two documents": f"a\n--- {SECRET}\n...\n{SECRET}\n",
}


@pytest.mark.parametrize("name", QUOTING)
def test_file_that_is_no_spec_is_not_quoted(name: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(QUOTING[name])
    with pytest.raises(SpecError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    if name != "json":  # as YAML it is a mapping, of which the unknown key is named
        assert SECRET not in str(caught.value)


# --- nothing else parses JSON or YAML ---


def bare_calls(tree: ast.AST) -> list[str]:
    """Calls that parse JSON or YAML, save for a round trip of data that the same expression wrote."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        parses = called.endswith(("json.loads", "json.load", "JSONDecoder")) or (
            called.startswith("yaml.") and "dump" not in called
        )
        if parses and not (node.args and ast.unparse(node.args[0]).startswith("json.dumps(")):
            found.append(called)
    return found


def imported_parsers(tree: ast.AST) -> list[str]:
    return [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in ("json", "yaml")
        for alias in node.names
    ]


#: The one place.
ALLOWED = {"core/json_reading.py": ["json.loads"]}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_one_place_parses_json(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert bare_calls(tree) == ALLOWED.get(path.relative_to(PACKAGE).as_posix(), [])
    assert not imported_parsers(tree)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("json.load(file)", 1),
        ("import json as j\nj.json.loads(text)", 1),
        ("yaml.safe_load(text)", 1),
        ("json.JSONDecoder()", 1),
        ("json.loads(json.dumps(data))", 0),
        ("yaml.safe_dump(data)", 0),
        ("parse_json(text)", 0),
    ],
)
def test_the_walk_finds(code: str, found: int) -> None:
    assert len(bare_calls(ast.parse(code))) == found


def test_imports_nothing_heavy() -> None:
    done = fresh("import lyrics.core.json_reading")
    assert done.returncode == 0, done.stderr
