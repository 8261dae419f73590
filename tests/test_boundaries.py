"""Who may import whom, what imports without torch, and what never appears in the source."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

import lyrics
from lyrics.core.registry.registry import default_registry
from tests.fresh import HEAVY, ROOT, fresh

PACKAGE = ROOT / "lyrics"
FILES = sorted(PACKAGE.rglob("*.py"))
EXAMPLES = sorted(path for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
STANDARD = sys.stdlib_module_names

#: Files that design.md marks *no torch*.
NO_TORCH = (
    "contracts",
    "errors",
    "geometry",
    "inspection.inventory",
    "language.codecs",
    "masks",
    "registry.component",
    "registry.hookspecs",
    "registry.registry",
    "resolve",
    "spec",
    "types",
)

#: The floors of the package, the uppermost first; on one floor stand a module or a folder that do not import each
#: other. Imports run down, wherever they stand: at the top, for type checking, or within a function.
FLOORS = (
    ("lyrics.cli",),
    ("lyrics.plugins",),
    ("lyrics.workflows",),
    ("lyrics.integrations", "lyrics.testing", "lyrics.tasks"),
    ("lyrics.core.training",),
    ("lyrics.core.evaluation",),
    ("lyrics.core.conversion",),
    ("lyrics.core.inspection",),
    ("lyrics.core.loading",),
    ("lyrics.core.model",),
    ("lyrics.core.saving",),
    ("lyrics.core.trained",),
    ("lyrics.core.public_models",),
    ("lyrics.core.data",),
    ("lyrics.core.build",),
    ("lyrics.core.chat",),
    ("lyrics.core.weights.model_folder",),
    ("lyrics.core.weights.hub",),
    ("lyrics.core.composed",),
    ("lyrics.core.changes",),
    ("lyrics.core.runs",),
    ("lyrics.core.abstaining",),
    ("lyrics.core.answers", "lyrics.core.processor", "lyrics.core.spatial", "lyrics.core.training_output"),
    ("lyrics.core.stage1",),
    ("lyrics.core.language",),
    ("lyrics.core.refining",),
    ("lyrics.core.finite",),
    ("lyrics.core.pictures",),
    ("lyrics.core.contracts",),
    ("lyrics.core.language.past",),
    ("lyrics.core.stage1.state",),
    ("lyrics.core.stage1.negatives",),
    ("lyrics.core.stage1.distributed",),
    ("lyrics.core.stage1.batch",),
    ("lyrics.core.stage1.streams",),
    ("lyrics.core.weights",),
    ("lyrics.core.resolve", "lyrics.core.component"),
    ("lyrics.core.registry",),
    ("lyrics.core.spec",),
    ("lyrics.core.types",),
    ("lyrics.core.masks",),
    ("lyrics.core.geometry",),
    ("lyrics.core.reports",),
    ("lyrics.core.lease",),
    (
        "lyrics.core.arrow",
        "lyrics.core.box_waves",
        "lyrics.core.clean_text",
        "lyrics.core.conditions",
        "lyrics.core.dtypes",
        "lyrics.core.files",
        "lyrics.core.grid_sample",
        "lyrics.core.json_reading",
        "lyrics.core.onednn",
    ),
    ("lyrics.core.renamed_fields",),
    ("lyrics.core.errors", "lyrics.core.renaming"),
    ("lyrics.kernels",),
)
ROOMS = {room: number for number, floor in enumerate(FLOORS) for room in floor}
#: The public face, which imports from everywhere when a name is asked for.
FACE = ("lyrics", "lyrics.data", "lyrics.evaluation", "lyrics.training", "lyrics.types")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(module: ast.Module) -> Iterator[str]:
    """Every module that a file imports, wherever the statement stands, and every name as ``module.name``."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def imports_of(path: Path) -> tuple[str, ...]:
    """``imported`` of a file, which is read once."""
    return tuple(imported(tree(path)))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def may_import(importer: str, name: str) -> bool:
    """The rule of design.md section 2, for a module of the package and a lyrics module (or name) that it imports."""

    def within(*packages: str) -> bool:
        return any(name == package or name.startswith(f"{package}.") for package in packages)

    layer = importer.split(".")[1] if "." in importer else ""
    if layer == "kernels":
        return within("lyrics.kernels")
    if layer == "core":
        return within("lyrics.core", "lyrics.kernels") or name == "lyrics.__version__"
    if layer == "plugins":
        return within("lyrics.core", "lyrics.kernels", ".".join(importer.split(".")[:3]))
    if layer == "testing":
        return within("lyrics.core", "lyrics.testing")
    if layer in ("workflows", "integrations"):
        below = within("lyrics.core", "lyrics.kernels", "lyrics.workflows", "lyrics.integrations")
        return below or name == "lyrics.__version__"
    if layer == "cli":
        return (
            within("lyrics.core", "lyrics.workflows", "lyrics.cli")
            or (importer == "lyrics.cli" and name == "lyrics.__version__")
            or (importer == "lyrics.cli.conformance" and within("lyrics.testing"))
        )
    return within("lyrics.core", "lyrics.tasks")  # lyrics/__init__.py and the other modules of the public face


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_imports_go_downwards_only(path: Path) -> None:
    for name in imports_of(path):
        if name.partition(".")[0] == "lyrics":
            assert may_import(dotted(path), name), f"{dotted(path)} imports {name}"


