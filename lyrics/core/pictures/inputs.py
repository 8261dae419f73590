"""What callers may give for images, instructions and phrases, brought into one form or refused in a sentence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from PIL import Image

from lyrics.core.errors import ImageError, PromptError
from lyrics.core.pictures.images import ImageLike, is_array

#: What one call of ``generate`` takes for one instruction: an image, several, or none.
Pictures = ImageLike | Sequence[ImageLike] | None
#: For each image what to look for; for one image its list alone will do.
Phrases = Sequence[Sequence[str]] | Sequence[str] | None


def is_image(value: object) -> bool:
    """Return whether ``value`` stands for one image. It may still be one that cannot be opened."""
    return isinstance(value, str | os.PathLike | Image.Image) or is_array(value)


def picture_list(entry: Pictures) -> list[ImageLike]:
    """Return an image, several, or none, as a list. Raises ``ImageError`` for anything else."""
    if entry is None:
        return []
    if is_image(entry):
        return [entry]  # type: ignore[list-item]
    if not _is_list(entry):
        raise ImageError(f"images: {_described(entry)}", "format")
    for one in entry:  # type: ignore[union-attr]
        if not is_image(one):
            raise ImageError(f"images: {_described(one)}", "format")
    return list(entry)  # type: ignore[arg-type]


def entry_list(pictures: Pictures | Sequence[Pictures], count: int) -> Sequence[Pictures]:
    """Images for ``count`` instructions: one entry for each. Raises ``PromptError`` where there are more or fewer."""
    if pictures is None:
        return [None] * count
    entries: Sequence[Any] = [pictures] if is_image(pictures) else pictures  # type: ignore[assignment]
    if not _is_list(entries):
        raise ImageError(f"images: {_described(pictures)}", "format")
    if len(entries) != count:
        raise PromptError(
            f"{count} instructions need as many entries of images, not {len(entries)}: for each "
            "instruction an image, a list of images, or None."
        )
    return entries


def instruction_list(instructions: object) -> list[str]:
    """Instructions as a list of texts. Raises ``PromptError`` for what is none."""
    if not _is_list(instructions):
        raise PromptError(
            f"an instruction is a text, and several are a list of texts, not {_a(instructions)}; images come "
            "first, instructions second."
        )
    return [instruction_text(one) for one in instructions]  # type: ignore[attr-defined]


def instructions_for(images: int, instructions: object) -> list[str]:
    """Return one instruction for each of so many images; empty ones for None.

    Raises ``PromptError`` where there are more or fewer.
    """
    if instructions is None:
        return [""] * images
    texts = [instructions] if isinstance(instructions, str) else instruction_list(instructions)
    if len(texts) != images:
        raise PromptError(f"{images} images need as many instructions, not {len(texts)}")
    return texts


def instruction_text(instruction: object) -> str:
    """Return the instruction itself. Raises ``PromptError`` unless it is a text."""
    if not isinstance(instruction, str):
        raise PromptError(f"an instruction is a text, not {_a(instruction)}.")
    return instruction


def phrase_lists(phrases: Phrases, images: int, *, flat: bool = True) -> list[list[str]] | None:
    """Return a list of phrases for each of so many images. Raises ``PromptError`` for anything else.

    ``flat``: where there is one image, its phrases need not stand in a list of lists.
    """
    if phrases is None:
        return None
    example = "phrases=[['dog', 'red car']]"
    if not _is_list(phrases):
        raise PromptError(f"phrases: a list of phrases for each image, such as {example}, not {_a(phrases)}.")
    if flat and images == 1 and phrases and all(isinstance(one, str) for one in phrases):
        return [list(phrases)]  # type: ignore[arg-type]
    if len(phrases) != images:
        raise PromptError(f"{images} images need as many lists of phrases, not {len(phrases)}.")
    for row, found in enumerate(phrases):
        wrong = found if not _is_list(found) else next((one for one in found if not isinstance(one, str)), None)
        if wrong is not None:
            inside = "" if wrong is found else " in it"
            raise PromptError(
                f"phrases, image {row}: a list of texts for each image, such as {example}, not {_a(wrong)}{inside}."
            )
    return [list(found) for found in phrases]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _a(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _described(value: object) -> str:
    hint = (
        "; open it with PIL.Image.open first"
        if isinstance(value, bytes | bytearray) or callable(getattr(value, "read", None))
        else ""
    )
    return f"an image is a path, a PIL image, a numpy array or a torch tensor, not {_a(value)}{hint}."
