"""``lyrics bench step``: the packed stage-1 step against the same step without packing, correctness first, then time.

Variants, all with the weights of one model and in one process, alternating:

- ``N1``: one dense-masked pass of 224 tokens per objective (``lyrics.workflows.bench.baselines.dense_losses``);
- ``N3``: BLIP-2's way, query keys and values cached, everything else separate (``cached_losses``);
- ``packed``: ours;
- ``compiled``, where asked for: ours with its dense blocks through torch.compile (``optimization.compile`` of a
  training run).

N1 and N3 always run at padded lengths. The packed step runs once on texts of the full padded length and once on true
lengths; its losses are compared with the baselines' on the same texts before anything is timed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lyrics.core.contracts import BuildContext
from lyrics.core.registry.registry import default_registry
from lyrics.core.stage1.batch import PretrainBatch, Spatial
from lyrics.core.stage1.negatives import Negatives
from lyrics.core.stage1.reduction import total_loss
from lyrics.core.stage1.state import Loss
from lyrics.core.stage1.step import pretrain_losses
from lyrics.core.stage1.streams import Features, Text
from lyrics.core.training.engine import compile_blocks
from lyrics.kernels import IMPLEMENTATIONS
from lyrics.kernels.tiles import ROW_TILE
from lyrics.workflows.bench.baselines import cached_losses, dense_losses
from lyrics.workflows.bench.charts import step_chart
from lyrics.workflows.bench.machine import environment

#: The paper's sizes: CLIP ViT-L/14 gives 257 tokens of 1024, Grounding DINO 900 query states of 256 with their boxes.
IMAGE_TOKENS, IMAGE_DIM, LOCAL_TOKENS, LOCAL_DIM = 257, 1024, 900, 260
#: Padded and true lengths of spatial text and caption, special tokens included.
PADDED, TRUE = (128, 32), (64, 16)
_OBJECT_TOKENS = 13

#: What the packed step's attention may be.
ATTENTIONS = ("auto", *IMPLEMENTATIONS)

Step = Callable[[], dict[str, Loss]]


def build_case(
    batch_size: int,
    lengths: tuple[int, int],
    *,
    sizes: Mapping[str, Any] | None = None,
    image: tuple[int, int] = (IMAGE_TOKENS, IMAGE_DIM),
    local: tuple[int, int] = (LOCAL_TOKENS, LOCAL_DIM),
    padded: tuple[int, int] = PADDED,
    model: tuple[nn.Module, nn.ModuleDict] | None = None,
) -> tuple[nn.Module, nn.ModuleDict, Features, PretrainBatch, Negatives]:
    """Return a model of ``mqformer`` and the four objectives (random weights, no dropout), and a batch whose texts have
    the given lengths.

    Ids are padded to ``padded`` whatever the lengths, so that the baselines run padded.
    """
    torch.manual_seed(0)
    query_transformer: Any
    query_transformer, objectives = model or _model(image[1], local[1], sizes or {})
    special = query_transformer.special
    generator = torch.Generator().manual_seed(1)
    spatial_length, caption_length = lengths[0] - 1, lengths[1] - 2
    ids = torch.randint(7, 200, (batch_size, padded[0] - 1), generator=generator)
    numbers = (torch.arange(padded[0] - 1) // _OBJECT_TOKENS).expand(batch_size, -1)
    exists = (torch.arange(padded[0] - 1) < spatial_length).expand(batch_size, -1)
    numbers = numbers.masked_fill(~exists, -1)
    spatial = Spatial(Text(ids, exists.sum(1)), numbers, numbers)
    words = torch.randint(7, 200, (batch_size, padded[1] - 2), generator=generator)
    caption = Text(words, torch.full((batch_size,), caption_length))
    batch = PretrainBatch(spatial, caption, torch.arange(batch_size), special)
    features = Features(
        torch.randn(batch_size, *image, generator=generator),
        {
            "detector": (
                torch.randn(batch_size, *local, generator=generator),
                torch.ones(batch_size, local[0], dtype=torch.bool),
            )
        },
    )
    shifted = (torch.arange(batch_size) + 1) % batch_size
    return query_transformer, objectives, features, batch, Negatives(shifted, shifted.flip(0))


def _model(image_dim: int, local_dim: int, sizes: Mapping[str, Any]) -> tuple[nn.Module, nn.ModuleDict]:
    registry = default_registry()
    without_dropout = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    from_blip2 = {
        "normalize_image_tokens": True
    }  # BLIP-2's trainable ln_vision, which the paper's model continues from

    def build(kind: str, name: str, options: Mapping[str, Any], context: BuildContext) -> Any:
        from lyrics.core.build import build_part
        from lyrics.core.resolve import Part

        entry = registry.component(kind, name)
        return build_part(Part(f"bench.{name}", entry, entry.component.options(**options)), context)

    query_transformer = build(
        "query-transformer",
        "mqformer",
        {**without_dropout, **from_blip2, **sizes},
        BuildContext("random", image_dim, {"detector": local_dim}),
    )
    context = BuildContext(
        "random", query_dim=query_transformer.hidden_size, query_segments=tuple(query_transformer.segments)
    )
    objectives = nn.ModuleDict({name: build("objective", name, {}, context) for name in ("itc", "itm", "icg", "msp")})
    return query_transformer.eval(), objectives.eval()


# --- measuring -------------------------------------------------------------------------------------------------------


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


class _ColumnMajorFactors(TorchDispatchMode):
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


def _products(dtype: str, device: str) -> contextlib.AbstractContextManager[object]:
    slow = dtype == "bf16" and device == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return _ColumnMajorFactors() if slow else contextlib.nullcontext()


def _forward_backward(step: Step) -> None:
    total_loss(step())[0].backward()


def _seconds(
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
        _forward_backward(step)
        if gpu:
            torch.cuda.synchronize()
    found: dict[str, float] = {}
    for event in profile.key_averages():
        kind = kind_of(event.key)
        spent = event.self_device_time_total if gpu else event.self_cpu_time_total
        found[kind] = found.get(kind, 0.0) + spent / 1e6
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def compare(
    batch_size: int,
    dtype: str,
    rounds: int,
    *,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
    true: tuple[int, int] = TRUE,
    padded: tuple[int, int] = PADDED,
    attention: str = "auto",
    profile: bool = False,
    compiled: bool = False,
    **case: Any,
) -> list[dict[str, Any]]:
    """Return all variants at one batch size: losses compared, then timed in turns; one row per variant and lengths.

    ``attention`` is the implementation that ours uses, ``profile`` adds seconds by kind of kernel, ``compiled`` the
    variant of that name; ``case`` goes to ``build_case``.

    Raises:
        AssertionError: a variant's losses differ from N1's by more than fp32 rounding (bf16: 3 %).
    """
    case["sizes"] = {**case.get("sizes", {}), "attention": attention}  # the baselines have their own
    query_transformer, objectives, *_ = build_case(batch_size, true, padded=padded, **case)
    gpu = device.startswith("cuda")
    query_transformer.to(device)
    objectives.to(device)
    parameters = [*query_transformer.parameters(), *objectives.parameters()]
    steps: dict[tuple[str, str], Step] = {}
    counted: dict[tuple[str, str], Step] = {}
    built = (query_transformer, objectives)
    variants = [
        ("N1", dense_losses, query_transformer),
        ("N3", cached_losses, query_transformer),
        ("packed", pretrain_losses, query_transformer),
    ]
    if compiled:
        variants.append(("compiled", pretrain_losses, copy.deepcopy(query_transformer)))
        compile_blocks(variants[-1][2])
        parameters += variants[-1][2].parameters()
    for label, lengths in (("padded", padded), ("true", true)):
        _, _, features, batch, negatives = build_case(batch_size, lengths, padded=padded, model=built, **case)
        features = _on(features, device)
        for name, function, network in variants:
            steps[name, label] = _autocast(function, dtype, device, network, objectives, features, batch, negatives)
            arguments = (query_transformer, objectives, features, batch, negatives)
            # On a CPU operations are counted in fp32, whatever the type: there are as many, and some CPUs take ten
            # times longer in bf16. A GPU may not have the memory for that.
            counted[name, label] = _autocast(function, dtype if gpu else "fp32", device, *arguments)
    synchronize = torch.cuda.synchronize if gpu else lambda: None

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    # The baselines' work does not depend on the true lengths: there they are compared with, not timed.
    timed = [key for key in steps if key[0] in ("packed", "compiled") or key[1] == "padded"]
    products = _products(dtype, device)
    values, kept = {}, {}
    for key, step in steps.items():
        if key in timed:
            with products:
                kept[key], computed = saved_bytes(step, parameters)
        else:
            with torch.no_grad(), products:
                computed = step()
        values[key] = {name: loss.sum.item() / max(loss.count, 1) for name, loss in computed.items()}
    for (name, label), losses in values.items():
        for loss, value in losses.items():
            want = values["N1", label][loss]
            limit = 1e-4 if dtype == "fp32" else 3e-2
            assert abs(value - want) <= limit * abs(want), (
                f"{loss} of {name} at {label} lengths is {value}, N1 has {want}"
            )
        rows[name, label] = {"variant": name, "lengths": label, "batch": batch_size, "dtype": dtype, "losses": losses}
        rows[name, label]["attention"] = attention
    say(f"batch {batch_size}, {dtype}: losses of all variants agree")
    for key in timed:
        rows[key] |= {"saved_bytes": kept[key], "flops": counted_flops(counted[key])}
    kinds = ("forward", "both", "forward_cpu", "both_cpu")
    times: dict[tuple[str, str], dict[str, list[float]]] = {key: {kind: [] for kind in kinds} for key in timed}
    for turn in range(rounds):
        for key in timed:
            with torch.no_grad(), products:
                forward = _seconds(steps[key], parameters, synchronize)
            with products:
                both = _seconds(functools.partial(_forward_backward, steps[key]), parameters, synchronize)
            for kind, spent in zip(kinds, (forward[0], both[0], forward[1], both[1]), strict=True):
                times[key][kind].append(spent)
            say(f"round {turn + 1}/{rounds} {key[0]:>6} {key[1]:>6}: {both[0]:.2f} s forward + backward")
    for key in timed:
        for parameter in parameters:
            parameter.grad = None
        if gpu:
            torch.cuda.reset_peak_memory_stats()
            _forward_backward(steps[key])
            rows[key]["peak_bytes"] = torch.cuda.max_memory_allocated()
        if profile:
            rows[key]["profile_seconds"] = profile_by_kind(steps[key], device)
        median = {kind: statistics.median(found) for kind, found in times[key].items()}
        rows[key] |= {
            "seconds_forward": median["forward"],
            "seconds_forward_backward": median["both"],
            "cpu_seconds_forward_backward": median["both_cpu"],
            "samples_per_second": batch_size / median["both"],
            "all_seconds": times[key],
            "bf16_factors": "copied to columns" if isinstance(products, TorchDispatchMode) else "as they are",
        }
    found = []
    for key in timed:
        row = rows[key]
        for base in ("N1", "N3"):
            other = rows[base, "padded"]
            row[f"speedup_vs_{base}"] = other["seconds_forward_backward"] / row["seconds_forward_backward"]
            cpu = "cpu_seconds_forward_backward"
            row[f"cpu_speedup_vs_{base}"] = other[cpu] / row[cpu]
            row[f"forward_speedup_vs_{base}"] = other["seconds_forward"] / row["seconds_forward"]
            row[f"saved_vs_{base}"] = row["saved_bytes"] / other["saved_bytes"]
            row[f"flops_ratio_vs_{base}"] = other["flops"] / row["flops"]
        found.append(row)
    return found


def _on(features: Features, device: str) -> Features:
    local = {name: (tokens.to(device), mask.to(device)) for name, (tokens, mask) in features.local.items()}
    return Features(features.image_tokens_BND.to(device), local)


def _autocast(function: Callable[..., dict[str, Loss]], dtype: str, device: str, *arguments: Any) -> Step:
    def step() -> dict[str, Loss]:
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=dtype == "bf16"):
            return function(*arguments)

    return step


# --- reporting -------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as aligned text."""
    head = (
        "batch",
        "dtype",
        "variant",
        "lengths",
        "fwd s",
        "fwd+bwd s",
        "samples/s",
        "saved MB",
        "peak GB",
        "GFLOP",
        "vs N1",
        "vs N3",
        "saved/N1",
    )
    lines = [head]
    for row in rows:
        if "status" in row:
            lines.append((str(row["batch"]), row["dtype"], row["attention"], row["status"], *[""] * (len(head) - 4)))
            continue
        lines.append(
            (
                str(row["batch"]),
                row["dtype"],
                row["variant"],
                row["lengths"],
                f"{row['seconds_forward']:.3f}",
                f"{row['seconds_forward_backward']:.3f}",
                f"{row['samples_per_second']:.2f}",
                f"{row['saved_bytes'] / 1e6:.0f}",
                f"{row['peak_bytes'] / 1e9:.1f}" if "peak_bytes" in row else "",
                f"{row['flops'] / 1e9:.0f}",
                f"{row['speedup_vs_N1']:.2f}x",
                f"{row['speedup_vs_N3']:.2f}x",
                f"{row['saved_vs_N1']:.2f}x",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def run_bench_step(
    batch_sizes: Sequence[int] = (4, 8, 16),
    dtypes: Sequence[str] = ("fp32", "bf16"),
    rounds: int = 3,
    *,
    device: str = "cpu",
    attentions: Sequence[str] = ("auto",),
    profile: bool = False,
    compiled: bool = False,
    minutes: float | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Measure everything, and write one JSON file and a chart beside it after each case.

    Args:
        batch_sizes: samples per step.
        dtypes: ``fp32``, ``bf16`` (autocast).
        rounds: turns; the median of each variant counts.
        device: ``cpu`` or ``cuda``.
        attentions: implementations of attention that the packed step is measured with, one after another.
        profile: add seconds by kind of kernel or operator to every row.
        compiled: also the packed step with its dense blocks compiled.
        minutes: no case is begun after so long; None: all are.
        out: where the JSON goes; not written when None.
        say: called with a line of progress.

    Returns:
        One row per batch size, dtype and variant; ``table`` prints them. A case for which no time was left is one row
        of status ``not run``, and on a GPU one that fails (for want of memory, say) is one of status ``failed``; on a
        CPU it raises.
    """
    begun = time.monotonic()
    rows: list[dict[str, Any]] = []
    measured_on = environment()  # before, since the checkout may change while this runs
    for dtype, batch_size, attention in itertools.product(dtypes, batch_sizes, attentions):
        status, reason = "not run", "out of time"
        try:
            if minutes is None or time.monotonic() - begun <= 60 * minutes:
                found = compare(
                    *(batch_size, dtype, rounds),
                    device=device,
                    say=say,
                    attention=attention,
                    profile=profile,
                    compiled=compiled,
                )
                rows += [row | measured_on for row in found]
                status = "ok"
        except Exception as error:  # one case must not end an unattended run
            if not device.startswith("cuda"):
                raise
            status, reason = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if status != "ok":
            say(f"batch {batch_size}, {dtype}, {attention}: {status}: {reason}")
            absent = {"batch": batch_size, "dtype": dtype, "attention": attention, "status": status, "reason": reason}
            rows.append(absent | measured_on)
        if device.startswith("cuda"):
            gc.collect()
            torch.cuda.empty_cache()
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps({"benchmark": "step", "rows": rows}, indent=2) + "\n")
            out.with_suffix(".svg").write_text(step_chart(rows), encoding="utf-8")
    return rows
