"""Plugins that are broken, each in its own way, and ``install``, which puts them all where Python finds installed
distributions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Literal

#: Long enough to stand out in ``lyrics doctor``, short enough for a test.
SLOW_SECONDS = 1.0

# When using the plugin's part goes wrong: when its name is looked up, when its requirements are checked, when its
# options are read, when it is built, when it runs; "works" where nothing goes wrong.
Stage = Literal["lookup", "requirement", "options", "build", "run", "works"]


@dataclass(frozen=True)
class Broken:
    """One broken plugin.

    Args:
        distribution: its distribution; the version is always 1.0 and its module ``module``.
        source: the module's text.
        stage: where use fails.
        cause: what the message must say.
        kind, name: the part that is used; the name is also the entry point's unless ``entry_point`` says otherwise.
        target: the entry point's value, if not the module.
        status: what ``lyrics list`` shows for it: the beginning of the status of its row.
    """

    distribution: str
    source: str
    stage: Stage
    cause: str
    kind: str = "detector"
    name: str = ""
    target: str = ""
    entry_point: str = ""
    status: str = "broken: "
    entry_points_txt: str = ""

    @property
    def module(self) -> str:
        return self.distribution.replace("-", "_")

    @property
    def asked(self) -> str:
        return self.name or self.entry

    @property
    def entry(self) -> str:
        return self.entry_point or self.distribution

    def __str__(self) -> str:
        return self.distribution


def _manifest(component: str, before: str = "") -> str:
    head = "import time\n\nfrom lyrics import Component, Options, hookimpl\n"
    hook = f"@hookimpl\ndef lyrics_components():\n    yield {component}\n"
    return f"{head}\n{dedent(before)}\n\n{hook}"


# A detector that finds nothing; TOKENS is the width of its tokens, FEATURE_DIM what it says they are.
_DETECTOR = dedent("""
    def build(options, context):
        import torch
        from lyrics.core.types import DetectorOutput, Preprocessing

        class Detector(torch.nn.Module):
            feature_dim = FEATURE_DIM
            preprocessing = Preprocessing("squash", 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

            def forward(self, images, phrases):
                found = tuple(() for _ in phrases)
                tokens = torch.zeros(len(found), 1, TOKENS)
                return DetectorOutput(found, tokens, torch.ones(len(found), 1, dtype=torch.bool))

        return Detector()
""")
_DIMS = "class DimOptions(Options):\n    feature_dim: int = {}\nFEATURE_DIM, TOKENS = {}, {}\n"


def _one(name: str, extra: str = "", kind: str = "detector") -> str:
    return f'Component("{kind}", "{name}", build="{name.replace("-", "_")}:build"{extra})'


BROKEN: tuple[Broken, ...] = (
    Broken(
        "broken-import", "raise ImportError('acme_engine is too old')", "lookup", "ImportError: acme_engine is too old."
    ),
    Broken("broken-syntax", "def lyrics_components(:\n    yield", "lookup", "SyntaxError: "),
    Broken("broken-raise", "raise KeyError('no such flavour')", "lookup", "KeyError: 'no such flavour'."),
    Broken("broken-exit", "import sys\nsys.exit(3)", "lookup", "it called sys.exit(3)."),
    Broken(
        "broken-requires",
        _manifest(_one("broken-requires", ", requires=('acme-engine>=2',), install=\"pip install 'acme-engine>=2'\"")),
        "requirement",
        "acme-engine>=2 (not installed). Run: pip install 'acme-engine>=2'",
        status="needs acme-engine>=2 (not installed)",
    ),
    Broken(
        "broken-type",
        _manifest("{'kind': 'detector', 'name': 'broken-type'}"),
        "lookup",
        "lyrics_components yielded a dict, not a lyrics.Component.",
    ),
    Broken(
        "broken-contract",
        _manifest(_one("from-the-future", ", contract=99")),
        "lookup",
        "detector 'from-the-future' keeps contract version 99; this lyrics knows 1.",
        name="from-the-future",
    ),
    Broken(
        "broken-kind",
        _manifest('Component("detektor", "unkind", build="broken_kind:build")'),
        "lookup",
        "component 'unkind' has the unknown kind 'detektor'. Did you mean 'detector'?",
        name="unkind",
    ),
    Broken(
        "broken-twin-a",
        _manifest(_one("twin")),
        "lookup",
        "write 'broken-twin-a/twin' or 'broken-twin-b/twin'",
        name="twin",
        status="ready",
    ),
    Broken(
        "broken-twin-b",
        _manifest(_one("twin")),
        "lookup",
        "write 'broken-twin-a/twin' or 'broken-twin-b/twin'",
        name="twin",
        status="ready",
    ),
    Broken(
        "broken-shadow",
        _manifest(_one("tiny-detector")),
        "lookup",
        "write 'broken-shadow/tiny-detector' or 'lyrics-vl/tiny-detector'",
        name="tiny-detector",
        status="ready",
    ),
    Broken("broken-module", "", "lookup", "No module named 'broken_module_nowhere'.", target="broken_module_nowhere"),
    Broken(
        "broken-attribute",
        "",
        "lookup",
        "module 'broken_attribute' has no attribute 'plugin'.",
        target="broken_attribute:plugin",
    ),
    Broken(
        "broken-value",
        "",
        "lookup",
        "the entry point is 'broken value:::', not 'package.module' or 'package.module:object'.",
        target="broken value:::",
    ),
    Broken(
        "broken-hook",
        "from lyrics import hookimpl\n\n@hookimpl\ndef lyrics_component():\n    return []",
        "lookup",
        "PluginValidationError: ",
    ),
    Broken(
        "broken-nohook",
        "def lyrics_components():\n    return []",
        "lookup",
        "it implements none of lyrics_components, lyrics_presets, lyrics_recipes, lyrics_vocabularies, "
        "lyrics_templates and lyrics_public_models (is @hookimpl missing?).",
    ),
    Broken(
        "broken-slow",
        _manifest(
            _one("broken-slow"), f"time.sleep({SLOW_SECONDS})\nprint('a manifest that prints')\n{_DIMS}".format(4, 4, 4)
        )
        + _DETECTOR,
        "works",
        "",
        status="ready",
    ),
    Broken(
        "broken-options",
        _manifest(_one("broken-options", ", options=dict")),
        "lookup",
        "options must be a subclass of lyrics.Options, not <class 'dict'>.",
    ),
    Broken(
        "broken-annotation",
        _manifest(
            _one("broken-annotation", ", options=OddOptions"),
            "class OddOptions(Options):\n    size: 'NoSuchType' = 1\n",
        ),
        "options",
        "`OddOptions` is not fully defined",
        status="ready",
    ),
    Broken(
        "broken-dims",
        _manifest(_one("broken-dims", ", options=DimOptions"), _DIMS.format(12, 10, 10)) + _DETECTOR,
        "build",
        "its options declare feature_dim 12, the built part has 10.",
        status="ready",
    ),
    Broken(
        "broken-tokens",
        _manifest(_one("broken-tokens", ", options=DimOptions"), _DIMS.format(12, 12, 7)) + _DETECTOR,
        "run",
        "returned tokens (1, 1, 7), not [1, M, 12]",
        status="ready",
    ),
    Broken(
        "broken-build",
        _manifest(_one("broken-build"), "def build(options, context):\n    raise SystemExit('no licence')\n"),
        "build",
        "failed while it was built: it called sys.exit('no licence').",
        status="ready",
    ),
    Broken(
        "broken-target",
        _manifest('Component("detector", "broken-target", build="broken_target.model:build")'),
        "build",
        "ModuleNotFoundError: No module named 'broken_target.model'",
        status="ready",
    ),
    Broken(
        "broken-words",
        "from lyrics import Vocabulary, hookimpl\n\n@hookimpl\ndef lyrics_vocabularies():\n"
        "    yield Vocabulary('broken-words', ['dog', 'cat'])",
        "lookup",
        "words must be 'package.module:callable', not ['dog', 'cat'].",
        kind="vocabulary",
    ),
    Broken(
        "broken-summary",
        _manifest(_one("broken-summary", ", summary=42")),
        "lookup",
        "summary must be a string, not 42.",
    ),
)

#: Not installed beside the others: pydantic, too, reads the metadata of every distribution, and fails for a process
#: that has this one.
DAMAGED = Broken(
    "broken-metadata",
    "",
    "lookup",
    "its entry_points.txt cannot be read",
    entry_point="entry_points.txt",
    entry_points_txt="[lyrics]\nthis is no entry point\n",
    name="broken-metadata/anything",
)


def install(folder: Path, plugins: tuple[Broken, ...] = BROKEN) -> Path:
    """Write the plugins as installed distributions into ``folder``, which then belongs on the path."""
    folder.mkdir(parents=True, exist_ok=True)
    for plugin in plugins:
        info = folder / f"{plugin.module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {plugin.distribution}\nVersion: 1.0\n")
        text = plugin.entry_points_txt or f"[lyrics]\n{plugin.entry} = {plugin.target or plugin.module}\n"
        (info / "entry_points.txt").write_text(text)
        (folder / f"{plugin.module}.py").write_text(plugin.source + "\n")
    return folder
