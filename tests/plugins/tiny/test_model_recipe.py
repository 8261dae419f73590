"""The stages that train ``lyrics-tiny``'s model hand their weights on, and what they leave is what a preset loads."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

from lyrics.core.loading import build_model
from lyrics.core.runs import checkpoint as checkpoints
from lyrics.core.weights.model_folder import load_trained_parts
from lyrics.plugins.tiny import model_recipe
from lyrics.plugins.tiny.model_recipe import STAGES
from lyrics.plugins.tiny.presets import TINY_LANGUAGE_MODEL, TINY_STAGE1_WEIGHTS, TINY_WEIGHTS, lyrics_tiny

SHORT = {
    "optimization.steps": 1,
    "optimization.global_batch": 2,
    "data.workers": 0,
    "evaluation.every_steps": None,
    "logging.trackers": [],
}
BY_NAME = {stage.name: stage for stage in STAGES}


def test_every_stage_is_a_recipe_that_begins_after_those_before_it(tmp_path):
    names = [stage.name for stage in STAGES]
    assert len(set(names)) == len(names)
    for place, stage in enumerate(STAGES):
        assert stage.after in (None, *names[:place])
        config = model_recipe.stage_config(stage, tmp_path)
        assert config.out == str(tmp_path / stage.name)
        assert config.model.start_from == (None if stage.after is None else str(tmp_path / stage.after))


def test_scenes_grow_until_they_are_whole(tmp_path):
    texts = [model_recipe.stage_config(stage, tmp_path) for stage in STAGES if stage.recipe == "tiny-text"]
    most = [
        [one.options.get("max_objects", 8) for one in config.data.sets.values()] for config in texts
    ]  # 8 by default
    assert most == [
        [1, 1],
        [2, 2],
        [2, 4, 4],
        [2, 4, 8, 8, 8],
        [2, 4],
        [2, 4],
        [2, 4],
        [2, 4, 8, 8, 8],
        [8, 4, 8, 8, 8],
        [8, 4, 8, 8, 8],
        [8, 4, 8, 8, 8],
        [4, 8, 8, 8, 8],
        [4, 8, 8, 8, 8],
        [4, 8, 8, 8],
        [4, 8, 4, 8, 8, 8],
        [2, 3],
        [3, 5, 8, 8, 8, 8],
    ]
    # What is copied must be what a detector writes.
    assert all(one.options["box_error"] > 0 for config in texts for one in config.data.sets.values())
    # The benchmarks ask in the words of the tasks.
    assert [name for name, one in texts[-1].data.sets.items() if not one.options["plain"]] == ["tasks"]
    seeds = [one.options.get("seed", 0) for config in texts for one in config.data.sets.values()]
    assert len(set(seeds)) == len(seeds), "no scene is read twice"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the last text stage, of stage 1 and of stage 2, one step each, and the weights that they leave."""
    out = tmp_path_factory.mktemp("tiny")
    model_recipe.train_stage(model_recipe.LAST_TEXT, out, {**SHORT, "model.start_from": None})
    for name in ("stage1", "stage2"):
        model_recipe.train_stage(BY_NAME[name], out, SHORT)
        model_recipe.export_model(out, out / "weights", BY_NAME[name])
    return out


def run_tensors(out, stage):
    return checkpoints.load(checkpoints.newest_valid(out / stage / "checkpoints", print)).trained


def test_the_language_model_is_what_its_text_made_of_it(trained):
    folder = trained / "weights" / model_recipe.LANGUAGE_MODEL
    stored, run = load_file(folder / "model.safetensors"), run_tensors(trained, model_recipe.LAST_TEXT.name)
    assert stored
    for name, tensor in stored.items():
        assert torch.equal(tensor, run[f"language_model.model.{name}"].half()), name
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        spec = lyrics_tiny().with_overrides({"language_model.options.checkpoint": str(folder)})
        model = build_model(spec)
    embedded = model.language_model.model.get_input_embeddings().weight
    assert torch.equal(embedded, stored["model.embed_tokens.weight"].float())


def test_what_stage_1_made_ships_by_itself(trained):
    run = run_tensors(trained, "stage1")
    torch.manual_seed(9)
    model = build_model(lyrics_tiny(), weights="random")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_trained_parts(model, trained / "weights" / model_recipe.MODELS["stage1"])
    own = dict(model.named_parameters())
    assert {name.split(".")[0] for name in run} == {"query_transformer", "objectives"}
    assert all(torch.equal(own[name], tensor.half().float()) for name, tensor in run.items())


def test_the_model_is_what_stage_2_made_of_it(trained):
    folder = trained / "weights" / model_recipe.MODELS["stage2"]
    run = run_tensors(trained, "stage2")
    assert {name.split(".")[0] for name in run} == {"query_transformer", "projection", "language_model"}
    spec = json.loads((folder / "spec.json").read_text())
    assert spec["language_model"]["options"]["checkpoint"] == lyrics_tiny().language_model.options["checkpoint"]
    torch.manual_seed(9)
    model = build_model(lyrics_tiny(), weights="random")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_trained_parts(model, folder)
    own = dict(model.named_parameters())
    assert all(torch.equal(own[name], tensor.half().float()) for name, tensor in run.items())
    stage1 = run_tensors(trained, "stage1")
    objectives = [name for name in stage1 if name.startswith("objectives.")]
    assert objectives
    assert all(torch.equal(own[name], stage1[name].half().float()) for name in objectives)


def test_all_files_are_listed(trained):
    listed = json.loads((trained / "weights" / "sha256.json").read_text())
    files = {path.relative_to(trained / "weights").as_posix() for path in (trained / "weights").rglob("*.*")}
    assert {file for file in files if (trained / "weights" / file).is_file()} == {*listed, "sha256.json"}
    assert sum((trained / "weights" / file).stat().st_size for file in listed) < 26_000_000


def test_the_names_of_the_package_are_those_of_the_folders():
    assert TINY_LANGUAGE_MODEL.endswith(f"/weights/{model_recipe.LANGUAGE_MODEL}")
    assert TINY_STAGE1_WEIGHTS.endswith(f"/weights/{model_recipe.MODELS['stage1']}")
    assert TINY_WEIGHTS.endswith(f"/weights/{model_recipe.MODELS['stage2']}")
