"""Frozen is frozen: twenty steps of training through encoder and refiner leave every bit of them as it was."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from lyrics.core.loading import build_model
from tests.core.small import drawn, small

PICTURES = [drawn(), drawn(60, 90, "blue")]
INSTRUCTIONS = ["what is it?", "where is the dog?"]
# The tiny experts' vocabulary under their test options.
PHRASES = [["red circle", "dog"], ["dog"]]


def sha256(module: nn.Module) -> str:
    """Of all parameters and buffers, those that are not saved included."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        digest.update(name.encode() + str(tensor.dtype).encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_twenty_steps_change_no_frozen_weight() -> None:
    torch.manual_seed(0)
    model = build_model(small(), weights="random")
    assert model.refiner is not None
    frozen = {"encoder": model.encoder, **model.refiner.experts}
    assert list(frozen) == ["encoder", "tagger", "detector", "segmenter"]
    before = {name: sha256(part) for name, part in frozen.items()}
    trained_before = sha256(model.query_transformer), sha256(model.projection)
    seen_before = model.refiner(PICTURES, PHRASES)
    assert all(len(found.objects) > 0 for found in seen_before)

    # Every parameter, as the least careful of training scripts would have it; with decay, which moves weights without
    # any gradient.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    model.train()
    losses = []
    for _ in range(20):
        optimizer.zero_grad(set_to_none=False)
        loss = (model.encode(PICTURES, INSTRUCTIONS, phrases=PHRASES).soft_tokens_PQD - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0], "nothing was trained, so nothing is shown"
    assert trained_before[0] != sha256(model.query_transformer)
    assert trained_before[1] != sha256(model.projection)

    assert {name: sha256(part) for name, part in frozen.items()} == before
    assert model.query_transformer.training
    in_training = [name for part in frozen.values() for name, module in part.named_modules() if module.training]
    assert in_training == []
    assert not any(parameter.requires_grad for part in frozen.values() for parameter in part.parameters())
    assert not any(parameter.grad is not None for part in frozen.values() for parameter in part.parameters())
    assert model.refiner(PICTURES, PHRASES) == seen_before
