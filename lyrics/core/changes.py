"""Which parts of a saved model overrides change, and what the changed model still takes from it. Imports no torch.

A part is *replaced* where it becomes another component, or names another checkpoint: it is built from its own weights,
as its options say, and takes nothing from the saved model. It is *altered* where only other options differ: it takes
every saved tensor that still fits. All other parts are as they were saved.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lyrics.core.errors import LyricsError
from lyrics.core.registry.registry import default_registry
from lyrics.core.resolve import LOCAL_SOURCES, Part, declared_dim
from lyrics.core.resolve import overridden as with_overrides
from lyrics.core.spec import ModelSpec, Slot, validate

#: Spec paths of parts whose outputs the trained parts have learned to read.
_READ = ("image_encoder", "refiner.detector", "refiner.segmenter", "query_transformer", "language_model")


@dataclass(frozen=True)
class Changes:
    """The parts that overrides change, by their spec paths.

    Args:
        altered: parts with other options.
        replaced: parts that are others, with what each was and is, for messages.
        quantized: altered parts whose weights are to be quantized. That is done while a checkpoint is read, so
            their frozen tensors come from the checkpoint that they name.
        stand_in: replaced parts that stand in for those that they replace (``stand_ins``).
    """

    altered: frozenset[str] = frozenset()
    replaced: Mapping[str, str] = field(default_factory=dict)
    quantized: frozenset[str] = frozenset()
    stand_in: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        return self.altered | self.replaced.keys()

    @property
    def from_own_weights(self) -> frozenset[str]:
        """Parts that are built from what their options name."""
        return self.quantized | self.replaced.keys()


def overridden(saved: ModelSpec, overrides: Mapping[str, Any]) -> tuple[ModelSpec, Changes]:
    """Return the specification of a saved model with overrides, and what they change, part by part.

    Raises ``SpecError``.
    """
    saved = with_overrides(saved, {})
    wanted = with_overrides(saved, {**overrides, **stand_ins(saved, overrides)})
    before = {path: slot for path, _, slot in saved.slots()}
    altered, replaced, quantized, stand_in = set(), {}, set(), set()
    for path, _, slot in wanted.slots():
        was = before.get(path)
        if was == slot:
            continue
        if was is None or _identity(was) != _identity(slot):
            replaced[path] = f"{path} ({_name(slot)}, was {'null' if was is None else _name(was)})"
            if slot.options.get("stand_in_dim") is not None:
                stand_in.add(path)
        else:
            altered.add(path)
            if slot.options.get("quantization", "none") != "none":
                quantized.add(path)
    # What was written of a part that is gone says nothing of the one in its place.
    distributions = {path: written for path, written in wanted.distributions.items() if path not in replaced}
    wanted = wanted.model_copy(update={"distributions": distributions})
    return wanted, Changes(frozenset(altered), replaced, frozenset(quantized), frozenset(stand_in))


def stand_ins(saved: ModelSpec, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Further overrides, by which parts that can stand in for those that they replace do so.

    A part with the option ``stand_in_dim`` can take the place of one that gives local tokens of that width, without
    giving any: the query transformer, which was trained to read them, is kept whole.
    """
    wanted = with_overrides(saved, overrides)
    if wanted.query_transformer != saved.query_transformer:
        return {}
    before = {path: (kind, slot) for path, kind, slot in saved.slots()}
    found = {}
    for path, kind, slot in wanted.slots():
        if path.removeprefix("refiner.") not in LOCAL_SOURCES or path not in before or slot.use == before[path][1].use:
            continue
        width = _width(path, *before[path])
        if width is not None and "stand_in_dim" in _fields(kind, slot) and "stand_in_dim" not in slot.options:
            found[f"{path}.options.stand_in_dim"] = width
    return found


def _fields(kind: str, slot: Slot) -> Collection[str]:
    try:
        return default_registry().component(kind, slot.use).component.options.model_fields
    except LyricsError:  # resolving says what is wrong
        return ()


def _width(path: str, kind: str, slot: Slot) -> int | None:
    """Return the declared width of a part's local tokens; None where it declares none, or is not installed here."""
    try:
        entry = default_registry().component(kind, slot.use)
        return declared_dim(Part(path, entry, validate(slot.options, entry.component.options)))
    except LyricsError:
        return None


def _identity(slot: Slot) -> tuple[str, object]:
    return slot.use.rpartition("/")[2], slot.options.get("checkpoint")


def _name(slot: Slot) -> str:
    checkpoint = slot.options.get("checkpoint")
    return f"{slot.use} of {checkpoint}" if checkpoint else slot.use


def part_of(tensor: str) -> str:
    """Return the spec path of the part that a tensor of this name belongs to.

    ``projection`` for those between two parts.
    """
    first, _, rest = tensor.partition(".")
    if first in ("refiner", "objectives"):
        return f"{first}.{rest.partition('.')[0]}"
    return "image_encoder" if first == "encoder" else first


def warn_of_changes(found: Changes, spec: ModelSpec, left: Iterable[str], source: object) -> None:
    """Warn of parts that the trained ones have not learned to read, and of the tensors that stay random.

    ``left`` are those that nothing of ``source`` was loaded into; of a replaced part they are random if no checkpoint
    is named and it is one that stage 1 trains. Experts bring their own weights, and a new adaptation of a language
    model changes nothing until it is trained.
    """
    slots = {path: slot for path, _, slot in spec.slots()}
    counts: dict[str, int] = {}
    for part in map(part_of, left):
        trained = part == "query_transformer" or part.startswith("objectives.")
        if part not in found.replaced or (trained and not slots[part].options.get("checkpoint")):
            counts[part] = counts.get(part, 0) + 1
    anew = [text for path, text in found.replaced.items() if path in _READ and path not in found.stand_in]
    said = [f"built anew: {', '.join(anew)}."] if anew else []
    if counts:
        said.append(f"Tensors that stay random: {', '.join(f'{part} ({n})' for part, n in sorted(counts.items()))}.")
    if said:
        said.append(
            f"The rest of {source} was trained with other parts: until this model is trained, answers mean little."
        )
        warnings.warn(" ".join(said), stacklevel=3)
