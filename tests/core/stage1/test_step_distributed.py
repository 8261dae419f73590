"""Processes on shares of a batch are one process on the whole: losses, negatives and gradients; images travel only
where drawn.
"""

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

SIZE = 8


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
    rank, count = dist.get_rank(), dist.get_world_size()
    share = SIZE // count
    exchange, gathered, moved = dist.all_to_all_single, dist.all_gather, []
    seen = features(SIZE)
    images = [seen.image_tokens_BND.shape[1:], *(tokens.shape[1:] for tokens, _ in seen.local.values())]

    def noted(output: torch.Tensor, *arguments: object) -> None:
        moved.append(len(output))
        exchange(output, *arguments)  # type: ignore[arg-type]

    def small(found: list[torch.Tensor], rows: torch.Tensor) -> None:
        assert rows.dim() < 3 or rows.shape[1:] not in images, "images do not go to everybody"
        gathered(found, rows)

    dist.all_to_all_single, dist.all_gather = noted, small
    means, grads = one_step(recipe, slice(rank * share, (rank + 1) * share))
    for grad in grads.values():  # what data parallelism does
        dist.all_reduce(grad)
        grad /= count
    rows = torch.tensor(moved)
    save_file(
        {f"mean {name}": value for name, value in means.items()} | grads | {"rows": rows},
        folder / f"{rank}.safetensors",
    )
    dist.destroy_process_group()


@pytest.mark.parametrize(("count", "recipe"), [(2, "paper"), (2, "released"), (4, "paper")])
def test_several_ranks_equal_one(tmp_path: Path, count: int, recipe: str) -> None:
    with ranks(count, tmp_path, worker, tmp_path, recipe) as children:
        all_end(children, 120)
    means, grads = one_step(recipe, slice(0, SIZE))
    share = SIZE // count
    for rank in range(count):
        found = load_file(tmp_path / f"{rank}.safetensors")
        rows = found.pop("rows").tolist()
        assert len(set(rows)) == 1, "of every kind of tokens as many rows as images"
        assert 0 <= rows[0] <= min(share, SIZE - share), "at most an image for each text"
        for name, value in means.items():
            assert abs(float(found[f"mean {name}"] - value)) <= 1e-6, name
        for name, want in grads.items():
            assert float((found[name] - want).abs().max()) <= 1e-12, f"rank {rank}: {name}"
