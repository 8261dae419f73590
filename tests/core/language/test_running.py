"""Answers that are written together: each is the one that its prompt gets alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from lyrics.core.errors import NotFiniteError
from lyrics.core.language.generation import Decoding, decoding
from lyrics.core.language.running import RunningAnswers, Writing, can_run
from lyrics.core.language.soft_prompts import SoftPrompts
from lyrics.plugins.causal_lm.model import CausalLM
from tests.plugins.causal_lm.test_causal_lm import make

PROMPTS = [[1, 40, 50, 60], [1, 7], [1, 9, 9, 9, 9, 9, 9, 12], [1, 33, 5]]


@pytest.fixture(scope="module", params=["llama", "lfm2"])
def model(request: pytest.FixtureRequest) -> CausalLM:
    return make(architecture=request.param, adaptation="frozen")


def prompt(model: CausalLM, *rows: list[int]) -> SoftPrompts:
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return SoftPrompts(model.embed(ids), mask, ids, torch.zeros_like(mask, dtype=torch.bool), mask)


def begun(model: CausalLM) -> RunningAnswers:
    prompts = model.running()
    assert prompts is not None
    return RunningAnswers(prompts, model.ends)


def alone(model: CausalLM, row: list[int], how: Decoding) -> tuple[list[int], list[float]]:
    """What the language model writes of one prompt by itself."""
    one = prompt(model, row)
    with how.drawing(torch.device("cpu")):
        ids, log_probs = model.generate_scored(
            one.embeddings_BLD, one.mask_BL, max_new_tokens=how.max_new_tokens, generation_config=how.config
        )
    return ids[0].tolist(), log_probs[0].tolist()


def test_each_is_as_if_alone_whenever_it_came(model: CausalLM) -> None:
    """Greedy answers and samples of several lengths, in one batch that they join one after the other."""
    hows = [
        decoding({}, max_new_tokens=12),
        decoding({"temperature": 3.0}, max_new_tokens=9, seed=5),
        decoding({"temperature": 0.7, "top_p": 0.8, "top_k": 0}, max_new_tokens=15, seed=6),
        decoding({}, max_new_tokens=3),
        decoding({"top_p": 1.0, "min_p": 0.01}, max_new_tokens=8, seed=2**62),
        decoding({"temperature": 2.0, "top_k": 7}, max_new_tokens=20, seed=0),
    ]
    answers = [Writing(how) for how in hows]
    running = begun(model)
    waiting = list(enumerate(answers))
    while waiting or len(running):
        some, waiting = waiting[:2], waiting[2:]
        if some:
            rows = [PROMPTS[number % len(PROMPTS)] for number, _ in some]
            running.join(prompt(model, *rows), [one for _, one in some])
        running.step()
    for number, (how, answer) in enumerate(zip(hows, answers, strict=True)):
        ids, log_probs = alone(model, PROMPTS[number % len(PROMPTS)], how)
        assert answer.ids == ids, number
        assert answer.log_probs == pytest.approx(log_probs, abs=1e-4)
        assert answer.end == ("stop" if ids[-1] in model.ends else "length")
    assert len({tuple(answer.ids) for answer in answers}) > 3


def test_an_answer_ends_at_any_token_that_ends_answers(model: CausalLM) -> None:
    whole, _ = alone(model, PROMPTS[0], Decoding(12))
    prompts = model.running()
    assert prompts is not None
    running = RunningAnswers(prompts, [whole[4]])
    answer = Writing(Decoding(12))
    running.join(prompt(model, PROMPTS[0]), [answer])
    while len(running):
        running.step()
    assert answer.ids == whole[: whole.index(whole[4]) + 1]
    assert answer.end == "stop"


def test_somebody_ends_an_answer_and_the_others_go_on(model: CausalLM) -> None:
    running, answers = begun(model), [Writing(Decoding(10)) for _ in range(3)]
    running.join(prompt(model, *PROMPTS[:3]), answers)
    running.step()
    answers[1].end = "stop"
    while len(running):
        running.step()
    assert [len(one.ids) for one in answers] == [10, 1, 10]
    assert answers[2].ids == alone(model, PROMPTS[2], Decoding(10))[0]


def test_a_row_that_is_not_finite_fails_alone(model: CausalLM) -> None:
    running, answers = begun(model), [Writing(Decoding(6)) for _ in range(2)]
    bad = prompt(model, *PROMPTS[:2])
    bad.embeddings_BLD[0, -1] = torch.nan
    running.join(bad, answers)
    while len(running):
        running.step()
    assert isinstance(answers[0].error, NotFiniteError)
    assert answers[0].ids == []
    assert answers[1].ids == alone(model, PROMPTS[1], Decoding(6))[0]


def test_a_step_that_fails_leaves_an_empty_batch(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    running = begun(model)
    running.join(prompt(model, *PROMPTS[:2]), [Writing(Decoding(6)) for _ in range(2)])

    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(running.prompts, "read", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            running.step()
    assert len(running) == 0
    again = Writing(Decoding(6))
    running.join(prompt(model, PROMPTS[3]), [again])
    while len(running):
        running.step()
    assert again.ids == alone(model, PROMPTS[3], Decoding(6))[0]


def test_an_empty_batch_takes_no_steps(model: CausalLM) -> None:
    running = begun(model)
    running.step()
    assert len(running) == 0


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ({}, True),
        ({"temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1}, True),
        ({"num_beams": 2}, False),
        ({"repetition_penalty": 1.2}, False),
        ({"no_repeat_ngram_size": 2}, False),
        ({"min_new_tokens": 2}, False),
    ],
)
def test_what_can_be_decoded_beside_others(options: dict[str, Any], runs: bool) -> None:
    assert can_run(decoding(options)) is runs


def test_ends_of_its_own_cannot_be_met_beside_others() -> None:
    assert not can_run(decoding({}, generation_config=GenerationConfig(eos_token_id=7)))
