"""A stage-1 step on two ranks: two processes on this machine's CPU, joined by gloo."""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing.context import BaseContext
from typing import Any

import torch
import torch.distributed as dist

from lyrics.core.stage1.distributed import average
from lyrics.core.stage1.reduction import total_loss
from lyrics.testing.small import SIZE, SmallModel, pretraining_losses

_TIMEOUT = timedelta(seconds=60)


def one_rank(small: SmallModel) -> tuple[dict[str, float], dict[str, Any]]:
    """Mean of each loss and gradients of a step on the whole batch, without dropout."""
    return _step(small, 0, SIZE)


def two_ranks(small: SmallModel) -> list[tuple[dict[str, float], dict[str, Any]]]:
    """Return the same from each of two ranks on half the batch each. Raises what a rank raises."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, mp_context=_processes()) as pool:
        return [one.result() for one in [pool.submit(_rank, small, rank, f"{folder}/store") for rank in range(2)]]


@functools.cache
def _processes() -> BaseContext:
    """Processes that begin without anything of this one's.

    Where the system can, they fork from one that has imported everything.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [__name__, "lyrics.core.build", "lyrics.core.model", "lyrics.core.language.tokenizers"]
    )
    return context


def _rank(small: SmallModel, rank: int, store: str) -> tuple[dict[str, float], dict[str, Any]]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2, timeout=_TIMEOUT)
    try:
        half = SIZE // 2
        return _step(small, rank * half, (rank + 1) * half)
    finally:
        dist.destroy_process_group()


def _step(small: SmallModel, start: int, stop: int) -> tuple[dict[str, float], dict[str, Any]]:
    model = small.build()
    trained = model.trainable_parameters("pretrain")
    total, means = total_loss(pretraining_losses(model, start, stop))
    total.backward()  # type: ignore[no-untyped-call]
    for parameter in trained.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = {name: parameter.grad for name, parameter in trained.items() if parameter.grad is not None}
    if dist.is_initialized():
        average(list(gradients.values()))
    return {name: float(mean) for name, mean in means.items()}, {name: g.numpy() for name, g in gradients.items()}
