"""The commands: what they print, for people and for programs, and how they end."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import lyrics
from lyrics import Recipe, Template, Vocabulary, hookimpl
from lyrics.core.data.build import build_dataset
from lyrics.core.inspection.inventory import NAMED_KINDS
from lyrics.core.registry.component import KINDS
from lyrics.core.registry.registry import PluginSource, Registry, default_registry
from lyrics.core.runs.config import TrainConfig, load_config
from lyrics.core.spec import dump, loads_any
from tests.commands import Run
from tests.core.small import small
from tests.fresh import fresh

# --- the command itself ---


def test_version_is_printed(run: Run) -> None:
    done = run("--version")
    assert (done.code, done.out, done.err) == (0, f"lyrics {lyrics.__version__}\n", "")


def test_help_names_what_it_is(run: Run) -> None:
    assert "A vision-language model that sees objects" in run("--help").out
    assert "--version" in run("--help").out


# --- list ---


def test_list_shows_every_part_with_its_state(run: Run) -> None:
    done = run("list", "--json")
    assert (done.code, done.err) == (0, "")
    shown = {(row["kind"], row["name"]) for row in done.data}
    registry = default_registry()
    assert shown >= {(e.component.kind, e.component.name) for e in registry.entries}
    assert shown >= {("preset", preset.name) for preset, _ in registry.presets}
    assert shown >= {("recipe", recipe.name) for recipe, _ in registry.recipes}
    assert shown >= {("vocabulary", "words"), ("chat-template", "plain"), ("chat-template", "chatml")}
    assert set(done.data[0]) == {"kind", "name", "distribution", "version", "status", "summary", "weights"}
    table = run("list").out
    assert all(name in table for _, name in shown)


@pytest.mark.parametrize("kind", [*KINDS, *NAMED_KINDS, "plugin"])
def test_list_of_one_kind_has_only_that(kind: str, run: Run) -> None:
    everything = run("list", "--json").data
    assert run("list", kind, "--json").data == [row for row in everything if row["kind"] == kind]


# --- show ---


def test_show_prints_options_with_types_defaults_ranges_and_help(run: Run) -> None:
    data = run("show", "tiny-detector", "--json").data
    assert (data["kind"], data["name"], data["distribution"]) == ("detector", "tiny-detector", "lyrics-vl")
    options = {option["path"]: option for option in data["options"]}
    assert options["score_threshold"] == {
        "path": "score_threshold",
        "type": "float",
        "default": 0.4,
        "allowed": ">= 0, <= 1",
        "description": options["score_threshold"]["description"],
    }
    assert all(option["description"] for option in options.values())
    table = run("show", "tiny-detector").out
    assert "detector tiny-detector  (lyrics-vl " in table
    assert "score_threshold" in table
    assert ">= 0, <= 1" in table


def test_show_follows_options_within_options(run: Run) -> None:
    options = {option["path"]: option for option in run("show", "causal-lm", "--json").data["options"]}
    assert options["lora.rank"]["default"] == 8
    assert options["adaptation"]["type"] == "'lora' | 'frozen' | 'full'"
    assert options["num_key_value_heads"]["type"] == "int | null"
    assert options["lora.target_modules"]["type"] == "'auto' | 'all-linear' | list of str"
    assert options["config"]["type"] == "mapping of str"


@pytest.mark.parametrize("entry", default_registry().entries, ids=lambda e: f"{e.component.kind}:{e.component.name}")
def test_show_knows_every_component(entry: Any, run: Run) -> None:
    for name in (entry.qualified_name, entry.component.name):
        found = run("show", f"{entry.component.kind}:{name}", "--json").data
        assert (found["kind"], found["name"]) == (entry.component.kind, entry.component.name)
    assert run("show", f"{entry.component.kind}:{name}").code == 0


def test_show_of_a_name_that_two_kinds_have_gives_the_spellings(run: Run) -> None:
    assert [entry.component.name for entry in default_registry().entries].count("cached") == 3
    done = run("show", "cached")
    assert done.code == 2
    assert "write one of tagger:lyrics-vl/cached, detector:lyrics-vl/cached, segmenter:lyrics-vl/cached." in done.err


@pytest.mark.parametrize("preset", [preset.name for preset, _ in default_registry().presets])
def test_show_prints_a_preset_as_a_file_that_loads(preset: str, run: Run) -> None:
    expected = default_registry().preset(preset)
    for arguments in ((preset,), (f"preset:{preset}",), (f"lyrics-vl/{preset}",), (preset, "--json")):
        assert loads_any(run("show", *arguments).out) == expected


@pytest.mark.parametrize("kind", NAMED_KINDS)
def test_show_knows_everything_that_list_shows(kind: str, run: Run) -> None:
    found = run("list", kind, "--json").data
    assert found
    for row in found:
        for name in (row["name"], f"{kind}:{row['name']}"):
            done = run("show", name)
            assert (done.code, done.err) == (0, ""), name
            assert done.out.strip()
            assert json.loads(run("show", name, "--json").out)


def test_show_prints_a_recipe_as_a_file_that_loads(tmp_path: Path, run: Run) -> None:
    for recipe, _ in default_registry().recipes:
        path = tmp_path / f"{recipe.name}.yaml"
        path.write_text(run("show", recipe.name).out)
        assert load_config(path) == load_config(recipe.name)
        assert load_config(run("show", recipe.name, "--json").data) == load_config(recipe.name)


def test_show_prints_the_words_of_a_vocabulary(run: Run) -> None:
    lists = default_registry().vocabulary("words")
    assert run("show", "words", "--json").data == {
        "kind": "vocabulary",
        "name": "words",
        "words": [list(words) for words in lists],
    }
    lines = run("show", "words").out.splitlines()
    assert [line.partition(": ")[2].split(", ") for line in lines] == [list(words) for words in lists]
    assert lines[0].startswith(f"list 1, {len(lists[0])} words: ")


def test_show_prints_what_a_chat_template_writes(run: Run) -> None:
    assert run("show", "vicuna-v1.1").out.endswith(
        "USER: {image}{objects}\n{instruction} ASSISTANT: {answer}<eos>USER: {instruction} ASSISTANT: {answer}<eos>\n"
    )
    assert run("show", "chatml").out.startswith("<|im_start|>system\n")


class Named:
    """A plugin of names alone, some of which are taken."""

    @hookimpl
    def lyrics_recipes(self) -> Iterable[Recipe]:
        yield Recipe("acme-run", "tests.cli.test_cli:acme_run", "the scenes, for Acme")
        yield Recipe("acme-dict", "builtins:dict")
        yield Recipe("words", "tests.cli.test_cli:acme_run")

    @hookimpl
    def lyrics_vocabularies(self) -> Iterable[Vocabulary]:
        yield Vocabulary("words", "tests.cli.test_cli:acme_words")

    @hookimpl
    def lyrics_templates(self) -> Iterable[Template]:
        yield Template("acme-chat", "tests.core.language.test_chat_templates:ACME")
        yield Template("acme-jinja", "tests.core.language.test_chat_templates:ACME_JINJA")
        yield Template("no path", "nowhere")


def acme_run() -> TrainConfig:
    return load_config("tiny-stage2", {"out": "runs/acme", "optimization.steps": 3})


def acme_words() -> list[list[str]]:
    return [["dog", "cat"]]


def test_list_and_show_know_the_names_of_a_stranger(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry([(PluginSource("acme", "1.0", "acme"), Named)])
    monkeypatch.setattr("lyrics.core.registry.registry.default_registry", lambda: registry)
    rows = {(row["kind"], row["name"]): row for row in run("list", "--json").data if row["distribution"] == "acme"}
    assert rows["recipe", "acme-run"]["summary"] == "the scenes, for Acme"
    assert rows["chat-template", "acme-jinja"]["status"] == "ready"
    assert rows["chat-template", "no path"]["status"].startswith("broken: ")
    assert run("show", "acme/acme-run", "--json").data["out"] == "runs/acme"
    assert "returned a dict, not a TrainConfig" in run("show", "acme-dict").err
    assert run("show", "acme-chat").out.startswith("Q: {image}{objects}\n{instruction}\nA: {answer}<end>Q: ")
    assert run("show", "acme-jinja", "--json").data["jinja"].startswith("{% for m in messages %}")
    done = run("show", "words")
    assert done.code == 2
    assert "write one of recipe:words, vocabulary:words." in done.err
    assert run("show", "vocabulary:words").out == "list 1, 2 words: dog, cat\n"
    assert "broken" in run("show", "no path").err


# --- check ---


@pytest.fixture(scope="module")
def spec_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model so small that checking it is quick."""
    path = tmp_path_factory.mktemp("specs") / "small.yaml"
    dump(small(), path)
    return str(path)


