"""A model held against itself: what is the same passes, what is not is found, whichever way it is not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lyrics.core.answers import Answer, AnswerObject
from lyrics.core.errors import LyricsError, SpecError, WeightsError
from lyrics.core.geometry import Box
from lyrics.core.model import LyricsModel
from lyrics.workflows import parity as module
from lyrics.workflows.parity import (
    TOLERANCES,
    ParityQuestion,
    Said,
    Tolerance,
    box_overlaps,
    compare_answers,
    loader,
    parity,
    with_tolerance,
)
from tests.commands import Run
from tests.core.small import drawn

QUESTIONS = (
    ParityQuestion("wide", drawn(96, 64, "red"), "What is it?"),
    ParityQuestion("tall", drawn(40, 90, "blue"), "Which color does the thing in the middle of the picture have?"),
    ParityQuestion("two", (drawn(64, 64, "green"), drawn(80, 64, "black")), "Are they alike?"),
    ParityQuestion("none", None, "Say something."),
)


@pytest.fixture(scope="module")
def load() -> module.Load:
    torch.manual_seed(0)
    return loader("lyrics-tiny", overrides={}, weights="random", device=None)


def test_random_weights_in_every_way_that_can_be_had_here(load: module.Load) -> None:
    report = parity(load, QUESTIONS, batch=3, max_new_tokens=6)
    by_variant = {one.variant: one for one in report.comparisons}
    assert {"batch 3", "attention sdpa", "bfloat16"} <= set(by_variant)
    batch, attention, half = (by_variant[name] for name in ("batch 3", "attention sdpa", "bfloat16"))
    assert (batch.exceeded, attention.exceeded, batch.differing) == ((), (), ())
    assert batch.largest_logit is not None
    assert batch.worst_logit is not None
    assert batch.worst_logit < 1e-4 * batch.largest_logit
    assert half.worst_logit is not None
    assert 1e-4 * batch.largest_logit < half.worst_logit < math.inf
    assert attention.largest_output is not None
    assert attention.largest_output > 0.1
    assert "4bit" in report.skipped
    assert set(report.skipped) <= {"4bit", "attention triton", "attention flash", "attention flex"}
    assert all(report.skipped.values())


def test_no_tolerance_for_bfloat16_is_exceeded(load: module.Load) -> None:
    strict = with_tolerance(TOLERANCES, "bfloat16", "logit", 0)
    report = parity(load, QUESTIONS[:1], compare=["bfloat16"], tolerances=strict, max_new_tokens=4)
    assert not report.within
    (one,) = report.comparisons
    assert any(text.startswith("a logit differs by") for text in one.exceeded)
    assert one.to_json()["within"] is False


def test_other_weights_are_found(load: module.Load) -> None:
    def disturbed(dtype: torch.dtype, overrides: Mapping[str, Any]) -> LyricsModel:
        model = load(dtype, overrides)
        if dtype == torch.bfloat16:
            with torch.no_grad():
                model.projection.weight.normal_()
        return model

    report = parity(disturbed, QUESTIONS[:2], compare=["bfloat16"], max_new_tokens=4)
    assert not report.within
    assert "logit" in " ".join(report.comparisons[0].exceeded)


def test_a_wrong_implementation_of_attention_is_found(load: module.Load, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._with_attention

    def wrong(model: LyricsModel, implementation: str, registry: Any) -> torch.nn.Module:
        built = real(model, implementation, registry)
        if implementation == "sdpa":
            with torch.no_grad():
                # Noise, since the LayerNorm after it would undo a change of scale.
                queries = next(p for name, p in built.named_parameters() if "query_tokens" in name)
                queries.add_(0.01 * torch.randn_like(queries) * queries.std())
        return built

    monkeypatch.setattr(module, "_with_attention", wrong)
    report = parity(load, QUESTIONS[:1], compare=["attention"], max_new_tokens=1)
    (one,) = [one for one in report.comparisons if one.variant == "attention sdpa"]
    assert one.exceeded
    assert not report.within


def test_attention_without_a_picture_cannot_be_compared(load: module.Load) -> None:
    with pytest.raises(LyricsError, match="no question has an image"):
        parity(load, QUESTIONS[3:], compare=["attention"], max_new_tokens=1)


def test_named_and_impossible_is_an_error_unnamed_is_skipped(load: module.Load) -> None:
    with pytest.raises(LyricsError, match=r"bitsandbytes|quantized"):
        parity(load, QUESTIONS[3:], compare=["4bit"], max_new_tokens=1)
    with pytest.raises(SpecError, match="Did you mean 'bfloat16'"):
        parity(load, QUESTIONS[3:], compare=["bfloat"])
    with pytest.raises(SpecError, match="no question"):
        parity(load, ())


def test_4bit_is_the_model_with_another_option(load: module.Load, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.dtype, Mapping[str, Any]]] = []

    def noted(dtype: torch.dtype, overrides: Mapping[str, Any]) -> LyricsModel:
        asked.append((dtype, overrides))
        return load(dtype, {})

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    report = parity(noted, QUESTIONS[3:], compare=["4bit"], max_new_tokens=1)
    assert asked == [(torch.float32, {}), (torch.float32, {"language_model.options.quantization": "4bit"})]
    assert [one.variant for one in report.comparisons] == ["4bit"]
    assert report.within


def test_what_no_checkpoint_names_is_drawn_once() -> None:
    """A changed query transformer has random weights: every comparison must be of the same one."""
    changed = {"language_model.options.checkpoint": None, "query_transformer.options.intermediate_size": 256}
    again = loader("lyrics-tiny", overrides=changed, weights="pretrained", device=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, half = again(torch.float32, {}), again(torch.bfloat16, {})
    held = half.state_dict()
    for name, tensor in first.state_dict().items():
        if not name.startswith("language_model.") or "lora" in name:
            assert torch.equal(held[name], tensor.to(held[name].dtype)), name


def test_a_folder_is_read_anew_and_says_why_it_has_no_4_bits(tmp_path: Path) -> None:
    from lyrics.core.loading import build_model
    from tests.core.small import small

    model = build_model(small(), weights="random").eval()
    model.save_pretrained(tmp_path)
    again = loader(str(tmp_path), overrides={}, weights="pretrained", device=None)
    half = again(torch.bfloat16, {})
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.projection.weight, model.projection.weight.to(torch.bfloat16))
    with pytest.raises(WeightsError, match="trainable_only"):
        again(torch.float32, {"language_model.options.quantization": "4bit"})


# --- by hand
# -----------------------------------------------------------------------------------------------------------


def answer(text: str, *objects: tuple[str, Box]) -> Answer:
    return Answer(text, tuple(AnswerObject(tag, box, (0, 0, 1, 1), None, 0.0) for tag, box in objects))


def said(text: str, logits: list[float], ids: int = 1, *objects: tuple[str, Box]) -> Said:
    return Said(answer(text, *objects), (), torch.full((1,), ids), torch.tensor([logits]))


LEFT, SHIFTED, RIGHT = Box(0, 0, 0.5, 1), Box(0.25, 0, 0.75, 1), Box(0.5, 0, 1, 1)


def test_numbers_by_hand() -> None:
    questions = [ParityQuestion("a", None, "a"), ParityQuestion("b", None, "b")]
    reference = [said("x", [1.0, -4.0], 1, ("dog", LEFT)), said("y", [2.0, 0.0])]
    other = [said("x", [1.5, -4.0], 1, ("dog", SHIFTED)), said("z", [2.0, 0.25])]
    found = compare_answers("batch", "batch 2", questions, reference, other, Tolerance(0.5, 0.125, 1 / 3))
    assert found.differing == ("b",)
    assert (found.worst_logit, found.largest_logit) == (0.5, 4.0)
    assert found.mean_iou == found.worst_iou == pytest.approx(1 / 3)
    assert found.boxes == 1
    assert found.exceeded == ()  # each at its limit
    for tolerance, word in (
        (Tolerance(0.49, 1, 0), "answers differ"),
        (Tolerance(1, 0.124, 0), "logit"),
        (Tolerance(1, 1, 0.34), "mean IoU"),
    ):
        (reason,) = compare_answers("batch", "batch 2", questions, reference, other, tolerance).exceeded
        assert word in reason


@pytest.mark.parametrize("other", [said("x", [math.nan, 1.0]), said("x", [1.0, 1.0], ids=2)], ids=["nan", "tokens"])
def test_what_cannot_be_held_against_each_other_is_infinitely_far(other: Said) -> None:
    found = compare_answers(
        "batch", "b", [ParityQuestion("a", None, "a")], [said("x", [1.0, 1.0])], [other], Tolerance(1, 1e9, 0)
    )
    assert found.worst_logit == math.inf
    assert found.exceeded
    assert found.to_json()["worst_logit"] is None


def test_boxes_are_matched_by_name_and_turn() -> None:
    reference = answer("", ("dog", LEFT), ("dog", RIGHT), ("cat", LEFT))
    assert list(box_overlaps(reference, reference)) == [1.0, 1.0, 1.0]
    assert list(box_overlaps(reference, answer("", ("cat", LEFT), ("dog", RIGHT)))) == [0.0, 0.0, 1.0]
    assert list(box_overlaps(answer(""), reference)) == []


def test_tolerances() -> None:
    assert set(TOLERANCES) == set(module.COMPARISONS)
    changed = with_tolerance(TOLERANCES, "4bit", "iou", 0.25)
    assert changed["4bit"].iou == 0.25
    assert changed["4bit"].logit == TOLERANCES["4bit"].logit
    assert changed["batch"] == TOLERANCES["batch"]
    for name, key, value, word in (
        ("bf16", "logit", 1, "no comparison"),
        ("attention", "logit", 1, "attention has output"),
        ("batch", "logits", 1, "Did you mean 'logit'"),
        ("batch", "logit", -1, "from 0 on"),
        ("batch", "logit", "much", "from 0 on"),
        ("batch", "logit", math.nan, "from 0 on"),
    ):
        with pytest.raises(SpecError, match=word):
            with_tolerance(TOLERANCES, name, key, value)


# --- the command
# -------------------------------------------------------------------------------------------------------


def test_the_command_fails_beyond_tolerance(run: Run) -> None:
    shared = ("parity", "lyrics-tiny", "--weights", "random", "--limit", "2", "--max-new-tokens", "3")
    done = run(*shared, "--compare", "batch,attention,bfloat16", "--tolerance", "bfloat16.logit=0", "--json")
    assert done.code == 1, done.err
    data = done.data
    assert data["within"] is False
    within = {one["variant"]: one["within"] for one in data["comparisons"]}
    assert within == {"batch 8": True, "attention sdpa": True, "bfloat16": False}
    assert data["comparisons"][-1]["tolerance"]["logit"] == 0


def test_the_command_on_own_pictures(run: Run, tmp_path: Path) -> None:
    drawn().save(tmp_path / "a.png")
    drawn(64, 80, "blue").save(tmp_path / "b.png")
    (tmp_path / "asked.txt").write_text("What is it?\n\nWhere?\n")
    shared = ("parity", "lyrics-tiny", "--weights", "random", "--max-new-tokens", "2", "--compare", "batch")
    own = ("--images", str(tmp_path), "--questions", str(tmp_path / "asked.txt"))
    done = run(*shared, *own)
    assert done.code == 0, done.err
    assert "0 of 4" in done.out
    assert "batch 8" in done.out
    for arguments, word in (
        (own[:2], "give both"),
        (("--images", str(tmp_path / "asked.txt"), "--questions", str(tmp_path / "none.txt")), "cannot be read"),
        (("--tolerance", "batch=1"), "no comparison"),
        (("--compare", "all"), "--compare all"),
    ):
        refused = run(*shared, *arguments)
        assert refused.code == 2, refused.err
        assert word in refused.err
