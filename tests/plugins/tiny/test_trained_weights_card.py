"""The script that trains ``lyrics-tiny`` prints all figures of its card by one command."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "train_tiny.py"


def printed(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict:
    spec = importlib.util.spec_from_file_location("train_tiny", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *arguments])
    script.main()
    return json.loads(capsys.readouterr().out)


def test_the_card_has_experts_stage_1_and_the_whole_models_answers_and_is_the_same_again(
    tmp_path, monkeypatch, capsys
) -> None:
    arguments = ("card", "--split", "test", "--scenes", "2", "--out", str(tmp_path / "answers"))
    card = printed(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert card["experts"]["AP50, tagger's tags"] > 0.5
    assert card["lyrics-tiny-stage1"]["ITM accuracy"]["of"] == 6
    assert card["lyrics-tiny-stage1"]["samples"] == 2
    assert card["lyrics-tiny"]["samples"] == 24  # twelve parts
    assert card["lyrics-tiny"]["scores"]["T: right"] >= 50
    assert card["lyrics-tiny"]["scores"]["G: right"] >= 50
    assert [one["name"] for one in card["conditions"]] == ["own", "soft-shuffled"]
    assert printed(*arguments, monkeypatch=monkeypatch, capsys=capsys) == card
    # The folder is one of ``lyrics evaluate``, and answers of another model are not taken for these.
    about = tmp_path / "answers" / "scenes-test" / "run.json"
    assert json.loads(about.read_text())["model"] == "lyrics-tiny"
    about.write_text(about.read_text().replace("lyrics-tiny", "lyrics-mini"))
    with pytest.raises(SystemExit):
        printed(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert "lyrics-mini" in capsys.readouterr().err