def test_check_counts_what_a_build_has(spec_file: str, run: Run) -> None:
    from lyrics.core.loading import build_model

    done = run("check", spec_file, "--json")
    assert done.code == 0, done.err
    built = build_model(spec_file, weights="random")
    counts = {row["path"]: row["parameters"] for row in done.data["parts"]}
    assert done.data["parameters"] == sum(p.numel() for p in built.parameters()) == sum(counts.values())
    assert counts["refiner.detector"] == sum(p.numel() for p in built.refiner.detector.parameters())  # type: ignore[union-attr]
    trained = {row["path"]: row["trainable"] for row in done.data["parts"]}
    assert trained["image_encoder"] == trained["refiner.detector"] == 0
    assert trained["language_model"] == sum(p.numel() for p in built.language_model.parameters() if p.requires_grad)
    assert done.data["stage2_trainable"] == sum(done.data["stage2_breakdown"].values())
    shapes = {row["path"]: row["output"] for row in done.data["parts"]}
    tokens = built.encoder(built.processor.images([Image.new("RGB", (9, 9))]).by_expert["image_encoder"].pixels_BCHW)
    assert shapes["image_encoder"] == f"{tokens.shape[1]} x {tokens.shape[2]}"
    assert (
        shapes["query_transformer"] == f"{built.query_transformer.num_queries} x {built.query_transformer.hidden_size}"
    )
    assert done.data["spec"]["distributions"]["image_encoder"].startswith("lyrics-vl ")


