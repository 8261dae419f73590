"""Names of floating-point types: the one table that every ``--dtype`` and every ``dtype=`` reads.

Importing this imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lyrics.core.errors import UnknownNameError, did_you_mean

if TYPE_CHECKING:
    import torch

#: torch's name -> the short one.
SHORT: Mapping[str, str] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_LONG = {spelling: name for name, short in SHORT.items() for spelling in (name, short)}


def dtype_name(given: str, *, where: str = "--dtype", choices: Iterable[str] = tuple(SHORT)) -> str:
    """torch's name of a type: ``"bfloat16"`` for ``"bf16"`` and for ``"bfloat16"``.

    Args:
        given: either spelling.
        where: what stands before the value in a message.
        choices: of torch's names, those that are allowed.

    Raises:
        UnknownNameError: it is none of the choices.
    """
    name = _LONG.get(given)
    allowed = list(choices)
    if name is None or name not in allowed:
        known = ", ".join(f"{one} (or {SHORT[one]})" for one in allowed)
        hint = did_you_mean(given, [spelling for spelling, one in _LONG.items() if one in allowed])
        raise UnknownNameError(f"{where} {given}: is one of {known}.{hint}")
    return name


def torch_dtype(given: str | torch.dtype, *, where: str = "dtype") -> torch.dtype:
    """Return the floating-point type of either spelling, or the type itself.

    Raises ``UnknownNameError`` for anything else.
    """
    import torch

    if isinstance(given, torch.dtype) and given.is_floating_point:
        return given
    if not isinstance(given, str):
        raise UnknownNameError(
            f"{where}={given} is not a floating-point type; give torch.float32, torch.bfloat16 or "
            "torch.float16, or one of their names."
        )
    found: torch.dtype = getattr(torch, dtype_name(given, where=where))
    return found
