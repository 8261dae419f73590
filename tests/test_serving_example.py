"""The container and the third-party consumer of ``examples/``: what they name is what the project has.

There is no container engine where these tests run, so nothing is built: files are read and compared.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "serving"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = re.sub(r"\\\n\s*", "", (FOLDER / "Dockerfile").read_text(encoding="utf-8"))
STEPS = [tuple(line.split(" ", 1)) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
SERVICE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]["lyrics"]


def step(name: str) -> list[str]:
    return [text for word, text in STEPS if word == name]


def serve() -> Any:
    """The command ``lyrics serve``, as its parser is made."""
    import typer.main

    from lyrics.cli import app

    group: Any = typer.main.get_command(app)
    return group.get_command(None, "serve")


def given(words: list[str]) -> dict[str, str]:
    """Options and their values."""
    return dict(zip(words[::2], words[1::2], strict=True))


def entry() -> list[str]:
    found: list[str] = json.loads(step("ENTRYPOINT")[0])
    return found


def test_what_is_installed_is_what_the_project_offers() -> None:
    (installed,) = [text for text in step("RUN") if "pip install" in text]
    (extras,) = re.findall(r'"\.\[(.*?)\]"', installed)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    assert "-c constraints.txt" in installed
    for image in step("FROM"):
        version = re.match(r"python:(3\.\d+)-slim", image)
        assert version is not None
        assert f"Programming Language :: Python :: {version[1]}" in PROJECT["classifiers"]
    copied = [word for text in step("COPY") if "--from" not in text for word in text.split()[:-1]]
    assert "lyrics" in copied
    for name in copied:
        assert (ROOT / name).exists(), name
    # Nothing but these reaches the build: no environment, no history, no run of one's own.
    let_in = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert let_in[0] == "*"
    assert {line[1:] for line in let_in if line.startswith("!")} == set(copied)
    for name in ("readme", "license-files"):
        files = [PROJECT[name]] if isinstance(PROJECT[name], str) else PROJECT[name]
        assert set(files) <= set(copied)


def test_the_container_runs_as_a_user_without_rights() -> None:
    (user,) = step("USER")
    (made,) = [text for text in step("RUN") if text.startswith("useradd")]
    assert int(user) > 0
    assert f"--uid {user}" in made
    assert [word for word, _ in STEPS].index("USER") > max(
        number for number, (word, _) in enumerate(STEPS) if word in ("RUN", "COPY")
    )
    assert (SERVICE["read_only"], SERVICE["cap_drop"]) == (True, ["ALL"])
    assert "no-new-privileges:true" in SERVICE["security_opt"]


def test_its_options_are_those_of_the_command() -> None:
    assert entry()[:2] == ["lyrics", "serve"]
    assert "lyrics" in PROJECT["scripts"]
    command = serve()
    # Unknown names and values out of range are refused here.
    read = command.make_context("serve", [*entry()[2:], *SERVICE["command"]]).params
    for name, value in {**given(entry()[2:]), **given(SERVICE["command"])}.items():
        assert read[name.removeprefix("--")] == type(read[name.removeprefix("--")])(value)
    (key,) = [one for one in command.params if "--api-key" in one.opts]
    assert set(SERVICE["environment"]) - {"OMP_NUM_THREADS"} == {key.envvar}
    assert "PATH=/opt/lyrics/bin:$PATH" in step("ENV")[-1]


def test_its_ports_and_its_health_are_those_of_the_server() -> None:
    from lyrics.workflows.serve.guard import _OPEN

    port = given(entry()[2:])["--port"]
    assert step("EXPOSE") == [port]
    (published,) = SERVICE["ports"]
    address, _, inner = published.rpartition(":")
    assert inner == port
    assert address.startswith("127.0.0.1:"), "there is no TLS: other machines come by a proxy"
    (checked,) = step("HEALTHCHECK")
    assert f"http://127.0.0.1:{port}/health" in checked
    assert "/health" in _OPEN, "asked without a key"
    assert step("STOPSIGNAL") == ["SIGTERM"]


def test_it_is_given_the_time_to_meet_what_has_come() -> None:
    seconds = float(given(SERVICE["command"])["--timeout"])
    assert float(SERVICE["stop_grace_period"].removesuffix("s")) > seconds
    context = (FOLDER / SERVICE["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / SERVICE["build"]["dockerfile"]) == FOLDER / "Dockerfile"
    # What the file's own head says to type.
    said = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    assert f"-f {SERVICE['build']['dockerfile']} " in said
    assert shlex.split(re.findall(r"#   (docker run .*)", said)[0])[-2:] == ["--model", "lyrics-tiny"]


# --- Label Studio ---


@pytest.fixture
def prelabel() -> ModuleType:
    pytest.importorskip("label_studio_sdk")
    spec = importlib.util.spec_from_file_location("prelabel", ROOT / "examples" / "label_studio" / "prelabel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_label_studio_takes_what_the_server_gives(
    prelabel: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own SDK checks the configuration, the tasks and the predictions, and reads the masks back."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    import numpy as np
    from label_studio_sdk.converter.brush import decode_rle
    from label_studio_sdk.label_interface import LabelInterface

    import lyrics
    from lyrics.types import Mask
    from lyrics.workflows.serve.app import Serving, build_app
    from lyrics.workflows.serve.worker import Worker
    from tests.workflows.serve.helpers import served

    scenes: Any = lyrics.build_dataset("lyrics-vl/scenes", {"split": "test", "scenes": 2, "task": "dialogue"})
    for number in range(2):
        scenes.picture(scenes[number]).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "0.png").read_bytes())
    model = lyrics.load_model("lyrics-tiny")
    wanted = [model.refiner(scenes.picture(scenes[number])) for number in range(2)]  # type: ignore[misc]
    with served(build_app(Serving(Worker(model), "lyrics-tiny", api_key="secret"))) as client:
        names = [str(tmp_path / f"{number}.png") for number in range(3)]
        out = tmp_path / "tasks.json"
        server = f"http://127.0.0.1:{client.port}"
        monkeypatch.setattr(
            sys, "argv", ["prelabel.py", *names, "--server", server, "--key", "secret", "--out", str(out)]
        )
        prelabel.main()
    count = 2 * len(wanted[0].objects) + len(wanted[1].objects)
    assert capsys.readouterr().out == f"3 images, {count} objects in {out}\n"
    interface = LabelInterface((tmp_path / "tasks.xml").read_text(encoding="utf-8"))
    interface.validate()
    tasks = json.loads(out.read_text(encoding="utf-8"))
    for one, refinement in zip(tasks, [*wanted, wanted[0]], strict=True):
        (prediction,) = one["predictions"]
        assert interface.validate_prediction(prediction, return_errors=True) == []
        assert interface.validate_task({"data": one["data"]})
        boxes = [found for found in prediction["result"] if found["type"] == "rectanglelabels"]
        masks = [found for found in prediction["result"] if found["type"] == "brushlabels"]
        assert [box["value"]["rectanglelabels"] for box in boxes] == [[found.tag] for found in refinement.objects]
        for box, mask, found in zip(boxes, masks, refinement.objects, strict=True):
            value = box["value"]
            corners = [value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"]]
            assert np.allclose(corners, found.box_norm.to_px((100, 100)), atol=0.01)
            width, height = refinement.size_px
            pixels = decode_rle(mask["value"]["rle"]).reshape(height, width, 4)[:, :, 3] > 0
            assert Mask.from_array(pixels) == found.mask
    # And it finds what is wrong, so that it says something that it finds nothing.
    tasks[0]["predictions"][0]["result"][0]["value"]["rectanglelabels"] = ["no such label"]
    assert interface.validate_prediction(tasks[0]["predictions"][0], return_errors=True) != []
