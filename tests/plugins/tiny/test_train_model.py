"""The stages that train ``lyrics-tiny``'s model hand their weights on, and what they leave is what a preset loads."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from lyrics.core.loading import build_model
from lyrics.core.runs import checkpoint as checkpoints
from lyrics.core.weights.model_folder import load_trained_parts
from lyrics.plugins.tiny import train_experts, train_model
from lyrics.plugins.tiny.presets import (
    TINY_LANGUAGE_MODEL,
    TINY_STAGE1_WEIGHTS,
    TINY_WEIGHTS,
    lyrics_tiny,
    lyrics_tiny_plain,
)
from lyrics.plugins.tiny.train_model import (
    FINE_STAGE1,
    FINE_STAGE2,
    FINE_STAGES,
    FINE_TEXTS,
    PLAIN_STAGES,
    PLAIN_TEXTS,
    STAGES,
)
from lyrics.plugins.tiny.trained_weights import OPTIONS_KEY, weights_file

SHORT = {
    "optimization.steps": 1,
    "optimization.global_batch": 2,
    "data.workers": 0,
    "evaluation.every_steps": None,
    "logging.trackers": [],
}
BY_NAME = {stage.name: stage for stage in (*STAGES, *PLAIN_STAGES)}


@pytest.mark.parametrize("stages", [STAGES, PLAIN_STAGES], ids=["fine", "plain"])
def test_every_stage_is_a_recipe_that_begins_after_those_before_it(stages, tmp_path):
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    for place, stage in enumerate(stages):
        assert stage.after in (None, *names[:place])
        config = train_model.stage_config(stage, tmp_path)
        assert config.out == str(tmp_path / stage.name)
        assert config.model.start_from == (None if stage.after is None else str(tmp_path / stage.after))


def test_plain_texts_come_first_unless_what_they_leave_is_there(tmp_path):
    assert train_model.stages(tmp_path, plain=False) == STAGES == (*PLAIN_TEXTS, *FINE_STAGES)
    assert train_model.stages(tmp_path, plain=True)[: len(PLAIN_TEXTS)] == PLAIN_TEXTS
    (tmp_path / "weights" / train_model.BEGINNING).mkdir(parents=True)
    assert train_model.stages(tmp_path, plain=False) == FINE_STAGES
    assert train_model.stages(tmp_path, plain=True) == PLAIN_STAGES


def test_scenes_grow_until_they_are_whole(tmp_path):
    texts = [train_model.stage_config(stage, tmp_path) for stage in PLAIN_TEXTS]
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


def write_experts(weights, *, fine):
    """Untrained experts, as files of a training."""
    weights.mkdir()
    for name in ("tiny-vit", "tiny-tagger", "tiny-detector", "tiny-segmenter"):
        told = {OPTIONS_KEY: train_experts.options_of(name, fine=fine).model_dump_json()}
        save_file(train_experts.build_expert(name, fine=fine).state_dict(), weights / weights_file(name), told)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the last plain text, and of stage 1 and stage 2 on plain scenes, one step each, and the weights that
    they leave.
    """
    out = tmp_path_factory.mktemp("tiny")
    write_experts(out / "weights", fine=False)
    train_model.train_stage(PLAIN_TEXTS[-1], out, {**SHORT, "model.start_from": None})
    for name in ("stage1", "stage2"):
        train_model.train_stage(BY_NAME[name], out, SHORT)
        train_model.export_model(out, out / "weights", BY_NAME[name])
    return out


def run_tensors(out, stage):
    return checkpoints.load(checkpoints.newest_valid(out / stage / "checkpoints", print)).trained


def test_the_language_model_is_what_its_text_made_of_it(trained):
    folder = trained / "weights" / train_model.AFTER_PLAIN_TEXTS
    stored, run = load_file(folder / "model.safetensors"), run_tensors(trained, PLAIN_TEXTS[-1].name)
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
    model = build_model(lyrics_tiny_plain(), weights="random")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_trained_parts(model, trained / "weights" / train_model.MODELS["stage1"])
    own = dict(model.named_parameters())
    assert {name.split(".")[0] for name in run} == {"query_transformer", "objectives"}
    assert all(torch.equal(own[name], tensor.half().float()) for name, tensor in run.items())