def room_of(module: str) -> str | None:
    """The room of a module: the longest one that it is, or is in."""
    found = [room for room in ROOMS if module == room or module.startswith(f"{room}.")]
    return max(found, key=len, default=None)


def module_of(name: str) -> str:
    """The module of an imported name, which may be a module or something in one."""
    while name and name not in SOURCES:
        name = name.rpartition(".")[0]
    return name


SOURCES = {dotted(path): path for path in FILES}


def runs_up(importer: str, name: str) -> bool:
    """Whether an import leads to a room above, or to another one on the same floor."""
    own, other = room_of(importer), room_of(module_of(name))
    if importer in FACE or module_of(name) == "lyrics" or own is None or other is None:
        return False
    return ROOMS[other] < ROOMS[own] or (own != other and ROOMS[own] == ROOMS[other])


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_no_import_runs_up(path: Path) -> None:
    """Whichever way it is written: at the top, under TYPE_CHECKING, or within a function."""
    up = sorted({name for name in imports_of(path) if name.startswith("lyrics.") and runs_up(dotted(path), name)})
    assert not up, f"{dotted(path)} is on a lower floor than {', '.join(up)}"


def test_every_module_has_a_room() -> None:
    assert [module for module in SOURCES if room_of(module) is None and module not in (*FACE, "lyrics.core")] == []


def test_there_is_no_circle_of_modules() -> None:
    """Within a room, too; imports within functions and for type checking count."""
    arrows = {
        module: {module_of(name) for name in imports_of(path) if name.startswith("lyrics.")} - {module, "lyrics"}
        for module, path in SOURCES.items()
        if module not in FACE
    }
    waiting = dict(arrows)
    while free := [module for module, below in waiting.items() if not below & waiting.keys()]:
        for module in free:
            del waiting[module]
    assert not waiting, f"circles among {', '.join(sorted(waiting))}"


@pytest.mark.parametrize(
    ("importer", "code"),
    [
        ("lyrics.core.spec", "if TYPE_CHECKING:\n    from lyrics.core.model import LyricsModel"),
        ("lyrics.core.weights.hub", "def f():\n    from lyrics.core.model import LyricsModel"),
        ("lyrics.core.weights.hub", "import lyrics.core.saving"),
        ("lyrics.core.contracts", "from lyrics.core.stage1.step import pretrain_losses"),
        ("lyrics.core.training.loop", "def f():\n    from lyrics.workflows.bench import step"),
        ("lyrics.core.dtypes", "from lyrics.core.files import is_text"),
    ],
)
def test_what_the_floors_refuse(importer: str, code: str) -> None:
    assert any(runs_up(importer, name) for name in imported(ast.parse(code)))


