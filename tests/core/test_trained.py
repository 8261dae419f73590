"""Run folders as models: what training left is what answers, whatever is damaged, moved or changed."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from lyrics.core.errors import CheckpointError, SpecError, WeightsError
from lyrics.core.loading import build_model, load_model
from lyrics.core.model import LyricsModel
from lyrics.core.runs.checkpoint import TRAINED_FILE
from lyrics.core.runs.config import load_config
from lyrics.core.runs.folder import find_run
from lyrics.core.runs.tensor_file import read_tensors
from lyrics.core.training.assemble import run
from lyrics.workflows.parity import loader
from tests.core.small import drawn
from tests.core.training.test_assemble import settings

STEP_1, STEP_2 = "checkpoints/step-00000001", "checkpoints/step-00000002"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 1 in ``one``, and stage 2 after it in ``two`` with two checkpoints; both named as seen from this folder."""
    folder = tmp_path_factory.mktemp("runs")
    before = os.getcwd()
    os.chdir(folder)
    small = {"optimization__global_batch": 2, "checkpoint__every_steps": 1, "data__workers": 0}
    try:
        run(settings(Path("one"), "pretrain", optimization__steps=1, **small))
        run(settings(Path("two"), "instruct", optimization__steps=2, model__start_from="one", **small))
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "runs"))


def test_a_run_of_the_release_before_loads_and_goes_on(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = copied / "two" / "config.yaml"
    text = config.read_text()
    before = text.replace("optimization:", "optimisation:").replace("normalize_image", "normalise_image")
    assert before != text
    config.write_text(before)
    now = load_model(str(copied / "two"))
    config.write_text(text)
    assert same(now, load_model(str(copied / "two")))
    config.write_text(before)
    monkeypatch.chdir(copied)
    data = yaml.safe_load(before)
    data["optimisation"]["steps"] = 3
    with pytest.warns(DeprecationWarning, match="optimisation is now optimization"):
        run(load_config(data))
    assert (copied / "two" / "checkpoints" / "step-00000003").is_dir()


def same(one: LyricsModel, two: LyricsModel) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def answered(model: LyricsModel) -> torch.Tensor:
    """Logits of a prompt with a picture."""
    with torch.no_grad():
        soft = model.encode([drawn()], ["What is it?"]).soft_tokens_PQD
        return model.language_model(soft, torch.ones(soft.shape[:2], dtype=torch.int64))


def test_a_run_answers_with_what_it_trained_and_its_export_answers_the_same(runs: Path, tmp_path: Path) -> None:
    model = load_model(str(runs / "two"))
    assert not model.training
    own = model.state_dict()
    trained = read_tensors(runs / "two" / STEP_2 / TRAINED_FILE)
    assert trained
    assert all(torch.equal(own[name], tensor) for name, tensor in trained.items())
    # What stage 2 leaves as it was is stage 1's.
    before = {
        n: t for n, t in read_tensors(runs / "one" / STEP_1 / TRAINED_FILE).items() if n.startswith("objectives.")
    }
    assert before
    assert all(torch.equal(own[name], tensor) for name, tensor in before.items())
    model.save_pretrained(tmp_path / "whole")
    again = LyricsModel.from_pretrained(tmp_path / "whole")
    assert same(again, model)
    assert torch.equal(answered(again), answered(model))


def test_random_frozen_parts_are_those_of_the_training(runs: Path, tmp_path: Path) -> None:
    """Built with the run's seed, whatever was drawn before, and without a trace in the caller's random numbers."""
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model = load_model(str(runs / "two"))
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(0)
    built = build_model(model.spec, weights="random")
    assert torch.equal(next(built.encoder.parameters()), next(model.encoder.parameters()))


def test_a_checkpoint_is_named_directly_and_a_damaged_one_passed_over(copied: Path) -> None:
    first = LyricsModel.from_pretrained(copied / "two" / STEP_1)
    assert not same(first, LyricsModel.from_pretrained(copied / "two"))
    file = copied / "two" / STEP_2 / TRAINED_FILE
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.warns(UserWarning, match="step-00000002 is not usable and is passed over"):
        assert same(load_model(str(copied / "two")), first)
    with pytest.raises(CheckpointError, match="sha256 differs"):
        load_model(str(copied / "two" / STEP_2))
    shutil.rmtree(copied / "two" / STEP_1)
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(CheckpointError, match="there is no model in this run"),
    ):
        load_model(str(copied / "two"))


