"""One batch size of ``lyrics bench step``: the losses of all ways compared, then their times, in turns."""

from __future__ import annotations

import copy
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lyrics.core.stage1.state import Loss
from lyrics.core.stage1.step import pretrain_losses
from lyrics.core.stage1.streams import Features
from lyrics.core.training.engine import compile_blocks
from lyrics.workflows.bench.baselines import cached_losses, dense_losses
from lyrics.workflows.bench.blip2 import Blip2Rival, blip2_losses
from lyrics.workflows.bench.measuring import (
    Step,
    counted_flops,
    forward_backward,
    products_of,
    profile_by_kind,
    saved_bytes,
    seconds,
)
from lyrics.workflows.bench.step_cases import (
    BLIP2_PADDED,
    BLIP2_TRUE,
    IMAGE_DIM,
    IMAGE_TOKENS,
    LOCAL_DIM,
    LOCAL_TOKENS,
    PADDED,
    TRUE,
    Lengths,
    blip2_model,
    build_case,
    drawn_lengths,
    longest,
    paper_model,
)

#: Which stage 1: the paper's four objectives against N1 and N3, BLIP-2's three against transformers' Q-Former.
RECIPES = ("paper", "blip2")
#: What the texts' lengths are, and what the rivals are padded to.
LENGTHS: Mapping[str, str] = {
    "padded": "all texts as long as the maximum",
    "true": "shorter texts, rivals padded to the maximum",
    "equal": "shorter texts, all of one length: nobody pads",
    "drawn": "lengths drawn for every sample, rivals padded to the longest of the batch",
}
_OURS = ("packed", "compiled")


@dataclass(frozen=True, eq=False)
class _Way:
    """One way to compute the losses, and the modules it does so with."""

    function: Callable[..., dict[str, Loss]]
    network: nn.Module


@dataclass(frozen=True, eq=False)
class _Contest:
    """The ways that are compared, the first of which has the losses that all must have; ``model`` makes the batches."""

    ways: Mapping[str, _Way]
    model: tuple[nn.Module, nn.ModuleDict]
    true: tuple[int, int]
    padded: tuple[int, int]

    def parameters(self) -> list[nn.Parameter]:
        modules = dict.fromkeys([way.network for way in self.ways.values()] + [self.model[1]])
        return [parameter for module in modules for parameter in module.parameters()]

    def case(self, label: str, batch_size: int) -> tuple[Lengths, tuple[int, int]]:
        """The texts' lengths, and what they are padded to."""
        drawn = drawn_lengths(batch_size)
        if not self.padded[0]:  # no spatial text
            drawn = [(0, caption) for _, caption in drawn]
        cases: dict[str, tuple[Lengths, tuple[int, int]]] = {
            "padded": (self.padded, self.padded),
            "true": (self.true, self.padded),
            "equal": (self.true, self.true),
            "drawn": (drawn, longest(drawn)),
        }
        return cases[label]


def _contest(
    recipe: str,
    attention: str,
    compiled: bool,
    device: str,
    *,
    sizes: Mapping[str, Any],
    image_dim: int,
    local_dim: int,
    true: tuple[int, int] | None,
    padded: tuple[int, int] | None,
) -> _Contest:
    torch.manual_seed(0)
    sizes = {**sizes, "attention": attention}  # the rivals have their own
    if recipe == "paper":
        model = paper_model(sizes, image_dim, local_dim)
        rivals = {"N1": _Way(dense_losses, model[0]), "N3": _Way(cached_losses, model[0])}
        true, padded = true or TRUE, padded or PADDED
    else:
        model = blip2_model({key: value for key, value in sizes.items() if key != "num_grounding"}, image_dim)
        rivals = {"transformers": _Way(blip2_losses, Blip2Rival(*model))}
        true, padded = (0, (true or BLIP2_TRUE)[1]), (0, (padded or BLIP2_PADDED)[1])
    ways = rivals | {"packed": _Way(pretrain_losses, model[0])}
    if compiled:
        ways["compiled"] = _Way(pretrain_losses, copy.deepcopy(model[0]))
        compile_blocks(ways["compiled"].network)
    for module in (*(way.network for way in ways.values()), model[1]):
        module.to(device)
    return _Contest(ways, model, true, padded)


