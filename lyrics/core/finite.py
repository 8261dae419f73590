"""Which part of a model is the first to give numbers that are not finite.

Answering looks at the soft tokens and at the logits alone; only when those are not finite is the way of the image gone
once more, part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

from lyrics.core.contracts import Module
from lyrics.core.errors import NotFiniteError

ADVICE = (
    "Its weights are damaged or its training has diverged, or the floating-point type is too narrow for it; "
    "try dtype=torch.float32 (--dtype float32)."
)


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether no value is NaN or infinite."""
    return bool(torch.isfinite(tensor).all())


def refuse(part: str) -> NotFiniteError:
    """Return the error for a part that is the first to give values that are not finite."""
    return NotFiniteError(f"{part}: gave values that are not finite (NaN or infinity). {ADVICE}")


def first_not_finite(experts: Mapping[str, Module], projection: nn.Module, run: Callable[[], object]) -> str:
    """Run a forward pass again and return the part that first gives values that are not finite.

    Args:
        experts: name in the specification -> module, for the parts before the query transformer.
        projection: what the query transformer's outputs [.., D] go into.
        run: the forward pass.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _given: object, output: object) -> None:
            if not all(map(is_finite, _tensors(output))):
                found.append(name)

        return hook

    def before_projection(_module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if not is_finite(given[0]):
            found.append("query_transformer")

    with ExitStack() as hooks:
        for name, module in experts.items():
            hooks.enter_context(_removed(module.register_forward_hook(watch(name))))
        hooks.enter_context(_removed(projection.register_forward_pre_hook(before_projection)))
        run()
    return found[0] if found else "projection"


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _tensors(output: object) -> Iterator[torch.Tensor]:
    """The floating-point tensors of what a part gives: a tensor, a record, a mapping or a sequence of such."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from _tensors(getattr(output, field.name))
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
