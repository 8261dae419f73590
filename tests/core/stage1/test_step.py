"""The packed step equals one dense-masked pass per objective: losses and every gradient."""

from __future__ import annotations

import pytest
import torch

from lyrics.core.stage1.negatives import Negatives
from lyrics.core.stage1.reduction import total_loss
from lyrics.core.stage1.step import pretrain_losses
from lyrics.workflows.bench.baselines import cached_losses, dense_losses
from tests.plugins.objectives.cases import batch, features, gradients, objectives, small_model

NEGATIVES = Negatives(torch.tensor([1, 3, 1, 0, 2]), torch.tensor([4, 0, 3, 1, 2]))


def losses_and_gradients(step, model, heads, *args) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    losses = step(model, heads, *args)
    total_loss(losses)[0].backward()
    return {name: (loss.sum.detach(), loss.count) for name, loss in losses.items()}, gradients([model, heads])


def assert_equal(first, second, tolerance: float) -> None:
    (losses_a, grads_a), (losses_b, grads_b) = first, second
    assert set(losses_a) == set(losses_b) == {"itc", "itm", "icg", "msp"}
    for name, (value, count) in losses_a.items():
        assert count == losses_b[name][1] > 0
        assert float((value - losses_b[name][0]).abs() / value.abs()) <= tolerance, name
    assert set(grads_a) == set(grads_b)
    for name, want in grads_a.items():
        if name.endswith(
            ("attention.key_value.image.bias", "key_value.detector.bias", "key_value.segmenter.bias", "qkv.bias")
        ):
            # The gradient of a key bias is zero by analysis, so only the value (and query) part has a size to compare
            # with.
            assert float((want - grads_b[name]).abs().max()) <= tolerance * float(want.abs().max()), name
            continue
        scale = float(want.abs().max())
        assert scale > 0, f"{name} gets a gradient"
        assert float((want - grads_b[name]).abs().max()) / scale <= tolerance, name


@pytest.mark.parametrize("baseline", [dense_losses, cached_losses])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_packed_step_equals_separate_dense_passes_at_full_depth(baseline, dtype: torch.dtype, tolerance: float) -> None:
    model = small_model(num_layers=12).to(dtype)
    heads = objectives(model, msp={"mask_probability": 0.5}).to(dtype)
    args = (features(5, dtype=dtype), batch(model, 5), NEGATIVES)
    packed = losses_and_gradients(pretrain_losses, model, heads, *args)
    assert_equal(packed, losses_and_gradients(baseline, model, heads, *args), tolerance)


def test_one_way_msp_uses_the_query_stream() -> None:
    model = small_model().double()
    heads = objectives(model, msp={"mask_probability": 0.5, "queries_see_text": False}).double()
    args = (features(5), batch(model, 5), NEGATIVES)
    packed = losses_and_gradients(pretrain_losses, model, heads, *args)
    assert_equal(packed, losses_and_gradients(dense_losses, model, heads, *args), 1e-10)


def test_gradient_checkpointing_changes_nothing() -> None:
    results = []
    for checkpointing in (False, True):
        model = (
            small_model(gradient_checkpointing=checkpointing, attention_dropout=0.2, hidden_dropout=0.1)
            .double()
            .train()
        )
        heads = objectives(model).double()
        torch.manual_seed(3)
        results.append(losses_and_gradients(pretrain_losses, model, heads, features(5), batch(model, 5), NEGATIVES))
    for name, (value, _) in results[0][0].items():
        assert torch.equal(value, results[1][0][name][0])
    for name, want in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], want, rtol=1e-12, atol=1e-14)


def test_odd_numbers_of_layers_read_images_in_the_last_layer_too() -> None:
    """With 3 layers the last one has cross-attention and computes the wanted query sets only."""
    model = small_model(num_layers=3).double()
    assert model.layers[2].image_attention is not None
    heads = objectives(model, msp={"mask_probability": 0.5}).double()
    args = (features(5), batch(model, 5), NEGATIVES)
    packed = losses_and_gradients(pretrain_losses, model, heads, *args)
    assert_equal(packed, losses_and_gradients(dense_losses, model, heads, *args), 1e-10)
