"""Prompts that join and leave one cache: the logits are those of each prompt alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig

from lyrics.plugins.causal_lm.model import CausalLM
from tests.plugins.causal_lm.test_packing import NOT_PACKING, PACKING, made

RUNNING = {
    **{name: PACKING[name] for name in ("llama", "qwen3", "gpt_neox")},
    "convolutions": NOT_PACKING["convolutions"],
    "learned positions": NOT_PACKING["a mask that sees no positions"],
}
NOT_RUNNING = {
    "sliding windows": PACKING["sliding windows"],
    "recurrent, without positions": NOT_PACKING["recurrent"],
    "alibi, without positions": NOT_PACKING["alibi"],
}


def alone(model: CausalLM, ids: list[int]) -> torch.Tensor:
    """Logits behind the last of these ids."""
    with torch.no_grad():
        row = torch.tensor([ids])
        return model(model.embed(row), torch.ones_like(row))[0, -1]


def padded(model: CausalLM, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return model.embed(ids), mask


@pytest.mark.parametrize("name", RUNNING)
def test_rows_come_and_go(name: str) -> None:
    """Forty random turns: new rows of random lengths, a token more, rows that leave, an empty batch."""
    model, draw = made(RUNNING[name]), random.Random(0)
    running = model.running()
    assert running is not None
    rows: list[list[int]] = []

    def close(found: torch.Tensor, expected: list[list[int]]) -> None:
        wanted = torch.stack([alone(model, row) for row in expected])
        assert torch.allclose(found, wanted, atol=1e-4), float((found - wanted).abs().max())

    emptied = 0
    for _ in range(40):
        turn = draw.choice(["join", "join", "read", "read", "read", "leave", "all"])
        if turn == "join" and len(rows) < 6:
            new = [[draw.randrange(5, 290) for _ in range(draw.randint(1, 9))] for _ in range(draw.randint(1, 3))]
            close(running.join(*padded(model, new)), new)
            rows += new
        elif turn == "read" and rows:
            ids = [draw.randrange(5, 290) for _ in rows]
            logits = running.read(torch.tensor(ids))
            rows = [[*row, token] for row, token in zip(rows, ids, strict=True)]
            close(logits, rows)
        elif turn == "leave" and rows:
            kept = draw.sample(range(len(rows)), draw.randint(1, len(rows)))
            running.keep(kept)
            rows = [rows[row] for row in kept]
        elif turn == "all" and draw.random() < 0.4:
            running.keep(())
            rows = []
            emptied += 1
    assert emptied


@pytest.mark.parametrize("name", NOT_RUNNING)
def test_what_cannot_run_together_says_so(name: str) -> None:
    assert made(NOT_RUNNING[name]).running() is None


def test_padding_that_nobody_needs_is_dropped() -> None:
    model = made(PACKING["llama"])
    running: Any = model.running()
    running.join(*padded(model, [[5] * 50, [6] * 3]))
    running.keep([1])
    assert running.mask_RL.tolist() == [[1, 1, 1]]
    assert {layer.keys.shape[2] for layer in running.cache.layers} == {3}


def test_rows_are_as_they_were_where_new_ones_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(PACKING["llama"])
    running: Any = model.running()
    running.join(*padded(model, [[5, 6, 7]]))
    with pytest.raises((RuntimeError, ValueError)):
        running.join(torch.zeros(1, 3, 7), torch.ones(1, 3, dtype=torch.long))
    assert torch.allclose(running.read(torch.tensor([8]))[0], alone(model, [5, 6, 7, 8]), atol=1e-5)


def test_it_runs_without_dropout_and_leaves_the_mode_as_it_was() -> None:
    config = PreTrainedConfig.from_dict(PACKING["llama"].to_dict())
    config = type(PACKING["llama"])(**{**config.to_dict(), "attention_dropout": 0.5})
    model = made(config).train()
    running: Any = model.running()
    first, again = (running.join(*padded(model, [[5, 6, 7]])) for _ in range(2))
    assert torch.equal(first, again)
    assert model.training
    assert all(module.training for module in model.modules())
