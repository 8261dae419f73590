"""Where weights come from and what their licenses ask for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lyrics
from lyrics.core.registry.registry import default_registry
from lyrics.core.resolve import resolve, resolve_refiner
from lyrics.core.spec import RefinerOnlySpec, RefinerSpec, Slot
from lyrics.core.weights.licenses import ASKS, LicenseRow, license_rows


def detector_row(checkpoint: str) -> LicenseRow:
    slot = Slot(use="hf-detector", options={"checkpoint": checkpoint})
    spec = resolve_refiner(RefinerSpec(tagger=None, detector=slot, segmenter=None)).spec
    (row,) = license_rows(spec)
    return row


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    return tmp_path


def test_presets_for_photographs_are_under_apache() -> None:
    rows = license_rows(resolve_refiner("photo").spec)
    assert {row.path: row.license for row in rows} == {
        "refiner.detector.checkpoint": "apache-2.0",
        "refiner.segmenter.checkpoint": "apache-2.0",
    }
    assert all(row.source.startswith("https://huggingface.co/") and row.asks == ASKS["apache-2.0"] for row in rows)


#: Of these no model card was at hand.
UNKNOWN = {"openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det"}


def test_what_presets_name_has_a_license_and_is_known_by_what_that_asks_for() -> None:
    registry = default_registry()
    left = set()
    for preset, _ in registry.presets:
        spec = preset.spec()
        resolved = resolve_refiner(preset.name) if isinstance(spec, RefinerSpec) else resolve(preset.name)
        for row in license_rows(resolved.spec, hashes=False):
            if row.license == "not stated" or row.asks.startswith("not known"):
                left.add(row.checkpoint)
    assert left == UNKNOWN


def test_language_models_of_presets_have_their_own_licenses() -> None:
    for name, license_ in (("lyrics-13b", "llama2"), ("lyrics-7b", "llama2"), ("modern", "apache-2.0")):
        (row,) = [row for row in license_rows(resolve(name).spec) if row.path == "language_model.checkpoint"]
        assert (row.license, row.asks) == (license_, ASKS[license_])


@pytest.mark.parametrize(
    ("header", "license_", "asks"),
    [
        ("license: mit", "mit", "copyright notice"),
        ("license: other\nlicense_name: dinov3-license", "dinov3-license", "agree to it on the hub"),
        ("license: cc-by-nc-4.0", "cc-by-nc-4.0", "no commercial use"),
        ("license: agpl-3.0", "agpl-3.0", "source of everything"),
        ("license: my-own", "my-own", "not known here"),
        ("license: [mit, x]", "not stated", "not known here"),
        ("tags: [a", "not stated", "not known here"),
    ],
)
def test_the_model_card_beside_the_files_says_the_license(folder: Path, header: str, license_: str, asks: str) -> None:
    (folder / "README.md").write_text(f"---\n{header}\n---\n# A model\nlicense: apache-2.0\n", encoding="utf-8")
    row = detector_row(str(folder))
    assert row.license == license_
    assert asks in row.asks
    assert row.source == str(folder)


def test_local_tensors_are_told_by_their_hash(folder: Path) -> None:
    first = detector_row(str(folder)).revision
    assert first.startswith("sha256:")
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    assert detector_row(str(folder)).revision != first
    slot = Slot(use="hf-detector", options={"checkpoint": str(folder)})
    spec = RefinerOnlySpec(refiner=RefinerSpec(tagger=None, detector=slot, segmenter=None))
    assert license_rows(spec, hashes=False)[0].revision == ""


def test_what_was_downloaded_is_told_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "models--owner--name"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots" / commit).mkdir(parents=True)
    (place / "snapshots" / commit / "config.json").write_text("{}")
    (place / "snapshots" / commit / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    row = detector_row("owner/name")
    assert (row.revision, row.license) == (commit, "mit")


def test_defaults_packages_and_parts_without_weights() -> None:
    rows = {row.path: row for row in license_rows(resolve("lyrics-tiny").spec)}
    assert rows["image_encoder"].checkpoint is None
    assert "lyrics draws itself" in rows["image_encoder"].license
    language = rows["language_model.checkpoint"]
    assert language.source.startswith("package:lyrics/")
    assert language.license == "Apache-2.0"
    released = {row.path: row for row in license_rows(resolve("lyrics-13b").spec)}
    assert released["image_encoder.checkpoint"].asks == ASKS["mit"]


def test_every_license_that_a_plugin_states_is_known() -> None:
    for entry in default_registry().entries:
        for checkpoint, license_ in entry.component.weights_licenses.items():
            assert license_ in ASKS, f"{entry.component.name}: {checkpoint}"


def test_a_model_folder_and_its_card_hold_them(tmp_path: Path) -> None:
    model = lyrics.build_model("lyrics-tiny", weights="random")
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "licenses.json").read_text())
    assert {row["path"] for row in stored} >= {"image_encoder", "language_model.checkpoint"}
    assert "| `language_model.checkpoint` | package:lyrics/" in str(model.generate_model_card())
