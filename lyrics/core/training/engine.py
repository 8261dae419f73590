"""One optimizer step over any number of micro-batches and ranks.

Forward, one reduction, backward, clip, and update, or a skip by all ranks.

Every loss is scaled by the number of its terms in the whole step, over all micro-batches and ranks. In stage 1 these
numbers differ from loss to loss, so several micro-batches are first run without gradients to count them; stage 2 has
one loss, whose gradient is scaled when it is complete.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import Accelerator
from torch import nn

from lyrics.core.data.draws import generator
from lyrics.core.runs.config import TrainConfig
from lyrics.core.stage1.distributed import average
from lyrics.core.stage1.reduction import Flags, Reduced, is_finite, reduce_losses, scaled_sum
from lyrics.core.stage1.state import Loss
from lyrics.core.training.optimizer import set_rate
from lyrics.core.training.schedule import learning_rate
from lyrics.kernels.host_work import host_work

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel
    from lyrics.core.training.sharding import Shards


class StageModule(nn.Module):
    """What data parallelism wraps: all losses of a stage in one forward call.

    ``shards`` is set where the language model is shared out.
    """

    def __init__(
        self, model: LyricsModel, stage: Literal["pretrain", "instruct"], shards: Shards | None = None
    ) -> None:
        super().__init__()
        self.model, self.stage, self.shards = model, stage, shards

    def forward(self, batch: Any, seed: int, step: int) -> dict[str, Loss]:
        losses: dict[str, Loss]
        if self.stage == "pretrain":
            losses = self.model.pretraining_step(batch, seed=seed, step=step)
        elif self.shards is not None:
            losses = self.shards.instruction_step(self.model, batch)
        else:
            losses = self.model.instruction_step(batch)
        return losses


def compile_blocks(module: nn.Module) -> int:
    """Compile the blocks that say ``compiled_alone = True``: dense arithmetic, row by row. Returns how many there are.

    Between them stands what changes from batch to batch (packing, plans, texts), which a compiler would trace anew each
    time.
    """
    blocks = [part for part in module.modules() if getattr(part, "compiled_alone", False)]
    for block in blocks:
        block.compile(dynamic=True)
    return len(blocks)


class _Touched(torch.autograd.Function):
    """Return a loss, and a gradient of zero for every parameter.

    A parameter that the losses did not use must still take part in the reduction.
    """

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.like = [(parameter.shape, parameter.dtype) for parameter in parameters]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        zeros = (grads[0].new_zeros((), dtype=dtype).expand(shape) for shape, dtype in ctx.like)
        return grads[0], *zeros


@dataclass(frozen=True)
class StepResult:
    """What became of a step; equal on all ranks but for ``bad``.

    Args:
        means: each loss over all ranks and micro-batches.
        total: their weighted sum.
        gradient_norm: before clipping.
        skipped: why nothing was updated, if so: a loss or the gradient was not finite.
        bad: positions of this rank's micro-batches with a loss that was not finite, and those losses.
        stop: some rank was asked to stop.
        saves_failed: too many saves failed.
        learning_rate: of this step.
    """

    means: Mapping[str, float]
    total: float
    gradient_norm: float
    skipped: Literal["loss", "gradient"] | None
    bad: tuple[tuple[tuple[int, ...], tuple[str, ...]], ...]
    stop: bool
    saves_failed: bool
    learning_rate: float


class StepEngine:
    """Runs steps.

    Args:
        accelerator: of this process.
        bare: the stage's forward pass.
        wrapped: the same as ``accelerator`` prepared it.
        optimizer: prepared.
        parameters: what is trained, by name.
        config: of the run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        bare: StageModule,
        wrapped: Any,
        optimizer: Any,
        parameters: Mapping[str, nn.Parameter],
        config: TrainConfig,
    ) -> None:
        self.accelerator, self.bare, self.wrapped, self.optimizer = accelerator, bare, wrapped, optimizer
        self.parameters = parameters
        self._trained = list(parameters.values())
        self.config = config
        slots = config.model.spec.objectives if config.stage == "pretrain" else {}
        self.weights = {name: slot.weight for name, slot in slots.items()}

    def __call__(
        self, step: int, batches: Sequence[Any], flags: Flags, meanwhile: Callable[[], None] | None = None
    ) -> StepResult:
        """Update the parameters once, or not at all. ``step`` counts from 0; ``batches`` are this rank's micro-batches.

        ``meanwhile`` is called when all of the step but the update is launched and nothing of it has been waited for.
        """
        settings = self.config.optimization
        rate = learning_rate(
            step, steps=settings.steps, peak=settings.learning_rate, warmup_share=settings.warmup_share
        )
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        measured, reduced = self._gradients(step, batches, flags)
        norm = self._clip()
        if meanwhile is not None:
            meanwhile()
        (not_finite, stop, saves_failed), means, gradient_norm = reduced.read(norm)
        skipped: Literal["loss", "gradient"] | None = None
        if not_finite:
            skipped = "loss"
        elif not math.isfinite(gradient_norm):
            # The reduced gradient is the same on all ranks, and so is this decision.
            skipped = "gradient"
        else:
            self._update()
        bad = tuple(
            (tuple(batch.positions), tuple(name for name, loss in losses.items() if not loss.sum.isfinite()))
            for batch, losses in zip(batches, measured, strict=True)
            if not_finite and not is_finite(losses)
        )
        total = sum(self.weights.get(name, 1.0) * mean for name, mean in means.items())
        return StepResult(means, total, gradient_norm, skipped, bad, stop, saves_failed, rate)

    @host_work("launch optimizer")
    def _clip(self) -> torch.Tensor:
        """Return the gradient's norm before clipping."""
        norm = torch.nn.utils.get_total_norm([one.grad for one in self._trained if one.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(self._trained, self.config.optimization.clip_norm, norm)
        return norm

    @host_work("launch optimizer")
    def _update(self) -> None:
        self.optimizer.step()

    def _gradients(self, step: int, batches: Sequence[Any], flags: Flags) -> tuple[list[dict[str, Loss]], Reduced]:
        if len(batches) == 1:
            losses = self._forward(self.wrapped, step, 0, batches[0])
            reduced = reduce_losses([losses], flags)
            self._backward(scaled_sum(losses, reduced, self.weights), last=True)
            return [losses], reduced
        if self.config.stage == "instruct":
            return self._scaled_afterwards(step, batches, flags)
        with torch.no_grad():
            counted = [self._forward(self.bare, step, micro, batch) for micro, batch in enumerate(batches)]
        reduced = reduce_losses(counted, flags)
        for micro, batch in enumerate(batches):
            with self._synchronized(micro == len(batches) - 1):
                losses = self._forward(self.wrapped, step, micro, batch)
                self._backward(scaled_sum(losses, reduced, self.weights), last=micro == len(batches) - 1)
        return counted, reduced

    def _scaled_afterwards(
        self, step: int, batches: Sequence[Any], flags: Flags
    ) -> tuple[list[dict[str, Loss]], Reduced]:
        measured = []
        for micro, batch in enumerate(batches):
            with self._synchronized(micro == len(batches) - 1):
                losses = self._forward(self.wrapped, step, micro, batch)
                (loss,) = losses.values()
                self._backward(loss.sum, last=micro == len(batches) - 1)
            measured.append({name: Loss(one.sum.detach(), one.count) for name, one in losses.items()})
        reduced = reduce_losses(measured, flags)
        scale = reduced.scale(reduced.names[0])
        for parameter in self._trained:
            if parameter.grad is not None:
                parameter.grad.mul_(scale.to(parameter.grad.dtype))
        return measured, reduced

    @host_work("launch forward")
    def _forward(self, module: Any, step: int, micro: int, batch: Any) -> dict[str, Loss]:
        """Losses of a micro-batch.

        Dropout is a function of (seed, step, micro-batch, rank): no generator's state is ever needed.
        """
        part = micro * self.accelerator.num_processes + self.accelerator.process_index
        torch.manual_seed(int(generator(self.config.seed, "dropout", step, part).integers(2**63)))
        losses: dict[str, Loss] = module(batch, self.config.seed, step)
        return losses

    @host_work("launch backward")
    def _backward(self, loss: torch.Tensor, *, last: bool) -> None:
        if last:
            loss = _Touched.apply(loss, *self._trained)  # type: ignore[no-untyped-call]
        loss.backward()  # type: ignore[no-untyped-call]
        if last and self.bare.shards is not None:
            # Nothing is wrapped then. After the backward pass, so that it does not come between the collectives of the
            # shards.
            average([parameter.grad for parameter in self._trained if parameter.grad is not None])

    def _synchronized(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged with the last micro-batch of a step alone."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped)
