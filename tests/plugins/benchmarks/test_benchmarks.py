"""The benchmarks of Tables 2 and 3 on small files in their data sets' true formats."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lyrics.core.errors import DatasetError, MissingRequirementError, SpecError, UnknownNameError
from lyrics.core.evaluation.benchmark import PredictedObject, Prediction
from lyrics.core.evaluation.build import build_benchmark, split_of
from lyrics.core.geometry import Box
from lyrics.core.registry.registry import default_registry
from lyrics.testing import CONTRACTS, check_component, checks_of
from tests.plugins.benchmarks.conftest import REGISTRY, files

ENTRIES = {entry.component.name: entry for entry in REGISTRY.entries}
WITH_FILES = sorted(ENTRIES.keys() - {"scenes", "pope", "pope-boxes"})
CAPTIONS = ("coco", "flickr30k", "nocaps")
Make = Callable[..., Any]


def build(name: str, folder: Path) -> Any:
    try:
        return build_benchmark(name, files(name, folder), registry=REGISTRY)
    except MissingRequirementError as error:
        assert name in CAPTIONS
        pytest.skip(str(error))


def test_all_of_tables_2_and_3_are_there() -> None:
    assert not REGISTRY.failures
    assert set(ENTRIES) == {
        *("coco", "nocaps", "flickr30k"),
        *("vqav2", "ok-vqa", "gqa", "sciqa-img", "vizwiz", "textvqa", "ocr-vqa"),
        *("refcoco", "refcoco-plus", "refcocog", "scenes", "pope", "pope-boxes"),
    }
    splits = {
        name: entry.component.options.model_fields["split"].annotation.__args__ for name, entry in ENTRIES.items()
    }
    assert splits["refcoco"] == splits["refcoco-plus"] == ("val", "testA", "testB")
    assert splits["refcocog"] == ("val", "test")


@pytest.mark.parametrize("name", WITH_FILES)
def test_every_split_is_one_of_the_data_set(name: str) -> None:
    data = default_registry().component("dataset", {"sciqa-img": "scienceqa"}.get(name, name)).component.options
    ours = ENTRIES[name].component.options.model_fields["split"].annotation.__args__
    assert set(ours) <= set(data.model_fields["split"].annotation.__args__)


@pytest.mark.parametrize("name", WITH_FILES)
def test_without_files_it_is_held_to_what_can_be_told(name: str) -> None:
    report = check_component(ENTRIES[name], REGISTRY)
    assert (report.failures, report.skipped, report.checks) == ({}, "needs root", 4)


@pytest.mark.parametrize("name", WITH_FILES)
def test_keeps_its_contract(name: str, tmp_path: Path) -> None:
    build(name, tmp_path)
    options = files(name, tmp_path)
    case = type("Case", (CONTRACTS["benchmark"],), {"component": name, "options": options, "registry": REGISTRY})()
    for check in checks_of(CONTRACTS["benchmark"]):
        getattr(case, check)()


@pytest.mark.parametrize("name", WITH_FILES)
def test_its_pictures_open(name: str, tmp_path: Path) -> None:
    benchmark = build(name, tmp_path)
    samples = list(benchmark.samples())
    assert samples
    assert all(benchmark.picture(sample).mode == "RGB" for sample in samples)


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        (
            "vqav2",
            "Based on the image, respond to this question with a short answer: {Question} Answer:",
        ),
        ("gqa", "Based on the image, respond to this question with a short answer: What is hanging? Answer:"),
        ("sciqa-img", "Question: Which is a solid? Options: (a) ice (b) steam. Answer:"),
        (
            "textvqa",
            "With the help of text in the following image, offer a simple, short response to: what brand?",
        ),
        ("refcoco", "In the given image, could you find and tell me the coordinates of Words 10?"),
    ],
)
def test_prompts(made: Make, name: str, prompt: str) -> None:
    benchmark = made(name)
    sample = next(iter(benchmark.samples()))
    question = sample.turns[0].instruction if sample.turns else ""
    assert benchmark.prompt(sample) == prompt.replace("{Question}", question)


def test_a_hint_stands_before_its_question(made: Make) -> None:
    from dataclasses import replace

    benchmark = made("sciqa-img")
    (sample,) = benchmark.samples()
    hinted = replace(sample, extra={**sample.extra, "hint": "Look closely. "})
    assert benchmark.prompt(hinted) == "Question: Look closely. Which is a solid? Options: (a) ice (b) steam. Answer:"


def test_sciqa_img_has_the_problems_with_a_picture(made: Make) -> None:
    benchmark = made("sciqa-img")
    samples = list(benchmark.samples())
    assert [sample.extra["question_id"] for sample in samples] == ["5"]
    assert benchmark.score(["(a) ice"], samples) == {"accuracy": 100.0, "unparsed": 0}
    assert benchmark.score(["(b) steam"], samples) == {"accuracy": 0.0, "unparsed": 0}
    assert benchmark.score(["perhaps"], samples) == {"accuracy": 0.0, "unparsed": 1}


def test_vqa_scores_and_their_variants(made: Make) -> None:
    scores = {}
    for variant in ("official", "lavis", "evalai"):
        benchmark = made("vizwiz", accuracy=variant)
        samples = list(benchmark.samples())
        verdict = benchmark.judge([Prediction("Basil.", "Basil."), Prediction("", "")], samples)
        assert verdict.marks == (1.0, 0.0)
        scores |= verdict.scores
    assert scores == {f"VQA accuracy ({variant})": 50.0 for variant in ("official", "lavis", "evalai")}


def test_vqa_scores_by_type_of_answer(made: Make) -> None:
    from dataclasses import replace

    benchmark = made("vizwiz")
    one, two = benchmark.samples()
    two = replace(two, extra={**two.extra, "answer_type": "number"})
    scores = benchmark.score(["basil", "7"], [one, two])
    assert scores == {
        "VQA accuracy (official)": 50.0,
        "VQA accuracy (official), other": 100.0,
        "VQA accuracy (official), number": 0.0,
    }


def test_ok_vqa_compares_with_the_stems(made: Make) -> None:
    benchmark = made("ok-vqa")
    samples = list(benchmark.samples())
    assert benchmark.score(["race"] * len(samples), samples)["VQA accuracy (official)"] > 0
    assert benchmark.score(["racing"] * len(samples), samples)["VQA accuracy (official)"] == 0


def test_exact_match(made: Make) -> None:
    benchmark = made("gqa")
    samples = list(benchmark.samples())
    assert benchmark.score(["Picture.", "frame"], samples) == {"exact match": 50.0}


def test_rec_takes_the_first_box_and_counts_answers_without_one(made: Make) -> None:
    benchmark = made("refcoco")
    samples = list(benchmark.samples())
    target = samples[0].objects[0].box_norm
    assert target.as_tuple() == (0.1, 0.1, 0.31, 0.6)
    far = Box(0.5, 0.5, 1.0, 1.0)
    said = [
        Prediction("", "", (PredictedObject("a", target), PredictedObject("b", far))),
        Prediction("", "", (PredictedObject("b", far), PredictedObject("a", target))),
        Prediction("no idea", "no idea"),
        Prediction("", "", (PredictedObject("a", samples[3].objects[0].box_norm),)),
    ]
    verdict = benchmark.judge(said, samples)
    assert verdict.scores == {"accuracy (IoU >= 0.5)": 50.0, "mean IoU": 50.0, "unparsed": 1}
    assert verdict.marks == (1.0, 0.0, 0.0, 1.0)


def test_rec_scores_texts_in_the_codec_lyrics(made: Make) -> None:
    benchmark = made("refcocog")
    samples = list(benchmark.samples())
    texts = ["<br><T>a</T><Bbox>(100,100),(310,600)</Bbox></br>"] * len(samples)
    assert benchmark.score(texts, samples)["accuracy (IoU >= 0.5)"] == 100.0


def test_a_set_that_is_not_whole_says_so(made: Make) -> None:
    benchmark = made("refcoco")
    samples = list(benchmark.samples())
    verdict = benchmark.judge([Prediction("", "")] * len(samples), samples)
    assert verdict.notes == ("The files have 4 samples, 10,834 were published: not comparable with published scores.",)


@pytest.mark.parametrize(("name", "split"), [("vizwiz", "test"), ("vqav2", "test")])
def test_a_split_whose_answers_are_on_a_server_has_no_score(made: Make, name: str, split: str) -> None:
    benchmark = made(name, split=split)
    samples = list(benchmark.samples())
    verdict = benchmark.judge([Prediction("x", "x")] * len(samples), samples)
    assert (verdict.scores, verdict.marks) == ({}, ())
    assert "on a server" in verdict.notes[0]


def test_captions(made: Make) -> None:
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed (extra: eval)")
    benchmark = made("nocaps")
    samples = list(benchmark.samples())
    scores = benchmark.score([sample.captions[0] for sample in samples], samples)
    (cider,) = (value for name, value in scores.items() if name.startswith("CIDEr") and "," not in name)
    assert cider > 0
    domains = {name.partition(", ")[2] for name in scores if "within all" in name}
    assert domains == {"near-domain", "in-domain"}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_want_the_extra_before_anything_is_answered(name: str, tmp_path: Path) -> None:
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError:
        with pytest.raises(MissingRequirementError, match=r"pip install 'lyrics-vl\[eval\]'"):
            build_benchmark(name, files(name, tmp_path), registry=REGISTRY)
    else:
        assert build_benchmark(name, files(name, tmp_path), registry=REGISTRY) is not None


# --- what is refused ---


def test_an_unknown_benchmark_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no benchmark named 'vqa2'.*Did you mean 'vqav2'"):
        build_benchmark("vqa2", {}, registry=REGISTRY)


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"gqa\.split.*'testB'"):
        build_benchmark("gqa", {"root": str(tmp_path), "split": "testB"}, registry=REGISTRY)


def test_files_must_be_named() -> None:
    with pytest.raises(SpecError, match=r"gqa: say where its files are.*--data gqa=FOLDER"):
        build_benchmark("gqa", {}, registry=REGISTRY)


def test_a_folder_without_the_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no file testdev_balanced_questions\.json"):
        build_benchmark("gqa", {"root": str(tmp_path)}, registry=REGISTRY)
    with pytest.raises(DatasetError, match=r"nowhere: no such folder"):
        build_benchmark("gqa", {"root": str(tmp_path / "nowhere")}, registry=REGISTRY)


def test_the_default_split() -> None:
    assert split_of("gqa", {}, registry=REGISTRY) == "testdev-balanced"
    assert split_of("refcoco", {"split": "testA"}, registry=REGISTRY) == "testA"


def test_building_imports_no_captions_package() -> None:
    assert "pycocoevalcap.spice" not in sys.modules
