"""The frozen language model shared out over the ranks (FSDP2).

Each rank keeps a part of every weight, and a layer is whole only while it runs.

What is trained is small and stays whole on every rank, so checkpoints do not depend on the strategy. accelerate's FSDP2
plugin wraps the whole model and shards LoRA with the layers that it sits in; ``fully_shard`` is therefore called here,
and told to leave that alone.

To put a layer together takes all ranks, so all must run the language model equally often: in training once for each
micro-batch, whatever it holds (``Shards.instruction_step``), in an evaluation as often as the rank that runs it most
(``Shards.evaluating``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from lyrics.core.contracts import Module
from lyrics.core.errors import SpecError
from lyrics.core.stage1.distributed import summed, world_size
from lyrics.core.stage1.state import Loss

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel

_MARK = "_is_fsdp_managed_module"


def layers(language_model: Module) -> list[nn.Module]:
    """Return what is put together at once: the members of the outermost module lists.

    They are a transformer's layers.
    """
    found: list[nn.Module] = []
    for child in language_model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else layers(child)
    return found


def largest_share(parameter: torch.Tensor, ranks: int) -> int:
    """Return numbers of a parameter that a rank keeps at most: it is split along its first dimension."""
    return -(-parameter.shape[0] // ranks) * parameter[0].numel()


def check_model(model: LyricsModel, stage: str) -> None:
    """Raise ``SpecError`` for a language model that cannot be shared out."""
    language_model = model.language_model
    if stage == "instruct" and language_model.adaptation == "full":
        raise SpecError(
            "strategy=fsdp2: shares out frozen weights, and adaptation=full leaves none in the language model. "
            "Set model.spec.language_model.options.adaptation=lora, or strategy=ddp."
        )
    for name, parameter in language_model.named_parameters():
        if not parameter.is_floating_point():
            raise SpecError(
                f"strategy=fsdp2: cannot share out quantized weights ({name} is {parameter.dtype}). Set "
                "model.spec.language_model.options.quantization=none, or strategy=ddp."
            )


class Shards:
    """Shares out the language model of ``model`` and moves everything to ``device``, with the first rank's values.

    ``trained`` are the parameters that stay whole. All others of the language model become ``DTensor``; their names
    stay.
    """

    def __init__(self, model: LyricsModel, trained: Iterable[nn.Parameter], device: torch.device) -> None:
        # The contract is of what core calls; sharing out needs the module itself.
        module: Any = model.language_model
        self.language_model, self.device = module, device
        mesh = init_device_mesh(device.type, (world_size(),))
        whole = set(trained)
        parts = layers(module)
        # Layer by layer, so that a device never holds more of the whole than that.
        for part in parts:
            _share_out(part, mesh, whole, device, again=True)
        # Embeddings, last norm and head. They are needed at both ends of a step, and stay whole in between.
        _share_out(module, mesh, whole, device, again=False)
        _place(model, device)
        register_fsdp_forward_method(module, "embed")
        module.register_forward_pre_hook(self._before_forward, prepend=True)
        if parts:
            # Generation runs the layers without the forward pass of the contract.
            parts[0].register_forward_pre_hook(self._before_layers, prepend=True)
        self._ran = self._in_evaluation = self._helps = False
        with torch.no_grad():
            # The first call fixes who is inside whom; one word with nothing in it is what ``_empty_pass`` reads.
            self._nothing_11D = torch.zeros_like(module.embed(torch.zeros(1, 1, dtype=torch.long, device=device)))
        module.reshard()
        model.shards = self

    def instruction_step(self, model: LyricsModel, batch: Any) -> dict[str, Loss]:
        """Run a stage-2 step with one forward and backward pass of the language model.

        It is run also where this rank's batch has nothing to learn from.
        """
        self._ran = False
        losses: dict[str, Loss] = model.instruction_step(batch)
        if self._ran:
            return losses
        nothing = self._empty_pass().sum() * 0
        return {name: Loss(loss.sum + nothing, loss.count) for name, loss in losses.items()}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, every rank runs the language model as often as it likes.

        The others join in, after they have done with their own.
        """
        # transformers sees by this attribute that ranks depend on each other, and would have them generate in step by
        # itself; but all would have to generate equally often for that.
        marked = [one for one in self.language_model.modules() if getattr(one, _MARK, False)]
        for module in marked:
            setattr(module, _MARK, False)
        self.language_model.unshard()
        self._in_evaluation = True
        yield
        self.catch_up()
        self._in_evaluation = False
        self.language_model.reshard()
        for module in marked:
            setattr(module, _MARK, True)

    def catch_up(self) -> None:
        """Join in until no rank runs the language model any more.

        All ranks must come here; afterwards they may exchange other things.
        """
        if not self._in_evaluation:
            return
        self._helps = True
        with torch.no_grad():
            while self._somebody_runs(False):
                self._empty_pass()
        self._helps = False

    def _empty_pass(self) -> torch.Tensor:
        mask_11 = torch.ones(1, 1, dtype=torch.long, device=self.device)
        logits: torch.Tensor = self.language_model(self._nothing_11D.clone(), mask_11)
        return logits

    def _before_forward(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._ran = True
        embeddings_BLD = arguments[0]
        if torch.is_grad_enabled() and not embeddings_BLD.requires_grad:
            # A batch without images: the backward pass goes through all layers nevertheless, as on the other ranks.
            embeddings_BLD.requires_grad_()

    def _before_layers(self, *_: object) -> None:
        if self._in_evaluation and not self._helps:
            self._somebody_runs(True)

    def _somebody_runs(self, this_rank: bool) -> bool:
        return bool(summed(torch.tensor([float(this_rank)], device=self.device)).item() > 0)


def _share_out(
    module: nn.Module, mesh: DeviceMesh, whole: set[nn.Parameter], device: torch.device, *, again: bool
) -> None:
    """``again``: put together anew for the backward pass, rather than kept from the forward pass on."""
    _place(module, device)
    fully_shard(module, mesh=mesh, reshard_after_forward=again, ignored_params=whole)


def _place(module: nn.Module, device: torch.device) -> None:
    """Move what is not shared out to the device, with the first rank's values, as data parallelism does."""
    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device).contiguous()
            # As bytes: not every backend knows every type.
            dist.broadcast(tensor.data.view(-1).view(torch.uint8), 0)
