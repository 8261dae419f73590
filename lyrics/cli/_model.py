"""Options of every command that answers with a model, and how they become one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from lyrics.core.answers import Answer
    from lyrics.core.model import LyricsModel

ModelOption = Annotated[
    str, typer.Option("--model", help="A model folder, a run folder, a preset, a spec file, or a hub id.")
]
WeightsOption = Annotated[
    str, typer.Option("--weights", help="pretrained, or random to try a spec out without weights.")
]
RefinedOption = Annotated[
    Path | None, typer.Option("--refined", help="Read tags, boxes and masks from this objects.jsonl instead.")
]
DownloadFlag = Annotated[
    bool, typer.Option("--download", help="Download checkpoints of the hub that a saved model or a run names.")
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="Device that the model runs on, such as cuda.")]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="float32, bfloat16 or float16; fp32, bf16 and fp16 are the same.")
]
TokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Largest number of tokens of an answer.")]
BoxesOption = Annotated[
    str,
    typer.Option("--boxes", help="How boxes are written: original (pixels of the original), norm (0 to 1), or 0-999."),
]
BoxForm = Literal["original", "norm", "0-999"]


def open_model(
    name: str,
    weights: str,
    settings: list[str] | None,
    refined: Path | None,
    device: str | None,
    dtype: str,
    *,
    download: bool = False,
) -> LyricsModel:
    """Raise ``UnknownNameError`` for an option's value that does not exist, and what ``load_model`` raises."""
    from lyrics.cli._overrides import parse_overrides
    from lyrics.core.dtypes import dtype_name

    dtype = dtype_name(dtype)
    overrides: dict[str, Any] = parse_overrides(settings)
    if refined is not None:
        for part in ("tagger", "detector", "segmenter"):
            overrides.setdefault(f"refiner.{part}", {"use": "cached", "options": {"file": str(refined)}})

    from lyrics.core.loading import load_model

    return load_model(
        name,
        overrides=overrides,
        weights=weights,
        downloads=download or None,
        device=device,
        dtype=dtype,
    )


def warn_of_unknown_images(model: LyricsModel, images: Sequence[str]) -> bool:
    """Warn of images of a kind that the model's experts were not trained on; return whether there is one."""
    from lyrics.core.refining.known import warn_of_unknown

    return warn_of_unknown(
        [model.encoder, *(model.refiner.experts.values() if model.refiner is not None else ())], images
    )


def box_form(boxes: str) -> BoxForm:
    from lyrics.core.errors import UnknownNameError, did_you_mean

    if boxes not in ("original", "norm", "0-999"):
        forms = ("original", "norm", "0-999")
        raise UnknownNameError(f"--boxes {boxes}: is one of {', '.join(forms)}.{did_you_mean(boxes, forms)}")
    return boxes  # type: ignore[return-value]


def answer_data(answer: Answer, form: BoxForm) -> dict[str, Any]:
    """Return an answer for a program to read, its boxes in the form asked for."""
    data = answer.to_json()
    for written, found in zip(data["objects"], answer.objects, strict=True):
        if form == "norm":
            written["box_norm"] = [round(value, 5) for value in found.box_norm.as_tuple()]
        elif form == "0-999":
            written["box_999"] = [round(value * 999) for value in found.box_norm.as_tuple()]
        if form != "original":
            del written["box_px"]
    return data


def answer_lines(answer: Answer, form: BoxForm) -> list[str]:
    """Return what an answer points at, a line each, for a person to read."""
    key = {"original": "box_px", "norm": "box_norm", "0-999": "box_999"}[form]
    lines = []
    for found in answer_data(answer, form)["objects"]:
        box = " ".join(f"{value:g}" for value in found[key])
        if found["supported"]:
            seen = f"seen as {found['detected_as']!r}, score {found['score']:.2f}, overlap {found['iou']:.2f}"
        else:
            seen = "not seen by the refiner"
        lines.append(f"  {found['tag'] or 'box'}: {box} ({seen})")
    return lines


def draw_answer(answer: Answer, picture: Path, out: Path) -> None:
    """The image with what an answer points at. Raises ``LyricsError`` when the file cannot be written."""
    from lyrics.core.answers import objects_to_draw
    from lyrics.core.errors import LyricsError
    from lyrics.core.pictures.drawing import draw_objects
    from lyrics.core.pictures.images import open_image

    drawn = draw_objects(open_image(picture), objects_to_draw(answer))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(out)
    except (OSError, ValueError) as error:
        raise LyricsError(f"--draw {out}: cannot be written: {error}.") from error