def test_check_counts_bytes_in_the_given_type(spec_file: str, run: Run) -> None:
    half, full = (run("check", spec_file, "--json", "--dtype", dtype).data for dtype in ("bfloat16", "float32"))
    assert half["parameters"] == full["parameters"]
    # LoRA stays in float32, and buffers of whole numbers do not change.
    assert 1.6 < full["bytes"] / half["bytes"] <= 2


def test_check_applies_overrides_in_order(spec_file: str, run: Run) -> None:
    done = run("check", spec_file, "--json", "--set", "refiner.segmenter=null", "--set", "codec=pixel")
    assert done.code == 0, done.err
    assert done.data["spec"]["codec"] == "pixel"
    assert "refiner.segmenter" not in {row["path"] for row in done.data["parts"]}


def test_check_of_the_papers_model_explains_its_count(run: Run) -> None:
    """On the meta device: 14 billion parameters, no memory."""
    done = run("check", "lyrics-13b", "--json")
    assert done.code == 0, done.err
    data = done.data
    assert data["parameters"] > 14e9
    assert data["reported_trainable"] == 278_000_000
    assert 200e6 < data["stage2_trainable"] < 300e6
    parts = {row["path"]: row for row in data["parts"]}
    assert parts["image_encoder"]["output"] == "257 x 1024"  # section 3.1
    assert parts["query_transformer"]["output"] == "64 x 768"
    assert parts["refiner.segmenter"]["parameters"] > 600e6  # ViT-H
    assert all(row["license"] for path, row in parts.items() if path != "projection")


