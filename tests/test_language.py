"""One language: American spelling in what a user reads and writes, and lines of at most 120 columns."""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import typer
from pydantic import BaseModel

from lyrics.core.registry.registry import default_registry
from lyrics.core.runs.config import TrainConfig
from lyrics.core.spec import ModelSpec, RefinerOnlySpec
from tests.fresh import ROOT
from tests.test_boundaries import FACE

COLUMNS = 120
FOLDERS = ("lyrics", "tests", "examples", "benchmarks", "scripts")
#: Stems of British spellings, and what may not follow them.
BRITISH = re.compile(
    r"(optimis|normalis|initialis|materialis|quantis|orthogonalis|summaris|synchronis|generalis|recognis|capitalis"
    r"|finalis|organis|realis|utilis|minimis|maximis|visualis|tokenis|serialis|vectoris|parallelis(?!m)|emphasis(?=e|i)"
    r"|standardis|customis|randomis|categoris|specialis|localis|penalis|regularis|factoris|discretis|memoris|prioritis"
    r"|licence|colour|flavour|behaviour|favour|neighbour|honour|rumour|harbour|labour|centre|metre(?=s|$)|fibre|theatre"
    r"|judgement|offence|defence|catalogue|artefact|grey|learnt|spelt|burnt|dreamt|whilst|amongst|analys(?=e|ing)"
    r"|paralys|catalys(?=e|ing)|labell(?=ed|ing)|modell(?=ed|ing|er)|cancell(?=ed|ing)|travell(?=ed|ing|er)"
    r"|signall(?=ed|ing)|focuss|fulfil(?=$|s|ment)|skilful|programme(?=s|$)|cheque|sceptic|ageing)"
)
#: Where a spelling stands for a reason: file -> why.
EXCEPTIONS = {
    "tests/core/test_renaming.py": "former names",
    "tests/core/test_trained.py": "former names",
    "tests/cli/test_cli.py": "former names",
    "tests/test_language.py": "the list",
    "tests/core/test_resolve.py": "options of a stranger's part, one letter apart",
    "tests/broken_plugins/__init__.py": "messages of a stranger's plugin",
}
#: Words of a file that stand for a reason: they are names in data that others write or read, or former names.
WORDS = {
    "lyrics/core/runs/config.py": {"optimisation", "OptimisationSection"},
    "lyrics/core/registry/component.py": {"licence"},
    "lyrics/plugins/mqformer/__init__.py": {"normalise_image_tokens"},
    # A key of the data set `scenes`, by which stored samples say what is drawn.
    "lyrics/plugins/benchmarks/scenes.py": {"colour"},
    "lyrics/plugins/benchmarks/fine_scenes.py": {"colour"},
    "tests/plugins/benchmarks/test_scenes.py": {"colour"},
    "tests/plugins/benchmarks/test_fine_scenes.py": {"colour"},
    "tests/plugins/benchmarks/test_pope.py": {"colour"},
    "tests/core/evaluation/test_metrics.py": {"colour"},  # a name that is none of MME's
    "tests/core/evaluation/metrics/test_evidence.py": {"theatre"},  # tests that a final -re is no plural
    "CHANGELOG.md": {"optimisation"},
}
#: Files with long lines: XML as a data set has it.
LONG = {"tests/plugins/datasets/files.py"}
#: The drawn world and its experts: their records say `colour`, in data that is stored.
WORLD = re.compile(r"(lyrics|tests)/plugins/(scenes|tiny)/|scripts/draw_scenes\.py")


@cache
def files(*endings: str) -> tuple[Path, ...]:
    """Files of the project; what is built or installed beside it is not part of it."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in endings]
    found += [path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if path.suffix in endings]
    return tuple(sorted(path for path in found if "__pycache__" not in path.parts))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def british(text: str) -> Iterator[str]:
    """Words with a British stem, ``snake_case`` and ``CamelCase`` taken apart only to look."""
    return filter(is_british, re.findall(r"[A-Za-z_][A-Za-z_0-9]*", text))


@cache
def is_british(word: str) -> bool:
    parts = [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", word)]
    return any(BRITISH.match(part) or BRITISH.search(re.sub(r"^(un|re|de|mis)", "", part)) for part in parts)


def identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield from (node.name, node.asname or "")


@pytest.mark.parametrize("path", files(".py", ".md"), ids=named)
def test_spelling_is_american(path: Path) -> None:
    """Of names, strings, docstrings and comments, of prose: of everything in the file."""
    if named(path) in EXCEPTIONS or WORLD.match(named(path)):
        return
    text = path.read_text(encoding="utf-8")
    allowed = WORDS.get(named(path), set())
    found = {
        f"line {number}: {word}"
        for number, line in enumerate(text.splitlines(), 1)
        for word in british(line)
        if word not in allowed
    }
    assert not found


def test_identifiers_of_the_drawn_world_too() -> None:
    """There all but what its stored data and its tests say of colors and centers."""
    kept = re.compile(r"colou?r|centre|neighbour|normalis|generalis|materialis|learnt|licence", re.IGNORECASE)
    for path in files(".py"):
        if WORLD.match(named(path)):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {word for name in identifiers(tree) for word in british(name) if not kept.search(word)}
            assert not names, path


def option_names(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    """Names, choices and descriptions of the fields, at any depth."""
    if model in seen:
        return
    seen.add(model)
    for name, field in model.model_fields.items():
        yield f"{name}: {field.description or ''}"
        waiting: list[Any] = [field.annotation]
        while waiting:
            one = waiting.pop()
            if isinstance(one, type) and issubclass(one, BaseModel):
                yield from option_names(one, seen)
            elif isinstance(one, str):
                yield one
            else:
                waiting += get_args(one)


def test_options_and_records_as_users_see_them() -> None:
    """From the registry and the models themselves, so that what is put together at run time counts, too."""
    seen: set[type[BaseModel]] = set()
    texts = [text for model in (TrainConfig, ModelSpec, RefinerOnlySpec) for text in option_names(model, seen)]
    registry = default_registry()
    for entry in registry.entries:
        component = entry.component
        texts += [component.name, component.summary, component.license, *option_names(component.options, seen)]
    named = (*registry.presets, *registry.recipes, *registry.vocabularies)
    texts += [f"{one.name}: {one.summary}" for one, _ in named]
    assert len(texts) > 200
    world = {"colour", "coloured", "colours"}
    assert not [word for text in texts for word in british(text) if word not in world]


def commands(command: click.Command, path: str = "lyrics") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, f"{path} {name}")


def test_help_of_every_command() -> None:
    from lyrics.cli import app

    found = list(commands(typer.main.get_command(app)))
    assert len(found) > 20
    for path, command in found:
        text = command.get_help(click.Context(command, info_name=path))
        assert not list(british(text)), path
        flags = [flag for option in command.params for flag in option.opts if not getattr(option, "hidden", False)]
        assert not [flag for flag in flags if "picture" in flag], path


#: Where picture stands for a reason: what is said and asked of drawn scenes, in data that is stored; the paper's own
#: words.
PICTURES = re.compile(r"lyrics/(plugins/scenes/(fine_)?(captions|language|questions|texts)|core/data/templates)\.py")
#: A word of prose: no part of a path or a name, no argument that is explained, no place in a template.
PICTURE = re.compile(r"(?<![\w./{<`'\"-])pictures?(?![\w/(=`\":}])", re.IGNORECASE)


def documents(tree: ast.AST) -> Iterator[ast.Constant]:
    """Docstrings."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
            and isinstance(node.body[0].value, ast.Constant)
        ):
            yield node.body[0].value


