"""Two processes on halves of a batch are one process on the whole: losses, negatives and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from lyrics.core.stage1.reduction import total_loss
from lyrics.core.stage1.step import pretrain_losses
from tests.core.training.processes import all_end, ranks
from tests.plugins.objectives.cases import batch, features, gradients, objectives, part_of, small_model

SIZE = 6


def one_step(recipe: str, rows: slice) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    model = small_model().double()
    heads = objectives(model, recipe, msp={"mask_probability": 0.4}).double()
    part, feats = part_of(batch(model, SIZE), features(SIZE), rows)
    total, means = total_loss(pretrain_losses(model, heads, feats, part))
    total.backward()
    return {name: value.detach() for name, value in means.items()}, gradients([model, heads])


def worker(folder: Path, recipe: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    half = SIZE // 2
    means, grads = one_step(recipe, slice(rank * half, (rank + 1) * half))
    for grad in grads.values():  # what data parallelism does
        dist.all_reduce(grad)
        grad /= 2
    save_file({f"mean {name}": value for name, value in means.items()} | grads, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_two_ranks_equal_one(tmp_path: Path, recipe: str) -> None:
    with ranks(2, tmp_path, worker, tmp_path, recipe) as children:
        all_end(children, 120)
    means, grads = one_step(recipe, slice(0, SIZE))
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        for name, value in means.items():
            assert abs(float(found[f"mean {name}"] - value)) <= 1e-6, name
        for name, want in grads.items():
            assert float((found[name] - want).abs().max()) <= 1e-12, f"rank {rank}: {name}"