def test_check_prints_a_table_for_people(run: Run) -> None:
    done = run("check", "lyrics-tiny")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split()[:4] == ["part", "component", "from", "gives"]
    for words in ("image_encoder", "49 x 128", "total: ", "trained in stage 1: ", "trained in stage 2: "):
        assert words in done.out
    assert "reported by its source" not in done.out
    assert max(len(line) for line in lines) < 400


# --- doctor ---


def test_doctor_reports_versions_kernels_and_plugins(run: Run) -> None:
    done = run("doctor", "--json")
    assert done.code == 0, done.err
    import torch

    assert (
        done.data["versions"]["torch"] == torch.__version__.partition("+")[0]
        or done.data["versions"]["torch"] == torch.__version__
    )
    assert done.data["kernels"]["reference"].startswith("runs here")
    assert all(state.startswith(("runs here", "not here: ")) for state in done.data["kernels"].values())
    ours = [plugin for plugin in done.data["plugins"] if plugin["distribution"] == "lyrics-vl"]
    assert sum(plugin["components"] for plugin in ours) == len(
        [e for e in default_registry().entries if e.source.distribution == "lyrics-vl"]
    )
    assert not any(plugin["failures"] or plugin["heavy_imports"] for plugin in ours)
    assert "Attention implementations" in run("doctor").out


# --- test-plugin ---