def classes_by_name(sources: Iterable[tuple[str, ast.Module]]) -> dict[str, list[str]]:
    """Every public class of a file's top level -> the modules that define one of that name."""
    found: dict[str, list[str]] = {}
    for module, one in sources:
        for node in one.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    return found


def test_no_two_public_classes_have_one_name() -> None:
    twice = {
        name: homes
        for name, homes in classes_by_name((module, tree(path)) for module, path in SOURCES.items()).items()
        if len(homes) > 1
    }
    assert not twice, f"one name for one thing: {twice}"


def test_what_counts_as_two_classes_of_one_name() -> None:
    one = ast.parse("class A: pass\nclass _B: pass\nclass C:\n    class A: pass")
    two = ast.parse("class A: pass\nclass _B: pass\nx = C = 1")
    assert classes_by_name([("one", one), ("two", two)]) == {"A": ["one", "two"], "C": ["one"]}


@pytest.mark.parametrize("module", ["core.model", "plugins.mqformer.model"])
def test_the_two_models_are_read_from_top_to_bottom(module: str) -> None:
    assert len(SOURCES[f"lyrics.{module}"].read_text(encoding="utf-8").splitlines()) < 400


@pytest.mark.parametrize(
    ("importer", "name", "allowed"),
    [
        ("lyrics.core.build", "lyrics.plugins.tiny", False),
        ("lyrics.core.build", "lyrics.cli", False),
        ("lyrics.core.build", "lyrics.testing.run", False),
        ("lyrics.core.stage1.streams", "lyrics.kernels.Segment", True),
        ("lyrics.kernels.plan", "lyrics.core.errors", False),
        ("lyrics.plugins.tiny.vit", "lyrics.plugins.tiny", True),
        ("lyrics.plugins.tiny.vit", "lyrics.plugins.tiny_two", False),
        ("lyrics.plugins.tiny.vit", "lyrics.plugins.mqformer", False),
        ("lyrics.plugins.tiny.vit", "lyrics.cli", False),
        ("lyrics.cli.check", "lyrics.plugins.tiny", False),
        ("lyrics.cli.check", "lyrics.testing.x", False),
        ("lyrics.cli.conformance", "lyrics.testing.check_component", True),
    ],
)
def test_the_rule_itself(importer: str, name: str, allowed: bool) -> None:
    assert may_import(importer, name) is allowed


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(PACKAGE / "kernels")], ids=dotted)
def test_kernels_stand_on_torch_alone(path: Path) -> None:
    """A file named after an optional back-end may import that back-end."""
    own = {"_triton": {"triton"}, "_flash": {"flash_attn"}}
    back_end = next((modules for prefix, modules in own.items() if path.stem.startswith(prefix)), set())
    allowed = {"torch", "numpy", "lyrics", "__future__", *back_end}
    found = {name.partition(".")[0] for name in imports_of(path)}
    assert found - STANDARD <= allowed


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(PACKAGE / "core")], ids=dotted)
def test_core_names_no_plugin_in_a_string_either(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert "lyrics.plugins" not in node.value


# --- core names no component ---

_REGISTRY = default_registry()
#: Components and presets of this library. A stranger's would be no names that core could know.
COMPONENTS = frozenset(
    {entry.component.name for entry in _REGISTRY.entries if entry.source.distribution == "lyrics-vl"}
    | {preset.name for preset, source in _REGISTRY.presets if source.distribution == "lyrics-vl"}
)
FAMILIES = tuple(sorted(path.name for path in (PACKAGE / "plugins").iterdir() if (path / "__init__.py").is_file()))


def _these(names: str) -> frozenset[str]:
    return frozenset(names.split())


#: Where core names components still, and why. May shrink only: what stands here and is not found fails, too.
NAMED_IN_CORE: Mapping[str, tuple[str, frozenset[str]]] = {
    "evaluation/pope.py": ("the protocol's own name, a sample's task; no component is looked up", _these("pope")),
    "refining/formats.py": ("a file format's own name; no component is looked up", _these("coco")),
}


def written(module: ast.Module) -> Iterator[str]:
    """Every string of a file, but for docstrings."""
    documents = {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value


def named_in(module: ast.Module) -> set[str]:
    """Components, presets and plugins that a file's strings name.

    A string is a name; or a name stands in it as something to write (``use: x``, ``a=x``, ``'x'``, ``distribution/x``);
    or it has a hyphen or a digit, and is no word of English; or the string has a plugin's path, with dots or slashes.
    """
    names = "|".join(sorted(map(re.escape, COMPONENTS), key=len, reverse=True))
    as_written = re.compile(rf"(?:use: |[=/'\"`])({names})(?![\w-])")
    no_word = re.compile(
        rf"(?<![\w-])({'|'.join(one for one in names.split('|') if re.search('[-0-9]', one))})(?![\w-])"
    )
    found: set[str] = set()
    for text in written(module):
        found |= {text} & COMPONENTS | set(as_written.findall(text)) | set(no_word.findall(text))
        found |= {f"plugins/{family}" for family in FAMILIES if re.search(rf"plugins[./]{family}(?!\w)", text)}
    return found


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(PACKAGE / "core")], ids=dotted)
def test_core_names_no_component(path: Path) -> None:
    _, allowed = NAMED_IN_CORE.get(str(path.relative_to(PACKAGE / "core")), ("", frozenset()))
    found = named_in(tree(path))
    assert found <= allowed, f"{dotted(path)} names {', '.join(sorted(found - allowed))}"
    assert allowed <= found, f"{', '.join(sorted(allowed - found))} is named no more; take it off the list"


