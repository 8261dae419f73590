"""``lyrics chat IMAGE...``: a conversation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lyrics.cli._abstaining import AbstainBelowOption, AbstainFlag, asked_abstaining
from lyrics.cli._generation import (
    BeamsOption,
    PenaltyOption,
    SeedOption,
    TemperatureOption,
    TopPOption,
    generation_options,
)
from lyrics.cli._model import (
    BoxesOption,
    DeviceOption,
    DownloadFlag,
    DtypeOption,
    ModelOption,
    RefinedOption,
    TokensOption,
    WeightsOption,
    answer_data,
    answer_lines,
    box_form,
    draw_answer,
    open_model,
    warn_of_unknown_images,
)
from lyrics.cli._output import JsonFlag, SetOption, print_piece, print_text
from lyrics.core.clean_text import json_printable

HELP = "/image FILE brings an image in, /quit or the end of input leaves, Ctrl-C stops an answer."


def chat(
    images: Annotated[list[Path] | None, typer.Argument(help="Images to begin with.")] = None,
    model: ModelOption = "lyrics-tiny",
    settings: SetOption = None,
    weights: WeightsOption = "pretrained",
    download: DownloadFlag = False,
    refined: RefinedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    max_new_tokens: TokensOption = 256,
    num_beams: BeamsOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    repetition_penalty: PenaltyOption = None,
    seed: SeedOption = None,
    abstain: AbstainFlag = False,
    abstain_below: AbstainBelowOption = None,
    boxes: BoxesOption = "original",
    draw: Annotated[
        Path | None, typer.Option(help="Write the last image with each answer's boxes here, over the one before.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Talk about images: questions from standard input, one a line, answers as they are written.

    A question may hold a box in pixels of the last image: <box 10 20 200 180>. Decoding is greedy; --temperature or
    --top-p sample instead, --num-beams searches.
    """
    import json as json_module

    from lyrics.core.errors import ImageError, LyricsError

    form = box_form(boxes)
    shown = [str(picture) for picture in images or ()]
    for picture in shown:
        if not Path(picture).is_file():
            raise ImageError(f"{picture}: no such image.", "missing")
    options = generation_options(num_beams, temperature, top_p, repetition_penalty, seed, max_new_tokens)
    abstaining = asked_abstaining(abstain, abstain_below)
    # Which of several beams is the answer, and whether it is withheld, is known at its end, so it is printed whole.
    whole = (num_beams or 1) > 1 or abstaining is not None
    opened = open_model(model, weights, settings, refined, device, dtype, download=download)
    warned = warn_of_unknown_images(opened, shown)
    talk = opened.chat(*shown)
    interactive = sys.stdin.isatty()
    if interactive:
        print(HELP, file=sys.stderr)
    while True:
        try:
            line = input("> ") if interactive else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            return
        if not interactive and not line:
            return
        question = line.strip()
        if not question:
            continue
        if question == "/quit":
            return
        try:
            if question.startswith("/image "):
                picture = question.removeprefix("/image ").strip()
                if not Path(picture).is_file():
                    raise ImageError(f"{picture}: no such image.", "missing")
                warned = warned or warn_of_unknown_images(opened, [picture])
                talk.show(picture)
                shown.append(picture)
                continue
            on_text = None if json or whole else _write
            answer = talk.ask(question, on_text=on_text, abstaining=abstaining, **options)
            if whole and not json:
                _write(answer.text)
            if json:
                print(
                    json_printable(
                        json_module.dumps({"question": question, **answer_data(answer, form)}, ensure_ascii=False)
                    )
                )
            else:
                print_text("\n".join(["", *answer_lines(answer, form)]))
            if draw is not None and shown:
                draw_answer(answer, Path(shown[-1]), draw)
        except KeyboardInterrupt:
            print("\n(stopped; this question is not part of the conversation)", file=sys.stderr)
        except LyricsError as error:
            if not interactive:
                raise
            print_text(f"lyrics: {error}", error=True)


def _write(text: str) -> None:
    print_piece(text)