def test_the_model_is_what_stage_2_made_of_it(trained):
    folder = trained / "weights" / train_model.MODELS["stage2"]
    run = run_tensors(trained, "stage2")
    assert {name.split(".")[0] for name in run} == {"query_transformer", "projection", "language_model"}
    spec = json.loads((folder / "spec.json").read_text())
    preset = lyrics_tiny_plain()
    assert spec["language_model"]["options"]["checkpoint"] == preset.language_model.options["checkpoint"]
    assert spec["image_encoder"]["options"]["checkpoint"] == preset.image_encoder.options["checkpoint"]
    torch.manual_seed(9)
    model = build_model(preset, weights="random")
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
    assert TINY_LANGUAGE_MODEL.endswith(f"/weights/{train_model.LANGUAGE_MODEL}")
    assert TINY_STAGE1_WEIGHTS.endswith(f"/weights/{train_model.MODELS['stage1']}")
    assert TINY_WEIGHTS.endswith(f"/weights/{train_model.MODELS[FINE_STAGE2[-1].name]}")
    assert train_model.MODELS["stage1"] == train_model.MODELS[FINE_STAGE1[-1].name]


def test_the_fine_stages_follow_each_other_and_begin_with_what_the_plain_texts_left(tmp_path):
    by_name = {stage.name: stage for stage in FINE_STAGES}
    assert len(by_name) == len(FINE_STAGES)
    assert not by_name.keys() & {stage.name for stage in PLAIN_STAGES}
    weights = str(tmp_path / "weights")
    for place, stage in enumerate(FINE_STAGES):
        assert stage.after in (None, *[one.name for one in FINE_STAGES[:place]])
        config = train_model.stage_config(stage, tmp_path)
        assert {one.options.get("attributes") for one in config.data.sets.values()} == {"fine"}
        if stage.recipe != "tiny-text":
            assert config.model.spec.image_encoder.options["checkpoint"] == weights
            assert config.model.spec.refiner.segmenter.options["checkpoint"] == weights
            assert config.data.group == 2
    first = train_model.stage_config(FINE_STAGES[0], tmp_path)
    assert first.model.spec.language_model.options["checkpoint"] == f"{weights}/{train_model.BEGINNING}"
    # No scene is read twice by the texts, nor seen twice by stage 2.
    texts = [train_model.stage_config(stage, tmp_path) for stage in FINE_STAGES if stage.recipe == "tiny-text"]
    seeds = [one.options["seed"] for config in texts for one in config.data.sets.values()]
    assert len(set(seeds)) == len(seeds)


def test_stage_2_asks_for_looks_and_leaves_the_queries_nearly_as_they_are(tmp_path):
    (config,) = (train_model.stage_config(stage, tmp_path) for stage in FINE_STAGE2)
    assert config.model.spec.spatial_in_prompt
    assert config.model.spec.language_model.options["adaptation"] == "lora"
    assert (config.data.drop_text, config.data.drop_queries_text) == (0.3, 0.5)
    assert config.optimization.groups["query_transformer"].learning_rate < config.optimization.learning_rate / 20
    sets = {name: one.options for name, one in config.data.sets.items()}
    assert [one.get("turns") for one in sets.values()] == [16, 16, None], "many short questions"
    short = (*sets["few"]["questions"], *sets["many"]["questions"])
    assert {one.split()[0] for one in short} == {"L", "G", "LT"}
    assert not {"L", "L which"} & {*short}, "answered by a box"
    groups = [one.split()[0] for one in sets["all"]["questions"]]
    shares = {group: groups.count(group) / len(groups) for group in groups}
    assert shares == {"L": 0.6, "G": 0.1, "T": 0.15, "LT": 0.15}


def test_the_last_fine_text_leaves_the_language_model_of_stage_2(trained, tmp_path):
    """One step each of the last text and of stage 2; what ships names the preset's own files."""
    short = {**SHORT, "optimization.precision": "fp32"}
    weights = tmp_path / "weights"
    write_experts(weights, fine=True)
    begun = train_model.AFTER_PLAIN_TEXTS
    shutil.copytree(trained / "weights" / begun, weights / begun)
    last = FINE_TEXTS[-1]
    train_model.train_stage(last, tmp_path, {**short, "model.start_from": None})
    assert (weights / train_model.BEGINNING / "model.safetensors").is_file()
    folder = weights / train_model.LANGUAGE_MODEL
    run = run_tensors(tmp_path, last.name)
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, run[f"language_model.model.{name}"].half()), name
    (stage,) = FINE_STAGE2
    train_model.train_stage(FINE_STAGE1[-1], tmp_path, {**short, "model.start_from": None})
    train_model.train_stage(stage, tmp_path, short)
    then = run_tensors(tmp_path, stage.name)
    assert {name.split(".")[0] for name in then} == {"query_transformer", "projection", "language_model"}
    assert all("lora" in name for name in then if name.startswith("language_model"))
    train_model.export_model(tmp_path, weights, FINE_STAGE2[-1])
    spec = json.loads((weights / train_model.MODELS[FINE_STAGE2[-1].name] / "spec.json").read_text())
    assert spec["language_model"]["options"]["checkpoint"] == lyrics_tiny().language_model.options["checkpoint"]
    assert spec["image_encoder"]["options"]["checkpoint"] is None, "the experts that ship"