def comments(text: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def messages(tree: ast.AST) -> Iterator[str]:
    """Strings of several words, without docstrings."""
    ours = {id(one) for one in documents(tree)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in ours else None
        if isinstance(text, str) and " " in text.strip():
            yield text


@pytest.mark.parametrize("path", [one for one in files(".py") if named(one).startswith("lyrics/")], ids=named)
def test_text_says_image(path: Path) -> None:
    """Messages, help, docstrings and comments; not picture, where an image is meant."""
    if PICTURES.fullmatch(named(path)):
        return
    text = path.read_text(encoding="utf-8")
    if "picture" not in text.lower():
        return
    tree = ast.parse(text)
    said = [*messages(tree), *(str(one.value) for one in documents(tree)), *comments(text)]
    found = [line.strip() for one in said for line in one.splitlines() if PICTURE.search(line)]
    assert not found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("three pictures, not four", True),
        ("A picture's boxes.", True),
        ("Picture", True),
        ("pictures: where ``Sample.image`` leads", False),
        ("``picture`` opens the image of lyrics/core/pictures/images.py or docs/pictures.", False),
        ("lyrics.core.pictures.images, --pictures, pictures=FOLDER, picture(sample), {picture}, one['picture']", False),
    ],
)
def test_what_counts_as_the_word(line: str, found: bool) -> None:
    assert bool(PICTURE.search(line)) is found


def test_arguments_of_the_public_face_are_images() -> None:
    """``image``, not picture; what a data set's contract calls ``picture`` keeps its name with the contract."""
    import inspect

    found = []
    for home in FACE:
        module = importlib.import_module(home)
        for name in module.__all__:
            assert "picture" not in name.lower(), name
            thing = getattr(module, name)
            functions = [thing] if inspect.isfunction(thing) else []
            if inspect.isclass(thing):
                functions = [one for key, one in vars(thing).items() if inspect.isfunction(one) and key[:1] != "_"]
                functions += [thing.__init__] if inspect.isfunction(thing.__init__) else []
            for function in functions:
                found += [
                    f"{name}.{function.__name__}({argument})"
                    for argument in inspect.signature(function).parameters
                    if "picture" in argument
                ]
    # ``RecordDataset`` and ``Example`` have what ``Dataset.picture`` gives.
    assert set(found) == {"RecordDataset.__init__(pictures)", "Example.__init__(picture)"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("normalise_tokens, OptimisationSection", ["normalise_tokens", "OptimisationSection"]),
        ("misspelt, relabelled and unrecognised", ["misspelt", "relabelled", "unrecognised"]),
        ("emphasis, analysis, meter, spelled, promise, precise, dialogue, otherwise, noise, NOISE", []),
        ("the center of gray colors behaves as licensed; emphasize, analyze, label, labels, optimizer", []),
        ("COLOURS", ["COLOURS"]),
        ("analyse, programmes, metres", ["analyse", "programmes", "metres"]),
        ("programmed parameters", []),
    ],
)
def test_the_list_finds_what_it_should(text: str, words: list[str]) -> None:
    assert list(british(text)) == words


def long_lines(path: Path) -> Iterator[int]:
    """Numbers of lines that are too long; a table of Markdown, a link, and one long word cannot be broken."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if path.suffix == ".md" and line.lstrip().startswith("|"):
            continue
        line = re.sub(r" +# (type: ignore|noqa)\b.*", "", line)  # as ruff counts
        if len(line) > COLUMNS and " " in line.strip()[2:] and not re.search(r"https?://\S{60,}", line):
            yield number


@pytest.mark.parametrize("path", files(".py", ".md"), ids=named)
def test_lines_are_short(path: Path) -> None:
    if named(path) in LONG:
        return
    found = list(long_lines(path))
    assert not found, f"lines {found} are longer than {COLUMNS}"