def compare(
    batch_size: int,
    dtype: str,
    rounds: int,
    *,
    recipe: str = "paper",
    labels: Sequence[str] = tuple(LENGTHS),
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
    true: tuple[int, int] | None = None,
    padded: tuple[int, int] | None = None,
    attention: str = "auto",
    profile: bool = False,
    compiled: bool = False,
    sizes: Mapping[str, Any] | None = None,
    image: tuple[int, int] = (IMAGE_TOKENS, IMAGE_DIM),
    local: tuple[int, int] = (LOCAL_TOKENS, LOCAL_DIM),
) -> list[dict[str, Any]]:
    """Return all ways at one batch size: losses compared, then timed in turns; one row per way and lengths.

    Args:
        batch_size: samples.
        dtype: ``fp32`` or ``bf16`` (autocast).
        rounds: turns.
        recipe: one of ``RECIPES``.
        labels: of ``LENGTHS``; ``true`` is divided by the rows of ``padded``, which it brings with it.
        device: ``cpu`` or a CUDA device.
        say: called with a line of progress.
        true, padded: lengths of spatial text and caption.
        attention: the implementation that ours uses.
        profile: add seconds by kind of kernel or operator.
        compiled: also ours with its dense blocks compiled.
        sizes: options of the query transformer.
        image, local: tokens and width of the image's and the local features.

    Raises:
        AssertionError: a way's losses differ from the first one's by more than fp32 rounding (bf16: 3 %).
    """
    numbers = {"image_dim": image[1], "local_dim": local[1], "true": true, "padded": padded}
    contest = _contest(recipe, attention, compiled, device, sizes=sizes or {}, **numbers)  # type: ignore[arg-type]
    labels = [label for label in LENGTHS if label in labels or (label == "padded" and "true" in labels)]
    gpu = device.startswith("cuda")
    parameters = contest.parameters()
    objectives = contest.model[1]
    steps: dict[tuple[str, str], Step] = {}
    counted: dict[tuple[str, str], Step] = {}
    for label in labels:
        lengths, widths = contest.case(label, batch_size)
        _, _, features, batch, negatives = build_case(
            batch_size, lengths, padded=widths, model=contest.model, image=image, local=local
        )
        features = _on(features, device)
        for name, way in contest.ways.items():
            network = way.network if name != "compiled" else contest.ways["packed"].network
            rest = (objectives, features, batch, negatives)
            steps[name, label] = _autocast(way.function, dtype, device, way.network, *rest)
            # On a CPU operations are counted in fp32, whatever the type: there are as many, and some CPUs take ten
            # times longer in bf16. A GPU may not have the memory for that.
            counted[name, label] = _autocast(way.function, dtype if gpu else "fp32", device, network, *rest)
    synchronize = torch.cuda.synchronize if gpu else lambda: None
    # Padded to the maximum, rivals work the same whatever the true lengths: there they are compared, not timed.
    timed = [(name, label) for name, label in steps if name in _OURS or label != "true"]
    products = products_of(dtype, device)

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    first = next(iter(contest.ways))
    values: dict[tuple[str, str], dict[str, float]] = {}
    for key, step in steps.items():
        kept = None
        with products:
            if key in timed:
                kept, computed = saved_bytes(step, parameters)
            else:
                with torch.no_grad():
                    computed = step()
        values[key] = {name: loss.sum.item() / max(loss.count, 1) for name, loss in computed.items()}
        name, label = key
        rows[key] = {"recipe": recipe, "variant": name, "lengths": label, "batch": batch_size, "dtype": dtype}
        rows[key] |= {"attention": attention, "losses": values[key], "saved_bytes": kept}
    for (name, label), losses in values.items():
        for loss, value in losses.items():
            want = values[first, label][loss]
            limit = 1e-4 if dtype == "fp32" else 3e-2
            assert abs(value - want) <= limit * abs(want), (
                f"{loss} of {name} at {label} lengths is {value}, {first} has {want}"
            )
    say(f"{recipe}, batch {batch_size}, {dtype}: losses of all variants agree")
    for key in timed:
        rows[key]["flops"] = counted_flops(counted[key])
    kinds = ("forward", "both", "forward_cpu", "both_cpu")
    times: dict[tuple[str, str], dict[str, list[float]]] = {key: {kind: [] for kind in kinds} for key in timed}
    for turn in range(rounds):
        for name, label in timed:
            step = steps[name, label]
            with torch.no_grad(), products:
                forward = seconds(step, parameters, synchronize)
            with products:
                both = seconds(functools.partial(forward_backward, step), parameters, synchronize)
            for kind, spent in zip(kinds, (forward[0], both[0], forward[1], both[1]), strict=True):
                times[name, label][kind].append(spent)
            say(f"round {turn + 1}/{rounds} {name:>6} {label:>6}: {both[0]:.2f} s forward + backward")
    for key in timed:
        for parameter in parameters:
            parameter.grad = None
        if gpu:
            torch.cuda.reset_peak_memory_stats()
            forward_backward(steps[key])
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
    for name, label in timed:
        for rival in (way for way in contest.ways if way not in _OURS):
            base = (rival, "padded" if label == "true" else label)
            rows[name, label] |= _ratios(rival, rows[base], times[base], rows[name, label], times[name, label])
    return [rows[key] for key in timed]


def _ratios(
    rival: str,
    other: Mapping[str, Any],
    other_times: Mapping[str, Sequence[float]],
    row: Mapping[str, Any],
    times: Mapping[str, Sequence[float]],
) -> dict[str, float]:
    """How many times a row's work and time the rival's are; of times, the median over the turns."""

    def ratio(kind: str) -> float:
        return statistics.median(a / b for a, b in zip(other_times[kind], times[kind], strict=True))

    return {
        f"speedup_vs_{rival}": ratio("both"),
        f"cpu_speedup_vs_{rival}": ratio("both_cpu"),
        f"forward_speedup_vs_{rival}": ratio("forward"),
        f"saved_vs_{rival}": row["saved_bytes"] / other["saved_bytes"],
        f"flops_ratio_vs_{rival}": other["flops"] / row["flops"],
    }


def _on(features: Features, device: str) -> Features:
    local = {name: (tokens.to(device), mask.to(device)) for name, (tokens, mask) in features.local.items()}
    return Features(features.image_tokens_BND.to(device), local)


def _autocast(function: Callable[..., dict[str, Loss]], dtype: str, device: str, *arguments: Any) -> Step:
    def step() -> dict[str, Loss]:
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=dtype == "bf16"):
            return function(*arguments)

    return step