def test_test_plugin_runs_the_suite_over_a_distribution(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conformance_parts import registry

    monkeypatch.setattr("lyrics.core.registry.registry.default_registry", lambda: registry())
    done = run("test-plugin", "Acme_Parts", "--json")
    assert done.code == 0, done.out
    assert done.data["passed"] is True
    assert [row["kind"] for row in done.data["components"]] == [*KINDS, "vocabulary"]
    assert all(row["checks"] > 3 and row["failures"] == {} for row in done.data["components"])


def test_test_plugin_fails_with_the_check_and_its_cause(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conformance_parts import registry

    monkeypatch.setattr("lyrics.core.registry.registry.default_registry", lambda: registry("unsorted"))
    done = run("test-plugin", "acme-parts")
    assert done.code == 1
    assert "detector part: test_output_keeps_the_contract" in done.out
    assert "not in descending score" in done.out
    assert run("test-plugin", "acme-parts", "--json").data["passed"] is False


def test_test_plugin_fails_with_words_that_are_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conformance_parts import Parts

    class Words:
        lyrics_vocabularies = Parts("two words").lyrics_vocabularies

    only = Registry([(PluginSource("acme-parts", "1.0", "parts", "tests.conformance_parts"), Words)])
    monkeypatch.setattr("lyrics.core.registry.registry.default_registry", lambda: only)
    done = run("test-plugin", "acme-parts")
    assert done.code == 1
    assert "vocabulary part-words: test_tokenizer_knows_the_words" in done.out
    assert "'fire truck' is no word of the letters A to Z and a to z." in done.out


def test_test_plugin_of_a_broken_plugin_fails_with_its_cause(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def loader() -> Any:
        raise ImportError("no engine")

    broken = Registry([(PluginSource("acme", "1.0", "e"), loader)])
    monkeypatch.setattr("lyrics.core.registry.registry.default_registry", lambda: broken)
    done = run("test-plugin", "acme")
    assert done.code == 1
    assert "broken: acme 1.0 (entry point 'e'): ImportError: no engine." in done.out


# --- quickstart ---


def test_quickstart_finds_what_is_drawn(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "new" / "out"
    done = run("quickstart", "--out", str(out), "--json")
    assert done.code == 0, done.err
    assert done.data["soft_tokens"] == [32, 192]
    assert json.loads((out / "result.json").read_text()) == done.data
    scenes = build_dataset("scenes", {"split": "test", "scenes": 6})
    found, there = [], []
    for row, one in enumerate(done.data["pictures"]):
        with Image.open(one["picture"]) as picture:
            assert picture.size == (one["width"], one["height"])
        for seen in one["objects"]:
            x1, y1, x2, y2 = seen["box_px"]
            assert 0 <= x1 < x2 <= one["width"]
            assert 0 <= y1 < y2 <= one["height"]
        found += [(row, seen["tag"]) for seen in one["objects"] if seen["tag"] != "word"]
        there += [(row, thing.tag) for thing in scenes[row].objects]
    right = sum((Counter(found) & Counter(there)).values())
    assert right >= 0.9 * len(there)
    assert right >= 0.8 * len(found)
    page = (out / "report.html").read_text()
    boxes = sum(turn["question"].count("<box") for one in done.data["pictures"] for turn in one["conversation"])
    boxes += sum(row["question"].count("<box") for row in done.data["twins"]["answers"])
    assert boxes > 0
    assert page.count('<img class="part"') == boxes
    assert page.count("<img") == 6 + 6 + boxes
    assert "&lt;" not in page.partition("What the language model reads")[0], "no markup is shown"
    assert "http" not in page.replace("http-equiv", "")
    assert "looking" in done.err

    turns = [turn for one in done.data["pictures"] for turn in one["conversation"]]
    assert len(turns) == 2 + 3 * 6
    assert all(piece in page for turn in turns for piece in re.split("<box [0-9 ]+>", turn["question"]))
    asked = [turn for turn in turns if turn["truth"]]
    assert sum(turn["plain_text"].strip() == turn["truth"] for turn in asked) >= 0.5 * len(asked)

    swapped = done.data["swap"]["pictures"]
    assert [one["picture"] for one in swapped] == [one["picture"] for one in done.data["pictures"]]
    for one, seen, row in zip(swapped, done.data["pictures"], range(6), strict=True):
        words = scenes[row].extra["words"]
        assert one["both"] + len(one["annotations alone"]) == len(scenes[row].objects) + len(words)
        assert one["both"] + len(one["trained detector alone"]) == len(seen["objects"])
    assert sum(one["both"] for one in swapped) >= 0.8 * len(there)
    assert set(done.data["training"]) == {"stage 1", "stage 2"}
    first, second = done.data["training"].values()
    assert first[-1]["icg"] < first[0]["icg"]
    assert second[-1]["answer"] < second[0]["answer"]
    assert page.count("<table") == 6 + 6 + 2
    looks, text = done.data["twins"]["right"]["pixels"], done.data["twins"]["right"]["text"]
    assert looks["own"] >= 0.4 * looks["asked"]
    assert looks["twin"] <= looks["own"] - 0.2 * looks["asked"], "the twin's soft tokens tell the twin's looks"
    assert abs(text["own"] - text["twin"]) <= 0.4 * text["asked"]


def test_quickstart_takes_pictures_and_folders(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lyrics.workflows.quickstart.training.STEPS", 1)  # the test above has all
    (tmp_path / "more").mkdir()
    for name in ("mine.png", "more/other.png"):
        Image.new("RGB", (50, 40), "red").save(tmp_path / name)
    done = run("quickstart", str(tmp_path / "mine.png"), str(tmp_path / "more"), "--out", str(tmp_path))
    assert done.code == 0, done.err
    assert f"{tmp_path / 'mine.png'} (50 x 40)" in done.out
    assert f"{tmp_path / 'more' / 'other.png'} (50 x 40)" in done.out
    assert "knows drawn shapes and words only" in done.out
    assert "annotations" not in done.out  # nobody annotated these
    assert "training, stage 2" in done.out


def test_quickstart_of_an_empty_folder_says_so(tmp_path: Path, run: Run) -> None:
    done = run("quickstart", str(tmp_path), "--out", str(tmp_path / "out"))
    assert done.code == 1
    assert "there is no image in it" in done.err
    assert not (tmp_path / "out").exists()


# --- called wrongly ---

WRONG: Mapping[str, tuple[tuple[str, ...], str]] = {
    "command": (("lsit",), "No such command"),
    "option of a command": (("list", "--jsn"), "No such option"),
    "kind": (("list", "detectors"), "there is no kind 'detectors'. Did you mean 'detector'?"),
    "name": (("show", "tiny-detectr"), "nothing is named 'tiny-detectr'. Did you mean 'tiny-detector'?"),
    "kind and name": (("show", "tagger:tiny-detector"), "no tagger named 'tiny-detector'."),
    "preset by kind": (("show", "preset:tiny"), "no preset named 'tiny'. Did you mean 'lyrics-tiny'?"),
    "preset": (("check", "lyrics-tny"), "no preset named 'lyrics-tny'. Did you mean 'lyrics-tiny'?"),
    "file": (("check", "nowhere.yaml"), "nowhere.yaml: cannot be read: No such file or directory."),
    "file of another kind": (("check", "/etc/passwd"), "/etc/passwd: a spec file ends in .yaml, .yml or .json."),
    "component": (
        ("check", "lyrics-tiny", "--set", "refiner.detector=grounding-dni"),
        "refiner.detector: no detector named 'grounding-dni'. Did you mean 'grounding-dino'?",
    ),
    "path": (
        ("check", "lyrics-tiny", "--set", "refiner.detectr=x"),
        "there is no refiner.detectr. Did you mean 'detector'?",
    ),
    "option": (
        ("check", "lyrics-tiny", "--set", "refiner.detector.options.score_treshold=0.1"),
        "refiner.detector.options.score_treshold: unknown key. Did you mean 'score_threshold'?",
    ),
    "range": (
        ("check", "lyrics-tiny", "--set", "refiner.detector.options.score_threshold=25"),
        "refiner.detector.options.score_threshold: 25 is not allowed; should be less than or equal to 1.",
    ),
    "type": (
        ("check", "lyrics-tiny", "--set", "refiner.max_objects=many"),
        "refiner.max_objects: 'many' is not allowed; should be a valid integer",
    ),
    "misfit": (
        ("check", "lyrics-tiny", "--set", "query_transformer.options.image_dim=64"),
        "set query_transformer.options.image_dim=128",
    ),
    "no value": (("check", "lyrics-tiny", "--set", "refiner.detector"), "write path=value"),
    "bad yaml": (
        ("check", "lyrics-tiny", "--set", "sees=[spatial"),
        "--set sees=[spatial, line 1: not valid YAML or JSON",
    ),
    "control character": (("check", "lyrics-tiny", "--set", "codec=\x01"), "unacceptable character"),
    "name of a loss": (
        ("check", "lyrics-tiny", "--set", "objectives.train=itc"),
        "objectives.train: torch keeps the name",
    ),
    "dtype": (("check", "lyrics-tiny", "--dtype", "float8"), "--dtype float8: is one of float32 (or fp32),"),
    "distribution": (
        ("test-plugin", "lyrics-vll"),
        "comes from a distribution 'lyrics-vll'. Did you mean 'lyrics-vl'?",
    ),
    "picture": (("quickstart", "nowhere.png"), "nowhere.png: no such file or folder."),
    "no argument": (("show",), "Missing argument"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_call_exits_with_2_and_says_what_would_be_right(what: str, run: Run) -> None:
    arguments, message = WRONG[what]
    done = run(*arguments)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""
    assert "Traceback" not in done.err


def test_work_that_fails_exits_with_1(tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("")
    done = run("quickstart", "--out", str(tmp_path / "file"))
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(f"lyrics: --out {tmp_path / 'file'}: cannot be written: ")


def test_part_that_needs_something_exits_with_1(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lyrics.core.registry.component import Component, hookimpl
    from lyrics.core.registry.registry import Registry

    class Plugin:
        @hookimpl
        def lyrics_components(self) -> list[Component]:
            return [Component("detector", "needy", build="a:b", requires=("acme-engine",), install="pip install acme")]

    registry = Registry.discover(Plugin())
    monkeypatch.setattr("lyrics.core.registry.registry.default_registry", lambda: registry)
    monkeypatch.setattr("lyrics.core.resolve.default_registry", lambda: registry)
    done = run("check", "lyrics-tiny", "--set", "refiner.detector=needy")
    assert done.code == 1
    assert "needs acme-engine (not installed). Run: pip install acme" in done.err
    rows = run("list", "detector", "--json").data
    assert next(row for row in rows if row["name"] == "needy")["status"] == "needs acme-engine (not installed)"


def test_warning_is_one_line_on_standard_error(run: Run, spec_file: str) -> None:
    done = run("check", spec_file, "--json", "--set", "query_transformer=qformer")
    assert done.code == 0
    assert done.data
    lines = [line for line in done.err.splitlines() if "reads no local tokens" in line]
    assert len(lines) == 1
    assert lines[0].startswith("lyrics: warning: query-transformer 'qformer'")


# --- fresh processes ---

_TIMED = "import time; start = time.process_time()\nimport lyrics.cli\n"
_MAIN = (
    "sys.argv = ['lyrics', *sys.argv[1:]]\n"
    "try:\n    lyrics.cli.main()\n"
    "finally:\n"
    "    heavy = [name for name in ('torch', 'transformers', 'triton') if name in sys.modules]\n"
    "    print(time.process_time() - start, heavy, file=sys.stderr)\n"
)


@pytest.mark.parametrize("arguments", [("--help",), ("list",), ("show", "lyrics-13b"), ("show", "grounding-dino")])
def test_light_command_needs_no_torch_and_under_a_second(arguments: tuple[str, ...]) -> None:
    """Processor time, so that a busy machine does not count; the best of three."""
    seconds = []
    for _ in range(3):
        done = fresh(_TIMED + _MAIN, *arguments)
        assert done.returncode == 0, done.stderr
        taken, _, heavy = done.stderr.strip().splitlines()[-1].partition(" ")
        assert heavy == "[]"
        seconds.append(float(taken))
        if seconds[-1] < 1:
            break
    assert min(seconds) < 1
    assert done.stdout


def test_a_command_does_not_look_for_garbage_at_its_end() -> None:
    """What is there is left out of the last collection, which with torch takes longer than ``lyrics list``."""
    told = "import atexit, gc\natexit.register(lambda: print(gc.get_freeze_count(), file=sys.stderr))\n"
    done = fresh("import sys\n" + told + _TIMED + _MAIN, "list")
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.strip().splitlines()[-1]) > 10_000


def test_help_imports_no_plugin() -> None:
    done = fresh(
        "import lyrics.cli\nsys.argv = ['lyrics', '--help']\n"
        "try:\n    lyrics.cli.main()\n"
        "except SystemExit:\n    pass\n"
        "assert not [name for name in sys.modules if name.startswith('lyrics.plugins')]\n"
    )
    assert done.returncode == 0, done.stderr
    for command in ("list", "show", "check", "doctor", "test-plugin", "quickstart"):
        assert command in done.stdout


def test_an_option_answers_to_its_former_name_with_a_warning(run: Run, tmp_path: Path) -> None:
    command = ("convert", str(tmp_path / "nowhere.pth"), str(tmp_path / "out"), "--from", "ram")
    done = run(*command, "--spec", "lyrics-13b")
    assert done.code == 1
    assert "lyrics: warning: --spec is now --model; the former name goes in 0.3." in done.err
    done = run(*command, "--model", "lyrics-13b")
    assert (done.code, "warning" in done.err) == (1, False)
    done = run(*command, "--spec", "lyrics-13b", "--model", "lyrics-7b")
    assert (done.code, done.err) == (2, "lyrics: --spec is the former name of --model; give --model alone.\n")
    assert "--spec" not in run("convert", "--help").out


def test_a_setting_answers_to_its_former_name_with_a_warning(run: Run) -> None:
    done = run("plan", "tiny-stage1", "--set", "optimisation.steps=3", "--json")
    assert done.code == 0
    assert (
        done.err.count("lyrics: warning: optimisation.steps is now optimization.steps; the former name goes in 0.3.")
        == 1
    )
    assert json.loads(done.out)["steps"] == 3
    done = run("plan", "tiny-stage1", "--set", "optimisation.steps=3", "--set", "optimization.steps=4")
    assert (done.code, done.out) == (2, "")
    assert "optimisation.steps is the former name of optimization.steps" in done.err