def test_the_list_of_names_is_of_files_that_exist() -> None:
    assert all((PACKAGE / "core" / name).is_file() for name in NAMED_IN_CORE)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("slot.use == 'itc'", {"itc"}),
        ("f'--set refiner.detector={x}'", set()),
        ("x = 'set refiner.detector=cached'", {"cached"}),
        ("x = '{use: cached}'", {"cached"}),
        ("x = 'lyrics-vl/scenes'", {"scenes"}),
        ("x = 'package:lyrics/plugins/tiny/weights'", {"plugins/tiny"}),
        ("x = 'such as grounding-dino.'", {"grounding-dino"}),
        ("x = 'scenes that are cached'", set()),
        ("x = 'a capital'", set()),
        ("def f():\n    'qformer'\n    return 1", set()),
        ("def f():\n    return 'qformer'", {"qformer"}),
    ],
)
def test_the_search_for_names(code: str, found: set[str]) -> None:
    assert named_in(ast.parse(code)) == found


# --- core knows what it holds ---

PARTS = ("query_transformer", "language_model", "encoder", "tagger", "detector", "segmenter", "objective", "objectives")
#: Studies that use what the built-in query transformer has beside its contract (``forward_dense``, ``special``).
UNTYPED: tuple[Path, ...] = ()


def untyped_parts(module: ast.Module) -> Iterator[str]:
    """Parameters and attributes that are called like a part of a model, or the model, and declared as nothing in
    particular.
    """
    for node in ast.walk(module):
        if isinstance(node, ast.arg):
            name, annotation = node.arg, node.annotation
        elif isinstance(node, ast.AnnAssign):
            name, annotation = ast.unparse(node.target).rpartition(".")[2], node.annotation
        else:
            continue
        words = set(re.findall(r"\w+", "" if annotation is None else ast.unparse(annotation)))
        if (name in PARTS and words & {"Any", "object"}) or (name in PARTS and {"nn", "Module"} <= words):
            yield f"line {node.lineno}: {name}: {ast.unparse(annotation)}"  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(PACKAGE / "core")], ids=dotted)
