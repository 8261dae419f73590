"""``lyrics convert`` around the converters: formats, sources, destinations, the report, and what a stranger's plugin
adds.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from lyrics.cli import app, main
from lyrics.core.conversion import plan as conversion
from lyrics.core.conversion import unpickle
from lyrics.core.conversion.convert import REPORT_FILE, convert
from lyrics.core.conversion.formats import find_format, formats, recognize
from lyrics.core.errors import PluginError, UnknownNameError, WeightsError
from lyrics.core.registry.component import Component, Converter
from lyrics.core.registry.registry import Registry
from tests.core.conversion import converting
from tests.core.conversion.converting import TOY, Find, ToyPlugin, write, write_lists, write_spec
from tests.fresh import ROOT, fresh

BUILT_IN = {
    "blip2-lavis", "blip2-transformers", "grounding-dino", "lyrics-released-14b", "ram", "ram-plus", "sam-hq",
}  # fmt: skip


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover(ToyPlugin())


def toy(folder: Path, registry: Registry, **changed: torch.Tensor) -> Any:
    source = write(folder / "toy.safetensors", {**TOY, **changed})
    return convert(source, folder / "out", "toy-format", registry=registry)


# --- formats


def test_the_built_in_formats() -> None:
    assert {found.name for found in formats()} == BUILT_IN
    for found in formats():
        assert found.summary, found.name
        assert found.marks, found.name
        assert found.whole_model == (found.name == "lyrics-released-14b")


def test_formats_are_listed_without_torch() -> None:
    done = fresh("from lyrics.core.conversion.formats import formats; print(len(formats()))")
    assert done.stdout.split() == [str(len(BUILT_IN))], done.stderr


def test_every_converter_exists() -> None:
    for found in formats():
        for _, converter in found.declared:
            module, _, name = converter.convert.partition(":")
            assert callable(getattr(importlib.import_module(module), name))


def test_parts_of_the_released_model_are_those_of_its_preset() -> None:
    kinds = {entry.component.kind for entry, _ in find_format("lyrics-released-14b").declared}
    assert kinds == {"query-transformer", "tagger", "detector"}


@pytest.mark.parametrize(
    ("typed", "meant"), [("sam", "sam-hq"), ("ram++", "ram"), ("groundingdino", "grounding-dino"), ("blip2", "blip2-")]
)
def test_an_unknown_format_offers_the_nearest_and_lists_all(tmp_path: Path, typed: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"no format {typed!r}".replace("+", r"\+")) as caught:
        convert(tmp_path, tmp_path / "out", typed)
    assert f"Did you mean '{meant}" in str(caught.value)
    assert all(name in str(caught.value) for name in BUILT_IN)


@pytest.mark.parametrize("arguments", [{"format": "Not kebab"}, {"convert": "no_colon"}, {"convert": "a.b:c.d"}])
def test_a_converter_that_is_written_wrongly_is_refused_where_it_is_written(arguments: Mapping[str, str]) -> None:
    with pytest.raises(ValueError, match=r"is not the name of a format|must be 'package.module:callable'"):
        Converter(**{"format": "fine", "convert": "a.b:c", **arguments})


# --- recognition


def public_states(parity: Find) -> dict[str, Mapping[str, torch.Tensor]]:
    return {
        "ram": converting.ram(parity, "ram").state,
        "ram-plus": converting.ram(parity, "ram_plus").state,
        "grounding-dino": converting.grounding_dino(parity).state,
        "sam-hq": converting.sam_hq(parity).state,
        "blip2-lavis": converting.blip2(parity, "lavis").state,
        "blip2-transformers": converting.blip2(parity, "hf").state,
    }


def test_every_public_file_is_recognized(parity: Find) -> None:
    for name, state in public_states(parity).items():
        found = recognize(state)
        assert found is not None
        assert found.name == name
    wrapped = recognize(f"module.{key}" for key in converting.grounding_dino(parity).state)
    assert wrapped is not None
    assert wrapped.name == "grounding-dino"
    assert recognize(["weight"]) is None


def test_the_wrong_format_is_told_which_it_looks_like(tmp_path: Path, parity: Find) -> None:
    states = public_states(parity)
    for name, state in states.items():
        source = write(tmp_path / f"{name}.safetensors", state)
        for asked in sorted(BUILT_IN - {name}):
            with pytest.raises(
                WeightsError, match=rf"is not of format '{asked}'.*It looks like '{name}'; .*--from {name}\."
            ):
                convert(source, tmp_path / "out", asked)
    assert not (tmp_path / "out").exists()


def test_a_file_of_no_format(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", {"conv.weight": torch.ones(1)})
    with pytest.raises(
        WeightsError, match=r"no 'image_encoder.pos_embed'.*none of the formats; its keys begin with conv.weight"
    ):
        convert(source, tmp_path / "out", "sam-hq")


# --- what comes out


def test_names_values_and_the_report(tmp_path: Path, registry: Registry) -> None:
    report = toy(tmp_path, registry)
    out = tmp_path / "out"
    found = load_file(out / "model.safetensors")
    assert found.keys() == {"weight", "top", "bottom", "bias"}
    assert torch.equal(found["weight"], TOY["toy.weight"])
    assert torch.equal(torch.cat([found["top"], found["bottom"]]), TOY["toy.both"])
    assert found["bias"].dtype == torch.float16
    assert report.taken == ("bias",)
    assert report.renamed == {"toy.weight": ("weight",), "toy.both": ("bottom", "top")}
    assert report.new == ("scale",)
    assert report.left == ("other",)
    assert report.component == "detector toy"
    assert sorted(path.name for path in out.iterdir()) == [REPORT_FILE, "model.safetensors"]


def test_the_report_in_the_folder_has_every_key_and_the_files_hashes(tmp_path: Path, registry: Registry) -> None:
    report = toy(tmp_path, registry)
    written = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert written == json.loads(json.dumps(report.to_json()))
    for name, path in (("source", tmp_path / "toy.safetensors"), ("result", tmp_path / "out" / "model.safetensors")):
        data = path.read_bytes()
        assert written[name] == [{"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}]
    assert {*written["taken"], *written["renamed"], *written["left"]} == set(TOY)


def test_nothing_else_is_left_behind(tmp_path: Path, registry: Registry) -> None:
    toy(tmp_path, registry)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "toy.safetensors"]


@pytest.mark.parametrize("there", ["file", "folder"])
def test_a_destination_that_is_there_is_refused_and_kept(tmp_path: Path, registry: Registry, there: str) -> None:
    kept = tmp_path / "out" if there == "file" else tmp_path / "out" / "kept.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(WeightsError, match="out: is there already; name a folder that does not exist or is empty"):
        toy(tmp_path, registry)
    assert kept.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "toy.safetensors"]


def test_an_empty_or_deep_destination_is_filled(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "out").mkdir()
    toy(tmp_path, registry)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    convert(tmp_path / "toy.safetensors", tmp_path / "a" / "b", "toy-format", registry=registry)
    assert (tmp_path / "a" / "b" / REPORT_FILE).is_file()


def test_a_failure_while_writing_leaves_no_trace(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("lyrics.core.conversion.plan.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        toy(tmp_path, registry)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.safetensors"]


def test_a_converter_that_fails_names_its_plugin(tmp_path: Path, registry: Registry) -> None:
    source = write(tmp_path / "a.safetensors", {"broken.weight": torch.ones(1)})
    with pytest.raises(
        PluginError, match=r"the converter 'broken-format' of .*ToyPlugin.* failed: it called sys\.exit\('no'\)"
    ):
        convert(source, tmp_path / "out", "broken-format", registry=registry)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]


# --- sources


def refused(folder: Path, source: str, message: str, registry: Registry) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(WeightsError, match=message):
        convert(folder / source, folder / "out", "toy-format", registry=registry)
    assert sorted(folder.rglob("*")) == before


def test_a_source_that_is_not_there(tmp_path: Path, registry: Registry) -> None:
    refused(tmp_path, "no.pth", r"no\.pth: no such file or folder", registry)


def test_a_source_that_is_no_file_of_weights(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "a.txt").write_text("weights")
    refused(tmp_path, "a.txt", r"a\.txt: is not a file of weights; those end in \.safetensors, \.pth", registry)
    (tmp_path / "folder").mkdir()
    refused(tmp_path, "folder", "folder: holds no file of weights", registry)


@pytest.mark.parametrize("kept", [0.0, 0.05, 0.9])
def test_a_truncated_safetensors_file(tmp_path: Path, registry: Registry, kept: float) -> None:
    path = write(tmp_path / "toy.safetensors", {**TOY, "other": torch.zeros(1000)})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    refused(tmp_path, "toy.safetensors", r"toy\.safetensors cannot be read as safetensors", registry)


def test_a_folder_with_one_file_and_one_with_two(tmp_path: Path, registry: Registry) -> None:
    write(tmp_path / "one" / "any.safetensors", TOY)
    (tmp_path / "one" / "training_args.bin").write_bytes(b"never opened")
    report = convert(tmp_path / "one", tmp_path / "out", "toy-format", registry=registry)
    assert [origin.file for origin in report.source] == ["any.safetensors"]
    write(tmp_path / "two" / "a.safetensors", TOY)
    write(tmp_path / "two" / "b.safetensors", TOY)
    with pytest.raises(WeightsError, match=r"several checkpoints \(a\.safetensors, b\.safetensors\).*name the file"):
        convert(tmp_path / "two", tmp_path / "out2", "toy-format", registry=registry)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"bias": "../toy.safetensors"}, r"names '\.\./toy\.safetensors', which is not a \.safetensors file beside it"),
        ({"bias": "/etc/passwd"}, "names '/etc/passwd', which is not"),
        ({"bias": "gone.safetensors"}, r"names gone\.safetensors, which is not there"),
        ({"bias": "a.safetensors", "other": "b.safetensors"}, r"'bias' is in more than one of its files"),
        ([], "is not an index of weights"),
    ],
)
def test_an_index_that_is_wrong(tmp_path: Path, registry: Registry, weight_map: object, message: str) -> None:
    write(tmp_path / "toy.safetensors", TOY)
    for name in "ab":
        write(tmp_path / "source" / f"{name}.safetensors", TOY)
    index = tmp_path / "source" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    refused(tmp_path, "source", message, registry)


def test_pickled_shards_with_an_index(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers wrote them until 2023. Each shard is read by itself, in this test without the process."""

    def here(source: Path, folder: Path) -> list[Path]:
        folder.mkdir(parents=True)
        unpickle._write(source, folder)
        return sorted(folder.iterdir())

    monkeypatch.setattr(conversion, "unpickle", here)
    source = tmp_path / "source"
    source.mkdir()
    weight_map = {key: f"pytorch_model-{number}.bin" for number, key in enumerate(TOY)}
    for key, file in weight_map.items():
        torch.save({key: TOY[key]}, source / file)
    (source / "training_args.bin").write_bytes(b"never opened")
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    report = convert(source, tmp_path / "out", "toy-format", registry=registry)
    assert [origin.file for origin in report.source] == sorted(weight_map.values())
    assert {*report.taken, *report.renamed, *report.left} == set(TOY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_safetensors_are_read_without_another_process(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("subprocess.run", fail)
    toy(tmp_path, registry)


# --- the command


class Trap:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The command line as ``lyrics`` runs it; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["lyrics", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_the_command_from_a_pickle_to_a_folder(
    tmp_path: Path, parity: Find, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ``.pth`` as published, read by a process of its own: here nothing could."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was opened in this process")

    public = converting.ram(parity, "ram")
    torch.save({"model": public.state, "epoch": 1}, tmp_path / "ram_swin_large_14m.pth")
    write_lists(tmp_path, public)
    spec = write_spec(tmp_path / "spec.yaml", refiner__tagger={"use": "ram", "options": public.options})
    out = tmp_path / "out"
    monkeypatch.setattr(unpickle, "_write", fail)
    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr(pickle, "Unpickler", fail)
    assert run(monkeypatch, "convert", tmp_path / "ram_swin_large_14m.pth", out, "--from", "ram", "--model", spec) == 0
    printed = capsys.readouterr().out
    report = json.loads((out / REPORT_FILE).read_text())
    for line in (
        f"taken, same name: {len(report['taken'])}",
        "renamed: 0",
        f"left, not used: {len(report['left'])}",
        "beside the weights: tags.txt",
        "note: set the tagger's option checkpoint to this folder",
    ):
        assert line in printed
    assert f"sha256 {report['source'][0]['sha256'][:12]}" in printed
    assert sorted(p.name for p in out.iterdir()) == [REPORT_FILE, "model.safetensors", "tags.txt", "thresholds.txt"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_the_command_refuses_a_pickle_that_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does a switch in the environment open the door."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    source = tmp_path / "sam_hq_vit_h.pth"
    torch.save({"image_encoder.pos_embed": torch.ones(1), "x": Trap(tmp_path / "trap")}, source)
    assert run(monkeypatch, "convert", source, tmp_path / "out", "--from", "sam-hq") == 1
    assert "sam_hq_vit_h.pth: is refused: it asks to import posix.mkdir" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["sam_hq_vit_h.pth"]


def test_the_command_prints_json(tmp_path: Path, parity: Find) -> None:
    public = converting.sam_hq(parity)
    source = write(tmp_path / "m.safetensors", public.state)
    spec = write_spec(tmp_path / "spec.yaml", refiner__segmenter={"use": "sam-hq", "options": public.options})
    done = CliRunner().invoke(
        app, ["convert", str(source), str(tmp_path / "out"), "--from", "sam-hq", "--model", spec, "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / REPORT_FILE).read_text())


@pytest.mark.parametrize(("format", "code"), [("sam", 2), ("sam-hq", 1)])
def test_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, code: int) -> None:
    assert run(monkeypatch, "convert", tmp_path / "no.pth", tmp_path / "out", "--from", format) == code


def test_help_lists_the_formats() -> None:
    done = CliRunner().invoke(app, ["convert", "--help"])
    assert done.exit_code == 0
    assert all(name in done.stdout for name in BUILT_IN)


def test_the_page_has_every_format_and_its_example_holds() -> None:
    page = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")
    commands = re.findall(r"^lyrics convert (\S+) (\S+) --from ([a-z0-9-]+)$", page, flags=re.MULTILINE)
    assert {format for _, _, format in commands} == BUILT_IN
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", page, flags=re.MULTILINE)) >= BUILT_IN
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/convert.md", "exec"), names)
    assert names["component"].converters[0].format == "acme-v1"


def test_a_component_without_converters_declares_none() -> None:
    assert Component(kind="detector", name="x", build="a:b").converters == ()
