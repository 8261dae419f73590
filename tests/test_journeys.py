"""What one command leaves, the next one takes: five journeys of a user, each command in a process of its own.

A run that Ctrl-C ends and everything about a stranger's part start from nothing, as a shell starts them; the other
commands are forked from here, where torch is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lyrics.cli import main
from lyrics.core.contracts import BuildContext
from lyrics.core.data.build import build_dataset
from lyrics.core.registry.registry import default_registry
from lyrics.plugins.mqformer import QFormerOptions
from lyrics.plugins.mqformer.build import build_qformer
from lyrics.plugins.mqformer.convert import LAVIS, to_upstream
from tests.core.training.processes import Child
from tests.fresh import ROOT

LYRICS = [sys.executable, "-c", "from lyrics.cli import main; main()"]
QUESTION = "What is in the picture?"
#: A few steps of two samples, on the CPU and in one process.
SHORT = {
    "optimisation.global_batch": 2,
    "checkpoint.every_steps": 1,
    "evaluation.every_steps": "null",
    "data.workers": 0,
    "data.sets.scenes.options.scenes": 16,
    "logging.trackers": "[]",
    "device": "cpu",
}
CACHED = "{use: cached, options: {missing: empty}}"

Lyrics = Callable[..., subprocess.CompletedProcess[str]]


def environment(*paths: Path) -> dict[str, str]:
    path = os.pathsep.join(map(str, (*paths, ROOT)))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def settings(**more: object) -> list[str]:
    given = {**SHORT, **{path.replace("__", "."): value for path, value in more.items()}}
    return [word for path, value in given.items() for word in ("--set", f"{path}={value}")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the user works: three scenes in ``images``, and conversations about them as LLaVA's."""
    folder = tmp_path_factory.mktemp("home")
    scenes: Any = build_dataset("scenes", {"split": "test", "scenes": 3, "task": "caption"})
    (folder / "images").mkdir()
    records = []
    for row in range(3):
        scenes.picture(scenes[row]).save(folder / "images" / f"scene-{row}.png")
        turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "a red circle"}]
        records.append({"id": row, "image": f"scene-{row}.png", "conversations": turns})
    (folder / "llava.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="module")
def lyrics(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Lyrics:
    out, err = (tmp_path_factory.mktemp("said") / name for name in ("out.txt", "err.txt"))

    def run(*arguments: str, paths: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
        if paths:
            done = subprocess.run(
                [*LYRICS, *arguments],
                cwd=home,
                env=environment(*paths),
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        else:
            child = Child(out, command, home, arguments, errors=err, **environment())
            code = child.end(300)
            done = subprocess.CompletedProcess([*LYRICS, *arguments], code, out.read_text(), err.read_text())
        assert done.returncode == 0, f"lyrics {' '.join(arguments)}\n{done.stderr}"
        return done

    return run


def command(home: Path, arguments: tuple[str, ...]) -> None:
    """What a forked process does instead of starting ``lyrics``."""
    os.chdir(home)
    sys.argv = ["lyrics", *arguments]
    main()


@pytest.fixture(scope="module")
def run_two(lyrics: Lyrics, home: Path) -> str:
    """Stage 1, then stage 2 until Ctrl-C."""
    lyrics("pretrain", "tiny-stage1", "--out", "runs/one", *settings(optimisation__steps=1))
    start = [*LYRICS, "finetune", "tiny-stage2", "--out", "runs/two"]
    stage_2 = settings(optimisation__steps=100_000, model__start_from="runs/one", checkpoint__every_steps=1000)
    process = subprocess.Popen([*start, *stage_2], cwd=home, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = next((line for line in process.stderr if "step 1/" in line), None)
    assert said is not None
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 0, rest
    assert "asked to stop" in rest
    return "runs/two"


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["text"]
    return found


def ask(lyrics: Lyrics, model: str, *more: str, paths: tuple[Path, ...] = ()) -> dict[str, Any]:
    words = ("images/scene-0.png", QUESTION, "--model", model, "--json", "--max-new-tokens", "8", *more)
    return answer(lyrics("ask", *words, paths=paths))


def test_interrupted_resumed_exported(lyrics: Lyrics, run_two: str, home: Path) -> None:
    (stopped,) = (home / run_two / "checkpoints").iterdir()
    step = int(stopped.name.removeprefix("step-"))
    again = settings(optimisation__steps=step + 1, model__start_from="runs/one")
    resumed = lyrics("finetune", "tiny-stage2", "--out", run_two, *again)
    assert f"going on from {run_two}/checkpoints/{stopped.name}" in resumed.stderr
    assert resumed.stdout.splitlines() == [
        f"done: {step + 1:,} of {step + 1:,} steps, in {run_two}",
        f'next: lyrics ask IMAGE "QUESTION" --model {run_two}',
    ]
    exported = lyrics("export", run_two, "exported")
    assert exported.stdout.endswith('next: lyrics ask IMAGE "QUESTION" --model exported\n')
    newest = load_file(home / run_two / "checkpoints" / f"step-{step + 1:08d}" / "trainable.safetensors")
    written = load_file(home / "exported" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in newest.items())


def test_trained_asked_evaluated_exported_asked(lyrics: Lyrics, run_two: str, home: Path) -> None:
    """After the journey above, or without its last steps."""
    asked = ask(lyrics, run_two)
    lyrics("evaluate", "--model", run_two, "--benchmark", "scenes", "--limit", "2", "--out", "scores")
    (scores,) = (json.loads(path.read_text()) for path in (home / "scores").glob("scores.json"))
    assert run_two in json.dumps(scores)
    shutil.rmtree(home / "exported", ignore_errors=True)
    lyrics("export", run_two, "exported")
    assert ask(lyrics, "exported") == asked


def test_refined_read_back_asked_about_trained_on(lyrics: Lyrics, run_two: str, home: Path) -> None:
    lyrics("refine", "images", "--out", "refined", "--no-draw")
    lyrics("refine", "images", "--refined", "refined/objects.jsonl", "--out", "again", "--no-draw")
    first, second = (
        [json.loads(line) for line in (home / folder / "objects.jsonl").read_text().splitlines()]
        for folder in ("refined", "again")
    )
    assert [one["image"] for one in first] == [one["image"] for one in second]
    assert all(
        [o["box_px"] for o in one["objects"]] == [o["box_px"] for o in two["objects"]]
        for one, two in zip(first, second, strict=True)
    )
    assert any(one["objects"] for one in first)
    ask(lyrics, run_two, "--refined", "refined/objects.jsonl")
    mine = {
        "data__sets": "{mine: {use: llava, options: {root: ., file: llava.json, images: images}}}",
        "data__refined": "refined/objects.jsonl",
        **{f"model__spec__refiner__{part}": CACHED for part in ("tagger", "detector", "segmenter")},
        "optimisation__steps": 1,
    }
    given = [word for word in settings(**mine) if "data.sets.scenes" not in word]
    given = [word for index, word in enumerate(given) if word != "--set" or given[index + 1 : index + 2] != ["--set"]]
    done = lyrics("finetune", "tiny-stage2", "--out", "runs/mine", *given)
    assert done.stdout.startswith("done: 1 of 1 steps")


def test_converted_built_saved_loaded_asked(lyrics: Lyrics, home: Path) -> None:
    options = {"num_visual": 4, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64}
    options |= {"vocab_size": 1856, "max_positions": 64, "tokenizer": None, "builtin_tokenizer": "words"}
    torch.manual_seed(0)
    public = build_qformer(QFormerOptions(**options), BuildContext("random", image_dim=128))
    state = {name: tensor.detach().clone() for name, tensor in to_upstream(public, LAVIS).items()}
    save_file(state, home / "public.safetensors")
    preset = default_registry().preset("lyrics-tiny").model_dump(mode="json")
    spec = {**preset, "refiner": None, "objectives": {}, "query_transformer": {"use": "qformer", "options": options}}
    (home / "sizes.yaml").write_text(yaml.safe_dump(spec))
    lyrics("convert", "public.safetensors", "converted", "--from", "blip2-lavis", "--spec", "sizes.yaml")
    spec["query_transformer"] = {"use": "qformer", "options": {**options, "checkpoint": "converted"}}
    (home / "mine.yaml").write_text(yaml.safe_dump(spec))
    lyrics("export", "mine.yaml", "saved")
    shutil.rmtree(home / "converted")  # the folder is whole by itself
    written = load_file(home / "saved" / "model.safetensors")
    assert torch.equal(written["query_transformer.query_tokens_QD"], public.query_tokens_QD)
    ask(lyrics, "saved")


def installed(source: Path, site: Path) -> Path:
    """A folder with a distribution's package and its entry points, as an installer leaves them."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    package = project["name"].replace("-", "_")
    shutil.copytree(source / package, site / package)
    about = site / f"{package}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in own.items())
        for group, own in project["entry-points"].items()
    ]
    (about / "entry_points.txt").write_text("\n".join(points))
    return site


def test_a_strangers_part_composed_trained_saved_loaded(lyrics: Lyrics, home: Path, tmp_path: Path) -> None:
    site = (installed(ROOT / "examples" / "third_party_detector", tmp_path),)
    composed = settings(optimisation__steps=1, model__spec__refiner__detector="acme-boxes")
    lyrics("finetune", "tiny-stage2", "--out", "runs/acme", *composed, paths=site)
    lyrics("export", "runs/acme", "acme", paths=site)
    spec = json.loads((home / "acme" / "spec.json").read_text())
    assert spec["refiner"]["detector"]["use"] == "acme-boxes"
    assert spec["distributions"]["refiner.detector"] == "acme-boxes 0.1.0"
    ask(lyrics, "acme", paths=site)
