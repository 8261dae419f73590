"""The public operations: validate, choose an implementation, call it.

``impl`` names how: ``auto``, ``triton``, ``flash``, ``flex``, ``sdpa``, ``reference``. An explicit name never falls
back to another: where it cannot serve, it says why. ``auto`` takes the first in that order that can serve these tensors
and logs once what and why.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch

from lyrics.kernels.cross import CrossPlan
from lyrics.kernels.plan import Plan
from lyrics.kernels.tiles import NUM_TABLES, HostTiles, TileSizes, keep_tiles
from lyrics.kernels.upload import Parcel, to_device

logger = logging.getLogger(__name__)

#: Implementations in the order in which ``auto`` tries them -> the module that holds them.
_MODULES: Mapping[str, str] = {
    "triton": "lyrics.kernels._triton",
    "flash": "lyrics.kernels._flash",
    "flex": "lyrics.kernels._flex",
    "sdpa": "lyrics.kernels._sdpa",
    "reference": "lyrics.kernels._reference",
}
IMPLEMENTATIONS = tuple(_MODULES)
#: Their tests have not passed on a GPU yet, so ``auto`` leaves them to those who name them. Empty this when they have.
UNPROVEN: tuple[str, ...] = ("triton", "flash", "flex")
_ABOUT = {
    "triton": "kernels of its own, by tiles of the plan",
    "flash": "flash attention's variable-length kernels, one call for full and one for causal blocks",
    "flex": "torch's compiled flex_attention with the plan as block mask",
    "sdpa": "torch's scaled_dot_product_attention over buckets of like streams",
    "reference": "plain torch, dense: the definition",
}
_HALF = (torch.float16, torch.bfloat16)


class ImplementationError(ValueError):
    """The implementation asked for does not exist or cannot serve these tensors here; the message says why and what
    can.
    """


@dataclass(frozen=True)
class Availability:
    """Whether an implementation can run here, and the reason either way."""

    name: str
    available: bool
    reason: str


def available_implementations() -> list[Availability]:
    """Every implementation by name, in the order ``auto`` tries them, with the reason why it can or cannot run on this
    machine.

    One that can run here may still refuse some tensors (their device, type, head dimension, dropout): ``explain`` says.
    """
    found = []
    for name in _MODULES:
        missing = _missing(name)
        found.append(Availability(name, missing is None, _about(name) if missing is None else missing))
    return found


def explain(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    head_dim: int = 64,
    dropout_p: float = 0.0,
) -> str:
    """What ``impl="auto"`` takes for such tensors, and why, in one sentence."""
    chosen, refusals = _choose(torch.device(device), dtype, head_dim, dropout_p > 0)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
    return f"{chosen} ({_about(chosen)}) for {dtype} on {device}" + (f" [{reasons}]" if reasons else "")


def _missing(name: str) -> str | None:
    """Why this machine cannot run an implementation at all; None if it can."""
    if name in ("sdpa", "reference"):
        return None
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'lyrics-vl[kernels]')"
    if name == "triton" and _interpreted():
        return None
    if name == "flash" and not (_has_flash_attn() or torch.backends.cuda.is_flash_attention_available()):
        return (
            "flash-attn is not installed (pip install 'lyrics-vl[flash]', where CUDA's compiler is), "
            "and this build of torch has no flash kernels of its own"
        )
    if not torch.cuda.is_available():
        return "needs a CUDA device, and torch sees none"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"needs a GPU of compute capability 8.0 or more; this one has {major}.{minor}"
    return None


def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _about(name: str) -> str:
    if name == "flash" and not _has_flash_attn():
        return f"{_ABOUT[name]}; by torch's own varlen_attn, since flash-attn is not installed"
    return _ABOUT[name]


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _refusal(name: str, device: torch.device, dtype: torch.dtype, head_dim: int, dropout: bool) -> str | None:
    """Why an implementation does not serve such tensors here; None if it does."""
    if name in ("sdpa", "reference"):
        return None
    missing = _missing(name)
    if missing is not None:
        return missing
    if device.type != "cuda" and not (name == "triton" and _interpreted()):
        return f"needs tensors on a CUDA device, not on {device.type}"
    dtypes = _HALF if name == "flash" else (*_HALF, torch.float32)
    if dtype not in dtypes:
        return f"takes {', '.join(str(dtype) for dtype in dtypes)}, not {dtype}"
    if name == "flash" and (head_dim % 8 or head_dim > 256):
        return f"takes head dimensions that are multiples of 8 up to 256, not {head_dim}"
    if name != "flash" and head_dim not in (32, 64, 128):
        return f"takes head dimensions 32, 64 and 128, not {head_dim}"
    if name != "triton" and dropout:
        return "cannot drop the entries that logical positions say"
    return None


def _choose(device: torch.device, dtype: torch.dtype, head_dim: int, dropout: bool) -> tuple[str, dict[str, str]]:
    """What ``auto`` takes, and why not those before it. Triton's interpreter is for tests: ``auto`` never takes it."""
    refusals: dict[str, str] = {}
    for name in _MODULES:
        reason = _refusal(name, device, dtype, head_dim, dropout)
        if reason is None and name == "triton" and device.type != "cuda":
            reason = "runs in Triton's interpreter here, for tests"
        if reason is None and name in UNPROVEN:
            reason = "its tests have not passed on a GPU yet; name it to use it"
        if reason is None:
            return name, refusals
        refusals[name] = reason
    raise AssertionError("sdpa and the reference serve everything")