def test_stage_1_is_said_to_be_half_of_the_way(runs: Path) -> None:
    with pytest.warns(UserWarning, match="is a run of stage 1: its language model has not been tuned"):
        model = load_model(str(runs / "one"))
    assert model.generate([drawn()], ["What is it?"], max_new_tokens=2)[0].text is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_model(str(runs / "two"))


def test_what_a_run_began_with_is_found_from_elsewhere_and_its_loss_is_said(copied: Path, tmp_path: Path) -> None:
    assert Path.cwd() != copied
    whole = load_model(str(copied / "two"))
    (copied / "one").rename(tmp_path / "away")
    with pytest.warns(UserWarning, match="began with one, which cannot be read any more"):
        model = load_model(str(copied / "two"))
    assert torch.equal(answered(model), answered(whole))


def test_another_type_is_that_of_a_model_folder(runs: Path, tmp_path: Path) -> None:
    load_model(str(runs / "two")).save_pretrained(tmp_path)
    one, two = (load_model(str(path), dtype=torch.bfloat16) for path in (runs / "two", tmp_path))
    assert {n: t.dtype for n, t in one.named_buffers()} == {n: t.dtype for n, t in two.named_buffers()}
    assert same(one, two)


def test_overrides_build_only_what_they_change(runs: Path) -> None:
    model = load_model(str(runs / "two"))
    with pytest.warns(UserWarning, match=r"Tensors that stay random: query_transformer \(") as caught:
        changed = load_model(str(runs / "two"), overrides={"query_transformer.options.num_visual": 3})
    assert len([one for one in caught if "stay random" in str(one.message)]) == 1
    before, after = model.state_dict(), changed.state_dict()
    other = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    assert other
    assert all("query_tokens" in name for name in other)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        plain = load_model(str(runs / "two"), overrides={"codec": "qwen", "refiner.segmenter.options.missing": "empty"})
    assert plain.spec.codec == "qwen"
    assert same(plain, model)
    with pytest.raises(SpecError, match=r"there is no refiner\.detectr"):
        load_model(str(runs / "two"), overrides={"refiner.detectr": None})


def test_a_run_is_no_model_folder(runs: Path, tmp_path: Path) -> None:
    spec = load_model(str(runs / "two")).spec
    with pytest.raises(WeightsError, match=r"is the folder of a run, not a model folder\. `lyrics export"):
        build_model(spec, weights=runs / "two")
    with pytest.raises(WeightsError, match="is a run, whose configuration says what it began with"):
        LyricsModel.from_pretrained(runs / "two", base=tmp_path)
    assert find_run(tmp_path) is None
    (tmp_path / "config.yaml").write_text("stage: [")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(SpecError, match=r"config\.yaml"):
        load_model(str(tmp_path))


def test_a_model_folder_is_no_start(runs: Path, tmp_path: Path) -> None:
    load_model(str(runs / "two")).save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"It is a model folder; set model\.weights to it"):
        run(settings(tmp_path / "next", "instruct", model__start_from=str(tmp_path / "model")))
    # The advice leads on.
    weights = {"model__weights": str(tmp_path / "model"), "optimization__steps": 1, "optimization__global_batch": 2}
    assert run(settings(tmp_path / "next", "instruct", **weights)).step == 1
    load_model(str(tmp_path / "next"))


def test_an_altered_part_of_a_run_keeps_its_configuration_and_tokenizer(runs: Path) -> None:
    """A language model with another option is rebuilt from the configuration that it had, and a tokenizer is not drawn
    anew.
    """
    model = load_model(str(runs / "two"))
    changed = load_model(str(runs / "two"), overrides={"language_model.options.chat_template": "chatml"})
    assert changed.language_model.chat_template != model.language_model.chat_template
    assert same(changed, model)
    configs = [one.language_model.model.config.to_dict() | {"_name_or_path": ""} for one in (changed, model)]
    assert configs[0] == configs[1]
    assert torch.equal(answered(changed), answered(model))


def test_commands_that_load_again_take_runs_too(runs: Path) -> None:
    """``parity`` reads a model anew for every comparison."""
    load = loader(str(runs / "two"), overrides={"codec": "qwen"}, weights="pretrained", device=None)
    first = load(torch.float32, {})
    assert first.spec.codec == "qwen"
    assert same(first, load(torch.float32, {}))
    assert load(torch.bfloat16, {}).dtype == torch.bfloat16
