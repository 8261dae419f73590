"""Options of ``lyrics evaluate`` and ``lyrics ablate``: under which conditions the samples are answered as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lyrics.core.conditions import Condition

SoftOption = Annotated[
    str | None,
    typer.Option(
        "--soft",
        metavar="KIND,...",
        help="Answer again with other soft tokens: own, shuffled (another sample's), zero, noise; separated by commas.",
    ),
]
BlurOption = Annotated[
    str | None,
    typer.Option(
        "--blur",
        metavar="PIXELS,...",
        help="Answer again with blurred images: standard deviations in pixels of the original, such as 0,2,4,8.",
    ),
]
BlurPartsOption = Annotated[
    str | None,
    typer.Option(
        "--blur-parts", help="Which parts see the blurred image: encoder, experts, both; or several of these."
    ),
]
DropOption = Annotated[
    str | None,
    typer.Option(
        "--drop-tokens", metavar="SHARE,...", help="Answer again without this share of each image's soft tokens."
    ),
]
DrawOption = Annotated[
    int | None, typer.Option("--condition-seed", min=0, help="Seed of what these conditions draw; 0 unless given.")
]


def asked_conditions(
    soft: str | None, blur: str | None, blur_parts: str | None, drop_tokens: str | None, seed: int | None
) -> list[Condition]:
    """Return one condition for each value that was given, without those that change nothing.

    Raises ``SpecError`` for an invalid value.
    """
    from lyrics.core.conditions import Condition
    from lyrics.core.errors import SpecError

    drawn = 0 if seed is None else seed
    parts = _split("--blur-parts", blur_parts)
    if parts and blur is None:
        raise SpecError(f"--blur-parts {blur_parts}: says who sees a blurred image; give --blur, too.")
    found: list[Condition] = []
    try:
        found += [Condition(soft=kind, seed=drawn) for kind in _split("--soft", soft)]  # type: ignore[arg-type]
        for pixels in _numbers("--blur", blur):
            found += [Condition(blur_px=pixels, blur_parts=part) for part in parts or ["both"]]  # type: ignore[arg-type]
        found += [Condition(drop_tokens=share, seed=drawn) for share in _numbers("--drop-tokens", drop_tokens)]
    except SpecError as error:
        given = {"soft": soft, "blur_px": blur, "blur_parts": blur_parts, "drop_tokens": drop_tokens}
        flags = {"soft": "--soft", "blur_px": "--blur", "blur_parts": "--blur-parts", "drop_tokens": "--drop-tokens"}
        name = str(error).partition("=")[0]
        raise SpecError(f"{flags[name]} {given[name]}: {error}") if name in flags else error from None
    if seed is not None and not any(one.draws for one in found):
        raise SpecError(
            f"--condition-seed {seed}: nothing is drawn; add --soft shuffled, --soft noise or --drop-tokens."
        )
    return [one for one in dict.fromkeys(found) if not one.changes_nothing]


def _split(flag: str, text: str | None) -> list[str]:
    from lyrics.core.errors import SpecError

    if text is None:
        return []
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise SpecError(f"{flag}: names nothing; give values separated by commas, or leave it out.")
    return parts


def _numbers(flag: str, text: str | None) -> list[float]:
    from lyrics.core.errors import SpecError

    found = []
    for part in _split(flag, text):
        try:
            found.append(float(part))
        except ValueError:
            raise SpecError(f"{flag} {text}: {part!r} is not a number.") from None
    return found
