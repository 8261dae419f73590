"""The example plugins, installed as a stranger's would be, and used."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fresh import ROOT

EXAMPLE = ROOT / "examples" / "third_party_detector"
RESAMPLER = ROOT / "examples" / "third_party_resampler"
USE = """
import json
import torch
from PIL import Image, ImageDraw
import lyrics
from lyrics.core.registry.registry import default_registry
from lyrics.testing import check_component

torch.manual_seed(0)
model = lyrics.build_model("lyrics-tiny", overrides={"refiner.detector": "acme-boxes"}, weights="random").eval()
picture = Image.new("RGB", (400, 200), "white")
ImageDraw.Draw(picture).rectangle((40, 20, 139, 99), fill=(220, 30, 30))
ImageDraw.Draw(picture).ellipse((250, 60, 349, 159), fill=(20, 40, 230))
phrases = [["a green thing", "Blue circle", "dog", "red square"], []]
encoded = model.encode([picture, picture], ["what?", "what?"], phrases=phrases)
entry = default_registry().component("detector", "acme-boxes")
report = check_component(entry)
answers = model.generate([picture], ["what?"], phrases=phrases[:1], max_new_tokens=2)
print(json.dumps({
    "objects": [
        [{"tag": o.tag, "score": o.score, "box": o.box_norm.to_px((400, 200)), "mask": o.mask is not None}
         for o in r.objects]
        for r in encoded.refinements
    ],
    "text": encoded.spatial_texts[0],
    "soft": list(encoded.soft_tokens_PQD.shape),
    "local_dims": {name: module.in_features for name, module in model.query_transformer.named_modules()
                   if hasattr(module, "in_features")},
    "origin": model.spec.distributions["refiner.detector"],
    "checks": report.checks,
    "failures": dict(report.failures),
    "answers": len(answers),
}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the examples."""
    folder = tmp_path_factory.mktemp("site")
    sources = []
    for example in (EXAMPLE, RESAMPLER):
        sources.append(folder / example.name)
        for path in sorted(example.rglob("*")):
            # A copy, because building leaves files beside the sources.
            if path.is_file() and "__pycache__" not in path.parts:
                target = sources[-1] / path.relative_to(example)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--target", str(folder / "packages"), *map(str, sources)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode and ("BackendUnavailable" in done.stderr or "No module named" in done.stderr):
        pytest.skip(f"pip cannot build here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder / "packages"


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def used(site: Path) -> Mapping[str, Any]:
    done = run(site, "-c", USE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


LYRICS = ("-c", "from lyrics.cli import main; main()")


def test_it_is_listed_as_ready(site: Path) -> None:
    done = run(site, *LYRICS, "list", "detector", "--json")
    assert done.returncode == 0, done.stderr
    row = next(row for row in json.loads(done.stdout) if row["name"] == "acme-boxes")
    assert (row["distribution"], row["version"], row["status"]) == ("acme-boxes", "0.1.0", "ready")


def test_it_is_left_out_on_request(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LYRICS_PLUGINS", "none")
    assert "acme-boxes" not in run(site, *LYRICS, "list").stdout


def test_it_finds_what_was_drawn(used: Mapping[str, Any]) -> None:
    found, none = used["objects"]
    assert none == []
    assert [o["tag"] for o in found] == ["Blue circle", "red square"], "best first; dog and green are not there"
    assert [o["score"] for o in found] == sorted((o["score"] for o in found), reverse=True)
    # A canvas of 128 x 128 pixels shows 400 x 200: up to two pixels of the picture either way, in x up to four.
    expected = {"red square": (40, 20, 140, 100), "Blue circle": (250, 60, 350, 160)}
    for o in found:
        for value, exact, slack in zip(o["box"], expected[o["tag"]], (7, 4, 7, 4), strict=True):
            assert abs(value - exact) <= slack, o
        assert o["mask"], "the segmenter was asked about its boxes"


def test_its_objects_reach_the_rest_of_the_model(used: Mapping[str, Any]) -> None:
    assert "red square" in used["text"]
    assert used["soft"] == [2, 32, 192]
    assert used["answers"] == 1
    widths = {width for name, width in used["local_dims"].items() if name.endswith("detector")}
    assert widths == {80}, "its feature_dim, 12, and 64 waves of the box, padded to a multiple of 8"
    assert used["origin"] == "acme-boxes 0.1.0"


def test_it_keeps_the_contract(used: Mapping[str, Any]) -> None:
    assert used["failures"] == {}
    assert used["checks"] >= 15


def test_the_conformance_suite_passes_from_the_command_line(site: Path) -> None:
    done = run(site, *LYRICS, "test-plugin", "acme-boxes", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(done.stdout)
    assert data["passed"] is True
    assert [row["name"] for row in data["components"]] == ["acme-boxes"]


def test_its_own_tests_pass(site: Path) -> None:
    tests = EXAMPLE / "tests"
    done = run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tests), str(tests))
    assert done.returncode == 0, done.stdout
    assert "16 passed" in done.stdout, done.stdout


# --- a query transformer that reads no text ---

TRAIN = """
import json, sys, warnings
import torch
from PIL import Image
import lyrics
from lyrics.cli import main
from lyrics.core.registry.registry import default_registry
from lyrics.core.runs.checkpoint import finished, load
from lyrics.core.runs.config import load_config
from lyrics.testing import check_component
from pathlib import Path

warnings.simplefilter("ignore")
out = Path(sys.argv[1])
try:
    lyrics.build_model("lyrics-tiny", overrides={"query_transformer": "acme-resampler"}, weights="random")
except lyrics.LyricsError as error:
    refused = f"{type(error).__name__}: {error}"
settings = {
    "model.spec.query_transformer": "acme-resampler", "model.spec.objectives": "{}", "device": "cpu", "data.workers": 0,
    "optimization.steps": 6, "optimization.global_batch": 4, "optimization.learning_rate": 3e-3,
    "evaluation.every_steps": "null", "logging.trackers": "[]", "data.sets.scenes.options.scenes": 16,
}
sys.argv = ["lyrics", "finetune", "tiny-stage2", "--out", str(out)]
for name, value in settings.items():
    sys.argv += ["--set", f"{name}={value}"]
try:
    main()
except SystemExit as left:
    assert not left.code, left.code
config = load_config(out / "config.yaml")
torch.manual_seed(config.seed)
model = lyrics.build_model(config.model.spec).eval()
trained = load(max(finished(out / "checkpoints"))).trained
picture = Image.new("RGB", (60, 40), "red")
began = {name: value.detach().clone() for name, value in model.named_parameters() if name in trained}
model.load_state_dict(trained, strict=False)
model.save_pretrained(out / "model")
again = lyrics.LyricsModel.from_pretrained(out / "model").eval()
report = check_component(default_registry().component("query-transformer", "acme-resampler"))
print(json.dumps({
    "refused": refused,
    "losses": [json.loads(line)["losses"]["answer"] for line in (out / "log.jsonl").read_text().splitlines()],
    "moved": sorted(name for name, value in trained.items() if not torch.equal(value, began[name])),
    "own": sorted(name for name, _ in model.named_parameters()
                  if name.startswith(("query_transformer.", "projection."))),
    "answers": [one.generate([picture], ["what is it?"], max_new_tokens=4)[0].text for one in (model, again)],
    "tokenizers": sorted(one.name for one in (out / "model" / "tokenizers").iterdir()),
    "checks": report.checks,
    "failures": dict(report.failures),
}))
"""


@pytest.fixture(scope="module")
def trained(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    done = run(site, "-c", TRAIN, str(tmp_path_factory.mktemp("run") / "resampler"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_stage_1_is_refused_with_what_it_cannot_have(trained: Mapping[str, Any]) -> None:
    assert trained["refused"].startswith(
        "WiringError: query_transformer 'acme-resampler' reads visual queries and nothing"
    )
    for name in ("itc", "itm", "icg"):
        assert f"objectives.{name} needs captions (C)" in trained["refused"]
    assert "objectives.msp needs spatial text (S)" in trained["refused"]
    assert trained["refused"].endswith("Remove them: --set objectives={}")


def test_stage_2_trains_it(trained: Mapping[str, Any]) -> None:
    assert len(trained["losses"]) == 6
    assert all(loss > 0 for loss in trained["losses"])
    assert len(trained["own"]) > 20
    assert set(trained["own"]) <= set(trained["moved"]), "every parameter of it, and the projection's"


def test_a_model_with_it_is_saved_and_answers(trained: Mapping[str, Any]) -> None:
    first, again = trained["answers"]
    assert first == again
    assert trained["tokenizers"] == ["language_model"]


def test_the_resampler_keeps_the_contract(trained: Mapping[str, Any]) -> None:
    assert trained["failures"] == {}
    assert trained["checks"] >= 23


def test_the_resampler_is_forty_lines_of_code() -> None:
    assert code_lines(RESAMPLER / "acme_resampler" / "model.py") <= 40


def code_lines(path: Path) -> int:
    """Lines of code: no blank lines, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            documented |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in documented for number, line in lines
    )


def test_it_is_under_forty_lines_of_code() -> None:
    assert sum(code_lines(path) for path in (EXAMPLE / "acme_boxes").glob("*.py")) < 40


def test_the_example_is_complete() -> None:
    assert sorted(
        str(path.relative_to(EXAMPLE))
        for path in EXAMPLE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ) == [
        "README.md",
        "acme_boxes/__init__.py",
        "acme_boxes/model.py",
        "pyproject.toml",
        "tests/test_contract.py",
    ]