#: Makes the tables that an implementation reads of a plan. It can be pickled, and asks no device.
HostTables = Callable[[Plan | CrossPlan], HostTiles]


def host_tables(
    device: torch.device, dtype: torch.dtype, head_dim: int, dropout_p: float = 0.0, impl: str = "auto"
) -> HostTables | None:
    """Return what makes the tables of plans for such tensors, in this process or in another; None where ``impl`` reads
    none. Arguments as for ``prepare``.
    """
    maker = getattr(_LOADED[_served_by(impl, device, dtype, head_dim, dropout_p > 0)], "host_tables", None)
    made: HostTables | None = None if maker is None else maker(device, dtype, head_dim, dropout_p)
    return made


@dataclass(frozen=True, eq=False)
class Prepared:
    """What ``prepare`` has sent: the caller's ``arrays`` on the device, and the tables of plans, for ``keep``."""

    arrays: list[torch.Tensor]
    device: torch.device
    _sizes: Sequence[TileSizes]
    _sent: list[torch.Tensor]

    def keep(self, plans: Sequence[Plan | CrossPlan]) -> None:
        """Give the plans their tables: those that ``prepare`` got, in the same order, with their per-token tables on
        the device.
        """
        # There are no sizes where the implementation has no tables.
        for number, (plan, sizes) in enumerate(zip(plans, self._sizes, strict=False)):
            tables = self._sent[number * NUM_TABLES : (number + 1) * NUM_TABLES]
            keep_tiles(plan, sizes, tables, self.device)


@dataclass(frozen=True, eq=False)
class PackedTables:
    """What ``prepare`` sends, still on the host: ``arrays`` of the caller and the tables of plans in one parcel."""

    parcel: Parcel
    count: int
    sizes: tuple[TileSizes, ...]

    @classmethod
    def of(
        cls, tables: HostTables | None, plans: Sequence[Plan | CrossPlan], arrays: Sequence[np.ndarray]
    ) -> PackedTables:
        made = [] if tables is None else [tables(plan) for plan in plans]
        parcel = Parcel.of([*arrays, *(array for one in made for array in one.arrays)])
        return cls(parcel, len(arrays), tuple(one.sizes for one in made))

    def pin_memory(self) -> PackedTables:
        """The same in memory that a GPU reads by itself."""
        return replace(self, parcel=self.parcel.pin_memory())

    def sent(self, device: torch.device) -> Prepared:
        """Copy all of it to ``device`` at once; the host does not wait."""
        sent = self.parcel.sent(device)
        return Prepared(sent[: self.count], device, self.sizes, sent[self.count :])


def prepare(
    plans: Sequence[Plan | CrossPlan],
    arrays: Sequence[np.ndarray] = (),
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    dropout_p: float = 0.0,
    impl: str = "auto",
) -> Prepared:
    """Bring what ``impl`` reads of plans to the device, and ``arrays`` of whole numbers beside it, in one copy.

    Other arguments say what the attentions will be called with. It is no mistake if they turn out otherwise: what a
    plan lacks is then made when it is needed.
    """
    tables = host_tables(device, dtype, head_dim, dropout_p, impl)
    made = [] if tables is None else [tables(plan) for plan in plans]
    sent = to_device([*arrays, *(array for one in made for array in one.arrays)], device)
    return Prepared(sent[: len(arrays)], device, [one.sizes for one in made], sent[len(arrays) :])


def segment_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan,
    *,
    dropout_p: float = 0.0,
    seed: int = 0,
    impl: str = "auto",
) -> torch.Tensor:
    """Attention over packed tokens: row t sees the keys that ``plan`` says, scaled by 1/sqrt(d).

    Args:
        q: [Tq, H, d]; k and v: [Tk, H, d], same dtype and device. Only the last dimension must be contiguous.
        plan: from ``build_plan`` (or ``Plan.select`` of it), with Tq query rows and Tk keys.
        dropout_p: probability that an attention weight is dropped. Which ones depends on ``seed`` and on logical
            positions alone, so that packing and implementation make no difference.
        seed: 64-bit; give every layer its own.
        impl: see the module's text.

    Returns:
        [Tq, H, d]. Rows that see no key are zero.

    Raises:
        ValueError: shapes that do not fit the plan or each other.
        ImplementationError: an unknown or unavailable ``impl``.
    """
    if q.dim() != 3 or k.shape != v.shape or k.dim() != 3 or q.shape[1:] != k.shape[1:]:
        raise ValueError(
            f"q, k, v must be [Tq,H,d], [Tk,H,d], [Tk,H,d]; got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}."
        )
    if (q.shape[0], k.shape[0]) != (plan.num_queries, plan.num_keys):
        raise ValueError(
            f"the plan is for {plan.num_queries} query rows and {plan.num_keys} keys; got {q.shape[0]} and "
            f"{k.shape[0]}."
        )
    _check_common(q, k, v, dropout_p)
    module = _LOADED[_served_by(impl, q.device, q.dtype, q.shape[-1], dropout_p > 0)]
    return module.segment_attention(q, k, v, plan, dropout_p=dropout_p, seed=seed)


