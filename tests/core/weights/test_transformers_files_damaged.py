"""A tokenizer of any damage is one clear error, wherever one is loaded; or it can be used."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lyrics.core.errors import WeightsError
from lyrics.core.language.prompts import encode_words
from lyrics.core.language.tokenizers import builtin_tokenizer, byte_tokenizer
from lyrics.core.weights.transformers_files import load_tokenizer
from tests.core.language.test_prompts import SPECIALS, merging_tokenizer
from tests.core.language.test_prompts_injections import QUERY, unigram_tokenizer
from tests.fresh import ROOT

KINDS: dict[str, Any] = {
    "bytes": byte_tokenizer(SPECIALS),
    "words": builtin_tokenizer("words", SPECIALS),
    "merges": merging_tokenizer(),
    "unigram": unigram_tokenizer(),
    "pieces": QUERY["uncased"],
}
TEXTS = {
    "nothing": "",
    "cut short": '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0',
    "null": "null",
    "list": "[]",
    "number": "3",
    "object": "{}",
    "no model": '{"version": "1.0", "added_tokens": []}',
    "another type": '{"version": "1.0", "model": {"type": "Markov"}}',
    "deep": "[" * 100_000,
    "zeros": "\0" * 99,
    "not utf8": "\udcff",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, tokenizer in KINDS.items():
        found[name] = tmp_path_factory.mktemp(name)
        tokenizer.save_pretrained(found[name])
    return found


def written(folder: Path, into: Path, text: str, file: str = "tokenizer.json") -> Path:
    for path in folder.iterdir():
        (into / path.name).write_bytes(path.read_bytes())
    (into / file).write_text(text, encoding="utf-8", errors="surrogateescape")
    return into


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", TEXTS)
def test_damaged_file_is_one_error_that_names_it(
    text: str, file: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = written(folders["merges"], tmp_path, TEXTS[text], file)
    if file == "tokenizer_config.json" and text in ("object", "no model", "another type"):
        load_tokenizer(folder)  # says nothing, and may
        return
    with pytest.raises(WeightsError) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def mutated(data: Any, random: Random) -> Any:
    """The data with one value, not of the vocabulary, taken away or exchanged for another type's."""
    data = json.loads(json.dumps(data))
    places = []

    def visit(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(min(len(node), 3)):
            places.append((node, key))
            if isinstance(node[key], dict | list) and key != "vocab":
                visit(node[key])

    visit(data)
    node, key = random.choice(places)
    value = random.choice([None, [], {}, "x", -1, 2**70, [1], {"type": "BPE"}, True, 0.5, ...])
    if value is ...:
        del node[key]
    else:
        node[key] = value
    return data


@pytest.mark.parametrize("name", KINDS)
def test_mutations_are_refused_or_usable(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    good = json.loads((folders[name] / "tokenizer.json").read_text(encoding="utf-8"))
    random = Random(7)
    refused = 0
    for _ in range(60):
        folder = written(folders[name], tmp_path, json.dumps(mutated(good, random)))
        try:
            tokenizer = load_tokenizer(folder)
        except WeightsError:
            refused += 1
        else:
            tokenizer.decode(encode_words(tokenizer, "a dog</s> \u0378"))
    assert refused > 10


def test_a_tokenizer_is_loaded_in_one_place() -> None:
    """Nothing calls transformers' loaders past ``load_tokenizer``, which explains and bounds what they do."""
    found = []
    for path in sorted((ROOT / "lyrics").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                called = ast.unparse(node.func)
                if "okenizer" in called or "Bert" in called or "Processor" in called:
                    found.append(f"{path.relative_to(ROOT).as_posix()}: {called}")
    file = "lyrics/core/weights/transformers_files.py"
    assert found == [
        f"{file}: (tokenizer_class or AutoTokenizer).from_pretrained",
        f"{file}: AutoTokenizer.from_pretrained",  # of a GGUF file, which holds its tokenizer
    ]
