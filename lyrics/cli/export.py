"""``lyrics export RUN DEST``: a training run, or a model by any other name, as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lyrics.cli._model import DownloadFlag, WeightsOption
from lyrics.cli._output import JsonFlag, SetOption, print_json, print_text


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="The folder of a run or one of its checkpoints; or a model folder, a preset, a spec file, or a hub id."
        ),
    ],
    dest: Annotated[Path, typer.Argument(help="The model folder to write.")],
    trainable_only: Annotated[
        bool,
        typer.Option(
            "--trainable-only", help="Leave out the parts that no stage trains; they are noted with their sha256."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    settings: SetOption = None,
    weights: WeightsOption = "pretrained",
    download: DownloadFlag = False,
    json: JsonFlag = False,
) -> None:
    """Write what a run has trained so far as a model folder: safetensors, specification, tokenizers.

    It answers as the run does.
    """
    from lyrics.cli._overrides import parse_overrides
    from lyrics.core.errors import LyricsError, SpecError

    if dest.exists() and not dest.is_dir():
        raise SpecError(f"{dest}: is a file; a model is written to a folder.")
    if dest.is_dir() and Path(model).resolve() == dest.resolve():
        raise SpecError(f"{dest}: is what is exported; write the model to another folder.")
    if dest.is_dir() and any(dest.iterdir()) and not force:
        raise SpecError(f"{dest}: is not empty. Give another folder, or --force to write into this one.")
    overrides = parse_overrides(settings)

    from lyrics.core.loading import load_model

    built = load_model(model, overrides=overrides, weights=weights, downloads=download or None)
    try:
        built.save_pretrained(dest, trainable_only=trainable_only)
    except OSError as error:
        raise LyricsError(f"{dest}: cannot be written: {error.strerror or error}.") from error
    size = sum(file.stat().st_size for file in dest.rglob("*") if file.is_file())
    if json:
        print_json({"model": model, "folder": str(dest), "bytes": size, "trainable_only": trainable_only})
        return
    print_text(f"{dest}: a model folder of {size / 1e6:,.1f} MB")
    print_text(f'next: lyrics ask IMAGE "QUESTION" --model {dest}')