def cross_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: CrossPlan,
    *,
    dropout_p: float = 0.0,
    seed: int = 0,
    impl: str = "auto",
) -> torch.Tensor:
    """Query sets read the keys and values of the image that ``plan`` gives each of them.

    Args:
        q: [S, Q, H, d] query sets; k and v: [I, M, H, d], projected once per image however many sets read them.
        plan: from ``build_cross_plan``.
        dropout_p, seed, impl: as in ``segment_attention``.

    Returns:
        [S, Q, H, d]; zero for sets whose image has no key (or when M is 0).
    """
    if q.dim() != 4 or k.shape != v.shape or k.dim() != 4 or q.shape[2:] != k.shape[2:]:
        raise ValueError(
            f"q, k, v must be [S,Q,H,d], [I,M,H,d], [I,M,H,d]; got {tuple(q.shape)}, {tuple(k.shape)}, "
            f"{tuple(v.shape)}."
        )
    if (q.shape[0], k.shape[0], k.shape[1]) != (len(plan.image_index_S), plan.num_images, len(plan.col_id_M)):
        raise ValueError(
            f"the plan is for {len(plan.image_index_S)} query sets and {plan.num_images} images of "
            f"{len(plan.col_id_M)} keys; got {q.shape[0]}, {k.shape[0]} and {k.shape[1]}."
        )
    _check_common(q, k, v, dropout_p)
    if k.shape[1] == 0:
        return q * 0.0
    module = _LOADED[_served_by(impl, q.device, q.dtype, q.shape[-1], dropout_p > 0)]
    return module.cross_attention(q, k, v, plan, dropout_p=dropout_p, seed=seed)


def _check_common(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float) -> None:
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise ValueError(f"q, k, v must share dtype and device; got {[(x.dtype, str(x.device)) for x in (q, k, v)]}.")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), not {dropout_p}.")


#: Implementations that were asked for -> their modules. A module because traced code may read it; see ``_served_by``.
_LOADED: dict[str, ModuleType] = {}


def _served_by(impl: str, device: torch.device, dtype: torch.dtype, head_dim: int, dropout: bool) -> str:
    """``_implementation``, which torch.compile asks once while it traces: a choice, a log line and an import are no
    part of a graph.
    """
    return _REPLACED[-1] if _REPLACED else _implementation(impl, device, dtype, head_dim, dropout)


# What torch.compiler.assume_constant_result does, which would first import torch's compiler: a second for those who
# compile nothing.
_served_by._dynamo_marked_constant = True  # type: ignore[attr-defined]


#: What ``replaced_by`` has put in the place of every implementation.
_REPLACED: list[str] = []


@contextlib.contextmanager
def replaced_by(module: ModuleType) -> Iterator[None]:
    """In this context both attentions are those of ``module``, whatever was asked for: for measurements without the
    arithmetic.
    """
    _LOADED[module.__name__] = module
    _REPLACED.append(module.__name__)
    try:
        yield
    finally:
        _REPLACED.pop()


@lru_cache(maxsize=64)
def _implementation(impl: str, device: torch.device, dtype: torch.dtype, head_dim: int, dropout: bool) -> str:
    """The name that serves, its module loaded."""
    if impl == "auto":
        impl, _ = _choose(device, dtype, head_dim, dropout)
        _say_once(f"attention: auto takes {explain(device, dtype, head_dim, float(dropout))}")
    if impl not in _MODULES:
        raise ImplementationError(
            f"there is no implementation {impl!r}; the names are auto, {', '.join(IMPLEMENTATIONS)}."
        )
    reason = _refusal(impl, device, dtype, head_dim, dropout)
    if reason is not None:
        usable = [name for name in _MODULES if _refusal(name, device, dtype, head_dim, dropout) is None]
        raise ImplementationError(f"implementation {impl!r} cannot run here: {reason}. Available: {', '.join(usable)}.")
    _LOADED[impl] = importlib.import_module(_MODULES[impl])
    return impl


@lru_cache(maxsize=64)
def _say_once(text: str) -> None:
    logger.info(text)
