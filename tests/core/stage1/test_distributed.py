"""Rows of other ranks: those that are wanted, whatever their lengths, and none where nobody wants any."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from lyrics.core.stage1.distributed import fetch_rows
from tests.core.training.processes import all_end, ranks

#: What each of three ranks of two rows wants: of several, of one, nothing.
WANTED = ([2, 4, 5], [0], [])


def rows_of(rank: int) -> list[torch.Tensor]:
    """Tokens [2, L, 3] and which exist [2, L], L different on every rank."""
    tokens = torch.arange(2 * (rank + 1) * 3, dtype=torch.float64).view(2, rank + 1, 3) + 100 * rank
    return [tokens, tokens[..., 0] % 2 == 0]


def worker(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    everyone = [rows_of(one) for one in range(3)]
    found = fetch_rows(everyone[rank], torch.tensor(WANTED[rank], dtype=torch.int64))
    for number, rows in enumerate(found):
        assert rows.dtype == everyone[rank][number].dtype
        assert rows.shape[:2] == (len(WANTED[rank]), 3)
        for row, wanted in zip(rows, WANTED[rank], strict=True):
            own = everyone[wanted // 2][number][wanted % 2]
            assert torch.equal(row[: len(own)], own)
            assert not row[len(own) :].any()
    assert [len(one) for one in fetch_rows(everyone[rank], torch.zeros(0, dtype=torch.int64))] == [0, 0]
    (folder / f"{rank}").touch()
    dist.destroy_process_group()


def test_rows_of_other_ranks(tmp_path: Path) -> None:
    with ranks(3, tmp_path, worker, tmp_path) as children:
        all_end(children, 60)
    assert all((tmp_path / f"{rank}").exists() for rank in range(3))