def test_parts_are_typed_with_their_protocols(path: Path) -> None:
    if path not in UNTYPED:
        assert list(untyped_parts(tree(path))) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f(query_transformer: Any): pass", 1),
        ("class A:\n    encoder: torch.nn.Module", 1),
        ("self.language_model: Any = found", 1),
        ("def f(objectives: Mapping[str, Any]): pass", 1),
        ("def f(objectives: Mapping[str, Objective], encoder: ImageEncoder, other: Any): pass", 0),
        ("encoder: Slot = Field(description='')", 0),
    ],
)
def test_the_search_for_untyped_parts(code: str, found: int) -> None:
    assert len(list(untyped_parts(ast.parse(code)))) == found


def test_no_part_is_asked_what_it_has() -> None:
    """What a part may have is a protocol of ``lyrics.core.contracts``; ``hasattr`` is for what is no part."""
    found = {
        f"{dotted(path)}: {ast.unparse(node)}"
        for path in FILES
        if path.is_relative_to(PACKAGE / "core")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr"
    }
    assert found == {
        "lyrics.core.build: hasattr(nn.ModuleDict(), name)",
        "lyrics.core.data.stream: hasattr(errno, name)",
        "lyrics.core.evaluation.runner: hasattr(model, 'generate')",
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_and_benchmarks_use_public_names(path: Path) -> None:
    for name in imports_of(path):
        keys = name.split(".")
        if keys[0] != "lyrics":
            continue
        assert not any(key.startswith("_") for key in keys), f"{path} imports {name}"
        assert keys[1:2] != ["plugins"], f"{path} imports {name}"
        if len(keys) == 2 and keys[1] not in ("testing", "kernels", "core", "cli"):
            assert keys[1] in lyrics.__all__, f"{path} imports {name}"


def test_there_are_examples() -> None:
    assert EXAMPLES


def test_every_public_name_is_there() -> None:
    assert sorted(lyrics.__all__) == sorted(dir(lyrics))
    for name in lyrics.__all__:
        assert getattr(lyrics, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'build_modell'"):
        _ = lyrics.build_modell
    declared = {
        alias.name
        for node in ast.walk(tree(PACKAGE / "__init__.py"))
        if isinstance(node, ast.If)
        for inner in ast.walk(node)
        if isinstance(inner, ast.ImportFrom)
        for alias in inner.names
    }
    assert declared == set(lyrics.__all__) - {"__version__"}, "type checkers see other names than users do"


def test_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert lyrics.__version__ == project["version"]


# --- cold imports ---

WRITTEN = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lyrics"]
MANIFESTS = tuple(sorted(WRITTEN.values()))
LIGHT = (*(f"lyrics.core.{name}" for name in NO_TORCH), *MANIFESTS)


@pytest.fixture(scope="module")
def cold() -> Mapping[str, str]:
    """Module -> why it cannot be imported without torch, transformers and triton; an empty string where it can."""
    done = fresh(
        "import importlib, json\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "        found[name] = ''\n"
        "    except BaseException as error:\n"
        "        found[name] = repr(error)\n"
        "print(json.dumps(found))\n",
        *LIGHT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("module", LIGHT)
def test_light_module_imports_without_torch(module: str, cold: Mapping[str, str]) -> None:
    assert cold[module] == ""


def test_blocking_blocks() -> None:
    for heavy in HEAVY:
        done = fresh(f"import {heavy}")
        assert f"{heavy} is blocked" in done.stderr
    assert fresh("import lyrics.core.model").returncode != 0


def test_every_family_is_registered() -> None:
    families = {path.name for path in (PACKAGE / "plugins").iterdir() if (path / "__init__.py").is_file()}
    assert families == {value.rpartition(".")[2] for value in MANIFESTS if value.startswith("lyrics.plugins.")}


def test_installed_metadata_are_those_of_the_project() -> None:
    installed = {
        entry_point.name: entry_point.value
        for entry_point in importlib.metadata.entry_points(group="lyrics")
        if entry_point.dist is not None and entry_point.dist.name == "lyrics-vl"
    }
    assert installed == WRITTEN, "pyproject.toml has changed since lyrics was installed: run 'pip install -e .' again"


def test_light_files_are_typed_strictly() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    strict = {
        m for override in settings["overrides"] if override.get("disallow_any_generics") for m in override["module"]
    }
    # design.md section 2; `inventory` is light for the sake of `lyrics list`.
    assert strict >= {f"lyrics.core.{name}" for name in NO_TORCH if name != "inspection.inventory"}


@pytest.mark.parametrize(
    "code",
    [
        "import lyrics; lyrics.Component, lyrics.Options, lyrics.ModelSpec, lyrics.Box, lyrics.Registry, "
        "lyrics.LyricsError",
        "import lyrics.cli",
        "import lyrics.testing",
        "import lyrics.core.build",
    ],
)
def test_import_is_cheap(code: str) -> None:
    """Nothing heavy, no plugin, and no file or folder made."""
    done = fresh(
        f"import os; before = set(os.listdir('.')); {code}\n"
        "loaded = [name for name in sys.modules if name.startswith('lyrics.plugins')]\n"
        "assert not loaded, loaded\n"
        "assert set(os.listdir('.')) == before\n"
    )
    assert done.returncode == 0, done.stderr


# --- tests mirror the package ---

#: Rooms of the package whose tests stand in the folder of the same name.
MIRRORED = ("cli", "core", "kernels", "plugins", "workflows")
#: Tests in these folders that are about no one module, each with the reason.
ACROSS = {
    "core/test_capabilities.py": "a declared capability decides in building, both steps, training and evaluation",
    "plugins/test_test_options.py": "the test options of every family's experts",
}


def mirrored(test: Path, tests: Path = ROOT / "tests") -> Path | None:
    """Return the module or package that a test names: ``core/test_spec.py`` is about ``lyrics/core/spec.py``.

    ``test_X.py`` and ``test_X_aspect.py`` name ``X.py``, ``_X.py`` or the package ``X``, in the folder of the package
    that mirrors theirs, or that folder itself: ``plugins/tiny/test_tiny_batching.py``. The longest name that fits is
    taken.
    """
    folder = PACKAGE / test.parent.relative_to(tests)
    words = test.stem.removeprefix("test_").split("_")
    for count in range(len(words), 0, -1):
        name = "_".join(words[:count])
        places = [folder / f"{name}.py", folder / f"_{name}.py", folder / name / "__init__.py"]
        if folder.name == name:
            places.append(folder / "__init__.py")
        for place in places:
            if place.is_file():
                return place
    return None


def test_every_test_names_what_it_is_about() -> None:
    tests = ROOT / "tests"
    found = [path for room in MIRRORED for path in sorted((tests / room).rglob("test_*.py"))]
    lost = {str(path.relative_to(tests)) for path in found if mirrored(path) is None}
    assert lost - set(ACROSS) == set(), "rename them after the module they test, or say in ACROSS why they name none"
    assert set(ACROSS) - lost == set(), "ACROSS holds tests that are gone or name a module"


@pytest.mark.parametrize(
    ("test", "module"),
    [
        ("core/test_spec.py", "core/spec.py"),
        ("core/test_model_steps.py", "core/model.py"),
        ("core/evaluation/test_metrics.py", "core/evaluation/metrics/__init__.py"),
        ("kernels/test_triton_compile.py", "kernels/_triton.py"),
        ("plugins/tiny/test_train_model.py", "plugins/tiny/train_model.py"),
        ("plugins/tiny/test_tiny_batching.py", "plugins/tiny/__init__.py"),
        ("core/test_speck.py", None),
        ("core/test_steps_model.py", None),
        ("core/test_sampler.py", None),
        ("core/elsewhere/test_spec.py", None),
    ],
)
def test_the_rule_of_names(test: str, module: str | None) -> None:
    assert mirrored(ROOT / "tests" / test) == (PACKAGE / module if module else None)


def test_what_is_left_out_of_the_fast_tests_is_there() -> None:
    from tests.conftest import LONG

    assert [name for name in LONG if not (ROOT / "tests" / name).exists()] == []


def test_the_command_lines_tests_are_in_one_place() -> None:
    strays = [path for path in (ROOT / "tests").rglob("test_*.py") if re.search(r"_(cli|command)(_|\.)", path.name)]
    assert [path for path in strays if path.parent != ROOT / "tests" / "cli"] == []


# --- what never appears ---

CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "makes code of text",
    "__import__": "imports by name; use importlib, so that it can be found",
    "torch.load": "unpickles",
    "pickle.load": "unpickles",
    "pickle.loads": "unpickles",
    "yaml.load": "makes objects of text",
    "yaml.unsafe_load": "makes objects of text",
    "yaml.full_load": "makes objects of text",
    "os.system": "runs a shell",
}
MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
METHODS = {"extractall": "writes wherever an archive says"}
NAMES = {"LOAD_TRUNCATED_IMAGES": "hides damage"}
KEYWORDS = {"trust_remote_code": "runs a stranger's code", "allow_pickle": "unpickles", "shell": "runs a shell"}


def spelled(node: ast.expr) -> str:
    """A name with its dots; empty for any other expression."""
    if isinstance(node, ast.Attribute):
        return f"{spelled(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offenses(module: ast.Module) -> Iterator[str]:
    for name in imported(module):
        if name.partition(".")[0] in MODULES:
            yield f"import of {name}"
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            called = spelled(node.func)
            if called in CALLS:
                yield f"line {node.lineno}: {called} {CALLS[called]}"
            for keyword in node.keywords:
                value = keyword.value
                if keyword.arg in KEYWORDS and not (isinstance(value, ast.Constant) and value.value is False):
                    yield f"line {node.lineno}: {keyword.arg} {KEYWORDS[keyword.arg]}"
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield f"line {node.lineno}: {node.attr} {METHODS[node.attr]}"
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in NAMES:
                yield f"line {node.lineno}: {name} {NAMES[name]}"
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is None:
            for target in node.targets:
                if spelled(target).endswith("MAX_IMAGE_PIXELS"):
                    yield f"line {node.lineno}: MAX_IMAGE_PIXELS = None lets a picture of any size be decoded"


#: The converters that open a pickle, each of one kind of file and in a process of its own: a data set's refs, by an
#: unpickler that refuses every class, and weights, by ``torch.load(weights_only=True)``. What of the rules they break,
#: without line numbers.
CONVERTERS = {
    PACKAGE / "core" / "data" / "convert_refs.py": ["import of pickle"],
    PACKAGE / "core" / "conversion" / "unpickle.py": ["import of pickle", "torch.load unpickles"],
}


@pytest.mark.parametrize("path", [*FILES, *EXAMPLES], ids=lambda path: str(path.relative_to(ROOT)))
def test_source_keeps_the_safety_rules(path: Path) -> None:
    found = [offense.partition(": ")[2] or offense for offense in offenses(tree(path))]
    assert found == CONVERTERS.get(path, [])


def test_pickled_weights_are_opened_once_and_as_weights_only() -> None:
    path = PACKAGE / "core" / "conversion" / "unpickle.py"
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    (call,) = [call for call in calls if ast.unparse(call.func) == "torch.load"]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    assert given["weights_only"] == "True"
    assert not any("safe_globals" in ast.unparse(call.func) for call in calls)
    readers = [p for p in FILES if any(name.startswith("lyrics.core.conversion.unpickle") for name in imports_of(p))]
    assert readers == [PACKAGE / "core" / "conversion" / "plan.py"]


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "pickle.load(file)",
        "torch.load(path, weights_only=True)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "eval('1')",
        "exec(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=options.trust)",
        "numpy.load(path, allow_pickle=True)",
        "archive.extractall(folder)",
        "tarfile.open(path).extractall",
        "ImageFile.LOAD_TRUNCATED_IMAGES = True",
        "Image.MAX_IMAGE_PIXELS = None",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_audit_finds(code: str) -> None:
    assert list(offenses(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "re.compile('a')",
        "# torch.load",
        "'pickle.load'",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
        "self.exec(text)",
        "yaml.safe_load(text)",
    ],
)
def test_the_audit_lets_pass(code: str) -> None:
    assert not list(offenses(ast.parse(code)))
