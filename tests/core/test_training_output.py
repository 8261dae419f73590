"""The losses of a forward pass, against the sums and counts that they are made of."""

from __future__ import annotations

import copy

import pytest
import torch

from lyrics.core.model import LyricsModel
from lyrics.core.stage1.state import Loss
from lyrics.core.training_output import TrainingOutput, step_number, training_output
from tests.core.test_model_steps import collated, example, made, talk


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    return made()


def test_the_loss_is_the_weighted_sum_of_the_means() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    output = training_output({"a": Loss(2 * x, 4), "b": Loss(5 * x, 1), "none": Loss(0 * x, 0)}, {"a": 10.0})
    assert float(output.losses["a"]) == pytest.approx(1.5)
    assert float(output.loss.detach()) == pytest.approx(10 * 1.5 + 15)
    assert (float(output.losses["none"]), int(output.counts["none"])) == (0.0, 0)
    output.loss.backward()
    assert float(x.grad) == pytest.approx(10 * 2 / 4 + 5)  # type: ignore[arg-type]
    assert not output.losses["a"].requires_grad


def test_it_is_a_model_output() -> None:
    output = training_output({"answer": Loss(torch.tensor(2.0, requires_grad=True), 2)}, {})
    assert output["loss"] is output.loss is output[0] is output.to_tuple()[0]
    assert list(output) == ["loss", "losses", "counts"]
    assert isinstance(copy.copy(output), TrainingOutput)


def test_the_forward_pass_has_both_stages_losses(model: LyricsModel) -> None:
    batch = collated(model, "pretrain", *(example(position) for position in range(3)))
    output, sums = model(batch, seed=0, step=5), model.pretraining_step(batch, seed=0, step=5)
    assert list(output.losses) == ["itc", "itm", "icg", "msp"]
    for name, one in sums.items():
        assert float(output.losses[name]) == pytest.approx(float(one.sum.detach()) / max(one.count, 1), rel=1e-5)
        assert int(output.counts[name]) == one.count
    weights = {name: slot.weight for name, slot in model.spec.objectives.items()}
    weighted = sum(weights[name] * float(mean) for name, mean in output.losses.items())
    assert float(output.loss.detach()) == pytest.approx(weighted, rel=1e-5)
    answers = collated(model, "instruct", talk(0, ("What?", "a circle"), task="text"))
    output, alone = model(batch=answers), model.instruction_step(answers)["answer"]
    assert list(output.losses) == ["answer"]
    assert float(output.loss.detach()) == pytest.approx(float(alone.sum.detach()) / alone.count)


def test_weights_of_the_spec_count() -> None:
    heavy = made(objectives={"icg": {"use": "icg", "weight": 3.0}, "itc": "itc"})
    output = heavy(collated(heavy, "pretrain", example(0), example(1)))
    expected = 3 * float(output.losses["icg"]) + float(output.losses["itc"])
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_draws_follow_the_seed_of_torch_in_training_and_are_fixed_in_evaluation(model: LyricsModel) -> None:
    assert (step_number(7, training=True), step_number(None, training=False)) == (7, 0)
    torch.manual_seed(3)
    first, second = step_number(None, training=True), step_number(None, training=True)
    torch.manual_seed(3)
    assert first == step_number(None, training=True) != second
    batch = collated(model, "pretrain", *(example(position) for position in range(4)))
    assert float(model(batch).loss.detach()) == float(model(batch, step=0).loss.detach())
    model.train()
    masked = {int(model(batch).counts["msp"]) for _ in range(12)}
    model.eval()
    assert len(masked) > 1


def test_a_batch_without_anything_to_learn_is_zero_and_has_gradients(model: LyricsModel) -> None:
    model.trainable_parameters("instruct")
    output = model(collated(model, "instruct", talk(0, ("What?", "a circle"), task="text")), longest=4)
    assert (float(output.loss.detach()), int(output.counts["answer"])) == (0.0, 0)
    output.loss.backward()
