"""How ``lyrics bench step`` measures one step: what it keeps for its backward pass, its operations, its seconds, and
where they go.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lyrics.core.stage1.reduction import total_loss
from lyrics.core.stage1.state import Loss
from lyrics.kernels.tiles import ROW_TILE

Step = Callable[[], dict[str, Loss]]


def saved_bytes(step: Step, parameters: Sequence[torch.Tensor]) -> tuple[int, dict[str, Loss]]:
    """Bytes that one forward pass keeps for its backward pass (every storage once, parameters not), and its losses."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> None:
        """Nothing is handed on: a saved output that holds its own node would never be freed, and no backward pass
        follows.
        """
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
        losses = step()
        total_loss(losses)
    return sum(storage.nbytes() for storage in kept.values()), losses


def _attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    """Two products of [B,H,L,d] shapes."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


def _attention_backward_flops(_: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *__: Any, **___: Any) -> int:
    """Five products: the scores again, and four gradients."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (3 * q[3] + 2 * v[3])


def _tiles_flops(products: int) -> Callable[..., int]:
    """The same of our Triton operations, whose pairs are those of their row tiles (``lyrics.kernels.tiles``), a
    diagonal counted whole.
    """

    def count(*arguments: Any, **_: Any) -> int:
        heads, width = next(x for x in arguments if isinstance(x, torch.Tensor)).shape[-2:]
        tiles = next(x for x in arguments if isinstance(x, torch.Tensor) and x.dim() == 2 and x.shape[1] == ROW_TILE)
        pairs = int((tiles[:, 1] * (tiles[:, 3] + tiles[:, 5])).sum())
        return 2 * products * pairs * heads * width

    count._get_raw = True  # type: ignore[attr-defined]
    return count


def counted_flops(step: Step) -> int:
    """Floating-point operations of forward and backward as torch counts them."""
    aten, own = torch.ops.aten, torch.ops.lyrics
    attention: dict[Any, Callable[..., int]] = {  # torch counts attention on GPUs only
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    if hasattr(own, "attention"):  # there once the Triton implementation was imported
        attention |= {own.attention: _tiles_flops(2), own.attention_backward: _tiles_flops(5)}
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        total_loss(step())[0].backward()
    return int(counter.get_total_flops())


class ColumnMajorFactors(TorchDispatchMode):
    """On CPUs without bf16 instructions torch multiplies two row-major bf16 matrices some ten times slower than where
    the first is column-major (measured: AMD EPYC with AVX2, torch 2.13). Backward passes are full of the former; a
    copy of the first factor makes
    them the latter, for every variant alike."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default and args[0].dtype == torch.bfloat16:
            first, second = args
            if first.is_contiguous() and second.is_contiguous():
                args = (first.t().contiguous().t(), second)
        return func(*args, **(kwargs or {}))


def products_of(dtype: str, device: str) -> contextlib.AbstractContextManager[object]:
    slow = dtype == "bf16" and device == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return ColumnMajorFactors() if slow else contextlib.nullcontext()


def forward_backward(step: Step) -> None:
    total_loss(step())[0].backward()


def seconds(
    run: Callable[[], object], parameters: Sequence[torch.Tensor], synchronize: Callable[[], None]
) -> tuple[float, float]:
    """Seconds on the clock, and of this process's threads: beside other work the latter say more."""
    gc.collect()
    for parameter in parameters:
        parameter.grad = None
    synchronize()
    start, worked = time.perf_counter(), time.process_time()
    run()
    synchronize()
    return time.perf_counter() - start, time.process_time() - worked


#: What a kernel's or an operator's name says about its kind; the first that is found counts.
_KINDS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attention", "flash", "fmha", "sdpa", "grad_q", "grad_kv"),
    "normalization": ("layer_norm", "layernorm", "_norm", "gammabeta"),
    "matrix product": (
        "::mm",
        "addmm",
        "bmm",
        "gemm",
        "matmul",
        "linear",
        "cutlass",
        "xmma",
        "cublas",
        "nvjet",
        "_mm_",
    ),
    "softmax and cross-entropy": ("softmax", "nll_loss", "cross_entropy"),
    "indexing and copying": (
        "index",
        "gather",
        "scatter",
        "embedding",
        "copy",
        "cat",
        "clone",
        "slice",
        "memcpy",
        "memset",
    ),
    "elementwise": (
        "gelu",
        "add",
        "mul",
        "div",
        "sub",
        "dropout",
        "fill",
        "sum",
        "elementwise",
        "vectorized",
        "reduce",
    ),
}


def kind_of(name: str) -> str:
    """Return the kind of a kernel or operator; our Triton kernel of the forward pass is called ``forward``
    and no more.
    """
    name = name.lower()
    if name == "forward":
        return "attention"
    return next((kind for kind, marks in _KINDS.items() if any(mark in name for mark in marks)), "other")


def profile_by_kind(step: Step, device: str) -> dict[str, float]:
    """Seconds of one forward and backward pass by kind of kernel (on a GPU) or operator (on a CPU), the
    greatest first.
    """
    gpu = device.startswith("cuda")
    activity = torch.profiler.ProfilerActivity.CUDA if gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        forward_backward(step)
        if gpu:
            torch.cuda.synchronize()
    found: dict[str, float] = {}
    for event in profile.key_averages():
        kind = kind_of(event.key)
        spent = event.self_device_time_total if gpu else event.self_cpu_time_total
        found[kind] = found.get(kind, 0.0) + spent / 1e6
    return dict(sorted(found.items(), key=lambda item: -item[1]))
