"""``lyrics ask --model`` and ``lyrics check`` with the folder of a public model."""

from __future__ import annotations

from pathlib import Path

import pytest

import lyrics
from tests.commands import Run
from tests.plugins.public_checkpoints import QUESTION, configured, photograph, save_blip2_stage1, save_llava


def test_a_public_model_is_asked_by_its_folder(tmp_path: Path, run: Run) -> None:
    save_llava(tmp_path / "llava")
    photograph().save(tmp_path / "photo.png")
    expected = lyrics.load_model(str(tmp_path / "llava")).generate(photograph(), QUESTION, max_new_tokens=6).text
    asked = ("ask", str(tmp_path / "photo.png"), QUESTION, "--model", str(tmp_path / "llava"), "--max-new-tokens", "6")
    done = run(*asked)
    assert done.code == 0
    assert done.out.strip() == expected
    configured(tmp_path / "llava", model_type="llava_next")
    done = run(*asked)
    assert done.code == 1
    assert "model_type 'llava_next'" in done.err


def test_check_says_what_a_public_model_would_be(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "llava"
    save_llava(folder)
    built = lyrics.load_model(str(folder))
    (folder / "README.md").write_text("---\nlicense: llama2\n---\n")
    licenses = run("check", "--licenses", "--json", str(folder)).data["licenses"]
    assert [(row["component"], row["license"]) for row in licenses] == [
        (part, "llama2") for part in ("hf-image-encoder", "mlp-projector", "causal-lm")
    ]
    (folder / "model.safetensors").unlink()  # the small files are enough, as they come first from the hub
    done = run("check", str(folder), "--json")
    assert done.code == 0, done.err
    assert done.data["parameters"] == sum(parameter.numel() for parameter in built.parameters())
    by_hub_id = []

    def small_files(name: str, **options: object) -> str:
        by_hub_id.append(name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", small_files)
    assert run("check", "acme/llava-small", "--json").data["parameters"] == done.data["parameters"]
    assert by_hub_id == ["acme/llava-small"]
    changed = run("check", str(folder), "--json", "--set", "language_model.options.adaptation=lora")
    assert changed.data["stage2_trainable"] > done.data["stage2_trainable"]


def test_check_refuses_what_is_no_public_model(tmp_path: Path, run: Run) -> None:
    save_blip2_stage1(tmp_path / "stage1")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "spec.json").write_text("{}")
    for name, code, said in (
        ("stage1", 1, "lacks a language model, so it cannot answer"),
        ("saved", 2, "is no public model; of a model folder or a run, check its spec.json"),
    ):
        done = run("check", str(tmp_path / name))
        assert done.code == code
        assert said in done.err
        assert [line for line in done.err.splitlines() if line.startswith("lyrics:")] == done.err.splitlines()[-1:]
