"""``lyrics ask --model`` with the folder of a public model."""

from __future__ import annotations

from pathlib import Path

import lyrics
from tests.commands import Run
from tests.plugins.public_checkpoints import QUESTION, configured, photograph, save_llava


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
